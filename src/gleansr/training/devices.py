"""Devices and processes of a run, with Lightning Fabric."""

import atexit
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, cast

import torch
from torch.nn.parallel import DistributedDataParallel

from gleansr.errors import RequestError
from gleansr.training.config import RunConfig


@contextmanager
def _without_torchmetrics() -> Iterator[None]:
    """Fabric imports torchmetrics, and with it half of SciPy, where they are installed, to compare its version: seconds of each process."""
    imported = "torchmetrics" in sys.modules
    if not imported:
        sys.modules["torchmetrics"] = cast("ModuleType", None)
    try:
        yield
    finally:
        if not imported:
            del sys.modules["torchmetrics"]


# Checked with Fabric 2.6; whatever another version wants of torchmetrics, the second import has it.
with suppress(ImportError), _without_torchmetrics():
    importlib.import_module("lightning_fabric.strategies.ddp")

try:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
except ImportError:
    raise RequestError("training needs Lightning Fabric: pip install 'gleansr[train]'") from None

__all__ = ["Fabric", "find_devices", "launch"]


def find_devices(run: RunConfig, device: str = "auto", devices: int | None = None, nodes: int = 1) -> tuple[str, int | list[int], int, str]:
    """Chooses accelerator ("cpu" or "cuda"), devices per node (a number, or a list with the index of one GPU) and nodes, with a remark.

    torchrun's number of processes comes first, then `devices`, then the recipe's number, or fewer if the machine has fewer: the same
    batches and results, in more time. A CPU uses one process unless `devices` asks for more.
    """
    kind, _, index = device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda"):
        raise RequestError(f"training runs on cpu or cuda, not on {device!r}")
    available = torch.cuda.device_count() if kind == "cuda" else devices or 1
    if kind == "cuda" and not available:
        raise RequestError("no CUDA device is available; use --device cpu")
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's own variables
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
        available = devices if kind == "cpu" else available
    if devices is not None and devices > available:
        raise RequestError(f"{devices} devices were requested, but {available} are available; use --devices {available}")
    if (devices is not None and devices < 1) or nodes < 1:
        raise RequestError(f"--devices and --nodes must be positive, not {devices} and {nodes}")
    chosen = devices or min(run.devices, available)
    if run.batch_size % (chosen * nodes):
        raise RequestError(
            f"a batch of {run.batch_size} cannot be shared evenly by {chosen * nodes} processes; use --devices or --option run.batch_size"
        )
    remark = ""
    if chosen * nodes < run.devices:
        remark = f"the recipe has {run.devices} devices, this run {chosen * nodes}: the same batches of {run.batch_size}, in more time"
    if index:
        if chosen * nodes > 1 or not index.isdecimal() or int(index) >= available:
            raise RequestError(f"the device {device!r} is not available, or is a single one while --devices is {chosen}")
        return kind, [int(index)], nodes, remark
    return kind, chosen, nodes, remark


def launch(accelerator: str, devices: int | list[int], nodes: int = 1) -> Fabric:
    """Starts the processes of a run, one per device, and returns each process's Fabric."""
    single = nodes == 1 and (isinstance(devices, list) or devices == 1)
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if single else _ddp_strategy(),
        precision="32-true",  # "bf16-mixed" rounds a network's inputs; the loop sets autocast itself
    )
    fabric.launch()
    if not single:
        atexit.register(_destroy_process_group)
    return fabric


def _destroy_process_group() -> None:
    """Lightning does this on GPUs only; on CPUs, communication threads that outlive Python may abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _ddp_strategy() -> DDPStrategy:
    """DDP that synchronises gradients but not buffers.

    The discriminator has two forward passes, of results and ground truths, before its backward pass. Synchronising the running means of its
    batch normalisation before each would overwrite what the backward pass needs (a variable "modified by an inplace operation").
    """
    parameters = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"  # PyTorch's new and old name
    options: dict[str, Any] = {name: False}
    return DDPStrategy(**options)
