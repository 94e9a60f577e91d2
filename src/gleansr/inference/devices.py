"""Devices, and their precisions and capabilities."""

import os

import torch

from gleansr.ambient import FORK_ADVICE, FORK_MESSAGE
from gleansr.errors import RequestError
from gleansr.inference.precision import full_name


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name, such as "cpu", "cuda" or "cuda:1"; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises RequestError if the device does not exist or cannot compute, such as "meta".
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        works = (torch.ones(1, device=device) + 1).item() == 2
    except (RuntimeError, TypeError, AssertionError, NotImplementedError, ImportError) as error:  # depends on the build of torch
        if FORK_MESSAGE in str(error):
            raise RequestError(FORK_ADVICE) from None
        works = False
    if not works:
        shown = str(name) if isinstance(name, torch.device) else name
        raise RequestError(f"the device {shown!r} is not there or not usable here; --device cpu always is, others are cuda, cuda:1 and mps")
    return device


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the convolutions, see `load`. Raises RequestError if the device does not support it."""
    name = full_name(name)
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and _has_bfloat16(device) else torch.float32
    if name == "float16" and device.type == "cpu":
        raise RequestError("float16 is for GPUs; on a CPU take --precision bfloat16 or float32")
    if name == "bfloat16" and device.type == "cuda" and not _has_bfloat16(device):
        major, minor = torch.cuda.get_device_capability(device)
        raise RequestError(
            f"{torch.cuda.get_device_name(device)} has no bfloat16 (its compute capability is {major}.{minor}, 8.0 is needed); "
            "take --precision float16 or float32"
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _has_bfloat16(gpu: torch.device) -> bool:
    """Whether its tensor cores support bfloat16; otherwise torch emulates it."""
    return torch.cuda.get_device_capability(gpu)[0] >= 8


def bfloat16_instructions() -> str | None:
    """The CPU's bfloat16 instructions, "AMX" or "AVX-512"; None if float32 is faster."""
    for name, probe in (("AMX", "_is_amx_tile_supported"), ("AVX-512", "_is_avx512_bf16_supported")):
        if getattr(torch.cpu, probe, lambda: False)():  # private, since PyTorch 2.6
            return name
    return None


def onednn_types(operator: str) -> frozenset[torch.dtype]:
    """The dtypes for which PyTorch has that operator of oneDNN, its library of CPU kernels."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, operator)):
        return frozenset()
    half = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset([torch.float32, torch.bfloat16] if half else [torch.float32])


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is short; on a CPU it is a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in ("out of memory", "allocate memory"))
