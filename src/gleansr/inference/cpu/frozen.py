"""GLEAN for inference on a CPU: constants are computed once, and large feature maps never exist as a whole.

The same function as `GLEAN.forward` up to rounding, in other steps:

- Modulation, demodulation and the activation's gain are folded into the weights, one image at a time, where maps are larger than weights;
  elsewhere they scale the maps.
- From the input size on, each size is computed in strips of rows, which stay in the processor's cache from the first step to the last. A
  strip reads some rows more than it outputs, because each convolution invalidates one row at a cut. The strips of the
  largest map but the image go into the image one by one: it never exists as a whole.
- In half precision, on processors with AMX, a transposed convolution and its blur are one convolution to four times the channels: more
  arithmetic, which is cheap there, and less memory. With AVX-512 alone it takes three times as long.
- An activation is fused with the convolution before it where PyTorch's library of kernels (oneDNN) can.
- With many channels, a convolution needs four ninths of its multiplications (`winograd`). The last one, to three channels, computes four
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
    ConcatConv,
    FusedConv,
    FusedUpConv,
    MergedUpConv,
    NarrowConv,
    concat_convolution,
    convolution,
    laid_out,
    merged,
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
"""Largest size in bytes of the widest map of a strip: small enough for a cache, and large enough to recompute few rows."""
_LEAST_ROWS = 8


def freezable(model: nn.Module) -> bool:
    """Whether `FrozenGLEAN` supports it. It does not support a StyleGAN, whose layers normalise whole maps."""
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
    """A layer of the bank. The style scales its input channels, and the gain of demodulation its output channels."""

    def __init__(self, layer: StyledConv, noise: Tensor, dtype: torch.dtype):
        conv = layer.conv
        self.dtype, self.up, self._clamp = dtype, conv.blur is not None, layer.clamp
        self._scale = conv.scale  # of the unit-variance weights; multiplied into the style
        self._affine, self._offset = conv.affine.weight.detach() * conv.affine.scale, conv.affine.bias.detach() * conv.affine.lr_mul
        self._weight = conv.weight.detach()
        self._size = noise.shape[-1] // 2 if self.up else noise.shape[-1]  # of the input map
        self._energy = (self._weight.square().sum((2, 3)) * conv.scale**2).t().contiguous()
        self.bias = layer.bias.detach() * SQRT2
        self._noise = (noise * (layer.noise_strength.detach() * SQRT2)).to(dtype)
        self._blur = conv.blur.kernel.to(dtype).expand(len(self.bias), 1, 4, 4) if conv.blur is not None else None

    @classmethod
    def at(cls, synthesis: StyleGAN2Synthesis, j: int, dtype: torch.dtype) -> list[Self]:
        """The layers whose output has 4 * 2^j px."""
        noises = synthesis.noises("fixed", 1)
        return [cls(cast("StyledConv", synthesis.layers[i]), cast("Tensor", noises[i]), dtype) for i in synthesis.layers_at(j)]

    def factors(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """code (N, code_dim) -> scales of the input channels (N, in) and the output channels (N, out), in float32."""
        style = F.linear(code, self._affine, self._offset)
        return style * self._scale, torch.rsqrt(style.square() @ self._energy + 1e-8) * SQRT2

    def convolution(self, weight: Tensor) -> FusedConv | WinogradConv | FusedUpConv:
        """The convolution with weights (out, in, 3, 3), without a bias."""
        if self._blur is None:
            faster = pays(weight, self._size, self.dtype)
            return WinogradConv.of(weight, None, self.dtype) if faster else FusedConv(laid_out(weight, self.dtype), None)
        return FusedUpConv(weight.to(self.dtype).transpose(0, 1).contiguous(), self._blur, None)

    def activated(self, y: Tensor, rows: slice = slice(None), gain: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Activation of y * gain + noise for the rows, written to `out` or, by default, to y."""
        noise, out = self._noise[:, :, rows], y if out is None else out
        out = F.leaky_relu_(torch.add(y, noise, out=out) if gain is None else torch.addcmul(noise, y, gain, out=out), 0.2)
        return out if self._clamp is None else out.clamp_(-self._clamp, self._clamp)


class _Small(_Styled):
    """A layer whose maps are smaller than its weights, for several images at once: it scales the maps."""

    def __init__(self, layer: StyledConv, noise: Tensor, dtype: torch.dtype):
        super().__init__(layer, noise, dtype)
        self._constant, self._biases = self.convolution(self._weight), self.bias[:, None, None].to(dtype)

    def __call__(self, x: Tensor, code: Tensor) -> Tensor:
        """x (N, in, H, W), code (N, code_dim) -> (N, out, H', W')."""
        style, gain = (factor[:, :, None, None].to(self.dtype) for factor in self.factors(code))
        y = self._constant(x * style)
        return self.activated(torch.addcmul(self._biases, y, gain, out=y))


class _Large(_Styled):
    """A layer for one image at a time, strip by strip. It scales the maps or the weights, whichever are smaller."""

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
        """The layer with the style of one image, code (1, code_dim)."""
        style, gain = self.factors(code)
        if self._constant:
            style, scales = (factor[:, :, None, None].to(self.dtype) for factor in (style, gain))
            return _PerImage(self, ready(self._constant).with_bias((self.bias / gain[0]).to(self.dtype)), style, scales)
        gain = gain[0].repeat(4) if self._merged else gain[0]
        convolution = self.convolution(self._weight * (gain[:, None] * style)[:, :, None, None])
        return _PerImage(self, ready(convolution).with_bias(self.bias.to(self.dtype)))


@dataclass(frozen=True, eq=False)
class _PerImage:
    """A layer with the style of one image."""

    layer: _Large
    convolution: FusedConv | WinogradConv | FusedUpConv | MergedUpConv
    style: Tensor | None = None
    """Scale of the maps, (1, in, 1, 1); None if it is in the weights."""
    gain: Tensor | None = None

    def __call__(self, strip: Strip, out: Strip | None = None) -> Strip:
        """Applies the layer to a strip; `out` receives its own rows."""
        out_map = self.convolution(strip.map if self.style is None else strip.map * self.style)
        strip = strip.doubled(out_map) if self.layer.up else strip.convolved(out_map)
        strip = strip if out is None else strip.of(out.rows)
        return replace(strip, map=self.layer.activated(strip.map, strip.rows, self.gain, out and out.map))


class _Level:
    """One upsampling of the decoder with the bank's layers of the new size and, at the last size, the decoder's last convolutions."""

    def __init__(self, model: GLEAN, i: int, layers: Sequence[_Large], dtype: torch.dtype):
        """`i`: index of the upsampling; `layers`: the bank's layers at the new size, empty if they are not read."""
        decoder, ups = model.decoder, [cast("nn.Conv2d", up.conv) for up in model.decoder.up]
        conv, last = ups[i], i == len(ups) - 1
        width, self._bank_width = conv.out_channels // 4, len(layers[-1].bias) if layers else 0
        own = ups[i - 1].out_channels // 4 if i else conv.in_channels  # the first one reads only the encoder's feature
        size = model.config.in_size * 2**i
        self._conv = concat_convolution(*enlargement(cast("PixelShuffleUp", decoder.up[i])), own, size, dtype)
        self._reads_bank = own < conv.in_channels
        self.layers = layers
        self._last = (
            concat_convolution(decoder.last.weight, cast("Tensor", decoder.last.bias), width, 2 * size, dtype, 0.2) if last else None
        )
        self._out, self._out_channels = (NarrowConv(decoder.out, dtype), 3) if last else (None, width)
        # At a cut of its input, an upsampling invalidates two rows of its output, and each convolution after it one more.
        self._margin = 1 + last
        self._bank_margin = 1 + math.ceil((len(layers) - 1) / 2) + last
        widest = max(width + self._bank_width, decoder.last.out_channels if last else 0)
        row = widest * dtype.itemsize * 2 * size
        self._rows = max(_LEAST_ROWS, _STRIP // row // 2)

    def __call__(self, source: Iterable[Pair], latents: Tensor, *, whole: bool) -> Iterator[Pair]:
        """Upsamples maps that arrive in strips, from top to bottom; at the last size to the image (1, 3, 2H, 2W). latents:
        (1, L, code_dim), those of the layers. Yields strips as soon as their input is complete, or one map at the end if `whole`."""
        layers = [layer.of_image(latents[:, i]) for i, layer in enumerate(self.layers)]
        conv, last = ready(self._conv), ready(self._last)
        margin = max(self._margin, self._bank_margin if layers else 0)
        window, out_map, done = None, None, 0
        for strips in source:
            window = strips if window is None else window.above(strips)
            height = window.sr.height
            if whole and out_map is None:
                out_map = self._empty(window.sr, 0, height)
            while done < height:
                rows = slice(done, min(done + self._rows, height))
                if min(rows.stop + margin, height) > window.sr.rows.stop:
                    break
                doubled = slice(2 * rows.start, 2 * rows.stop)
                out = out_map.of(doubled) if out_map else self._empty(window.sr, rows.start, rows.stop)
                self._compute(window, rows, layers, conv, last, out)
                done = rows.stop
                if not out_map:
                    yield out
            window = window.of(slice(max(done - margin, window.sr.top), window.sr.rows.stop))
        if out_map:
            yield out_map

    def _compute(self, window: Pair, rows: slice, layers: list[_PerImage], conv: ConcatConv, last: ConcatConv | None, out: Pair) -> None:
        """Upsamples the rows into `out`."""
        (sr, x), bottom = window, window.sr.height
        around, bank_rows = (slice(max(rows.start - n, 0), min(rows.stop + n, bottom)) for n in (self._margin, self._bank_margin))
        strip = sr.of(around)
        strip = strip.convolved(conv(strip.map, *([x.of(around).map] if x and self._reads_bank else [])))
        bank = x.of(bank_rows) if x and layers else None
        for layer in layers:
            bank = layer(cast("Strip", bank), out.x if layer is layers[-1] else None)
        if last is None or self._out is None:
            shuffled(strip.of(rows).map, out.sr.map)
            return
        strip = Strip(shuffled(strip.map), 2 * strip.top, 2 * strip.height)
        if bank:
            common = slice(max(strip.rows.start, bank.rows.start), min(strip.rows.stop, bank.rows.stop))
            strip, bank = strip.of(common), bank.of(common)
        strip = strip.convolved(last(strip.map, *([bank.map] if bank else [])))
        strip = strip.convolved(self._out(strip.map))
        out.sr.map.copy_(strip.of(out.sr.rows).map)

    def _empty(self, sr: Strip, start: int, stop: int) -> Pair:
        """Uninitialised output maps of the rows."""
        bank = self._bank_width if self.layers and not self._last else 0
        shapes = [(1, channels, 2 * (stop - start), 2 * sr.map.shape[-1]) for channels in (self._out_channels, bank)]
        maps = [torch.empty(shape, dtype=sr.map.dtype, memory_format=torch.channels_last) for shape in shapes]
        out_map, out_x = (Strip(map_, 2 * start, 2 * sr.height) for map_ in maps)
        return Pair(out_map, out_x if bank else None)


class FrozenGLEAN:
    """The function of a GLEAN whose weights no longer change. It shares weights with the GLEAN where possible."""

    def __init__(self, model: GLEAN, dtype: torch.dtype):
        """`model`: on the CPU, see `freezable`; `dtype`: of maps and convolutions. Styles and demodulation are in float32."""
        encoder, bank = model.encoder, model.bank
        trunk = encoder.trunk
        self._dtype = dtype
        self._first, self._last = FusedConv.of(trunk.first, dtype), FusedConv.of(trunk.last, dtype)
        self._body = [[_Dense(cast("DenseBlock", block), dtype) for block in cast("RRDB", rrdb).blocks] for rrdb in trunk.body]
        self._head = FusedConv.of(encoder.head, dtype, 0.2)
        self._lr: _LowResolution | None = None
        layers: list[list[_Large]] = [[] for _ in model.decoder.up]
        if isinstance(bank, StyleGAN2):
            self._lr = _LowResolution(model, dtype)
            sizes = range(len(model.fusion_out), len(model.config.bank_sizes))
            layers = [_Large.at(bank.synthesis, j, dtype) for j in sizes] + layers[len(sizes) :]
        self._levels = [_Level(model, i, at, dtype) for i, at in enumerate(layers)]
        self._check = model.check

    def __call__(self, lr: Tensor) -> Tensor:
        """lr (N, 3, in, in) in [-1, 1], RGB -> (N, 3, out, out), nominally in [-1, 1], not clamped."""
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
        """Decodes one image."""
        strips: Iterable[Pair] = [Pair(Strip(sr, 0, sr.shape[2]), None if x is None else Strip(x, 0, x.shape[2]))]
        read = 0
        for i, level in enumerate(self._levels):
            largest = i + 2 == len(self._levels)  # the map before the image
            strips = level(strips, latents[:, read:], whole=not largest)
            strips = strips if largest else list(strips)  # frees the input of the level
            read += len(level.layers)
        [image] = strips
        return image.sr.map


class _LowResolution:
    """The steps of a GLEAN at the input size and below, after the trunk of its encoder, for all images at once."""

    def __init__(self, model: GLEAN, dtype: torch.dtype):
        encoder, synthesis = cast("Encoder", model.encoder), cast("StyleGAN2", model.bank).synthesis
        blocks = [[layer for layer in block.children() if isinstance(layer, nn.Conv2d)] for block in encoder.down]
        size = model.config.in_size
        self._down = [[convolution(conv, size // 2 ** (i + 1), dtype, 0.2) for conv in convs] for i, convs in enumerate(blocks)]
        self._tail = FusedConv.of(encoder.tail, dtype, 0.2)
        self._code_dim = encoder.latents_shape[1]
        *thin, last = [module for module in encoder.code.modules() if isinstance(module, nn.Linear)]
        used = len(synthesis.layers) * self._code_dim  # the last code is for the bank's RGB output alone
        self._latents = [(linear.weight.detach().to(dtype), linear.bias.detach().to(dtype)) for linear in thin]
        self._latents.append((last.weight.detach()[:used].to(dtype), last.bias.detach()[:used].to(dtype)))
        self._light = model.config.light is not None
        self._constant = synthesis.constant.detach().to(dtype)
        self._steps: list[tuple[list[_Small], FusedConv | WinogradConv]] = []
        for j, fusion in enumerate(model.fusion_out):
            self._steps.append((_Small.at(synthesis, j, dtype), convolution(cast("nn.Conv2d", fusion), 4 * 2**j, dtype)))

    def __call__(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's feature (N, C, in, in) -> the bank's, of the same shape, and the latents of its larger layers (N, L, code_dim)."""
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
        for (layers, fusion), lateral in zip(self._steps, reversed(features), strict=True):
            for layer in layers:
                x = layer(x, latents[:, read])
                read += 1
            x = fusion(lateral).add_(x) if self._light else fusion(x, lateral)
        return x, latents[:, read:]
