"""GLEAN for inference on a CPU: what is the same for all images is computed once, and large maps of features never exist as a whole.

The same function as `GLEAN.forward` up to rounding, in other steps:

- The modulation of a convolution, its demodulation and the activation's gain go into its weights, one image at a time, where maps are
  larger than weights; elsewhere they scale the maps.
- From the size of the low-resolution image on, each size is made in strips of rows, which stay in the processor's cache from the first
  step to the last. A strip reads some rows more than it makes, since each convolution spoils one where the strip was cut. The strips of the
  largest map but the image go into the image one by one: it never exists as a whole.
- In half precision, on processors with AMX, a transposed convolution and the blur behind it are one convolution to four times the channels:
  more arithmetic, of which there is plenty there, and less memory. With AVX-512 alone it takes three times as long.
- An activation is computed with the convolution before it where PyTorch's library of kernels can (oneDNN).
- Where channels are many, a convolution takes four ninths of its multiplications (`winograd`). The last one, to three channels, makes four
  pixels at once (`NarrowConv`).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.inference.cpu.fused import (
    FusedConv,
    FusedUpConv,
    MergedUpConv,
    NarrowConv,
    SideBySide,
    convolution,
    laid_out,
    merged,
    side_by_side,
)
from gleansr.inference.cpu.shuffled import enlargement, shuffled
from gleansr.inference.cpu.strips import Pair, Strip
from gleansr.inference.cpu.winograd import WinogradConv, pays, ready
from gleansr.inference.devices import bfloat16_instructions
from gleansr.models.glean import GLEAN, Encoder, NoBank, PixelShuffleUp
from gleansr.models.layers import SQRT2
from gleansr.models.rrdb import RRDB, DenseBlock
from gleansr.models.stylegan2 import StyledConv, StyleGAN2, StyleGAN2Synthesis

_STRIP = 16 * 2**20
"""Bytes that the widest map of a strip takes at most: few enough for a cache, and enough for few rows to be made twice."""
_LEAST_ROWS = 8


def freezable(model: nn.Module) -> bool:
    """Whether there is a `FrozenGLEAN` of it: not around a StyleGAN, whose layers normalise whole maps."""
    return isinstance(model, GLEAN) and isinstance(model.bank, StyleGAN2 | NoBank)


class _Dense:
    """A dense block."""

    def __init__(self, block: DenseBlock, dtype: torch.dtype):
        *growing, last = (cast("nn.Conv2d", conv) for conv in block.convs)
        self._growing, self._last = [FusedConv.of(conv, dtype, 0.2) for conv in growing], FusedConv.of(last, dtype)
        self._dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, C, H, W), float32 -> the same."""
        dense = x.to(self._dtype)
        for conv in self._growing:
            dense = torch.cat([dense, conv(dense)], 1)
        return torch.add(x, self._last(dense), alpha=0.2)


class _Styled:
    """A layer of the bank. Its style scales the channels that the convolution reads, and its gain, of demodulation, those that it makes."""

    def __init__(self, layer: StyledConv, noise: Tensor, dtype: torch.dtype):
        conv = layer.conv
        self.dtype, self.up, self._clamp = dtype, conv.blur is not None, layer.clamp
        self._scale = conv.scale  # of the weights, which are of unit variance; it goes into the style
        self._affine, self._offset = conv.affine.weight.detach() * conv.affine.scale, conv.affine.bias.detach() * conv.affine.lr_mul
        self._weight = conv.weight.detach()
        self._size = noise.shape[-1] // 2 if self.up else noise.shape[-1]  # of the map that it reads
        self._energy = (self._weight.square().sum((2, 3)) * conv.scale**2).t().contiguous()
        self.bias = layer.bias.detach() * SQRT2
        self._noise = (noise * (layer.noise_strength.detach() * SQRT2)).to(dtype)
        self._blur = conv.blur.kernel.to(dtype).expand(len(self.bias), 1, 4, 4) if conv.blur is not None else None

    @classmethod
    def at(cls, synthesis: StyleGAN2Synthesis, j: int, dtype: torch.dtype) -> list[Self]:
        """The layers whose result is of 4 * 2^j px."""
        noises = synthesis.noises("fixed", 1)
        return [cls(cast("StyledConv", synthesis.layers[i]), cast("Tensor", noises[i]), dtype) for i in synthesis.layers_at(j)]

    def factors(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """code (N, code_dim) -> scales of the input's channels (N, in) and of the output's (N, out), in float32."""
        style = F.linear(code, self._affine, self._offset)
        return style * self._scale, torch.rsqrt(style.square() @ self._energy + 1e-8) * SQRT2

    def convolution(self, weight: Tensor) -> FusedConv | WinogradConv | FusedUpConv:
        """With those weights (out, in, 3, 3), and without a bias."""
        if self._blur is None:
            paying = pays(weight, self._size, self.dtype)
            return WinogradConv.of(weight, None, self.dtype) if paying else FusedConv(laid_out(weight, self.dtype), None)
        return FusedUpConv(weight.to(self.dtype).transpose(0, 1).contiguous(), self._blur, None)

    def activated(self, y: Tensor, rows: slice = slice(None), gain: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """y * gain + noise of those rows, activated, in `out` or, without, in y."""
        noise, out = self._noise[:, :, rows], y if out is None else out
        out = F.leaky_relu_(torch.add(y, noise, out=out) if gain is None else torch.addcmul(noise, y, gain, out=out), 0.2)
        return out if self._clamp is None else out.clamp_(-self._clamp, self._clamp)


class _Small(_Styled):
    """A layer whose maps are smaller than its weights, for several images at once: the maps are scaled."""

    def __init__(self, layer: StyledConv, noise: Tensor, dtype: torch.dtype):
        super().__init__(layer, noise, dtype)
        self._constant, self._biases = self.convolution(self._weight), self.bias[:, None, None].to(dtype)

    def __call__(self, x: Tensor, code: Tensor) -> Tensor:
        """x (N, in, H, W), code (N, code_dim) -> (N, out, H', W')."""
        style, gain = (factor[:, :, None, None].to(self.dtype) for factor in self.factors(code))
        y = self._constant(x * style)
        return self.activated(torch.addcmul(self._biases, y, gain, out=y))


class _Large(_Styled):
    """A layer for one image at a time, strip by strip. Either the maps are scaled or the weights, whatever is smaller."""

    def __init__(self, layer: StyledConv, noise: Tensor, dtype: torch.dtype):
        super().__init__(layer, noise, dtype)
        self._merged = self.up and dtype != torch.float32 and bfloat16_instructions() == "AMX"
        if self._merged:
            self._weight = merged(self._weight)
        maps_are_smaller = self._weight.shape[1] * self._size**2 <= self._weight.numel()
        self._constant = self.convolution(self._weight) if maps_are_smaller else None

    def convolution(self, weight: Tensor) -> FusedConv | WinogradConv | FusedUpConv | MergedUpConv:
        return MergedUpConv(FusedConv(laid_out(weight, self.dtype), None)) if self._merged else super().convolution(weight)

    def of_image(self, code: Tensor) -> "_PerImage":
        """With the style of one image, code (1, code_dim)."""
        style, gain = self.factors(code)
        if self._constant:
            style, scales = (factor[:, :, None, None].to(self.dtype) for factor in (style, gain))
            return _PerImage(self, ready(self._constant).with_bias((self.bias / gain[0]).to(self.dtype)), style, scales)
        gain = gain[0].repeat(4) if self._merged else gain[0]
        convolution = self.convolution(self._weight * (gain[:, None] * style)[:, :, None, None])
        return _PerImage(self, ready(convolution).with_bias(self.bias.to(self.dtype)))


@dataclass(frozen=True, eq=False)
class _PerImage:
    """A layer for one image."""

    layer: _Large
    convolution: FusedConv | WinogradConv | FusedUpConv | MergedUpConv
    style: Tensor | None = None
    """Of the maps, (1, in, 1, 1), unless it is in the weights."""
    gain: Tensor | None = None

    def __call__(self, strip: Strip, out: Strip | None = None) -> Strip:
        """`out` receives the rows that it is of."""
        made = self.convolution(strip.map if self.style is None else strip.map * self.style)
        strip = strip.doubled(made) if self.layer.up else strip.convolved(made)
        strip = strip if out is None else strip.of(out.rows)
        return replace(strip, map=self.layer.activated(strip.map, strip.rows, self.gain, out and out.map))


class _Level:
    """One enlargement of the decoder, with the bank's layers beside it and, at the last size, the decoder's last convolutions."""

    def __init__(self, model: GLEAN, i: int, layers: Sequence[_Large], dtype: torch.dtype):
        """`i`: which enlargement; `layers`: the bank's at the new size, none where it is not read."""
        decoder, ups = model.decoder, [cast("nn.Conv2d", up.conv) for up in model.decoder.up]
        conv, last = ups[i], i == len(ups) - 1
        width, self._bank_width = conv.out_channels // 4, len(layers[-1].bias) if layers else 0
        own = ups[i - 1].out_channels // 4 if i else conv.in_channels  # the first one reads the encoder's feature, without the bank's
        size = model.config.in_size * 2**i
        self._conv = side_by_side(*enlargement(cast("PixelShuffleUp", decoder.up[i])), own, size, dtype)
        self._reads_bank = own < conv.in_channels
        self.layers = layers
        self._last = side_by_side(decoder.last.weight, cast("Tensor", decoder.last.bias), width, 2 * size, dtype, 0.2) if last else None
        self._out, self._made = (NarrowConv(decoder.out, dtype), 3) if last else (None, width)
        # Where its input was cut, an enlargement spoils two rows of its output, and each convolution behind it one more.
        self._beyond = 1 + last
        self._beyond_beside = 1 + math.ceil((len(layers) - 1) / 2) + last
        widest = max(width + self._bank_width, decoder.last.out_channels if last else 0)
        row = widest * dtype.itemsize * 2 * size
        self._rows = max(_LEAST_ROWS, _STRIP // row // 2)

    def __call__(self, source: Iterable[Pair], latents: Tensor, *, whole: bool) -> Iterator[Pair]:
        """Enlarges maps that come in strips, from the top to the bottom; at the last size to the image (1, 3, 2H, 2W), without a map of
        the bank. The results come in strips too, as soon as what they are made of is there, or `whole`, as one at the end. codes:
        (1, L, code_dim), those of the layers."""
        layers = [layer.of_image(latents[:, i]) for i, layer in enumerate(self.layers)]
        conv, last = ready(self._conv), ready(self._last)
        beyond = max(self._beyond, self._beyond_beside if layers else 0)
        there, made, done = None, None, 0
        for strips in source:
            there = strips if there is None else there.above(strips)
            height = there.sr.height
            if whole and made is None:
                made = self._empty(there.sr, 0, height)
            while done < height:
                rows = slice(done, min(done + self._rows, height))
                if min(rows.stop + beyond, height) > there.sr.rows.stop:
                    break
                doubled = slice(2 * rows.start, 2 * rows.stop)
                out = made.of(doubled) if made else self._empty(there.sr, rows.start, rows.stop)
                self._make(there, rows, layers, conv, last, out)
                done = rows.stop
                if not made:
                    yield out
            there = there.of(slice(max(done - beyond, there.sr.top), there.sr.rows.stop))
        if made:
            yield made

    def _make(self, there: Pair, rows: slice, layers: list[_PerImage], conv: SideBySide, last: SideBySide | None, out: Pair) -> None:
        """Those rows, enlarged, in `out`."""
        (sr, x), bottom = there, there.sr.height
        around, around_beside = (slice(max(rows.start - n, 0), min(rows.stop + n, bottom)) for n in (self._beyond, self._beyond_beside))
        strip = sr.of(around)
        strip = strip.convolved(conv(strip.map, *([x.of(around).map] if x and self._reads_bank else [])))
        beside = x.of(around_beside) if x and layers else None
        for layer in layers:
            beside = layer(cast("Strip", beside), out.x if layer is layers[-1] else None)
        if last is None or self._out is None:
            shuffled(strip.of(rows).map, out.sr.map)
            return
        strip = Strip(shuffled(strip.map), 2 * strip.top, 2 * strip.height)
        if beside:
            common = slice(max(strip.rows.start, beside.rows.start), min(strip.rows.stop, beside.rows.stop))
            strip, beside = strip.of(common), beside.of(common)
        strip = strip.convolved(last(strip.map, *([beside.map] if beside else [])))
        strip = strip.convolved(self._out(strip.map))
        out.sr.map.copy_(strip.of(out.sr.rows).map)

    def _empty(self, sr: Strip, start: int, stop: int) -> Pair:
        """For what it makes of those rows."""
        beside = self._bank_width if self.layers and not self._last else 0
        shapes = [(1, channels, 2 * (stop - start), 2 * sr.map.shape[-1]) for channels in (self._made, beside)]
        maps = [torch.empty(shape, dtype=sr.map.dtype, memory_format=torch.channels_last) for shape in shapes]
        made, made_x = (Strip(map_, 2 * start, 2 * sr.height) for map_ in maps)
        return Pair(made, made_x if beside else None)


class FrozenGLEAN:
    """The function of a GLEAN that changes no more. Weights are read where they lie in it, as far as they can be."""

    def __init__(self, model: GLEAN, dtype: torch.dtype):
        """`model`: one that is `freezable`, on the CPU; `dtype`: of maps and convolutions. Styles and demodulation are in float32."""
        encoder, bank = model.encoder, model.bank
        trunk = encoder.trunk
        self._dtype = dtype
        self._first, self._last = FusedConv.of(trunk.first, dtype), FusedConv.of(trunk.last, dtype)
        self._body = [[_Dense(cast("DenseBlock", block), dtype) for block in cast("RRDB", rrdb).blocks] for rrdb in trunk.body]
        self._head = FusedConv.of(encoder.head, dtype, 0.2)
        self._lr: _Low | None = None
        layers: list[list[_Large]] = [[] for _ in model.decoder.up]
        if isinstance(bank, StyleGAN2):
            self._lr = _Low(model, dtype)
            sizes = range(len(model.fusion_out), len(model.config.bank_sizes))
            layers = [_Large.at(bank.synthesis, j, dtype) for j in sizes] + layers[len(sizes) :]
        self._levels = [_Level(model, i, at, dtype) for i, at in enumerate(layers)]
        self._check = model.check

    def __call__(self, lr: Tensor) -> Tensor:
        """low (N, 3, in, in) in [-1, 1], RGB -> (N, 3, out, out), nominally in [-1, 1], not clamped."""
        x = y = self._first(self._check(lr).to(self._dtype, memory_format=torch.channels_last)).float()
        for blocks in self._body:
            z = y
            for block in blocks:
                z = block(z)
            y = torch.add(y, z, alpha=0.2)
        feature = self._head(self._last(y.to(self._dtype)).add(x).to(self._dtype))
        x, latents = self._lr(feature) if self._lr else (None, feature.new_empty(len(lr), 0, 0))
        return torch.cat([self._enlarged(feature[n : n + 1], x if x is None else x[n : n + 1], latents[n : n + 1]) for n in range(len(lr))])

    def _enlarged(self, sr: Tensor, x: Tensor | None, latents: Tensor) -> Tensor:
        """Of one image."""
        strips: Iterable[Pair] = [Pair(Strip(sr, 0, sr.shape[2]), None if x is None else Strip(x, 0, x.shape[2]))]
        read = 0
        for i, level in enumerate(self._levels):
            largest = i + 2 == len(self._levels)  # the map that the image is made of
            strips = level(strips, latents[:, read:], whole=not largest)
            strips = strips if largest else list(strips)  # what the level needs is freed
            read += len(level.layers)
        [image] = strips
        return image.sr.map


class _Low:
    """What a GLEAN does up to the size of the low-resolution image, behind the trunk of its encoder: all images at once."""

    def __init__(self, model: GLEAN, dtype: torch.dtype):
        encoder, synthesis = cast("Encoder", model.encoder), cast("StyleGAN2", model.bank).synthesis
        blocks = [[layer for layer in block.children() if isinstance(layer, nn.Conv2d)] for block in encoder.down]
        size = model.config.in_size
        self._down = [[convolution(conv, size // 2 ** (i + 1), dtype, 0.2) for conv in convs] for i, convs in enumerate(blocks)]
        self._tail = FusedConv.of(encoder.tail, dtype, 0.2)
        self._code_dim = encoder.latents_shape[1]
        *thin, last = [module for module in encoder.code.modules() if isinstance(module, nn.Linear)]
        used = len(synthesis.layers) * self._code_dim  # the last code is of the bank's RGB alone
        self._latents = [(linear.weight.detach().to(dtype), linear.bias.detach().to(dtype)) for linear in thin]
        self._latents.append((last.weight.detach()[:used].to(dtype), last.bias.detach()[:used].to(dtype)))
        self._light = model.config.light is not None
        self._constant = synthesis.constant.detach().to(dtype)
        self._steps: list[tuple[list[_Small], FusedConv | WinogradConv]] = []
        for j, fusion in enumerate(model.fusion_out):
            self._steps.append((_Small.at(synthesis, j, dtype), convolution(cast("nn.Conv2d", fusion), 4 * 2**j, dtype)))

    def __call__(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's feature (N, C, in, in) -> the bank's, of the same shape, and the codes of its larger layers (N, L, code_dim)."""
        features = [feature]
        for convs in self._down:
            for conv in convs:
                feature = conv(feature)
            features.append(feature)
        code = self._tail(feature).flatten(1)
        for linear in self._latents:
            code = F.linear(code, *linear)
        latents = code.float().unflatten(1, (-1, self._code_dim))
        x = self._constant.expand(len(latents), -1, -1, -1)
        read = 0
        for (layers, fusion), beside in zip(self._steps, reversed(features), strict=True):
            for layer in layers:
                x = layer(x, latents[:, read])
                read += 1
            x = fusion(beside).add_(x) if self._light else fusion(x, beside)
        return x, latents[:, read:]
