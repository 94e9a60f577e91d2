"""Configuration of a cluster run."""

from dataclasses import dataclass

from gleansr.errors import RequestError


@dataclass(frozen=True)
class ClusterConfig:
    """The cluster and its number of workers."""

    address: str | None = None
    """HOST:PORT of a Ray cluster that this machine belongs to. By default that of $RAY_ADDRESS, else the cluster started or joined on this
    machine, else a new one of this machine's cores."""
    workers: int | None = None
    """Number of models; by default one per GPU, or as many as the cores allow at the start."""
    cores: int | None = None
    """CPU cores of each worker; by default 1, for a GPU worker the GPU's share of the cores, up to 8."""
    gpus: bool = True
    """Whether to use the cluster's GPUs."""
    tries: int = 2
    """Number of worker deaths after which a group of images is split, and then a single image fails."""

    def __post_init__(self) -> None:
        for name in ("workers", "cores", "tries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} of a cluster must be 1 or more, not {value}")
