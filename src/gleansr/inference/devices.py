"""Devices, and the arithmetic and memory that they have."""

import os

import torch

from gleansr.ambient import FORK_ADVICE, FORK_MESSAGE
from gleansr.errors import RequestError
from gleansr.inference.precision import full_name


def cores() -> int:
    """Of the CPU, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name, such as "cpu", "cuda" or "cuda:1"; "auto" is CUDA, or Apple's MPS, or the CPU, the first that is there.

    Raises RequestError for one that is not there, or on which nothing can be computed, such as "meta".
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        works = (torch.ones(1, device=device) + 1).item() == 2
    except (RuntimeError, TypeError, AssertionError, NotImplementedError, ImportError) as error:  # any of these, by how torch was built
        if FORK_MESSAGE in str(error):
            raise RequestError(FORK_ADVICE) from None
        works = False
    if not works:
        shown = str(name) if isinstance(name, torch.device) else name
        raise RequestError(f"the device {shown!r} is not there or not usable here; --device cpu always is, others are cuda, cuda:1 and mps")
    return device


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic of the convolutions; see `load`. One that the device lacks is an error."""
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
    """Whether its tensor cores compute in bfloat16; torch emulates it where they do not."""
    return torch.cuda.get_device_capability(gpu)[0] >= 8


def bfloat16_instructions() -> str | None:
    """What the CPU multiplies bfloat16 with: "AMX", "AVX-512", or None where it has nothing and float32 is faster."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512" if torch.cpu._is_avx512_bf16_supported() else None


def onednn_types(operator: str) -> frozenset[torch.dtype]:
    """The types of maps for which PyTorch has that operator of oneDNN, its library of kernels for CPUs."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, operator)):
        return frozenset()
    half = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset([torch.float32, torch.bfloat16] if half else [torch.float32])


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error means; a CPU's comes as a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in ("out of memory", "allocate memory"))
