"""Settings of the service. Imports neither the web framework nor torch, which `gleansr --help` does not need."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from typing import Annotated

from gleansr.configs import Range, check_request
from gleansr.inference.precision import Precision, full_name

_MIN_TOKEN = 16
"""Minimum length of a token."""


@dataclass(frozen=True)
class ServingConfig:
    """Address, models and limits of the service."""

    host: str = "127.0.0.1"
    """Address to listen on. An address that other machines can reach requires a token."""
    port: Annotated[int, Range(0, 65535)] = 8008
    """Port to listen on; 0 chooses a free port and prints it."""
    models: tuple[str, ...] = ("auto",)
    """Names or files of the models; the first is the default. "auto" serves all bundled ones, and chooses for requests without a model."""
    token: str | None = field(default=None, repr=False)
    """Secret that requests send as `Authorization: Bearer TOKEN`. Default: the environment variable GLEANSR_TOKEN, which, unlike this
    option, is hidden from other users of the machine."""
    allow_hosts: tuple[str, ...] = ()
    """Host names of the service besides loopback ones, such as that of a reverse proxy."""
    device: str = "auto"
    """auto (a GPU if available), cpu, cuda, cuda:1, mps."""
    precision: Precision = "auto"
    """Arithmetic: auto is float32 on a CPU and bfloat16 on a GPU that supports it."""
    batch_size: Annotated[int | None, Range(1, 1024)] = None
    """Maximum number of images in a forward pass; by default depends on the device."""
    queue: Annotated[int, Range(1, 100_000)] = 64
    """Maximum number of requests at once; further ones are answered with 429."""
    max_bytes: Annotated[int, Range(1024, 2**32)] = 64 * 2**20
    """Maximum size of a request in bytes."""
    max_pixels: Annotated[int, Range(1, 2**28)] = 25_000_000
    """Maximum number of pixels of an image; a result may have four times as many."""
    timeout: Annotated[float, Range(0.1, 86_400)] = 300.0
    """Seconds until an unfinished request is aborted."""
    header_timeout: Annotated[float, Range(0.1, 86_400)] = 10.0
    """Seconds until a connection without the complete head of a request is closed."""
    stall_timeout: Annotated[float, Range(0.1, 86_400)] = 10.0
    """Seconds in which a client must send, or receive, the next 64 KiB of a body or its rest."""
    connections: Annotated[int, Range(1, 100_000)] = 512
    """Maximum number of connections."""
    connections_per_address: Annotated[int, Range(1, 100_000)] = 128
    """Maximum number of connections from one address, including local ones; raise it behind a proxy, which has a single address."""

    @property
    def secret(self) -> str | None:
        """The token that requests must send, or None."""
        return self.token or os.environ.get("GLEANSR_TOKEN") or None

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", full_name(self.precision))
        token, exposed = self.secret, not is_loopback(self.host)
        check_request(
            self,
            (bool(self.models), "give at least one model with --models"),
            (
                not exposed or token is not None,
                f"other machines can reach {self.host}: give a token with --token or GLEANSR_TOKEN, or listen on 127.0.0.1",
            ),
            (
                token is None or bool(re.fullmatch(rf"[!-~]{{{_MIN_TOKEN},}}", token)),
                f"a token needs at least {_MIN_TOKEN} printable ASCII characters, no blanks; create one with `openssl rand -hex 32`",
            ),
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
