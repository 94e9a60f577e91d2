"""Devices and processes of a run, by Lightning Fabric."""

import atexit
import inspect
import os
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from gleansr.errors import RequestError
from gleansr.training.config import RunConfig

try:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
except ImportError:
    raise RequestError("training needs Lightning Fabric: pip install 'gleansr[train]'") from None

__all__ = ["Fabric", "find_devices", "launch"]


def find_devices(run: RunConfig, device: str = "auto", devices: int | None = None, nodes: int = 1) -> tuple[str, int | list[int], int, str]:
    """Where to run: accelerator ("cpu" or "cuda"), devices per node (a number, or a list with the index of one GPU), nodes, and a remark.

    Under torchrun its number of processes counts. Otherwise `devices`, or where it is None the recipe's, of which this machine may have
    fewer: the batch stays the same, so the result does, and takes longer. On a CPU several processes are started on demand only.
    """
    kind, _, index = device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda"):
        raise RequestError(f"training runs on cpu or cuda, not on {device!r}")
    there = torch.cuda.device_count() if kind == "cuda" else devices or 1
    if kind == "cuda" and not there:
        raise RequestError("there is no CUDA device here; --device cpu always is")
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's own variables
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
        there = devices if kind == "cpu" else there
    if devices is not None and devices > there:
        raise RequestError(f"{devices} devices are asked for, but there are {there} here; choose --devices {there}")
    if (devices is not None and devices < 1) or nodes < 1:
        raise RequestError(f"--devices and --nodes must be positive, not {devices} and {nodes}")
    chosen = devices or min(run.devices, there)
    if run.batch_size % (chosen * nodes):
        raise RequestError(
            f"a batch of {run.batch_size} cannot be shared evenly by {chosen * nodes} processes; choose --devices or --set run.batch_size"
        )
    remark = ""
    if chosen * nodes < run.devices:
        remark = f"the recipe has {run.devices} devices, here is {chosen * nodes}: the same batches of {run.batch_size}, more time"
    if index:
        if chosen * nodes > 1 or not index.isdecimal() or int(index) >= there:
            raise RequestError(f"the device {device!r} is not there, or is one while --devices asks for {chosen}")
        return kind, [int(index)], nodes, remark
    return kind, chosen, nodes, remark


def launch(accelerator: str, devices: int | list[int], nodes: int = 1) -> Fabric:
    """Starts the processes of a run, one per device; each of them gets its Fabric here."""
    one = nodes == 1 and (isinstance(devices, list) or devices == 1)
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if one else _exchanging(),
        precision="32-true",  # its "bf16-mixed" rounds what goes into a network; the loop sets autocast itself
    )
    fabric.launch()
    if not one:
        atexit.register(_part)
    return fabric


def _part() -> None:
    """Lightning does this on GPUs alone; on CPUs threads of the exchange that outlive Python's end may abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _exchanging() -> DDPStrategy:
    """Processes that exchange gradients, and no buffers.

    The discriminator sees results and ground truths before it learns from either. Exchanging the running means of its batch normalisation
    before each would spoil what the backward pass needs of the first (cuDNN reports a variable "modified by an inplace operation").
    """
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # PyTorch's new and old name
    options: dict[str, Any] = {name: False}
    return DDPStrategy(**options)
