"""How a cluster is used."""

from dataclasses import dataclass

from gleansr.errors import RequestError


@dataclass(frozen=True)
class ClusterConfig:
    """Which cluster, and how many models at once on it."""

    address: str | None = None
    """HOST:PORT of a Ray cluster that this machine belongs to. By default that of $RAY_ADDRESS, or the cluster that was started or joined
    on this machine, or a new one of this machine's cores alone."""
    workers: int | None = None
    """Models at once; by default one for each GPU, or as many as the cores allow at the start."""
    cores: int | None = None
    """CPU cores of each worker; by default 1, and beside a GPU its share of them, up to 8."""
    gpus: bool = True
    """Whether the cluster's GPUs are used, if it has any."""
    tries: int = 2
    """How many of its workers an image may see die among its neighbours, and then again alone, before it is given up."""

    def __post_init__(self) -> None:
        for name in ("workers", "cores", "tries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} of a cluster must be 1 or more, not {value}")
