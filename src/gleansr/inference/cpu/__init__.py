"""The fast formulation of GLEAN for CPUs. `available` first tests the private operators of PyTorch that it uses (those of 2.13)."""

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import one_line

log = logging.getLogger("gleansr")

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@cache
def available(dtype: torch.dtype) -> bool:
    """Whether the private operators compute what PyTorch's public ones do, with maps of that type. If not, logs why, once."""
    try:
        problem = _problem(dtype)
    except Exception as error:  # a changed operator can raise anything
        problem = f"{type(error).__name__}: {one_line(error)}"
    if problem:
        log.warning("the fast CPU path is off, as PyTorch %s has other operators: %s", torch.__version__, problem)
    return problem is None


@plain_torch()
@torch.inference_mode()
def _problem(dtype: torch.dtype) -> str | None:
    """Runs each kind of convolution on a tiny map. Returns what differs from the plain convolution, None if nothing."""
    from gleansr.inference.cpu.fused import FusedConv, SplitConv, laid_out
    from gleansr.inference.cpu.winograd import WinogradConv

    n_in, n_out, slope = 8, 8, 0.2
    x, weight, bias = _wave(1, n_in, 6, 6), _wave(n_out, n_in, 3, 3), _wave(n_out)
    x = x.contiguous(memory_format=torch.channels_last)
    linear = F.conv2d(x, weight, bias, padding=1)
    expected = F.leaky_relu(linear, slope)
    maps, fused = x.to(dtype), FusedConv(laid_out(weight, dtype), bias.to(dtype))
    results = {
        "convolution": (fused(maps), linear),
        "packed weights": (fused.packed()(maps), linear),
        "activation": (FusedConv(fused.weight, fused.bias, slope)(maps), expected),
        "sum": (SplitConv(weight, bias, n_in // 2, dtype, slope)(*maps.split(n_in // 2, 1)), expected),
        "product": (WinogradConv.of(weight, bias, dtype, slope)(maps), expected),
    }
    for name, (result, reference) in results.items():
        if result.shape != reference.shape or result.dtype != dtype:
            return f"{name} gives {result.dtype} of {tuple(result.shape)}, not {dtype} of {tuple(reference.shape)}"
        difference = float((result.float() - reference).abs().max() / reference.abs().max())
        if not difference <= _TOLERANCE[dtype]:
            return f"{name} differs by {difference:.2g} of the largest value"
    return None


def _wave(*shape: int) -> Tensor:
    """Fixed values in [-1, 1], without the random state."""
    size = torch.Size(shape).numel()
    return torch.arange(size, dtype=torch.float32).mul(1.7).sin().view(shape)
