"""Decoding and encoding of images: orientation, colour, transparency, 16 bits, metadata, the mark of synthetic detail."""

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from PIL import Image

from gleansr.errors import ImageError, RequestError, TooLargeError, one_line
from gleansr.files import replacing
from gleansr.images import opening, png, readers, tiff
from gleansr.images.decoded import DecodedImage, neutral, unpremultiply
from gleansr.images.jpeg import jpeg_quality
from gleansr.images.metadata import EDITED, GENERATED, TOOL_TEXT, Metadata, read_metadata, software, writer_options
from gleansr.images.opening import DAMAGE, reading
from gleansr.images.planes import to_planes, to_srgb_planes
from gleansr.images.readers import readable_suffixes

__all__ = [
    "EDITED",
    "FORMATS",
    "GENERATED",
    "MAX_PIXELS",
    "MAX_SIDE",
    "DecodedImage",
    "Metadata",
    "Source",
    "check_output",
    "decode",
    "encode",
    "neutral",
    "readable_suffixes",
    "save",
    "software",
    "to_image",
    "unpremultiply",
]

Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
"""The suffixes that `encode` supports, and Pillow's names of their formats."""

MAX_PIXELS = 200_000_000
"""Limit of pixels of a file. Pillow's `Image.MAX_IMAGE_PIXELS`, by default 89 million, applies if it is lower, and strictly: Pillow itself
only warns up to twice its limit."""

MAX_SIDE = 1_000_000
"""Limit of pixels along a side."""


def decode(
    source: Source,
    *,
    name: str | None = None,
    on_open: Callable[[int, int], object] | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    kinds: Collection[str] | None = None,
) -> DecodedImage:
    """Decodes an image.

    Args:
        source: a path, file or bytes of any format that Pillow reads except EPS (the first frame or page; Pillow reduces 16-bit colour in
            PNG files to 8 bits, in TIFF files it stays, as does 16-bit grey); a PIL image; a uint8 or uint16 array HW or HWC; a float
            tensor CHW in [0, 1]. The channels of arrays and tensors are grey, grey and alpha, sRGB, or sRGB and alpha.
        name: the name for messages; by default the path.
        on_open: called with the width and height of a file's image before its pixels are read and take memory.
        max_pixels: limit of pixels of a file; by default `MAX_PIXELS`, or Pillow's limit if that is lower. A given value raises Pillow's
            own limit for this process.
        allow_truncated: reads a truncated file as far as it goes, with missing rows in black and a note of how many.
        kinds: Pillow's names of the allowed formats; by default all.

    Returns:
        The image, upright and converted to sRGB by its embedded profile or by the colour that a PNG states. Broken profiles and metadata
        are ignored with a note. Float grey is read as [0, 1], [0, 255] or [0, 65535], and 32-bit grey as [0, 65535] or the whole range:
        the first that holds all values.

    Raises ImageError if the source is missing, unreadable, empty, truncated, corrupt, too large or not an image.
    """
    name = name or str(source if isinstance(source, (str, os.PathLike)) else getattr(source, "filename", "") or type(source).__name__)
    if isinstance(source, torch.Tensor):
        if not source.is_floating_point():
            raise ImageError(f"{name}: tensors are CHW, float in [0, 1], not {source.dtype}")
        return _image(source, Metadata(), name)
    if isinstance(source, np.ndarray):
        if source.dtype not in (np.uint8, np.uint16):
            raise ImageError(f"{name}: arrays are uint8 or uint16, not {source.dtype}; floats go into a CHW tensor")
        planes = np.atleast_3d(source if source.dtype == np.uint8 else source / np.float32(65535))
        return _image(torch.from_numpy(np.array(np.moveaxis(planes, -1, 0))), Metadata(), name)
    if isinstance(source, Image.Image):
        with reading(name):
            return _decode_image(source, name)
    with contextlib.ExitStack() as stack:
        if isinstance(source, (bytes, bytearray, memoryview)):
            file = io.BytesIO(source)
        elif isinstance(source, (str, os.PathLike)):
            with reading(name):
                file = stack.enter_context(Path(source).open("rb"))
        elif hasattr(source, "read") and hasattr(source, "seek"):
            file = cast("BinaryIO", source)
        else:
            raise ImageError(f"an image is a path, bytes, PIL image, array or tensor, not {type(source).__name__}")
        return _decode_file(file, name, _limit(max_pixels), on_open, allow_truncated, kinds)


def to_image(pixels: torch.Tensor, alpha: torch.Tensor | None = None) -> Image.Image:
    """RGB from `pixels` (3, H, W), or RGBA with `alpha` (1, H, W): floats in [0, 1], clamped, rounded half to even; or RGB from uint8.

    Colour is not premultiplied (see `unpremultiply`). Raises ImageError for other shapes, NaN and infinity.
    """
    if pixels.dtype == torch.uint8 and alpha is None and pixels.ndim == 3 and len(pixels) == 3:
        return Image.fromarray(pixels.to("cpu").permute(1, 2, 0).contiguous().numpy())
    if pixels.ndim != 3 or len(pixels) != 3 or not pixels.is_floating_point():
        raise ImageError(f"an image is a float tensor (3, H, W), not {pixels.dtype} of {tuple(pixels.shape)}")
    planes = (pixels if alpha is None else torch.cat((pixels, alpha.to(pixels)))).detach().float()
    if not planes.isfinite().all():
        raise ImageError("the image has NaN or infinite values; try --precision float32")
    return Image.fromarray(planes.clamp(0, 1).mul(255).round().to("cpu", torch.uint8).permute(1, 2, 0).numpy())


def check_output(path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """`path`, if `encode` can write to it; for a check before any work. Raises ImageError with the reason if not."""
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise ImageError(f"{target}: unknown suffix {target.suffix!r}; use one of {', '.join(FORMATS)}")
    if not (target.parent.is_dir() and os.access(target.parent, os.W_OK | os.X_OK)):
        raise ImageError(f"{target}: the folder {target.parent} does not exist or cannot be written to")
    if target.is_dir():
        raise ImageError(f"{target}: is a folder")
    if os.path.lexists(target) and not overwrite:
        raise ImageError(f"{target}: already exists; use --overwrite or -o NAME")
    return target


def encode(
    image: Image.Image,
    path: str | os.PathLike[str],
    *,
    metadata: Metadata | None = None,
    model: str | None = None,
    quality: int = 95,
    overwrite: bool = True,
) -> Path:
    """Write a PNG, JPEG, WebP or TIFF, by the suffix of `path`, marked as an image with synthetic detail.

    The mark is the Software tag, with `model`, and IPTC's Digital Source Type in XMP. Writing is atomic.

    Args:
        image: in sRGB. For JPEG, transparent images are composited on white.
        metadata: the metadata of the input.
        model: the name of the model.
        quality: of JPEG (4:4:4) and WebP, 1 to 100. WebP is lossless at 100; PNG and TIFF always are.
        overwrite: replaces an existing file.

    Metadata that the format cannot hold is dropped with a warning.

    Raises ImageError if the file cannot be written, RequestError for a `quality` out of range.
    """
    if quality not in range(1, 101):
        raise RequestError(f"quality must be an integer from 1 to 100, not {quality!r}")
    target = check_output(path, overwrite=overwrite)
    kind = FORMATS[target.suffix.lower()]
    try:
        with replacing(target) as temporary:
            notes = save(image, temporary, kind, metadata or Metadata(), model, quality)
    except (*DAMAGE, MemoryError) as error:  # other errors are bugs
        raise ImageError(f"{target}: cannot be written: {one_line(error)}") from error
    for note in notes:
        warnings.warn(f"{target}: {note}", stacklevel=2)
    return target


def save(
    image: Image.Image, file: Path | BinaryIO, kind: str, metadata: Metadata, model: str | None, quality: int = 95, **more: Any
) -> tuple[str, ...]:
    """As `encode`, into a file or memory. `kind` is Pillow's name of the format; `more` are further options of Pillow's writer.

    Returns notes on metadata that could not be written.
    """
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if kind == "JPEG" and image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.info = {}  # Pillow's writers would use its entries
    text, exif = {"text": {}}, {"exif": b""}
    reductions: list[tuple[str, dict[str, Any]]] = [("", {}), ("text", text), ("Exif", exif), ("text and Exif", text | exif)]
    first: Exception | None = None
    for dropped, changes in [*reductions, ("metadata", text | exif | {"dpi": None})]:
        try:
            image.save(file, kind, **writer_options(kind, replace(metadata, **changes), model, image.size, quality), **more)
        except (ValueError, TypeError, AttributeError, KeyError, SyntaxError, struct.error) as error:
            first = first or error
            if not isinstance(file, Path):
                file.seek(0)
                file.truncate()
            continue
        notes = [f"its {dropped} could not be written: {one_line(first)}"] if first else []
        if kind != "PNG" and (lost := sorted(TOOL_TEXT & metadata.text.keys())):
            notes.append(f"its text {', '.join(lost)} was dropped: only PNG files can hold it")
        return tuple(notes)
    raise first or AssertionError


def _limit(max_pixels: int | None) -> int:
    if max_pixels is None:
        return min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    return max_pixels


def _decode_file(
    file: BinaryIO,
    name: str,
    limit: int,
    on_open: Callable[[int, int], object] | None,
    allow_truncated: bool,
    kinds: Collection[str] | None,
) -> DecodedImage:
    image, notes, contents = None, list[str](), file
    with reading(name):
        readers.check(file, name, limit, kinds)
        layout = tiff.layout(file) if kinds is None or "TIFF" in kinds else None
        if not layout:
            image, contents = opening.open_image(file, name, kinds, notes)
    width, height = (layout.width, layout.height) if layout else image.size if image else (0, 0)
    if width * height > limit:
        raise opening.too_large(name, f"{width}x{height} pixels are more than {limit}")
    if max(width, height) > MAX_SIDE:
        raise TooLargeError(f"{name}: is too large: {width}x{height} is more than {MAX_SIDE} pixels along a side; cut it into parts")
    if on_open:
        on_open(width, height)
    with reading(name):
        if layout:
            return _decode_tiff(layout, file, name, notes)
        cicp = png.read_cicp(contents) if image and image.format == "PNG" else None
        image = opening.load_pixels(image, contents, file, name, kinds, notes, allow_truncated=allow_truncated)
        return _decode_image(image, name, notes, cicp, owned=True)


def _decode_tiff(layout: tiff.TIFFLayout, file: BinaryIO, name: str, notes: list[str]) -> DecodedImage:
    values = layout.read(file)
    colours, alpha = torch.from_numpy(values[: layout.colours]), None
    if layout.alpha is not None:
        alpha = torch.from_numpy(values[layout.colours :].clip(max=1))
        if layout.premultiplied:
            colours = unpremultiply(colours, alpha)
    if layout.pages:
        notes.append(f"{name}: has several pages, the first was used")
    colours = torch.from_numpy(to_srgb_planes(colours.numpy(), layout.info, None, name, notes, "TIFF"))
    return _with_metadata(colours, alpha, lambda: layout.exif(file), layout.info, {}, name, notes)


def _decode_image(
    image: Image.Image,
    name: str,
    notes: list[str] | None = None,
    cicp: tuple[int, int, int, int] | None = None,
    *,
    owned: bool = False,
) -> DecodedImage:
    """`owned`: nothing else uses the image, so its memory is freed."""
    notes = [] if notes is None else notes
    file = None if owned or not getattr(image, "tile", None) else getattr(image, "fp", None)
    if file and image.format == "TIFF" and not image.tell() and (layout := tiff.layout(file)):
        return _decode_tiff(layout, file, name, notes)
    if file and image.format == "PNG":
        cicp = png.read_cicp(file)
    quality = jpeg_quality(image)
    image.load()  # before reading metadata, which loads too but hides errors
    colours, alpha = to_planes(image, name, notes, cicp)
    text = {}
    with contextlib.suppress(Exception):  # of a truncated PNG
        text = getattr(image, "text", {})
    if owned:
        image.im = Image.new(image.mode, (1, 1)).im
    decoded = _with_metadata(colours, alpha, image.getexif, image.info, text, name, notes)
    decoded.jpeg_quality = quality
    return decoded


def _with_metadata(
    colours: torch.Tensor,
    alpha: torch.Tensor | None,
    getexif: Callable[[], Image.Exif],
    info: Mapping[Any, Any],
    text: Mapping[str, str],
    name: str,
    notes: list[str],
) -> DecodedImage:
    """The upright image with its metadata."""
    metadata, orientation = read_metadata(getexif, info, text, name, notes)
    transposed = orientation in (5, 6, 7, 8)
    flipped = [axis for axis, orientations in ((1, (3, 4, 7, 8)), (2, (2, 3, 6, 7))) if orientation in orientations]

    def upright(planes: torch.Tensor) -> torch.Tensor:
        return (planes.mT if transposed else planes).flip(flipped) if transposed or flipped else planes

    return _image(upright(colours), metadata, name, tuple(notes), None if alpha is None else upright(alpha))


def _image(
    planes: torch.Tensor, metadata: Metadata, name: str, notes: tuple[str, ...] = (), alpha: torch.Tensor | None = None
) -> DecodedImage:
    """An image from planes (C, H, W), uint8 or float in [0, 1]: grey, grey and alpha, RGB or RGBA; or with a separate alpha."""
    floats = planes.is_floating_point()
    if not (floats or planes.dtype == torch.uint8) or planes.ndim != 3 or len(planes) not in (1, 2, 3, 4) or 0 in planes.shape:
        layout = f"{planes.dtype} CHW {tuple(planes.shape)}"
        raise ImageError(f"{name}: images are arrays HW or HWC or float tensors CHW with up to 4 channels, not {layout}")
    if floats:
        planes = planes.detach().to("cpu", torch.float32)
        low, high = (bound.item() for bound in torch.aminmax(planes))
        if not (low >= -0.01 and high <= 1.01):  # tolerates the overshoot of an interpolation, but no NaN
            raise ImageError(f"{name}: values must be in [0, 1], not from {low:g} to {high:g}")
        planes = planes.clamp(0, 1)
    if len(planes) in (2, 4):
        planes, alpha = planes.split((len(planes) - 1, 1))
    if alpha is not None and bool((alpha == (1 if alpha.is_floating_point() else 255)).all()):
        alpha = None
    return DecodedImage(planes.contiguous(), None if alpha is None else alpha.contiguous(), metadata, name, notes)
