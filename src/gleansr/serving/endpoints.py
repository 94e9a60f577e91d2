"""Upscaling and retouching: the fields of their forms, and the work on images before and after a forward pass."""

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
from gleansr.serving.problems import Problem

INPUT_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Accepted formats, by Pillow's names; fewer than the command line's, since the files are untrusted."""

OutputFormat = Literal["png", "jpeg", "webp"]
Hold = Callable[[int], None]
"""Reserves memory for an image, by its number of pixels, before it is decoded; raises Problem if there is none."""


@dataclass(frozen=True)
class PreparedRequest:
    """A request before its forward pass."""

    lr: Tensor | None
    """The model's input; None if no forward pass is needed."""
    finish: Callable[[Tensor | None], Image.Image]
    """Builds the result from the model's output, (3, out, out) in [-1, 1]."""
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    synthetic: bool = True
    """Whether the result has detail invented by a model."""


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image with its headers."""

    contents: bytes
    media_type: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that processes images."""

    fields: Mapping[str, Field]
    prepare: Callable[[Form, Upscaler, int, Hold], PreparedRequest]
    """Called with the form, the model, the maximum number of pixels of an image, and `Hold`."""


def make_endpoints(models: tuple[str, ...]) -> tuple[Endpoint, Endpoint]:
    """Upscaling and retouching with these models."""
    shared = {
        "model": forms.choice("Name of the model, see /v1/models", *models),
        "format": forms.choice("Format of the result", "png", "jpeg", "webp"),
    }
    upscale_fields = {
        "picture": forms.file("The image to enlarge: PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF", required=True),
        "fit": forms.choice(
            "How to fit an image that does not have the model's input size; auto pads", "auto", "crop", "pad", "stretch", "exact"
        ),
    }
    retouch_fields = {
        "edited": forms.file("The retouched image", required=True),
        "original": forms.file("The original image, of the same size: only differences from it are refined"),
        "mask": forms.file("Opacity of the refined image, white for opaque, of the same size"),
        "strength": forms.number("0 shows the retouched image, 1 the refined one", 0, 1, 1),
        "factor": forms.integer(
            "Ratio of the model's output to the size at which it sees the image: larger means that more is painted anew; "
            "by default the model's scale",
            2,
            256,
            power_of_two=True,
        ),
        "feather": forms.integer("Pixels over which the refined image fades; by default a 32nd of the region", 0, 10_000),
        "box": forms.box("Left, top and width of the region that the model sees; by default chosen from the edits"),
        "output": forms.choice("The image, or the opacity of the refined image as a grey PNG, without a forward pass", "picture", "mask"),
    }
    return Endpoint(upscale_fields | shared, upscale), Endpoint(retouch_fields | shared, retouch)


def upscale(form: Form, upscaler: Upscaler, max_pixels: int, hold: Hold) -> PreparedRequest:
    """Raises Problem."""
    image = read("picture", form.files["picture"], max_pixels, hold)
    fitted = _checked(upscaler.fit, image, form.values["fit"])
    # Frees the pixels, which `finish` does not need.
    fitted = dataclasses.replace(fitted, image=DecodedImage(torch.empty(3, 0, 0)))

    def finish(sr: Tensor | None) -> Image.Image:
        assert sr is not None  # noqa: S101, upscaling always has a forward pass
        return upscaler.finish(fitted, sr)

    return PreparedRequest(fitted.lr, finish, image.metadata, image.notes)


def retouch(form: Form, upscaler: Upscaler, max_pixels: int, hold: Hold) -> PreparedRequest:
    """Raises Problem."""
    images: dict[str, DecodedImage] = {}
    for name in ("edited", "original", "mask"):
        if name in form.files:
            images[name] = read(name, form.files[name], max_pixels, hold)
    values = form.values
    config = RetouchConfig(values["strength"], values["factor"], values["feather"], values["box"])
    prepared = _checked(prepare, images["edited"], images.get("original"), upscaler, config, mask=images.get("mask"))
    headers = {"Gleansr-Box": ",".join(map(str, prepared.box))}
    if values["output"] == "mask":
        mask, notes = prepared.mask, [note for image in images.values() for note in image.notes]
        return PreparedRequest(None, lambda _: mask, notes=tuple(notes), headers=headers, synthetic=False)
    metadata = images.get("original", images["edited"]).metadata
    notes = [note for name, image in images.items() if name != "edited" for note in image.notes]  # `finish` adds those of `edited`
    return PreparedRequest(prepared.lr, prepared.finish, metadata, tuple(notes), headers)


def read(name: str, file: BinaryIO, max_pixels: int, hold: Hold) -> DecodedImage:
    """Decodes a file, after checking its number of pixels.

    Raises Problem if it is too large, damaged, or not an image.
    """

    def check_size(width: int, height: int) -> None:
        if width * height > max_pixels:
            raise Problem("too-many-pixels", f"{name}: is {width}x{height}, more than {max_pixels} pixels; send a smaller image")
        hold(width * height)

    try:
        return decode(file, name=name, on_open=check_size, max_pixels=max(max_pixels, MAX_PIXELS), kinds=INPUT_FORMATS)
    except TooLargeError:
        raise Problem("too-many-pixels", f"{name}: has more than {max_pixels} pixels; send a smaller image") from None
    except ImageError as error:
        unsupported = "not an image of a known kind" in str(error) or "not taken here" in str(error)
        remedy = "send PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF" if unsupported else "send another file"
        raise Problem("bad-picture", f"{str(error).replace(ALLOW_TRUNCATED, '')}; {remedy}") from None


def release_memory() -> None:
    """Returns freed memory to the system. glibc's allocator keeps blocks of less than 32 MB: more than a gigabyte after photographs of 24
    megapixels."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def warm_up(upscaler: Upscaler) -> None:
    """Runs a request, since the first one takes longer."""
    fields, size, out = make_endpoints(("any",))[1].fields, upscaler.input_size or 1, upscaler.output_size or 1
    file = io.BytesIO()
    Image.new("RGB", (size, size)).save(file, "PNG")
    form = Form({"edited": file}, {name: field.default for name, field in fields.items()})
    prepared = retouch(form, upscaler, size**2, lambda _: None)
    encode(prepared.finish(torch.zeros(3, out, out)), prepared, "png", None)


def _checked(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls `call` and turns its errors into Problem "unfit": the fields are valid, but do not suit the model."""
    try:
        return call(*arguments, **options)
    except (RequestError, ImageError) as error:
        raise Problem("unfit", str(error).replace("--", "")) from None  # options such as --fit are fields here


def encode(image: Image.Image, prepared: PreparedRequest, output_format: OutputFormat, model: str | None) -> EncodedImage:
    """Encodes a result in memory. Marks synthetic detail in the metadata."""
    notes = "; ".join(filter(None, [image.info.get("gleansr"), *prepared.notes]))
    headers = {**prepared.headers, "Gleansr-Size": f"{image.width}x{image.height}"}
    if notes:
        headers["Gleansr-Note"] = quote(notes)
    file, output_format = io.BytesIO(), output_format if prepared.synthetic else "png"
    fast: dict[str, Any] = {"compress_level": 1, "compress_type": zlib.Z_RLE} if output_format == "png" else {}
    if prepared.synthetic:
        save(image, file, output_format.upper(), prepared.metadata, model, **fast)
    else:
        image.save(file, "PNG", **fast)
    return EncodedImage(file.getvalue(), f"image/{output_format}", headers)
