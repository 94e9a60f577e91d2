"""Images in, images out: fits images to the model's input, runs batches and assembles the results."""

import dataclasses
import itertools
import os
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from gleansr import checkpoints
from gleansr.ambient import plain_torch
from gleansr.checkpoints.native import About
from gleansr.errors import RequestError
from gleansr.images.back_projection import back_project
from gleansr.images.codec import DecodedImage, Source, decode, neutral, to_image, unpremultiply
from gleansr.images.resize import clear_cache, resize
from gleansr.inference.devices import find_device, find_precision
from gleansr.inference.method import Model, StepReport
from gleansr.inference.onnx_runtime import OnnxModel, is_onnx
from gleansr.inference.precision import Precision
from gleansr.inference.runner import FeedForwardModel, Runner

Fit = Literal["auto", "crop", "pad", "stretch", "exact"]


@dataclass(frozen=True)
class FittedImage:
    """An image fitted to the model's input size, and how to undo it."""

    image: DecodedImage
    lr: Tensor
    """(3, h, w) in [-1, 1], colour premultiplied; of the model's input size if it has one."""
    alpha: Tensor | None
    """(1, h, w) in [0, 1]."""
    keep: tuple[int, int, int, int]
    """Top, left, height and width of the image in the model's output, in pixels."""
    note: str
    """Note on how the image was fitted, "" if it was not."""
    bars: tuple[int, int] | None = None
    """First row of the output inside the black bars and first row after, for an image with black bars above and below."""
    grey: bool = False
    """Whether the image is grey; then the result is grey too."""
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels of the image by which it was padded: left, right, top and bottom."""


_BLACK = 8 / 255  # JPEG artefacts make bars up to this bright
_LARGE = 2**22
"""Number of pixels from which an image is converted to float in strips."""
_STRIP = 2**20
"""Number of pixels of a strip."""


class Upscaler:
    """Upscales images by a method. `gleansr.load` creates it, or `gleansr.baselines.load` for searches and bicubic."""

    def __init__(self, method: Model, about: About):
        self.method = method
        self.runner = Runner(method)
        """Runs the method on LR tensors on the CPU."""
        self.device = method.device
        if self.device.type != "cpu":
            weakref.finalize(self, clear_cache)  # what methods resize with would hold the device's memory
        self.about = about
        self.scale = method.scale
        self.input_size = method.in_size
        """Height and width of the model's input; None: any."""
        self.output_size = method.in_size and method.in_size * method.scale
        # LSUN's cars have black bars: the model's squares contain the image only in the middle rows.
        self.content_height = about.content_height or self.output_size
        self.border: Literal["repeat", "black"] = "black" if about.content_height and about.border != "repeat" else "repeat"
        """Padding of images of another aspect ratio."""
        self.category = about.category
        self.license = about.licence
        self._one_pass: Upscaler | None = None

    @property
    def name(self) -> str:
        """Name of the model, or of its kind if it has none."""
        return self.about.name or self.method.name

    @property
    def one_pass(self) -> "Upscaler":
        """This upscaler without self-ensemble, in half the time, sharing its networks; itself if it has none."""
        if not isinstance(self.method, FeedForwardModel) or not self.method.self_ensemble:
            return self
        if self._one_pass is None:
            self._one_pass = Upscaler(self.method.in_one_pass(), dataclasses.replace(self.about, self_ensemble=False))
        return self._one_pass

    def __repr__(self) -> str:
        size = f"{self.input_size} px to {self.output_size} px" if self.input_size else "any size"
        facts = [self.method.name, f"{size}, {self.scale}x", *filter(None, [self.category]), str(self.device)]
        return f"<Upscaler {self.about.name or 'without a name'}: {', '.join(facts)}>"

    def __call__(self, image: Source | DecodedImage, *, fit: Fit = "auto", back_projection: float = 0.0) -> Image.Image:
        """Upscales one image: a path, the bytes of a file, a PIL image, an HWC uint8 array or a CHW float tensor in [0, 1], RGB.

        `back_projection` is the strength of back-projection: with 1 the result, shrunk, equals the model's input; 0 leaves it as it is.

        Returns an RGB or RGBA image. `info["gleansr"]` says how the image was fitted to the model, if it was; see `fit`.
        """
        return next(self.upscale([image], batch_size=1, fit=fit, back_projection=back_projection))

    def upscale(
        self,
        images: Iterable[Source | DecodedImage],
        *,
        batch_size: int | None = None,
        fit: Fit = "auto",
        back_projection: float = 0.0,
        report: StepReport | None = None,
    ) -> Iterator[Image.Image]:
        """Upscales images in batches, lazily and in order. An unreadable image raises ImageError.

        `fit` and `back_projection` as for one image. `report` receives the progress of a slow method within each batch.
        """
        size = batch_size or self.default_batch_size()
        fitted = (self._fitted(image, fit) for image in images)
        while batch := list(itertools.islice(fitted, size)):
            yield from self.run(batch, report, back_projection=back_projection)

    @plain_torch()
    def _fitted(self, image: Source | DecodedImage, fit: Fit) -> FittedImage:
        return self.fit(image if isinstance(image, DecodedImage) else decode(image), fit)

    def default_batch_size(self) -> int:
        """The batch size that keeps the device busy within a few GB; 1 for models of any input size."""
        if self.output_size is None:
            return 1
        return max(1, (2**19 if self.device.type == "cpu" else 2**23) // self.output_size**2)

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether the model takes an image of that height and width, padded at most, but not resized."""
        return self.shrinkage(size) == 1

    def shrinkage(self, size: tuple[int, int]) -> float:
        """Pixels of an image of that height and width per pixel of the model's input, after padding; 1 for a model of any size."""
        if self.input_size is None or self.content_height is None:
            return 1.0
        height, width = size
        return max(width / self.input_size, height / (self.content_height // self.scale))

    @plain_torch()
    def fit(self, image: DecodedImage, fit: Fit = "auto") -> FittedImage:
        """Fits an image to the model's input size; a model without one takes it as it is.

        "exact" accepts only that size. "stretch" resizes both sides. "crop" cuts out the centre square; "pad" repeats the border up to a
        square, of which the result keeps the image's part; both then resize. "auto" is "pad", which loses nothing.

        A model of images with black bars (cars of 512x384) takes that aspect ratio instead of a square, adds the bars, and removes them
        from the result. A square image of its input size is assumed to have bars, and keeps them. A model trained with repeated rows
        instead of bars gets repeated rows here too.
        """
        check_fit(fit)
        height, width = image.size
        if self.input_size is None or self.output_size is None or self.content_height is None:
            keep = (0, 0, height * self.scale, width * self.scale)
            return FittedImage(image, image.premultiplied() * 2 - 1, image.alpha, keep, "", grey=image.grey)
        size, rows = self.input_size, self.content_height // self.scale
        steps: list[str] = []
        cut, pad = (slice(0, height), slice(0, width)), (0, 0, 0, 0)
        top = left = 0.0
        kept_height = kept_width = 1.0
        has_bars = (height, width) == (size, size)
        if (height, width) != (rows, size) and not has_bars:
            if fit == "exact":
                raise RequestError(
                    f"{image.name} is {width}x{height}, but the model takes {size}x{rows}; --fit crop, pad or stretch resizes it"
                )
            wide = width * rows > height * size
            full_height, full_width = (round(width * rows / size), width) if wide else (height, round(height * size / rows))
            if (full_height, full_width) != (height, width):
                if fit == "crop":
                    cut_height, cut_width = (height, round(height * size / rows)) if wide else (round(width * rows / size), width)
                    y, x = (height - cut_height) // 2, (width - cut_width) // 2
                    cut = slice(y, y + cut_height), slice(x, x + cut_width)
                    full_height, full_width = cut_height, cut_width
                    steps.append(f"cut to its centre {cut_width}x{cut_height}")
                elif fit == "stretch":
                    steps.append("aspect ratio not kept")
                    full_height, full_width = height, width
                else:
                    y, x = (full_height - height) // 2, (full_width - width) // 2
                    pad = (x, full_width - width - x, y, full_height - height - y)
                    top, left, kept_height, kept_width = y / full_height, x / full_width, height / full_height, width / full_width
                    steps.append(f"padded to {full_width}x{full_height}")
            if (full_height, full_width) != (rows, size):
                verb = "shrunk" if full_width > size else "enlarged" if full_width < size else "resized"
                steps.append(f"{verb} to the model's {size}x{rows}")
            planes = _resized(image, cut, pad, (rows, size))
        else:
            planes = _planes(image, *cut)
        bars = None
        if rows != size:
            first = (size - rows) // 2
            last = first + rows
            if has_bars and self.border == "repeat" and float(torch.cat([planes[:3, :first], planes[:3, last:]], 1).mean()) < _BLACK:
                planes, bars = planes[:, first:last], (first * self.scale, last * self.scale)
            if bars or not has_bars:
                mode = "replicate" if self.border == "repeat" else "constant"
                planes = torch.nn.functional.pad(planes[None], (0, 0, first, size - last), mode=mode)[0]
        out, content = self.output_size, self.output_size if has_bars else self.content_height
        bar = (out - content) // 2
        first, last = (
            (bar + round(top * content), round(left * out)),
            (bar + round((top + kept_height) * content), round((left + kept_width) * out)),
        )
        keep = (*first, max(1, last[0] - first[0]), max(1, last[1] - first[1]))
        note = f"{width}x{height}: {', '.join(steps)}" if steps else ""
        alpha = None if image.alpha is None else planes[3:]
        return FittedImage(image, planes[:3] * 2 - 1, alpha, keep, note, bars, image.grey, pad)

    @plain_torch()
    def run(self, batch: Iterable[FittedImage], report: StepReport | None = None, *, back_projection: float = 0.0) -> list[Image.Image]:
        """Upscales fitted images of one size in one batch."""
        batch = list(batch)
        if len(sizes := {tuple(fitted.lr.shape) for fitted in batch}) > 1:
            raise RequestError(f"images of several sizes ({sorted(sizes)}) cannot share a batch; use --batch-size 1")
        eight_bits = not back_projection and all(fitted.alpha is None for fitted in batch)
        output = self.runner([fitted.lr for fitted in batch], report, eight_bits=eight_bits)
        srs = list(output.images)
        if back_projection:
            srs = [back_project(fitted.lr, sr, strength=back_projection) for fitted, sr in zip(batch, srs, strict=True)]
        return [self.finish(*item) for item in zip(batch, srs, output.notes or [""] * len(batch), strict=True)]

    @plain_torch()
    def finish(self, fitted: FittedImage, sr: Tensor, note: str = "") -> Image.Image:
        """Builds the output from a fitted image and the model's result (3, scale * h, scale * w) in [-1, 1], which is clamped; uint8 if the
        image has no alpha."""
        pixels, alpha = sr if sr.dtype == torch.uint8 else (sr.clamp(-1, 1) + 1) / 2, None
        if fitted.alpha is not None:
            # Alpha is a mask, not an image of the category: bicubic.
            alpha = resize(fitted.alpha, size=(pixels.shape[-2], pixels.shape[-1])).clamp(0, 1)
            pixels = unpremultiply(pixels, alpha)
        if fitted.bars:
            first, last = fitted.bars
            pixels = pixels.clone()
            pixels[:, :first] = pixels[:, last:] = 0
        top, left, height, width = fitted.keep
        image = to_image(pixels, alpha).crop((left, top, left + width, top + height))
        image = neutral(image) if fitted.grey else image
        if note := "; ".join(filter(None, [fitted.note, note])):
            image.info["gleansr"] = note
        return image

    @plain_torch()
    def finish_exactly(self, fitted: FittedImage, sr: Tensor, size: tuple[int, int], scale: int) -> Image.Image:
        """As `finish` for an image (height, width) that was padded or resized as a whole, but the result is exactly `scale` times as
        large. `sr` is float."""
        left, right, top, bottom = fitted.padding
        height, width = size
        whole = (scale * (height + top + bottom), scale * (width + left + right))
        rows = slice(scale * top, scale * (top + height)), slice(scale * left, scale * (left + width))

        def exact(planes: Tensor, density: int) -> Tensor:
            """(C, density * in_size, density * in_size) -> (C, scale * height, scale * width), without bars."""
            content = (self.content_height or 0) // self.scale * density
            bar = (planes.shape[1] - content) // 2
            return resize(planes[:, bar : bar + content], size=whole)[:, rows[0], rows[1]].clamp(0, 1)

        pixels, alpha = exact((sr.clamp(-1, 1) + 1) / 2, self.scale), None
        if fitted.alpha is not None:
            alpha = exact(fitted.alpha, 1)
            pixels = unpremultiply(pixels, alpha)
        image = to_image(pixels, alpha)
        return neutral(image) if fitted.grey else image


def check_fit(fit: str) -> None:
    """Raises RequestError unless `fit` is one of `Fit`."""
    if fit not in get_args(Fit):
        raise RequestError(f"fit is {fit!r}, but must be one of {', '.join(get_args(Fit))}")


def _planes(image: DecodedImage, rows: slice, columns: slice) -> Tensor:
    """(3 or 4, rows, columns) in [0, 1]: premultiplied colour, and alpha if there is transparency."""
    colour = image.premultiplied(rows, columns)
    return colour if image.stored_alpha is None else torch.cat([colour, image.alpha_region(rows, columns)])


def _resized(image: DecodedImage, cut: tuple[slice, slice], pad: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """Cuts an image, repeats its border by `pad` (left, right, top, bottom) and resizes it to `size`; as `_planes`, clamped.

    A large image is converted to float and shrunk in strips along one axis, the one without padding, because padding can make it much
    larger.
    """
    rows, columns = cut
    height, width = rows.stop - rows.start, columns.stop - columns.start
    left, right, top, bottom = pad
    if (height + top + bottom) * (width + left + right) <= _LARGE:
        planes = torch.nn.functional.pad(_planes(image, rows, columns)[None], pad, mode="replicate")[0]
        return planes if planes.shape[-2:] == size else resize(planes, size=size).clamp(0, 1)
    parts = []
    if left or right:
        step = max(1, _STRIP // height)
        for start in range(columns.start, columns.stop, step):
            strip = _planes(image, rows, slice(start, min(columns.stop, start + step)))
            parts.append(resize(strip, size=(size[0], strip.shape[-1])))
        planes = torch.cat(parts, 2)
    else:
        step = max(1, _STRIP // width)
        for start in range(rows.start, rows.stop, step):
            strip = _planes(image, slice(start, min(rows.stop, start + step)), columns)
            parts.append(resize(strip, size=(strip.shape[-2], size[1])))
        planes = torch.cat(parts, 1)
    planes = torch.nn.functional.pad(planes[None], pad, mode="replicate")[0]
    return resize(planes, size=size).clamp(0, 1)


@plain_torch()
def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    self_ensemble: bool | None = None,
    offline: bool | None = None,
) -> Upscaler:
    """Loads a named model ("cats-8x", see `gleansr models`) or a file of any supported layout with a GLEAN or another upscaling network,
    or an ONNX file of `gleansr export`.

    `device`: "auto" (CUDA, else Apple's MPS, else the CPU), "cpu", "cuda", "cuda:1" or "mps". `precision`: "float32", "bfloat16" or
    "float16", or short "fp32", "bf16", "fp16"; "auto" is float32 on a CPU and bfloat16 on a GPU that supports it; "float16" is for other
    GPUs. Results that overflow in half precision are recomputed in float32.

    `self_ensemble`: whether a result is the mean of the results for the image and for its mirror image, which is better and takes twice as
    long; None: as the model's file says. That of an ONNX file cannot be changed.

    An official model is downloaded on first use, unless `offline` or the environment variable GLEANSR_OFFLINE forbids it.
    """
    if not isinstance(self_ensemble, bool | None):
        raise RequestError(f"self_ensemble must be True, False or None, not {self_ensemble!r}")
    find_precision(precision, chosen := find_device(device))  # refuse impossible requests before any work
    path = checkpoints.model_path(name_or_path, offline=offline)
    if is_onnx(path):
        onnx = OnnxModel(path, chosen)
        if self_ensemble not in (None, onnx.about.self_ensemble):
            state = "one" if onnx.about.self_ensemble else "no"
            raise RequestError(f"{name_or_path}: an ONNX file computes as it was exported, with {state} self-ensemble")
        return Upscaler(FeedForwardModel(onnx, precision=precision), onnx.about)
    checkpoint = checkpoints.read(path)
    about = checkpoint.about if self_ensemble is None else dataclasses.replace(checkpoint.about, self_ensemble=self_ensemble)
    try:
        method = FeedForwardModel(checkpoint.build(None, path), device=chosen, precision=precision, self_ensemble=about.self_ensemble)
    except RequestError as error:
        raise RequestError(f"{name_or_path}: {error}") from None
    return Upscaler(method, about)
