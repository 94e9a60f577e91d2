"""The work on pictures around a forward pass: reading and preparing before it, putting together and writing after it."""

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

from gleansr.errors import PictureError, RequestError, TooLargeError
from gleansr.images.codec import MAX_PIXELS, Metadata, Picture, decode, save
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
"""Is told of the pixels of each picture before it is read; raises Problem where there is no room for them."""


@dataclass(frozen=True)
class Ready:
    """A request before its forward pass."""

    low: Tensor | None
    """What the model gets; None where no forward pass is needed."""
    finish: Callable[[Tensor | None], Image.Image]
    """The result, of what the model made, (3, out, out) in [-1, 1]."""
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    synthetic: bool = True
    """Whether the result is a picture with detail that a model made up."""


@dataclass(frozen=True)
class Answer:
    """An encoded picture."""

    contents: bytes
    media_type: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Kind:
    """A kind of request."""

    fields: Mapping[str, Field]
    prepare: Callable[[Form, Upscaler, int, Hold], Ready]
    """Of a form, the model, the most pixels of a picture, and what is told of them."""


def kinds(models: tuple[str, ...]) -> tuple[Kind, Kind]:
    """Upscaling and retouching with these models."""
    shared = {
        "model": forms.choice("Name of the model, see /v1/models", *models),
        "format": forms.choice("Kind of picture that is answered", "png", "jpeg", "webp"),
    }
    upscaling = {
        "picture": forms.file("The picture to enlarge: PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF", required=True),
        "fit": forms.choice(
            "What is done with a picture that is not of the model's input size; auto pads", "auto", "crop", "pad", "stretch", "exact"
        ),
    }
    retouching = {
        "edited": forms.file("The retouched picture", required=True),
        "original": forms.file("The picture before, of the same size: only what differs from it is refined"),
        "mask": forms.file("How much of the refined picture may show, white where all of it, of the same size"),
        "strength": forms.number("0 leaves the retouched picture as it is, 1 shows the refined one alone", 0, 1, 1),
        "factor": forms.whole(
            "How many times the model's output is larger than what it sees of the picture: more means more is painted anew; "
            "by default the model's scale",
            2,
            256,
            power_of_two=True,
        ),
        "feather": forms.whole("Pixels over which the refined picture fades; by default a 32nd of the region", 0, 10_000),
        "box": forms.box("Left, top and width of the region that the model sees; by default it is found"),
        "output": forms.choice(
            "The picture, or how much of the refined picture shows, as grey PNG, without a forward pass", "picture", "mask"
        ),
    }
    return Kind(upscaling | shared, upscale), Kind(retouching | shared, retouch)


def upscale(form: Form, upscaler: Upscaler, most: int, hold: Hold) -> Ready:
    """Raises Problem."""
    picture = read("picture", form.files["picture"], most, hold)
    fitted = _unfit(upscaler.fit, picture, form.values["fit"])
    # Only what finishing needs is kept while it waits, not the picture as it came.
    fitted = dataclasses.replace(fitted, picture=Picture(torch.empty(3, 0, 0)))

    def finish(high: Tensor | None) -> Image.Image:
        assert high is not None  # noqa: S101, upscaling always has a forward pass
        return upscaler.finish(fitted, high)

    return Ready(fitted.low, finish, picture.metadata, picture.notes)


def retouch(form: Form, upscaler: Upscaler, most: int, hold: Hold) -> Ready:
    """Raises Problem."""
    pictures: dict[str, Picture] = {}
    for name in ("edited", "original", "mask"):
        if name in form.files:
            pictures[name] = read(name, form.files[name], most, hold)
    values = form.values
    config = RetouchConfig(values["strength"], values["factor"], values["feather"], values["box"])
    prepared = _unfit(prepare, pictures["edited"], pictures.get("original"), upscaler, config, mask=pictures.get("mask"))
    headers = {"Gleansr-Box": ",".join(map(str, prepared.box))}
    if values["output"] == "mask":
        mask, notes = prepared.mask, [note for picture in pictures.values() for note in picture.notes]
        return Ready(None, lambda _: mask, notes=tuple(notes), headers=headers, synthetic=False)
    metadata = pictures.get("original", pictures["edited"]).metadata
    others = [note for name, picture in pictures.items() if name != "edited" for note in picture.notes]  # its own are told by `finish`
    return Ready(prepared.low, prepared.finish, metadata, tuple(others), headers)


def read(name: str, file: BinaryIO, most: int, hold: Hold) -> Picture:
    """Decodes a file of up to `most` pixels; they are counted before any is decoded.

    Raises Problem if it is too large, broken, or no picture.
    """

    def opened(width: int, height: int) -> None:
        if width * height > most:
            raise Problem("too-many-pixels", f"{name}: is {width}x{height}, which is more than {most} pixels; send a smaller picture")
        hold(width * height)

    try:
        return decode(file, name=name, opened=opened, max_pixels=max(most, MAX_PIXELS), kinds=KINDS)
    except TooLargeError:
        raise Problem("too-many-pixels", f"{name}: has more than {most} pixels; send a smaller picture") from None
    except PictureError as error:
        other = "not a picture of a known kind" in str(error) or "not taken here" in str(error)
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
    except (RequestError, PictureError) as error:
        raise Problem("unfit", worded(error)) from None


def write(image: Image.Image, ready: Ready, kind: Format, model: str | None) -> Answer:
    """The file that is answered, in memory. A picture with synthetic detail is marked as such."""
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
