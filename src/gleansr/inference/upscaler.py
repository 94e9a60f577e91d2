"""Images in, images out: fits each image to the method's input, runs batches, puts the results together."""

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
from gleansr.inference.feedforward import FeedForwardModel
from gleansr.inference.method import Model, StepReport
from gleansr.inference.onnx_runtime import OnnxModel, is_onnx
from gleansr.inference.precision import Precision
from gleansr.inference.runner import Runner

Fit = Literal["auto", "crop", "pad", "stretch", "exact"]


@dataclass(frozen=True)
class Fitted:
    """An image brought to the method's input size, and how to bring the result back."""

    image: DecodedImage
    lr: Tensor
    """(3, h, w) in [-1, 1], colour premultiplied; h and w are the method's input size if it has one."""
    alpha: Tensor | None
    """(1, h, w) in [0, 1]."""
    keep: tuple[int, int, int, int]
    """Top, left, height and width, in pixels of the method's output, of what stands for the image."""
    note: str
    """What was done, empty if nothing."""
    bars: tuple[int, int] | None = None
    """First row of the output that is image, and the first behind it, where the image came with black bars above and below."""
    grey: bool = False
    """Whether the image is grey, so that the result is."""


_BLACK = 8 / 255  # bars are not darker than JPEG leaves them
_LARGE = 2**22
"""Pixels of an image from which on it is made float in strips."""
_STRIP = 2**20
"""Pixels of a strip."""


class Upscaler:
    """Enlarges images by a method. Made by `gleansr.load`, for methods that are no network of their own by `gleansr.baselines.load`."""

    def __init__(self, method: Model, about: About):
        self.method = method
        self.passes = Runner(method)
        """Calls the method with images on the CPU."""
        self.device = method.device
        if self.device.type != "cpu":
            weakref.finalize(self, clear_cache)  # what methods resize with would hold the device's memory
        self.about = about
        self.scale = method.scale
        self.input_size = method.in_size
        """Height and width of the images that the method takes; None: any."""
        self.output_size = method.in_size and method.in_size * method.scale
        # LSUN's cars stand between black bars: the model takes and makes squares, of which the middle rows are image.
        self.content_height = about.content_height or self.output_size
        self.border: Literal["repeat", "black"] = "black" if about.content_height and about.border != "repeat" else "repeat"
        """What the model is shown around images that are not of its shape."""
        self.category = about.category
        self.licence = about.licence

    def __call__(self, image: Source | DecodedImage, *, fit: Fit = "auto", consistent: float = 0.0) -> Image.Image:
        """Enlarges one image: a path, the bytes of a file, a PIL image, an HWC uint8 array or a CHW float tensor in [0, 1], RGB.

        With `consistent` 1 the result is changed so that it shrinks to what the model got, see `fidelity.back_project`; between 0 and 1
        only so much of the way.

        Returns an RGB or RGBA image. Its `info["gleansr"]` says how the image was fitted to the model, if it was; see `fit`.
        """
        return next(self.upscale([image], batch_size=1, fit=fit, consistent=consistent))

    def upscale(
        self,
        images: Iterable[Source | DecodedImage],
        *,
        batch_size: int | None = None,
        fit: Fit = "auto",
        consistent: float = 0.0,
        report: StepReport | None = None,
    ) -> Iterator[Image.Image]:
        """Enlarges images in batches, lazily and in order. An image that cannot be read raises its ImageError.

        `fit` and `consistent` as for one image. A slow method tells `report` of its progress with each batch.
        """
        size = batch_size or self.default_batch_size()
        fitted = (self._fitted(image, fit) for image in images)
        while batch := list(itertools.islice(fitted, size)):
            yield from self.run(batch, report, consistent=consistent)

    @plain_torch()
    def _fitted(self, image: Source | DecodedImage, fit: Fit) -> Fitted:
        return self.fit(image if isinstance(image, DecodedImage) else decode(image), fit)

    def default_batch_size(self) -> int:
        """As many images as keep the device busy within a few GB; one by one where they can be of any size."""
        if self.output_size is None:
            return 1
        return max(1, (2**19 if self.device.type == "cpu" else 2**23) // self.output_size**2)

    @plain_torch()
    def fit(self, image: DecodedImage, fit: Fit = "auto") -> Fitted:
        """Brings an image to the method's input size; a method without one takes it as it is.

        "exact" takes images of that size only. "stretch" resizes both sides. "crop" cuts out the centre square, "pad" repeats the border
        up to a square, of which the result keeps the image's part; both then resize. "auto" is "pad", which loses nothing.

        A model of images between black bars (cars of 512x384) takes that aspect instead of a square, adds the bars itself and removes
        them from the result; an image of its square input size is taken to have them, and keeps them. Where the model was shown
        repeated rows instead of black bars, it is shown them in use too.
        """
        if fit not in get_args(Fit):
            raise RequestError(f"fit is {fit!r}, but must be one of {', '.join(get_args(Fit))}")
        height, width = image.size
        if self.input_size is None or self.output_size is None or self.content_height is None:
            keep = (0, 0, height * self.scale, width * self.scale)
            return Fitted(image, image.premultiplied() * 2 - 1, image.alpha, keep, "", grey=image.grey)
        size, rows = self.input_size, self.content_height // self.scale
        done: list[str] = []
        cut, pad = (slice(0, height), slice(0, width)), (0, 0, 0, 0)
        top = left = 0.0
        kept_height = kept_width = 1.0
        barred = (height, width) == (size, size)  # with the bars already there
        if (height, width) != (rows, size) and not barred:
            if fit == "exact":
                raise RequestError(
                    f"{image.name}: is {width}x{height}, but the model takes {size}x{rows} exactly; "
                    "--fit crop, pad or stretch brings it there"
                )
            wide = width * rows > height * size
            full_height, full_width = (round(width * rows / size), width) if wide else (height, round(height * size / rows))
            if (full_height, full_width) != (height, width):
                if fit == "crop":
                    cut_height, cut_width = (height, round(height * size / rows)) if wide else (round(width * rows / size), width)
                    y, x = (height - cut_height) // 2, (width - cut_width) // 2
                    cut = slice(y, y + cut_height), slice(x, x + cut_width)
                    full_height, full_width = cut_height, cut_width
                    done.append(f"cut to its centre {cut_width}x{cut_height}")
                elif fit == "stretch":
                    done.append("aspect ratio not kept")
                    full_height, full_width = height, width
                else:
                    y, x = (full_height - height) // 2, (full_width - width) // 2
                    pad = (x, full_width - width - x, y, full_height - height - y)
                    top, left, kept_height, kept_width = y / full_height, x / full_width, height / full_height, width / full_width
                    done.append(f"padded to {full_width}x{full_height}")
            if (full_height, full_width) != (rows, size):
                grown = "shrunk" if full_width > size else "enlarged" if full_width < size else "resized"
                done.append(f"{grown} to the model's {size}x{rows}")
            planes = _resized(image, cut, pad, (rows, size))
        else:
            planes = _planes(image, *cut)
        bars = None
        if rows != size:
            first = (size - rows) // 2
            last = first + rows
            if barred and self.border == "repeat" and float(torch.cat([planes[:3, :first], planes[:3, last:]], 1).mean()) < _BLACK:
                planes, bars = planes[:, first:last], (first * self.scale, last * self.scale)
            if bars or not barred:
                mode = "replicate" if self.border == "repeat" else "constant"
                planes = torch.nn.functional.pad(planes[None], (0, 0, first, size - last), mode=mode)[0]
        out, content = self.output_size, self.output_size if barred else self.content_height
        bar = (out - content) // 2
        first, last = (
            (bar + round(top * content), round(left * out)),
            (bar + round((top + kept_height) * content), round((left + kept_width) * out)),
        )
        keep = (*first, max(1, last[0] - first[0]), max(1, last[1] - first[1]))
        note = f"{width}x{height}: {', '.join(done)}" if done else ""
        alpha = None if image.alpha is None else planes[3:]
        return Fitted(image, planes[:3] * 2 - 1, alpha, keep, note, bars, image.grey)

    @plain_torch()
    def run(self, batch: Iterable[Fitted], report: StepReport | None = None, *, consistent: float = 0.0) -> list[Image.Image]:
        """Enlarges fitted images of one size together."""
        batch = list(batch)
        if len(sizes := {tuple(fitted.lr.shape) for fitted in batch}) > 1:
            raise RequestError(
                f"images of several sizes ({sorted(sizes)}) cannot be enlarged together; --batch-size 1 takes them one by one"
            )
        eight_bits = not consistent and all(fitted.alpha is None for fitted in batch)
        enlarged = self.passes([fitted.lr for fitted in batch], report, eight_bits=eight_bits)
        srs = list(enlarged.images)
        if consistent:
            srs = [back_project(fitted.lr, sr, strength=consistent) for fitted, sr in zip(batch, srs, strict=True)]
        return [self.finish(*one) for one in zip(batch, srs, enlarged.notes or [""] * len(batch), strict=True)]

    @plain_torch()
    def finish(self, fitted: Fitted, sr: Tensor, note: str = "") -> Image.Image:
        """The result, of a fitted image and what the method made of it: (3, scale * h, scale * w) in [-1, 1], which is clamped; of a
        image without alpha its 8 bits will do."""
        pixels, alpha = sr if sr.dtype == torch.uint8 else (sr.clamp(-1, 1) + 1) / 2, None
        if fitted.alpha is not None:
            # Alpha is a mask, not an image of the category: it is enlarged plainly.
            alpha = resize(fitted.alpha, size=(pixels.shape[-2], pixels.shape[-1])).clamp(0, 1)
            pixels = unpremultiply(pixels, alpha)
        if fitted.bars:
            first, last = fitted.bars
            pixels = pixels.clone()
            pixels[:, :first] = pixels[:, last:] = 0
        top, left, height, width = fitted.keep
        image = to_image(pixels, alpha).crop((left, top, left + width, top + height))
        image = neutral(image) if fitted.grey else image
        if said := "; ".join(filter(None, [fitted.note, note])):
            image.info["gleansr"] = said
        return image


def _planes(image: DecodedImage, rows: slice, columns: slice) -> Tensor:
    """(3 or 4, rows, columns) in [0, 1]: colour times alpha, and alpha where there is transparency."""
    colour = image.premultiplied(rows, columns)
    return colour if image.stored_alpha is None else torch.cat([colour, image.alpha_region(rows, columns)])


def _resized(image: DecodedImage, cut: tuple[slice, slice], pad: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """What `cut` leaves of an image, its border repeated by `pad` (left, right, top, bottom), resized to `size`; as `_planes`, clamped.

    Of a large image a strip is made float and shrunk along one axis at a time: the one that is not padded, since what is padded can be
    much larger than the image.
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
    offline: bool | None = None,
) -> Upscaler:
    """The Upscaler of a named model ("cats-8x", see `gleansr models`) or of a file of any layout with a GLEAN or another network that
    enlarges images, an ONNX file of `gleansr export` too.

    `device`: "auto" (CUDA, or Apple's MPS, or the CPU, the first that is there), "cpu", "cuda", "cuda:1", "mps". `precision`: "float32",
    "bfloat16" or "float16", or short "fp32", "bf16", "fp16"; "auto" is float32 on a CPU and bfloat16 on a GPU that has it, "float16" is for
    other GPUs. What half precision cannot express is computed again in float32.

    An official model is downloaded on its first use, unless `offline` or the environment variable GLEANSR_OFFLINE forbids it.
    """
    find_precision(precision, chosen := find_device(device))  # what cannot be met is refused before any work
    path = checkpoints.model_path(name_or_path, offline=offline)
    if is_onnx(path):
        onnx = OnnxModel(path, chosen)
        return Upscaler(FeedForwardModel(onnx, precision=precision), onnx.about)
    checkpoint = checkpoints.read(path)
    try:
        method = FeedForwardModel(checkpoint.build(None, path), device=chosen, precision=precision)
    except RequestError as error:
        raise RequestError(f"{name_or_path}: {error}") from None
    return Upscaler(method, checkpoint.about)
