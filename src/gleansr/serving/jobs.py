"""The work on images around a forward pass: reading and preparing before it, putting together and writing after it."""

import ctypes
import dataclasses
import io
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor

from gleansr.errors import ImageError, RequestError, TooLargeError
from gleansr.images.codec import MAX_PIXELS, DecodedImage, Metadata, decode, save
from gleansr.images.opening import ALLOW_TRUNCATED
from gleansr.inference.upscaler import Upscaler
from gleansr.retouching.refine import RetouchConfig, prepare
from gleansr.serving import forms
from gleansr.serving.forms import Field, Form
from gleansr.serving.problems import Problem, worded

KINDS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Kinds of files that are read, by Pillow's names; fewer than the command line reads, since anybody may send them."""

Format = Literal["png", "jpeg", "webp"]
Hold = Callable[[int], None]
"""Is told of the pixels of each image before it is read; raises Problem where there is no room for them."""


@dataclass(frozen=True)
class Ready:
    """A request before its forward pass."""

    lr: Tensor | None
    """What the model gets; None where no forward pass is needed."""
    finish: Callable[[Tensor | None], Image.Image]
    """The result, of what the model made, (3, out, out) in [-1, 1]."""
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    synthetic: bool = True
    """Whether the result is an image with detail that a model made up."""


@dataclass(frozen=True)
class Answer:
    """An encoded image."""

    contents: bytes
    media_type: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class RequestKind:
    """A kind of request."""

    fields: Mapping[str, Field]
    prepare: Callable[[Form, Upscaler, int, Hold], Ready]
    """Of a form, the model, the most pixels of an image, and what is told of them."""


def kinds(models: tuple[str, ...]) -> tuple[RequestKind, RequestKind]:
    """Upscaling and retouching with these models."""
    shared = {
        "model": forms.choice("Name of the model, see /v1/models", *models),
        "format": forms.choice("Kind of image that is answered", "png", "jpeg", "webp"),
    }
    upscaling = {
        "picture": forms.file("The image to enlarge: PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF", required=True),
        "fit": forms.choice(
            "What is done with an image that is not of the model's input size; auto pads", "auto", "crop", "pad", "stretch", "exact"
        ),
    }
    retouching = {
        "edited": forms.file("The retouched image", required=True),
        "original": forms.file("The image before, of the same size: only what differs from it is refined"),
        "mask": forms.file("How much of the refined image may show, white where all of it, of the same size"),
        "strength": forms.number("0 leaves the retouched image as it is, 1 shows the refined one alone", 0, 1, 1),
        "factor": forms.whole(
            "How many times the model's output is larger than what it sees of the image: more means more is painted anew; "
            "by default the model's scale",
            2,
            256,
            power_of_two=True,
        ),
        "feather": forms.whole("Pixels over which the refined image fades; by default a 32nd of the region", 0, 10_000),
        "box": forms.box("Left, top and width of the region that the model sees; by default it is found"),
        "output": forms.choice("The image, or how much of the refined image shows, as grey PNG, without a forward pass", "picture", "mask"),
    }
    return RequestKind(upscaling | shared, upscale), RequestKind(retouching | shared, retouch)


def upscale(form: Form, upscaler: Upscaler, most: int, hold: Hold) -> Ready:
    """Raises Problem."""
    image = read("picture", form.files["picture"], most, hold)
    fitted = _unfit(upscaler.fit, image, form.values["fit"])
    # Only what finishing needs is kept while it waits, not the image as it came.
    fitted = dataclasses.replace(fitted, image=DecodedImage(torch.empty(3, 0, 0)))

    def finish(sr: Tensor | None) -> Image.Image:
        assert sr is not None  # noqa: S101, upscaling always has a forward pass
        return upscaler.finish(fitted, sr)

    return Ready(fitted.lr, finish, image.metadata, image.notes)


def retouch(form: Form, upscaler: Upscaler, most: int, hold: Hold) -> Ready:
    """Raises Problem."""
    images: dict[str, DecodedImage] = {}
    for name in ("edited", "original", "mask"):
        if name in form.files:
            images[name] = read(name, form.files[name], most, hold)
    values = form.values
    config = RetouchConfig(values["strength"], values["factor"], values["feather"], values["box"])
    prepared = _unfit(prepare, images["edited"], images.get("original"), upscaler, config, mask=images.get("mask"))
    headers = {"Gleansr-Box": ",".join(map(str, prepared.box))}
    if values["output"] == "mask":
        mask, notes = prepared.mask, [note for image in images.values() for note in image.notes]
        return Ready(None, lambda _: mask, notes=tuple(notes), headers=headers, synthetic=False)
    metadata = images.get("original", images["edited"]).metadata
    others = [note for name, image in images.items() if name != "edited" for note in image.notes]  # its own are told by `finish`
    return Ready(prepared.lr, prepared.finish, metadata, tuple(others), headers)


def read(name: str, file: BinaryIO, most: int, hold: Hold) -> DecodedImage:
    """Decodes a file of up to `most` pixels; they are counted before any is decoded.

    Raises Problem if it is too large, broken, or no image.
    """

    def opened(width: int, height: int) -> None:
        if width * height > most:
            raise Problem("too-many-pixels", f"{name}: is {width}x{height}, which is more than {most} pixels; send a smaller image")
        hold(width * height)

    try:
        return decode(file, name=name, on_open=opened, max_pixels=max(most, MAX_PIXELS), kinds=KINDS)
    except TooLargeError:
        raise Problem("too-many-pixels", f"{name}: has more than {most} pixels; send a smaller image") from None
    except ImageError as error:
        other = "not an image of a known kind" in str(error) or "not taken here" in str(error)
        mend = "send PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF" if other else "send another file"
        raise Problem("bad-picture", f"{str(error).replace(ALLOW_TRUNCATED, '')}; {mend}") from None


def give_back_memory() -> None:
    """Returns what was freed to the system. glibc's allocator keeps what it gave out in pieces of less than 32 MB: after photographs of 24
    megapixels more than a gigabyte."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def warm_up(upscaler: Upscaler) -> None:
    """Does once what takes longer at its first time."""
    kind, (size, out) = kinds(("any",))[1], (upscaler.input_size or 1, upscaler.output_size or 1)
    file = io.BytesIO()
    Image.new("RGB", (size, size)).save(file, "PNG")
    ready = retouch(Form({"edited": file}, {name: one.default for name, one in kind.fields.items()}), upscaler, size**2, lambda _: None)
    write(ready.finish(torch.zeros(3, out, out)), ready, "png", None)


def _unfit(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What `call` returns. What it refuses does not suit the model: the fields themselves are right."""
    try:
        return call(*arguments, **named)
    except (RequestError, ImageError) as error:
        raise Problem("unfit", worded(error)) from None


def write(image: Image.Image, ready: Ready, kind: Format, model: str | None) -> Answer:
    """The file that is answered, in memory. An image with synthetic detail is marked as such."""
    said = "; ".join(filter(None, [image.info.get("gleansr"), *ready.notes]))
    headers = {**ready.headers, "Gleansr-Size": f"{image.width}x{image.height}"}
    if said:
        headers["Gleansr-Note"] = quote(said)
    file, kind = io.BytesIO(), kind if ready.synthetic else "png"
    faster: dict[str, Any] = {"compress_level": 1, "compress_type": zlib.Z_RLE} if kind == "png" else {}
    if ready.synthetic:
        save(image, file, kind.upper(), ready.metadata, model, **faster)
    else:
        image.save(file, "PNG", **faster)
    return Answer(file.getvalue(), f"image/{kind}", headers)
