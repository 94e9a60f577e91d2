"""What `gleansr upscale --ray` is given."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gleansr.errors import RequestError

if TYPE_CHECKING:
    from gleansr.cluster import ClusterConfig

_ADDRESS = re.compile(r"auto|local|(ray://)?[^/\\]+:[0-9]+")


def requested(after_ray: tuple[str, ...], workers: int | None, cores: int | None, device: str) -> "tuple[ClusterConfig, tuple[Path, ...]]":
    """The cluster that is meant, and the inputs that were given behind --ray, whose address may be left out.

    Raises:
        RequestError: an option is wrong, or the first value is neither an address nor an input.
    """
    from gleansr.cluster import ClusterConfig
    from gleansr.stores import is_url

    if device not in ("auto", "cpu"):
        raise RequestError(f"--device {device}: with --ray it is auto, which uses the cluster's GPUs if it has any, or cpu")
    address, rest = (after_ray[0], after_ray[1:]) if after_ray and _ADDRESS.fullmatch(after_ray[0]) else (None, after_ray)
    for one in rest[:1]:
        if address is None and not is_url(one) and not os.path.lexists(one):
            known = "HOST:PORT, auto, local"
            raise RequestError(f"--ray {one}: neither the address of a cluster ({known}) nor an image or folder that is there")
    return ClusterConfig(address, workers, cores, gpus=device == "auto"), tuple(map(Path, rest))
