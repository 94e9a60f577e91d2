"""Winograd's minimal convolution F(2x2, 3x3), for inference on a CPU: 16 products where the convolution itself has 36.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4. Each 2x2 square of the result comes from
a 4x4 square of the map, A^T [(G g G^T) * (B^T d B)] A, and the product over channels is 16 products of matrices. Its additions move much
memory, so that it pays where there are many channels, and it is done in strips that stay in the cache. In float32 it errs less than the
convolution itself, whose sums are nine times as long; in bfloat16, where what is rounded counts and not how often, about twice as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.inference.devices import bfloat16_instructions, onednn_types

C = TypeVar("C")

_VALUES = 2**19
"""Pairs of rows are taken together until that many values are multiplied at once: few enough for a cache, enough for fast products."""
_FAST_PRODUCTS = onednn_types("_linear_pointwise")
"""For which maps there are products of matrices that are faster than PyTorch's usual ones."""
LINE = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float32, device="cpu")
"""G, which transforms a kernel in one dimension."""
TAPS = ((0, 2, -1), (1, 2, 1), (2, 1, -1), (1, 3, -1))
"""B^T, which transforms a map in one dimension: the two of four neighbours that each value is made of, and the sign of the second."""
_LEAST_CHANNELS = {torch.float32: 200, torch.bfloat16: 400}
"""Harmonic mean of the numbers of channels from which on it pays."""
_LEAST_SIZE = 28
"""Of the map from which on it pays: for a smaller one the weights, which are more, take longer than the arithmetic."""


def pays(weight: Tensor, size: int, dtype: torch.dtype) -> bool:
    """Whether it is faster than the convolution itself with `weight` (out, in, H, W) in maps of size x size, as measured on x86."""
    n_out, n_in = weight.shape[:2]
    if dtype not in _LEAST_CHANNELS or weight.shape[2:] != (3, 3) or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    if dtype == torch.bfloat16 and bfloat16_instructions() != "AVX-512":  # AMX is too fast for the additions to keep up
        return False
    return 2 * n_in * n_out >= _LEAST_CHANNELS[dtype] * (n_in + n_out) and size >= _LEAST_SIZE


@dataclass(frozen=True, eq=False)
class WinogradConv:
    """A 3x3 convolution of stride 1 with constant weights and, unless `slope` is None, a leaky ReLU."""

    weight: Tensor
    """(out, in, 3, 3), or transformed, (16, out, in)."""
    bias: Tensor | None
    slope: float | None = None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, slope: float | None = None) -> "WinogradConv":
        """Weights in their own type are read where they lie, since the transformed ones are larger; else they are a copy in any case."""
        made = cls(weight.detach(), bias if bias is None else bias.detach().to(dtype), slope)
        return made if dtype == weight.dtype else replace(made, weight=transformed(made.weight, dtype))

    def ready(self) -> "WinogradConv":
        """With transformed weights, which several calls can share."""
        return self if self.weight.ndim == 3 else replace(self, weight=transformed(self.weight, self.weight.dtype))

    def with_bias(self, bias: Tensor | None) -> "WinogradConv":
        """With another one, (out,)."""
        return replace(self, bias=bias)

    def __call__(self, *maps: Tensor) -> Tensor:
        """Maps (N, C, H, W) side by side, W even -> (N, out, H, W), channels last."""
        weight, lines = self.ready().weight, [x.permute(0, 2, 3, 1) for x in maps]
        n, height, width = lines[0].shape[:3]
        n_out, n_in = weight.shape[1:]
        even = (height + 1) // 2 * 2
        made = lines[0].new_empty(n, even, width, n_out)
        rows = 2 * max(1, min(_VALUES // (n_in * n * width // 2), even // 2))
        framed = made.new_empty(n, rows + 2, width + 2, n_in)
        framed[:, :, 0] = framed[:, :, -1] = 0
        for start in range(0, even, rows):
            strip = made[:, start : start + rows]
            taken = framed[:, : strip.shape[1] + 2]
            _fill(taken, lines, start - 1)
            self._convolve(taken, weight, strip)
            if self.slope is not None:
                F.leaky_relu_(strip, self.slope)
        return made[:, :height].permute(0, 3, 1, 2)

    def _convolve(self, framed: Tensor, weight: Tensor, out: Tensor) -> None:
        """framed (N, H + 2, W + 2, in), weight (16, out, in), out (N, H, W, out)."""
        n, height, width, n_out = out.shape
        lines = framed.new_empty(4, n, height // 2, width + 2, framed.shape[-1])
        for i in range(4):
            _combine(framed, i, lines[i])
        square = framed.new_empty(n, height // 2, width // 2, framed.shape[-1])
        columns: list[tuple[Tensor, Tensor]] = []
        for j in range(4):
            products: list[Tensor] = []
            for i in range(4):
                _combine(lines[i].transpose(1, 2), j, square.transpose(1, 2))
                products.append(_product(square, weight[4 * i + j], self.bias if i == j == 1 else None))
            first, second, third, fourth = products
            columns.append((first.add_(second).add_(third), second.sub_(third).sub_(fourth)))
        pixels = out.view(n, height // 2, 2, width // 2, 2, n_out)
        for i in range(2):
            first, second, third, fourth = (column[i] for column in columns)
            torch.add(first.add_(second), third, out=pixels[:, :, i, :, 0])
            torch.sub(second.sub_(third), fourth, out=pixels[:, :, i, :, 1])


def ready(conv: C) -> C:
    """A convolution of any kind, with transformed weights if it is Winograd's."""
    return conv.ready() if isinstance(conv, WinogradConv) else conv  # pyright: ignore[reportReturnType]


def transformed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """G g G^T of (out, in, 3, 3) -> (16, out, in) of that type."""
    square = torch.kron(LINE, LINE).to(weight.dtype)  # both dimensions at once, (16, 9)
    return (square @ weight.permute(2, 3, 0, 1).flatten(2).flatten(0, 1)).unflatten(1, weight.shape[:2]).to(dtype)


def _fill(framed: Tensor, maps: Sequence[Tensor], top: int) -> None:
    """The rows from `top` on of maps (N, H, W, C), zeros where they have none, side by side into (N, h, W + 2, sum of C) but for its first
    and last columns."""
    first, read = max(top, 0), 0
    last = min(top + framed.shape[1], maps[0].shape[1])
    framed[:, : first - top] = 0
    framed[:, last - top :] = 0
    for x in maps:
        framed[:, first - top : last - top, 1:-1, read : read + x.shape[-1]] = x[:, first:last]
        read += x.shape[-1]


def _combine(x: Tensor, i: int, out: Tensor) -> None:
    """The i-th value that B^T makes of four neighbours, two apart, along the second axis of x (N, 2L + 2, ...), into out (N, L, ...)."""
    one, other, sign = TAPS[i]
    last = x.shape[1] - 3
    torch.add(x[:, one : one + last : 2], x[:, other : other + last : 2], alpha=sign, out=out)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in), weight (out, in) -> (..., out)."""
    if x.dtype in _FAST_PRODUCTS:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)
