"""Pictures in, pictures out: fits each picture to the model's input, runs batches, puts the results together."""

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from gleansr import checkpoints
from gleansr.checkpoints.native import About
from gleansr.errors import RequestError
from gleansr.models.glean import GLEAN
from gleansr.models.layers import placed
from gleansr.pictures import Picture, Source, decode, to_image, unpremultiply
from gleansr.resize import resize

Fit = Literal["auto", "crop", "pad", "stretch", "exact"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Fitted:
    """A picture brought to the model's input size, and how to bring the result back."""

    picture: Picture
    low: Tensor
    """(3, in, in) in [-1, 1], colour premultiplied."""
    alpha: Tensor | None
    """(1, in, in) in [0, 1]."""
    keep: tuple[int, int, int, int]
    """Top, left, height and width, in pixels of the model's output, of what stands for the picture."""
    note: str
    """What was done, empty if nothing."""


class Upscaler:
    """Enlarges pictures with a GLEAN. Made by `gleansr.load`."""

    def __init__(self, model: GLEAN, about: About, *, device: str = "auto", precision: Precision = "auto"):
        """`device`: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps". `precision`: "auto" is float32 on a CPU and bfloat16 on
        a GPU that has it."""
        self.device = find_device(device)
        self.precision = find_precision(precision, self.device)
        self.about = about
        self.model = placed(model.eval(), self.device)
        self.input_size = model.config.in_size
        self.output_size = model.config.out_size
        self.scale = self.output_size // self.input_size
        # LSUN's cars stand between black bars: the model takes and makes squares, of which the middle rows are picture.
        self.content_height = about.content_height or self.output_size
        self.category = about.category
        self.licence = about.licence

    def __call__(self, picture: Source | Picture, *, fit: Fit = "auto") -> Image.Image:
        """Enlarges one picture: a path, the bytes of a file, a PIL image, an HWC uint8 array or a CHW float tensor in [0, 1], RGB.

        Returns an RGB or RGBA image. Its `info["gleansr"]` says how the picture was fitted to the model, if it was; see `fit`.
        """
        return next(self.upscale([picture], batch_size=1, fit=fit))

    def upscale(self, pictures: Iterable[Source | Picture], *, batch_size: int | None = None, fit: Fit = "auto") -> Iterator[Image.Image]:
        """Enlarges pictures in batches, lazily and in order. A picture that cannot be read raises its PictureError."""
        size = batch_size or self.default_batch_size()
        fitted = (self.fit(picture if isinstance(picture, Picture) else decode(picture), fit) for picture in pictures)
        while batch := list(itertools.islice(fitted, size)):
            yield from self.run(batch)

    def default_batch_size(self) -> int:
        """As many pictures as keep the device busy within a few GB."""
        pixels = self.output_size**2
        return max(1, (2**19 if self.device.type == "cpu" else 2**23) // pixels)

    def fit(self, picture: Picture, fit: Fit = "auto") -> Fitted:
        """Brings a picture to the model's input size.

        "exact" takes pictures of that size only. "stretch" resizes both sides. "crop" cuts out the centre square, "pad" repeats the border
        up to a square, of which the result keeps the picture's part; both then resize. "auto" is "pad", which loses nothing.

        A model of pictures between black bars (cars of 512x384) takes that aspect instead of a square, adds the bars itself and removes
        them from the result; a picture of its square input size is taken to have them, and keeps them.
        """
        if fit not in get_args(Fit):
            raise RequestError(f"fit is {fit!r}, but must be one of {', '.join(get_args(Fit))}")
        size, rows = self.input_size, self.content_height // self.scale
        height, width = picture.pixels.shape[-2:]
        planes = picture.premultiplied() if picture.alpha is None else torch.cat([picture.premultiplied(), picture.alpha])
        done: list[str] = []
        top = left = 0.0
        kept_height = kept_width = 1.0
        barred = (height, width) == (size, size)  # with the bars already there
        if (height, width) != (rows, size) and not barred:
            if fit == "exact":
                raise RequestError(
                    f"{picture.name}: is {width}x{height}, but the model takes {size}x{rows} exactly; "
                    "--fit crop, pad or stretch brings it there"
                )
            wide = width * rows > height * size
            full_height, full_width = (round(width * rows / size), width) if wide else (height, round(height * size / rows))
            if (full_height, full_width) != (height, width):
                if fit == "crop":
                    cut_height, cut_width = (height, round(height * size / rows)) if wide else (round(width * rows / size), width)
                    y, x = (height - cut_height) // 2, (width - cut_width) // 2
                    planes = planes[:, y : y + cut_height, x : x + cut_width]
                    done.append(f"cut to its centre {cut_width}x{cut_height}")
                elif fit == "stretch":
                    done.append("aspect ratio not kept")
                else:
                    y, x = (full_height - height) // 2, (full_width - width) // 2
                    pad = (x, full_width - width - x, y, full_height - height - y)
                    planes = torch.nn.functional.pad(planes[None], pad, mode="replicate")[0]
                    top, left, kept_height, kept_width = y / full_height, x / full_width, height / full_height, width / full_width
                    done.append(f"padded to {full_width}x{full_height}")
            if planes.shape[-2:] != (rows, size):
                grown = "shrunk" if planes.shape[-1] > size else "enlarged" if planes.shape[-1] < size else "resized"
                done.append(f"{grown} to the model's {size}x{rows}")
                planes = resize(planes, size=(rows, size)).clamp(0, 1)
        if not barred and rows != size:
            bar = (size - rows) // 2
            planes = torch.nn.functional.pad(planes, (0, 0, bar, size - rows - bar))
        out, content = self.output_size, self.output_size if barred else self.content_height
        bar = (out - content) // 2
        first, last = (
            (bar + round(top * content), round(left * out)),
            (bar + round((top + kept_height) * content), round((left + kept_width) * out)),
        )
        keep = (*first, max(1, last[0] - first[0]), max(1, last[1] - first[1]))
        note = f"{width}x{height}: {', '.join(done)}" if done else ""
        alpha = None if picture.alpha is None else planes[3:]
        return Fitted(picture, planes[:3] * 2 - 1, alpha, keep, note)

    @torch.inference_mode()
    def run(self, batch: Iterable[Fitted]) -> list[Image.Image]:
        """Enlarges fitted pictures in one forward pass."""
        batch = list(batch)
        low = torch.stack([fitted.low for fitted in batch]).to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            high = self.model(low)
        high = (high.float().clamp(-1, 1).cpu() + 1) / 2
        return [self._finish(fitted, pixels) for fitted, pixels in zip(batch, high, strict=True)]

    def _finish(self, fitted: Fitted, pixels: Tensor) -> Image.Image:
        alpha = None
        if fitted.alpha is not None:
            # Alpha is a mask, not a picture of the category: it is enlarged plainly.
            alpha = resize(fitted.alpha, size=self.output_size).clamp(0, 1)
            pixels = unpremultiply(pixels, alpha)
        top, left, height, width = fitted.keep
        image = to_image(pixels, alpha).crop((left, top, left + width, top + height))
        if fitted.note:
            image.info["gleansr"] = fitted.note
        return image


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: Precision = "auto",
    offline: bool | None = None,
) -> Upscaler:
    """The Upscaler of a named model ("cats-8x", see `gleansr models`) or of a file with a GLEAN of any layout.

    An official model is downloaded on its first use, unless `offline` or the environment variable GLEANSR_OFFLINE forbids it.
    """
    find_precision(precision, chosen := find_device(device))  # what cannot be met is refused before any work
    path = checkpoints.model_path(name_or_path, offline=offline)
    checkpoint = checkpoints.read(path)
    model = checkpoint.build(None, path)
    if not isinstance(model, GLEAN):
        raise RequestError(f"{name_or_path}: holds a {type(model).__name__}, which does not enlarge pictures; give a GLEAN")
    return Upscaler(model, checkpoint.about, device=str(chosen), precision=precision)


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, or the CPU where there is none. A device that is not there is an error."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ):  # torch raises any of these, depending on how it was built
        raise RequestError(f"the device {name!r} is not there or not usable here; --device cpu always is") from None
    return device


def find_precision(name: Precision, device: torch.device) -> torch.dtype:
    """The arithmetic of the convolutions; see `Upscaler`."""
    if name not in get_args(Precision):
        raise RequestError(f"precision is {name!r}, but must be one of {', '.join(get_args(Precision))}")
    if name == "auto":
        half = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if half else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
