"""Winograd's minimal convolution F(2x2, 3x3) for inference on a CPU: 16 products instead of 36.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4. Each 2x2 square of the result comes from
a 4x4 square of the map, A^T [(G g G^T) * (B^T d B)] A, and the product over channels is 16 products of matrices. The additions move much
memory, so it is faster only with many channels, and runs in strips that stay in the cache. In float32 its error is smaller than that of
the direct convolution, whose sums are nine times as long; in bfloat16, where each rounded value counts, about twice as large.
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
"""Number of values that are multiplied at once: few enough for a cache, enough for fast products."""
_FAST_PRODUCTS = onednn_types("_linear_pointwise")
"""The dtypes of maps for which oneDNN has faster products of matrices than PyTorch."""
LINE = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float32, device="cpu")
"""G, which transforms a kernel in one dimension."""
TAPS = ((0, 2, -1), (1, 2, 1), (2, 1, -1), (1, 3, -1))
"""B^T, which transforms a map in one dimension: for each value the two of four neighbours and the sign of the second."""
_LEAST_CHANNELS = {torch.float32: 200, torch.bfloat16: 400}
"""Harmonic mean of the numbers of channels from which it is faster."""
_LEAST_SIZE = 28
"""Size of the map from which it is faster: on smaller maps the larger weights take longer than the arithmetic."""


def pays(weight: Tensor, size: int, dtype: torch.dtype) -> bool:
    """Whether it is faster than the direct convolution with `weight` (out, in, H, W) on maps of size x size, measured on x86."""
    n_out, n_in = weight.shape[:2]
    if dtype not in _LEAST_CHANNELS or weight.shape[2:] != (3, 3) or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    if dtype == torch.bfloat16 and bfloat16_instructions() != "AVX-512":  # with AMX the additions dominate
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
        """Weights of that dtype stay untransformed, because transformed ones are larger; others are copied anyway and transformed."""
        result = cls(weight.detach(), bias if bias is None else bias.detach().to(dtype), slope)
        return result if dtype == weight.dtype else replace(result, weight=transformed(result.weight, dtype))

    def ready(self) -> "WinogradConv":
        """The convolution with transformed weights, for several calls."""
        return self if self.weight.ndim == 3 else replace(self, weight=transformed(self.weight, self.weight.dtype))

    def with_bias(self, bias: Tensor | None) -> "WinogradConv":
        """With another one, (out,)."""
        return replace(self, bias=bias)

    def __call__(self, *maps: Tensor) -> Tensor:
        """Maps (N, C, H, W), concatenated, W even -> (N, out, H, W), channels last."""
        weight, lines = self.ready().weight, [x.permute(0, 2, 3, 1) for x in maps]
        n, height, width = lines[0].shape[:3]
        n_out, n_in = weight.shape[1:]
        even = (height + 1) // 2 * 2
        result = lines[0].new_empty(n, even, width, n_out)
        rows = 2 * max(1, min(_VALUES // (n_in * n * width // 2), even // 2))
        padded = result.new_empty(n, rows + 2, width + 2, n_in)
        padded[:, :, 0] = padded[:, :, -1] = 0
        for start in range(0, even, rows):
            strip = result[:, start : start + rows]
            strip_in = padded[:, : strip.shape[1] + 2]
            _fill(strip_in, lines, start - 1)
            self._convolve(strip_in, weight, strip)
            if self.slope is not None:
                F.leaky_relu_(strip, self.slope)
        return result[:, :height].permute(0, 3, 1, 2)

    def _convolve(self, padded: Tensor, weight: Tensor, out: Tensor) -> None:
        """padded (N, H + 2, W + 2, in), weight (16, out, in), out (N, H, W, out)."""
        n, height, width, n_out = out.shape
        lines = padded.new_empty(4, n, height // 2, width + 2, padded.shape[-1])
        for i in range(4):
            _combine(padded, i, lines[i])
        square = padded.new_empty(n, height // 2, width // 2, padded.shape[-1])
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
    """The convolution, with transformed weights if it is Winograd's."""
    return conv.ready() if isinstance(conv, WinogradConv) else conv  # pyright: ignore[reportReturnType]


def transformed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """G g G^T of (out, in, 3, 3) -> (16, out, in) in that dtype."""
    square = torch.kron(LINE, LINE).to(weight.dtype)  # both dimensions at once, (16, 9)
    return (square @ weight.permute(2, 3, 0, 1).flatten(2).flatten(0, 1)).unflatten(1, weight.shape[:2]).to(dtype)


def _fill(padded: Tensor, maps: Sequence[Tensor], top: int) -> None:
    """Copies the rows from `top` of maps (N, H, W, C), concatenated and zero-padded, into (N, h, W + 2, sum of C), except its first and
    last columns."""
    first, read = max(top, 0), 0
    last = min(top + padded.shape[1], maps[0].shape[1])
    padded[:, : first - top] = 0
    padded[:, last - top :] = 0
    for x in maps:
        padded[:, first - top : last - top, 1:-1, read : read + x.shape[-1]] = x[:, first:last]
        read += x.shape[-1]


def _combine(x: Tensor, i: int, out: Tensor) -> None:
    """The i-th row of B^T applied to four neighbours, two apart, along the second axis of x (N, 2L + 2, ...), into out (N, L, ...)."""
    first, second, sign = TAPS[i]
    last = x.shape[1] - 3
    torch.add(x[:, first : first + last : 2], x[:, second : second + last : 2], alpha=sign, out=out)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in), weight (out, in) -> (..., out)."""
    if x.dtype in _FAST_PRODUCTS:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)
