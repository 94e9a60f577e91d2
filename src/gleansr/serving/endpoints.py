"""Upscaling and retouching: the fields of their forms, and the work on images before and after a forward pass."""

import base64
import ctypes
import io
import json
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor

from gleansr.errors import ImageError, RequestError, TooLargeError
from gleansr.images.codec import MAX_PIXELS, DecodedImage, Metadata, decode, save
from gleansr.images.opening import ALLOW_TRUNCATED
from gleansr.inference.method import StepReport
from gleansr.inference.router import AUTO, Models
from gleansr.inference.tasks import TaskResult, fitted_task
from gleansr.inference.upscaler import Upscaler
from gleansr.photos import AutoTask, PhotoConfig
from gleansr.photos.config import MAX_MEGAPIXELS
from gleansr.retouching.refine import RetouchConfig, prepare
from gleansr.serving import forms
from gleansr.serving.forms import Field, Form
from gleansr.serving.problems import Problem

INPUT_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Accepted formats, by Pillow's names; fewer than the command line's, since the files are untrusted."""

OutputFormat = Literal["png", "jpeg", "webp"]
Images = Mapping[str, DecodedImage]
Values = Mapping[str, Any]
Hold = Callable[[int], None]
"""Reserves memory for an image, by its number of pixels, before it is decoded; raises Problem if there is none."""


@dataclass(frozen=True)
class PreparedRequest:
    """A request before its forward passes."""

    lrs: tuple[Tensor, ...]
    """Inputs of models; empty if no forward pass is needed."""
    upscalers: tuple[Upscaler, ...]
    """The model of each of `lrs`."""
    finish: Callable[[Sequence[Tensor], Sequence[str]], TaskResult]
    """Builds the result from the models' outputs, (3, out, out) in [-1, 1], and their notes, "" for none."""
    metadata: Metadata = field(default_factory=Metadata)
    headers: Mapping[str, str] = field(default_factory=dict)
    synthetic: bool = True
    """Whether the result has detail invented by a model."""


@dataclass(frozen=True)
class EncodedResult:
    """A response: the encoded image, or JSON that contains it, with its headers."""

    contents: bytes
    media_type: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that processes images."""

    fields: Mapping[str, Field]
    prepare: Callable[[Images, Values, StepReport], PreparedRequest]
    """The report receives the progress of `finish` on a photo, and ends it by raising an exception."""
    is_photo: Callable[[Images, Values], bool] = lambda _images, _values: False
    """Whether a request takes much longer than a thumbnail."""
    result_pixels: Callable[[Images, Values], int] = lambda _images, _values: 0
    """Largest number of pixels of the result that the request may need beyond those of its images."""


def make_endpoints(upscalers: Mapping[str, Upscaler], models: Models | None, max_pixels: int) -> tuple[Endpoint, Endpoint]:
    """Upscaling and retouching.

    Args:
        upscalers: the models that requests may name; the first is the default for retouching.
        models: those to choose from for requests without a model; None: the first of `upscalers` is the default here too.
        max_pixels: of a result.
    """
    config = PhotoConfig(measure_consistency=False, max_megapixels=min(MAX_MEGAPIXELS, max_pixels / 1e6))
    tasks = {AUTO: AutoTask(config, models=models)} if models else {}
    tasks |= {name: AutoTask(config, model=upscaler, models=models) for name, upscaler in upscalers.items()}
    shared = {"format": forms.choice("Format of the result", "png", "jpeg", "webp")}
    model = "Name of the model, see /v1/models"
    upscale_fields = {
        "image": forms.file("The image to enlarge: PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF", required=True),
        "model": forms.choice(f"{model}; auto recognises the image and chooses" if models else model, *tasks),
        "scale": forms.integer(
            "The result is exactly so many times as large; by default the model's scale for thumbnails, otherwise 4, or 2 for large photos",
            1,
            64,
        ),
        "fit": forms.choice(
            "How a named model takes a thumbnail of another size than its own; auto loses nothing, and enlarges larger images as photos",
            "auto",
            "crop",
            "pad",
            "stretch",
            "exact",
        ),
    }
    retouch_fields = {
        "edited": forms.file("The retouched image", required=True),
        "original": forms.file("The original image, of the same size: only differences from it are refined"),
        "mask": forms.file("Opacity of the refined image, white for opaque, of the same size"),
        "model": forms.choice(f"{model}; auto recognises the region" if models else model, *([AUTO] if models else []), *upscalers),
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
        "output": forms.choice("The image, or the opacity of the refined image as a grey PNG, without a forward pass", "image", "mask"),
    }

    def is_photo(images: Images, values: Values) -> bool:
        return values["fit"] == "auto" and not tasks[values["model"]].is_thumbnail(*images["image"].size)

    def result_pixels(images: Images, values: Values) -> int:
        """Thumbnails that a model yet unknown enlarges 8 to 64 times are too small to matter."""
        height, width = images["image"].size
        scale = values["scale"] or tasks[values["model"]].scale_by_size((height, width), "image")
        return height * width * scale**2

    upscaling = Endpoint(upscale_fields | shared, partial(upscale, tasks, upscalers), is_photo, result_pixels)
    return upscaling, Endpoint(retouch_fields | shared, partial(retouch, upscalers, models))


def upscale(
    tasks: Mapping[str, AutoTask], upscalers: Mapping[str, Upscaler], images: Images, values: Values, report: StepReport
) -> PreparedRequest:
    """Raises Problem."""
    image, scale, fit = images["image"], values["scale"], values["fit"]
    if fitted := _checked(fitted_task, upscalers.get(values["model"]), fit, scale):
        task, prepared = fitted, _checked(fitted.prepare, image)
    else:
        task = tasks[values["model"]]
        prepared = _checked(task.prepare, image, scale=scale, report=report)
    chosen = prepared.upscalers or (task.upscaler,) * len(prepared.lrs)
    return PreparedRequest(prepared.lrs, chosen, prepared.finish, image.metadata)


def retouch(
    upscalers: Mapping[str, Upscaler], models: Models | None, images: Images, values: Values, _report: StepReport
) -> PreparedRequest:
    """Raises Problem."""
    model = upscalers.get(values["model"], models)
    config = RetouchConfig(values["strength"], values["factor"], values["feather"], values["box"])
    prepared = _checked(prepare, images["edited"], images.get("original"), model, config, mask=images.get("mask"))
    headers = {"Gleansr-Box": ",".join(map(str, prepared.box))}
    if values["output"] == "mask":
        mask, notes = prepared.mask, tuple(note for image in images.values() for note in image.notes)
        chosen = TaskResult(mask, notes, models=(prepared.upscaler.name,), summary=prepared.summary)
        return PreparedRequest((), (), lambda _srs, _notes: chosen, headers=headers, synthetic=False)
    metadata = images.get("original", images["edited"]).metadata
    read_notes = [note for name, image in images.items() if name != "edited" for note in image.notes]

    def finish(srs: Sequence[Tensor], _: Sequence[str]) -> TaskResult:
        image = prepared.finish(srs[0] if srs else None)
        notes = tuple(filter(None, [image.info.get("gleansr"), *read_notes]))  # the image has those of `edited`
        return TaskResult(image, notes, models=(prepared.upscaler.name,), summary=prepared.summary)

    lrs = () if prepared.lr is None else (prepared.lr,)
    return PreparedRequest(lrs, (prepared.upscaler,) * len(lrs), finish, metadata, headers)


def decode_all(form: Form, max_pixels: int, hold: Hold) -> Images:
    """The images of a form. Raises Problem, as `read`."""
    return {name: read(name, file, max_pixels, hold) for name, file in form.files.items()}


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
        raise Problem("bad-image", f"{str(error).replace(ALLOW_TRUNCATED, '')}; {remedy}") from None


def release_memory() -> None:
    """Returns freed memory to the system. glibc's allocator keeps blocks of less than 32 MB: more than a gigabyte after photographs of 24
    megapixels."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def warm_up(endpoint: Endpoint, name: str, upscaler: Upscaler) -> None:
    """Retouches an image with a model, since the first request takes longer."""
    size, out = upscaler.input_size or 1, upscaler.output_size or 1
    values = {key: field.default for key, field in endpoint.fields.items()} | {"model": name}
    prepared = endpoint.prepare({"edited": decode(Image.new("RGB", (size, size)))}, values, lambda _done, _total: None)
    encode(prepared.finish([torch.zeros(3, out, out)], [""]), prepared, "png", None)


def _checked(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls `call` and turns its errors into Problem "unfit": the fields are valid, but do not suit the model."""
    try:
        return call(*arguments, **options)
    except (RequestError, ImageError) as error:
        raise Problem("unfit", str(error).replace("--", "")) from None  # options such as --fit are fields here


def encode(
    result: TaskResult,
    prepared: PreparedRequest,
    output_format: OutputFormat,
    model: str | None,
    *,
    seconds: float = 0,
    as_json: bool = False,
) -> EncodedResult:
    """Encodes a result in memory. Marks synthetic detail in the metadata.

    Args:
        result: the image.
        prepared: its request.
        output_format: of the image, unless it is not synthetic: then PNG.
        model: names the model in the metadata.
        seconds: duration of the forward passes.
        as_json: whether the response is JSON with the image in base64, and what was done.
    """
    image, notes = result.image, "; ".join(result.notes)
    file, output_format = io.BytesIO(), output_format if prepared.synthetic else "png"
    fast: dict[str, Any] = {"compress_level": 1, "compress_type": zlib.Z_RLE} if output_format == "png" else {}
    if prepared.synthetic:
        save(image, file, output_format.upper(), prepared.metadata, model, **fast)
    else:
        image.save(file, "PNG", **fast)
    media_type = f"image/{output_format}"
    if as_json:
        details = {"scale" if name == "factor" else name: value for name, value in result.details.items()}  # its name in manifests
        facts = {
            "image": base64.b64encode(file.getbuffer()).decode(),
            "media_type": media_type,
            "width": image.width,
            "height": image.height,
            "model": model,
            "summary": result.summary,
            "notes": result.notes,
            "seconds": round(seconds, 4),
            **details,
        }
        return EncodedResult(json.dumps(facts).encode(), "application/json", prepared.headers)
    headers = {**prepared.headers, "Gleansr-Size": f"{image.width}x{image.height}"}
    for name, text in {"Gleansr-Note": notes, "Gleansr-Summary": result.summary}.items():
        if text:
            headers[name] = quote(text)
    return EncodedResult(file.getvalue(), media_type, headers)
