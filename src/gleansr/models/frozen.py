"""GLEAN for inference on a CPU: what is the same for all pictures is computed once, and large maps of features never exist as a whole.

The same function as `GLEAN.forward` up to rounding, in other steps:

- The modulation of a convolution goes into its weights, one picture at a time, where maps are larger than weights; so do the demodulation
  and the activation's gain.
- From the size of the low-resolution picture on, each size is made in strips of rows, which stay in the processor's cache from the first
  step to the last. A strip reads some rows more than it makes, since each convolution spoils one where the strip was cut.
- In bfloat16 a transposed convolution and the blur behind it are one convolution to four times the channels: more arithmetic, of which
  there is plenty, and less memory.
- An activation is computed with the convolution before it where PyTorch's library of kernels can (oneDNN).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.models.glean import GLEAN, Encoder, NoBank
from gleansr.models.layers import SQRT2
from gleansr.models.rrdb import RRDB, DenseBlock
from gleansr.models.stylegan2 import StyledConv, StyleGAN2, StyleGAN2Synthesis

_STRIP = 16 * 2**20
"""Bytes that the widest map of a strip takes at most: few enough for a cache, and enough for few rows to be made twice."""
_LEAST_ROWS = 8


def _fused_types() -> frozenset[torch.dtype]:
    """For which maps oneDNN can compute an activation with the convolution before it."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return frozenset()
    half = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset([torch.float32, torch.bfloat16] if half else [torch.float32])


_FUSED = _fused_types()


def freezable(model: nn.Module) -> bool:
    """Whether there is a `FrozenGLEAN` of it: not around a StyleGAN, whose layers normalise whole maps."""
    return isinstance(model, GLEAN) and isinstance(model.bank, StyleGAN2 | NoBank)


@dataclass(frozen=True, eq=False)
class _Conv:
    """A convolution with constant weights and, unless `slope` is None, a leaky ReLU."""

    weight: Tensor
    bias: Tensor
    slope: float | None = None
    stride: int = 1

    @classmethod
    def of(cls, conv: nn.Conv2d, dtype: torch.dtype, slope: float | None = None) -> "_Conv":
        made = cls(_laid_out(conv.weight, dtype), cast("Tensor", conv.bias).detach().to(dtype), slope, conv.stride[0])
        return made if dtype == conv.weight.dtype else made.packed()  # what would be a copy in any case

    def packed(self) -> "_Conv":
        """With a copy of its weights in the order in which oneDNN wants them, which it otherwise makes for each call."""
        if self.weight.dtype not in _FUSED or not hasattr(torch.ops.mkldnn, "_reorder_convolution_weight"):
            return self
        n_in, sides, padding = self.weight.shape[1], [64, 64], self.weight.shape[-1] // 2  # the order hardly depends on the map
        with torch.inference_mode():
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            weight = reorder(self.weight, [padding] * 2, [self.stride] * 2, [1, 1], 1, [1, n_in, *sides])
        return replace(self, weight=weight)

    def __call__(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[-1] // 2
        if x.dtype not in _FUSED:
            y = F.conv2d(x, self.weight, self.bias, self.stride, padding)
            return y if self.slope is None else F.leaky_relu_(y, self.slope)
        what, how = ("none", []) if self.slope is None else ("leaky_relu", [self.slope])
        fused = torch.ops.mkldnn._convolution_pointwise
        return fused(x, self.weight, self.bias, [padding] * 2, [self.stride] * 2, [1, 1], 1, what, how, "")


class _Dense:
    """A dense block."""

    def __init__(self, block: DenseBlock, dtype: torch.dtype):
        *growing, last = (cast("nn.Conv2d", conv) for conv in block.convs)
        self._growing, self._last = [_Conv.of(conv, dtype, 0.2) for conv in growing], _Conv.of(last, dtype)
        self._dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, C, H, W), float32 -> the same."""
        dense = x.to(self._dtype)
        for conv in self._growing:
            dense = torch.cat([dense, conv(dense)], 1)
        return torch.add(x, self._last(dense), alpha=0.2)


class _Styled:
    """A layer of the bank."""

    def __init__(self, layer: StyledConv, noise: Tensor, dtype: torch.dtype):
        conv = layer.conv
        weight = conv.weight.detach()
        self.dtype, self.up, self._clamp = dtype, conv.blur is not None, layer.clamp
        self._weight, self._scale = weight, conv.scale  # of unit variance; the scale goes into the style
        self._affine, self._offset = conv.affine.weight.detach() * conv.affine.scale, conv.affine.bias.detach() * conv.affine.lr_mul
        self._energy = (weight.square().sum((2, 3)) * conv.scale**2).t().contiguous()
        self.bias = (layer.bias.detach() * SQRT2).to(dtype)
        self._noise = (noise * (layer.noise_strength.detach() * SQRT2)).to(dtype)
        self._kernel = conv.blur.kernel.to(dtype).expand(weight.shape[0], 1, 4, 4) if conv.blur is not None else None

    @classmethod
    def at(cls, synthesis: StyleGAN2Synthesis, j: int, dtype: torch.dtype) -> list[Self]:
        """The layers whose result is of 4 * 2^j px."""
        noises = synthesis.noises("fixed", 1)
        return [cls(cast("StyledConv", synthesis.layers[i]), cast("Tensor", noises[i]), dtype) for i in synthesis.layers_at(j)]

    def factors(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """code (N, code_dim) -> scales of the input's channels (N, in) and of the output's (N, out), in float32."""
        style = F.linear(code, self._affine, self._offset)
        return style * self._scale, torch.rsqrt(style.square() @ self._energy + 1e-8) * SQRT2

    def modulated(self, code: Tensor) -> Tensor:
        """code (1, code_dim) -> the weight for one picture, (out, in, 3, 3), in float32."""
        style, gain = self.factors(code)
        return self._weight * (gain[0, :, None] * style)[:, :, None, None]

    def blurred(self, y: Tensor, bias: Tensor | None = None) -> Tensor:
        """(N, out, 2H + 1, 2W + 1) -> (N, out, 2H, 2W)."""
        return F.conv2d(y, cast("Tensor", self._kernel), bias, padding=1, groups=y.shape[1])

    def activated(self, y: Tensor, rows: slice = slice(None)) -> Tensor:
        """y + noise of those rows, activated. Overwrites y."""
        y = F.leaky_relu_(y.add_(self._noise[:, :, rows]), 0.2)
        return y if self._clamp is None else y.clamp_(-self._clamp, self._clamp)


class _Small(_Styled):
    """A layer whose maps are smaller than its weights, for several pictures at once."""

    def __init__(self, layer: StyledConv, noise: Tensor, dtype: torch.dtype):
        super().__init__(layer, noise, dtype)
        self._constant = self._weight.to(dtype).transpose(0, 1) if self.up else _laid_out(self._weight, dtype)

    def __call__(self, x: Tensor, code: Tensor) -> Tensor:
        """x (N, in, H, W), code (N, code_dim) -> (N, out, H', W')."""
        style, gain = (factor[:, :, None, None].to(self.dtype) for factor in self.factors(code))
        x = x * style
        y = self.blurred(F.conv_transpose2d(x, self._constant, stride=2)) if self.up else F.conv2d(x, self._constant, padding=1)
        return self.activated(y.mul_(gain).add_(self.bias[:, None, None]))


@dataclass(frozen=True, eq=False)
class _Strip:
    """Some rows of a map that does not exist as a whole."""

    map: Tensor
    """(1, C, rows, W)."""
    top: int
    """The place of its first row in the whole map."""
    height: int
    """Rows of the whole map."""

    @property
    def rows(self) -> slice:
        """Its place in the whole map."""
        return slice(self.top, self.top + self.map.shape[2])

    def of(self, rows: slice) -> Tensor:
        """Those rows of the whole map, which it has."""
        return self.map[:, :, rows.start - self.top : rows.stop - self.top]

    def convolved(self, made: Tensor) -> "_Strip":
        """What a 3x3 convolution made of it, without the row that it spoilt at each edge where the map was cut."""
        return _Strip(made, self.top, self.height)._without(1)

    def doubled(self, made: Tensor) -> "_Strip":
        """What an enlargement made of it, without the two rows that it spoilt."""
        return _Strip(made, 2 * self.top, 2 * self.height)._without(2)

    def _without(self, spoilt: int) -> "_Strip":
        above, below = spoilt * (self.rows.start > 0), spoilt * (self.rows.stop < self.height)
        return _Strip(self.map[:, :, above : self.map.shape[2] - below], self.top + above, self.height)


class _Modulated:
    """A layer with the weights of one picture."""

    def __init__(self, layer: _Styled, code: Tensor):
        """`code`: (1, code_dim)."""
        self._layer, self._transposed = layer, None
        weight = layer.modulated(code)
        if not layer.up:
            self._conv = _Conv(_laid_out(weight, layer.dtype), layer.bias)
        elif layer.dtype == torch.float32:
            self._transposed = weight.transpose(0, 1).contiguous()
        else:
            self._conv = _Conv(_laid_out(merged(weight), layer.dtype), layer.bias.repeat(4))

    def __call__(self, strip: _Strip) -> _Strip:
        layer = self._layer
        if not layer.up:
            return strip.convolved(layer.activated(self._conv(strip.map), strip.rows))
        if self._transposed is None:
            y = shuffled(self._conv(strip.map))
        else:
            y = layer.blurred(F.conv_transpose2d(strip.map, self._transposed, stride=2), layer.bias)
        return strip.doubled(layer.activated(y, slice(2 * strip.rows.start, 2 * strip.rows.stop)))


class _Level:
    """One enlargement of the decoder, with the bank's layers beside it and, at the last size, the decoder's last convolutions."""

    def __init__(self, model: GLEAN, i: int, layers: Sequence[_Styled], dtype: torch.dtype):
        """`i`: which enlargement; `layers`: the bank's at the new size, none without a bank."""
        decoder = model.decoder
        conv = cast("nn.Conv2d", decoder.up[i].conv)
        self._width = conv.out_channels // 4
        order = torch.arange(conv.out_channels).view(self._width, 4).t().reshape(-1)  # as `shuffled` wants them
        self._conv = _Conv(_laid_out(conv.weight[order], dtype), cast("Tensor", conv.bias).detach()[order].to(dtype)).packed()
        self.layers, self._beside = layers, i > 0 and bool(layers)
        self._ends = [_Conv.of(decoder.last, dtype, 0.2), _Conv.of(decoder.out, dtype)] if i == len(decoder.up) - 1 else []
        # An enlargement spoils two rows of its output where its input was cut, and each convolution behind it one more.
        self._beyond = 1 + math.ceil(len(self._ends) / 2)
        self._beyond_beside = 1 + math.ceil((len(layers) - 1 + len(self._ends)) / 2)
        widest = max(2 * self._width, *(len(end.weight) for end in self._ends), 0)
        row = widest * dtype.itemsize * model.config.in_size * 2 ** (i + 1)
        self._rows = max(_LEAST_ROWS, _STRIP // row // 2)

    def __call__(self, high: Tensor, x: Tensor | None, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        """The decoder's feature (1, C, H, W) and the bank's x (1, C', H, W), if there is a bank, to those of twice the size; at the last
        size to the picture (1, 3, 2H, 2W) and None. codes: (1, L, code_dim), those of the layers."""
        height, width = high.shape[-2:]
        layers = [_Modulated(layer, codes[:, i]) for i, layer in enumerate(self.layers)]
        made = _empty(high, 3 if self._ends else self._width, height, width)
        made_x = _empty(high, self._width, height, width) if layers and not self._ends else None
        for start in range(0, height, self._rows):
            end = min(start + self._rows, height)
            rows = slice(2 * start, 2 * end)
            strip = _strip(high, start - self._beyond, end + self._beyond)
            read = strip.map
            if x is not None and self._beside:
                read = torch.cat([read, x[:, :, strip.rows]], 1)
            strip = strip.doubled(shuffled(self._conv(read)))
            beside = None if x is None else _strip(x, start - self._beyond_beside, end + self._beyond_beside)
            for layer in layers:
                beside = layer(cast("_Strip", beside))
            if beside and made_x is not None:
                made_x[:, :, rows] = beside.of(rows)
            elif beside:
                rows_of_both = slice(max(strip.rows.start, beside.rows.start), min(strip.rows.stop, beside.rows.stop))
                both = torch.cat([strip.of(rows_of_both), beside.of(rows_of_both)], 1)
                strip = _Strip(both, rows_of_both.start, strip.height)
            for conv in self._ends:
                strip = strip.convolved(conv(strip.map))
            made[:, :, rows] = strip.of(rows)
        return made, made_x


class FrozenGLEAN:
    """The function of a GLEAN that changes no more. Weights are read where they lie in it, as far as they can be."""

    def __init__(self, model: GLEAN, dtype: torch.dtype):
        """`model`: one that is `freezable`, on the CPU; `dtype`: of maps and convolutions. Styles and demodulation are in float32."""
        encoder, bank = model.encoder, model.bank
        trunk = encoder.trunk
        self._dtype = dtype
        self._first, self._last = _Conv.of(trunk.first, dtype), _Conv.of(trunk.last, dtype)
        self._body = [[_Dense(cast("DenseBlock", block), dtype) for block in cast("RRDB", rrdb).blocks] for rrdb in trunk.body]
        self._head = _Conv.of(encoder.head, dtype, 0.2)
        self._low: _Low | None = None
        layers: list[list[_Styled]] = [[] for _ in model.decoder.up]
        if isinstance(bank, StyleGAN2):
            self._low = _Low(model, dtype)
            layers = [_Styled.at(bank.synthesis, len(model.fusion_out) + i, dtype) for i in range(len(layers))]
        self._levels = [_Level(model, i, at, dtype) for i, at in enumerate(layers)]
        self._check = model.check

    def __call__(self, low: Tensor) -> Tensor:
        """low (N, 3, in, in) in [-1, 1], RGB -> (N, 3, out, out), nominally in [-1, 1], not clamped."""
        x = y = self._first(self._check(low).to(self._dtype, memory_format=torch.channels_last)).float()
        for blocks in self._body:
            z = y
            for block in blocks:
                z = block(z)
            y = torch.add(y, z, alpha=0.2)
        feature = self._head(self._last(y.to(self._dtype)).add(x).to(self._dtype))
        x, codes = self._low(feature) if self._low else (None, feature.new_empty(len(low), 0, 0))
        return torch.cat([self._enlarged(feature[n : n + 1], x if x is None else x[n : n + 1], codes[n : n + 1]) for n in range(len(low))])

    def _enlarged(self, high: Tensor, x: Tensor | None, codes: Tensor) -> Tensor:
        """Of one picture."""
        read = 0
        for level in self._levels:
            high, x = level(high, x, codes[:, read:])
            read += len(level.layers)
        return high


class _Low:
    """What a GLEAN does up to the size of the low-resolution picture, behind the trunk of its encoder: all pictures at once."""

    def __init__(self, model: GLEAN, dtype: torch.dtype):
        encoder, synthesis = cast("Encoder", model.encoder), cast("StyleGAN2", model.bank).synthesis
        blocks = [[layer for layer in block.children() if isinstance(layer, nn.Conv2d)] for block in encoder.down]
        self._down = [[_Conv.of(conv, dtype, 0.2) for conv in convs] for convs in blocks]
        self._tail = _Conv.of(encoder.tail, dtype, 0.2)
        self._code_dim = encoder.code_shape[1]
        used = len(synthesis.layers) * self._code_dim  # the last code is of the bank's RGB alone
        self._code = encoder.code.weight.detach()[:used].to(dtype), encoder.code.bias.detach()[:used].to(dtype)
        self._constant = synthesis.constant.detach().to(dtype)
        self._steps: list[tuple[list[_Small], _Conv]] = []
        for j, fusion in enumerate(model.fusion_out):
            self._steps.append((_Small.at(synthesis, j, dtype), _Conv.of(cast("nn.Conv2d", fusion), dtype)))

    def __call__(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's feature (N, C, in, in) -> the bank's, of the same shape, and the codes of its larger layers (N, L, code_dim)."""
        features = [feature]
        for convs in self._down:
            for conv in convs:
                feature = conv(feature)
            features.append(feature)
        codes = F.linear(self._tail(feature).flatten(1), *self._code).float().unflatten(1, (-1, self._code_dim))
        x = self._constant.expand(len(codes), -1, -1, -1)
        read = 0
        for (layers, fusion), beside in zip(self._steps, reversed(features), strict=True):
            for layer in layers:
                x = layer(x, codes[:, read])
                read += 1
            x = fusion(torch.cat([x, beside], 1))
        return x, codes[:, read:]


def _empty(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """For a map of twice the size, height x width."""
    return torch.empty(1, channels, 2 * height, 2 * width, dtype=like.dtype, memory_format=torch.channels_last)


def _strip(whole: Tensor, start: int, stop: int) -> _Strip:
    """Those rows of a map, as far as it has them."""
    top, height = max(start, 0), whole.shape[2]
    return _Strip(whole[:, :, top : min(stop, height)], top, height)


def merged(weight: Tensor) -> Tensor:
    """The transposed convolution of stride 2 with `weight` (out, in, 3, 3) and the blur behind it as one convolution of stride 1:
    (4 * out, in, 3, 3), as `shuffled` wants it."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    line = torch.zeros(2, 3, 3, dtype=weight.dtype)  # of one dimension: sub-pixel, tap of the new kernel, tap of the old one
    for sub, new, old in itertools.product(range(2), range(3), range(3)):
        if 0 <= (tap := old - sub + 2 * new - 1) <= 3:
            line[sub, new, old] = taps[tap]
    return torch.einsum("oiab,ypa,xqb->yxoipq", weight, line, line).flatten(0, 2)


def shuffled(x: Tensor) -> Tensor:
    """(N, 4 * C, H, W), the four sub-pixels of all channels one after the other -> (N, C, 2H, 2W), channels last."""
    n, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).view(n, h, w, 2, 2, c // 4).transpose(2, 3)
    return x.reshape(n, 2 * h, 2 * w, c // 4).permute(0, 3, 1, 2)


def _laid_out(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
