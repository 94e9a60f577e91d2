"""What the service is told at its start. Imports neither the web framework nor torch, so that `gleansr --help` can show it."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from typing import Annotated

from gleansr.configs import Range, check
from gleansr.errors import RequestError
from gleansr.inference.precision import Precision, full_name

LEAST_TOKEN = 16
"""Characters that a token must have at least."""


@dataclass(frozen=True)
class ServingConfig:
    """Where the service listens, what it serves and what it takes."""

    host: str = "127.0.0.1"
    """Address to listen on. One that other machines can reach needs a token."""
    port: Annotated[int, Range(0, 65535)] = 8008
    """Port to listen on; 0 takes a free one and says which."""
    models: tuple[str, ...] = ("cats-8x", "cats-16x")
    """Names or files of the models that are served; the first is the default."""
    token: str | None = field(default=None, repr=False)
    """Secret that requests must bring as `Authorization: Bearer TOKEN`. By default the environment variable GLEANSR_TOKEN, which other
    users of the machine cannot see as they can this option."""
    allow_hosts: tuple[str, ...] = ()
    """Names, beside loopback ones, by which the service may be asked for, such as that of the reverse proxy in front of it."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    precision: Precision = "auto"
    """Arithmetic: auto is float32 on a CPU and bfloat16 on a GPU that has it."""
    batch_size: Annotated[int | None, Range(1, 1024)] = None
    """Most images in one forward pass; by default what suits the device."""
    queue: Annotated[int, Range(1, 100_000)] = 64
    """Requests that are read, wait or are worked on at once; what comes beyond is answered 429."""
    max_bytes: Annotated[int, Range(1024, 2**32)] = 64 * 2**20
    """Most bytes of a request."""
    max_pixels: Annotated[int, Range(1, 2**28)] = 25_000_000
    """Most pixels of an image."""
    timeout: Annotated[float, Range(0.1, 86_400)] = 60.0
    """Seconds until a request that is not done is given up."""
    header_timeout: Annotated[float, Range(0.1, 86_400)] = 10.0
    """Seconds until a connection that has not sent the head of a request is closed."""
    stall_timeout: Annotated[float, Range(0.1, 86_400)] = 10.0
    """Seconds in which a client has to send, or take, the next 64 KiB of a body or its rest."""
    connections: Annotated[int, Range(1, 100_000)] = 512
    """Most connections at once."""
    connections_per_address: Annotated[int, Range(1, 100_000)] = 128
    """Most connections at once from one address, local ones too; raise it behind a proxy, whose connections are all from one."""

    @property
    def secret(self) -> str | None:
        """The token that requests must bring, None where they need none."""
        return self.token or os.environ.get("GLEANSR_TOKEN") or None

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", full_name(self.precision))
        token, exposed = self.secret, not is_loopback(self.host)
        try:
            check(
                self,
                (bool(self.models), "give at least one model with --models"),
                (
                    not exposed or token is not None,
                    f"other machines can reach {self.host}: give a token with --token or GLEANSR_TOKEN, or listen on 127.0.0.1",
                ),
                (
                    token is None or bool(re.fullmatch(rf"[!-~]{{{LEAST_TOKEN},}}", token)),
                    f"a token is at least {LEAST_TOKEN} printable ASCII characters without blanks, such as `openssl rand -hex 32` makes",
                ),
            )
        except ValueError as error:
            raise RequestError("; ".join(error.args)) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
