"""Pictures in, pictures out: fits each picture to the method's input, runs batches, puts the results together."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from gleansr import checkpoints
from gleansr.checkpoints.native import About
from gleansr.errors import RequestError
from gleansr.fidelity import back_project
from gleansr.models.esrgan_plus import ESRGANPlus
from gleansr.models.frozen import FrozenGLEAN, freezable
from gleansr.models.glean import GLEAN
from gleansr.models.layers import placed
from gleansr.models.residual import ResidualNet
from gleansr.models.rrdb import RRDBNet
from gleansr.onnx_runtime import OnnxModel, is_onnx
from gleansr.pictures import Picture, Source, decode, to_image, unpremultiply
from gleansr.resize import resize

Fit = Literal["auto", "crop", "pad", "stretch", "exact"]
Precision = Literal["auto", "float32", "bfloat16"]


Report = Callable[[int, int], None]
"""Is told of the progress of a slow method: steps done, and steps in all."""


@dataclass(frozen=True)
class Enlarged:
    """What a method made of a batch."""

    pictures: Tensor
    """(N, 3, scale * h, scale * w), RGB in [-1, 1], not clamped."""
    notes: Sequence[str] = ()
    """What to say of each picture, "" if nothing; empty if there is nothing to say of any."""


class Method(Protocol):
    """A way to enlarge pictures: a network's forward pass, or a search in a bank."""

    name: str
    """GLEAN, PULSE, ..."""
    in_size: int | None
    """Height and width of the pictures that it takes, None: any."""
    scale: int
    device: torch.device

    def __call__(self, low: Tensor, report: Report | None = None) -> Enlarged:
        """low (N, 3, h, w), RGB in [-1, 1], float32, on `device`. What becomes of a picture does not depend on the others."""
        ...


class FeedForward:
    """One forward pass of a network that enlarges pictures."""

    _frozen: FrozenGLEAN | None = None

    def __init__(self, model: nn.Module | OnnxModel, *, device: str | torch.device = "auto", precision: Precision = "auto"):
        """`device` and `precision` as in `load`; of an `OnnxModel` both are its own. The model must not change any more.

        Raises:
            RequestError: the network is of another kind.
        """
        if isinstance(model, OnnxModel):
            if precision not in ("auto", "float32"):
                raise RequestError(f"an ONNX file computes in the precision that it was exported in, not in {precision}")
            self.name, self.in_size, self.scale = model.name, model.in_size, model.scale
            self.model, self.device, self.precision = model, torch.device("cpu"), torch.float32
            return
        self.device = device if isinstance(device, torch.device) else find_device(device)
        self.precision = find_precision(precision, self.device)
        self.in_size = None
        if isinstance(model, GLEAN):
            self.name, self.in_size, self.scale = "GLEAN", model.config.in_size, model.config.out_size // model.config.in_size
        elif isinstance(model, ResidualNet):
            self.name, self.scale = "plain", model.config.scale
        elif isinstance(model, ESRGANPlus | RRDBNet):
            self.name, self.scale = "ESRGAN+" if isinstance(model, ESRGANPlus) else "ESRGAN", model.config.scale
        else:
            raise RequestError(
                f"a {type(model).__name__} does not enlarge pictures by itself; give a GLEAN, an ESRGAN+, an ESRGAN or a plain network"
            )
        self.model = placed(model.eval(), self.device)
        self._freeze()

    def _freeze(self) -> None:
        if isinstance(self.model, GLEAN) and self.device.type == "cpu" and freezable(self.model):
            self._frozen = FrozenGLEAN(self.model, self.precision)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_frozen"}  # made of the model's weights again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._freeze()

    @torch.inference_mode()
    def __call__(self, low: Tensor, report: Report | None = None) -> Enlarged:  # noqa: ARG002, it takes no time worth reporting
        height, width = low.shape[-2:]
        fold = getattr(self.model, "fold", 1)  # ESRGANs of small scales fold so many pixels of each side into channels
        if height % fold or width % fold:
            low = nn.functional.pad(low, (0, -width % fold, 0, -height % fold), mode="replicate")
        if self._frozen:
            return Enlarged(self._frozen(low).float())
        low = low.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            high = enlarge(self.model, low)
        return Enlarged(high[..., : height * self.scale, : width * self.scale])


def enlarge(model: nn.Module | OnnxModel, low: Tensor) -> Tensor:
    """What a network makes of low (N, 3, h, w), RGB in [-1, 1]: (N, 3, scale * h, scale * w), float32, not clamped.

    ESRGAN's networks take and make pictures in [0, 1]; this is where that is converted.
    """
    return model((low + 1) / 2).float() * 2 - 1 if isinstance(model, ESRGANPlus | RRDBNet) else model(low).float()


@dataclass(frozen=True)
class Fitted:
    """A picture brought to the method's input size, and how to bring the result back."""

    picture: Picture
    low: Tensor
    """(3, h, w) in [-1, 1], colour premultiplied; h and w are the method's input size if it has one."""
    alpha: Tensor | None
    """(1, h, w) in [0, 1]."""
    keep: tuple[int, int, int, int]
    """Top, left, height and width, in pixels of the method's output, of what stands for the picture."""
    note: str
    """What was done, empty if nothing."""


class Upscaler:
    """Enlarges pictures by a method. Made by `gleansr.load`, for methods that are no network of their own by `gleansr.rivals.load`."""

    def __init__(self, method: Method, about: About):
        self.method = method
        self.device = method.device
        self.about = about
        self.scale = method.scale
        self.input_size = method.in_size
        """Height and width of the pictures that the method takes; None: any."""
        self.output_size = method.in_size and method.in_size * method.scale
        # LSUN's cars stand between black bars: the model takes and makes squares, of which the middle rows are picture.
        self.content_height = about.content_height or self.output_size
        self.category = about.category
        self.licence = about.licence

    def __call__(self, picture: Source | Picture, *, fit: Fit = "auto", consistent: float = 0.0) -> Image.Image:
        """Enlarges one picture: a path, the bytes of a file, a PIL image, an HWC uint8 array or a CHW float tensor in [0, 1], RGB.

        With `consistent` 1 the result is changed so that it shrinks to what the model got, see `fidelity.back_project`; between 0 and 1
        only so much of the way.

        Returns an RGB or RGBA image. Its `info["gleansr"]` says how the picture was fitted to the model, if it was; see `fit`.
        """
        return next(self.upscale([picture], batch_size=1, fit=fit, consistent=consistent))

    def upscale(
        self,
        pictures: Iterable[Source | Picture],
        *,
        batch_size: int | None = None,
        fit: Fit = "auto",
        consistent: float = 0.0,
        report: Report | None = None,
    ) -> Iterator[Image.Image]:
        """Enlarges pictures in batches, lazily and in order. A picture that cannot be read raises its PictureError.

        `fit` and `consistent` as for one picture. A slow method tells `report` of its progress with each batch.
        """
        size = batch_size or self.default_batch_size()
        fitted = (self.fit(picture if isinstance(picture, Picture) else decode(picture), fit) for picture in pictures)
        while batch := list(itertools.islice(fitted, size)):
            yield from self.run(batch, report, consistent=consistent)

    def default_batch_size(self) -> int:
        """As many pictures as keep the device busy within a few GB; one by one where they can be of any size."""
        if self.output_size is None:
            return 1
        return max(1, (2**19 if self.device.type == "cpu" else 2**23) // self.output_size**2)

    def fit(self, picture: Picture, fit: Fit = "auto") -> Fitted:
        """Brings a picture to the method's input size; a method without one takes it as it is.

        "exact" takes pictures of that size only. "stretch" resizes both sides. "crop" cuts out the centre square, "pad" repeats the border
        up to a square, of which the result keeps the picture's part; both then resize. "auto" is "pad", which loses nothing.

        A model of pictures between black bars (cars of 512x384) takes that aspect instead of a square, adds the bars itself and removes
        them from the result; a picture of its square input size is taken to have them, and keeps them.
        """
        if fit not in get_args(Fit):
            raise RequestError(f"fit is {fit!r}, but must be one of {', '.join(get_args(Fit))}")
        height, width = picture.pixels.shape[-2:]
        planes = picture.premultiplied() if picture.alpha is None else torch.cat([picture.premultiplied(), picture.alpha])
        if self.input_size is None or self.output_size is None or self.content_height is None:
            keep = (0, 0, height * self.scale, width * self.scale)
            return Fitted(picture, planes[:3] * 2 - 1, None if picture.alpha is None else planes[3:], keep, "")
        size, rows = self.input_size, self.content_height // self.scale
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

    def run(self, batch: Iterable[Fitted], report: Report | None = None, *, consistent: float = 0.0) -> list[Image.Image]:
        """Enlarges fitted pictures of one size together."""
        batch = list(batch)
        if len(sizes := {tuple(fitted.low.shape) for fitted in batch}) > 1:
            raise RequestError(
                f"pictures of several sizes ({sorted(sizes)}) cannot be enlarged together; --batch-size 1 takes them one by one"
            )
        enlarged = self.method(torch.stack([fitted.low for fitted in batch]).to(self.device), report)
        highs = list(enlarged.pictures.cpu())
        if consistent:
            highs = [back_project(fitted.low, high, strength=consistent) for fitted, high in zip(batch, highs, strict=True)]
        return [self.finish(*one) for one in zip(batch, highs, enlarged.notes or [""] * len(batch), strict=True)]

    def finish(self, fitted: Fitted, high: Tensor, note: str = "") -> Image.Image:
        """The result, of a fitted picture and what the method made of it: (3, scale * h, scale * w) in [-1, 1], which is clamped."""
        pixels, alpha = (high.clamp(-1, 1) + 1) / 2, None
        if fitted.alpha is not None:
            # Alpha is a mask, not a picture of the category: it is enlarged plainly.
            alpha = resize(fitted.alpha, size=(pixels.shape[-2], pixels.shape[-1])).clamp(0, 1)
            pixels = unpremultiply(pixels, alpha)
        top, left, height, width = fitted.keep
        image = to_image(pixels, alpha).crop((left, top, left + width, top + height))
        if said := "; ".join(filter(None, [fitted.note, note])):
            image.info["gleansr"] = said
        return image


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: Precision = "auto",
    offline: bool | None = None,
) -> Upscaler:
    """The Upscaler of a named model ("cats-8x", see `gleansr models`) or of a file of any layout with a GLEAN or another network that
    enlarges pictures, an ONNX file of `gleansr export` too.

    `device`: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps". `precision`: "auto" is float32 on a CPU and bfloat16 on a GPU
    that has it.

    An official model is downloaded on its first use, unless `offline` or the environment variable GLEANSR_OFFLINE forbids it.
    """
    find_precision(precision, chosen := find_device(device))  # what cannot be met is refused before any work
    path = checkpoints.model_path(name_or_path, offline=offline)
    if is_onnx(path):
        onnx = OnnxModel(path, chosen)
        return Upscaler(FeedForward(onnx, precision=precision), onnx.about)
    checkpoint = checkpoints.read(path)
    try:
        method = FeedForward(checkpoint.build(None, path), device=chosen, precision=precision)
    except RequestError as error:
        raise RequestError(f"{name_or_path}: {error}") from None
    return Upscaler(method, checkpoint.about)


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
