"""Picture files in and out: orientation, colour, transparency, 16 bits, metadata, the mark of synthetic detail."""

import contextlib
import functools
import importlib.metadata
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from xml.sax.saxutils import quoteattr

import numpy as np
import torch
from PIL import Image, ImageCms, PngImagePlugin
from PIL.ExifTags import IFD, Base

from gleansr.errors import PictureError, RequestError, one_line
from gleansr.files import replacing

Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | torch.Tensor

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
"""The suffixes that `encode` writes, and Pillow's names of their formats."""

_NOT_READ = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"}  # EPS is a program to be run; Pillow only names the others
MAX_PIXELS = 200_000_000
"""The most pixels that `decode` takes from a file. Pillow's `Image.MAX_IMAGE_PIXELS`, by default 89 million, counts where it is lower, and
strictly: Pillow itself only warns up to twice its limit."""

# Of https://cv.iptc.org/newscodes/digitalsourcetype/. The first is "Edited using Generative AI": a generative model has augmented an
# existing picture, as a latent bank does. IPTC's algorithmicallyEnhanced excludes generative AI.
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmp:CreatorTool={software} xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{source_type}"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""

# What people and cameras said of the scene is kept; what programs said of the old file (sizes, profiles) is not.
_EXIF_KEPT = {Base.ImageDescription, Base.Make, Base.Model, Base.DateTime, Base.Artist, Base.Copyright, Base.Rating}
_TEXT_KEPT = {"Title", "Author", "Description", "Copyright", "Creation Time", "Source", "Comment"}

_SRGB = ImageCms.createProfile("sRGB")
_PROBE = Image.fromarray(np.mgrid[0:256:51, 0:256:51, 0:256:51].reshape(3, 1, -1).transpose(1, 2, 0).astype(np.uint8))
_PILLOW = r"PIL\.(?#gleansr)"  # with a mark, so that it is no one else's filter
_READERS = 0
_FILTERED: list[Any] = []  # the lists of warnings' filters that have ours
_LOCK = threading.Lock()  # over these three, and over Pillow's loading of its plugins


@dataclass(frozen=True)
class Metadata:
    """What is carried from a picture to the one that is made of it."""

    exif: bytes = b""
    """Exif without thumbnail, maker note and orientation (pixels are upright). Place and camera are in it."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch of the upright picture, horizontal and vertical."""
    text: Mapping[str, str] = field(default_factory=dict)
    """Values of PNG's standard keywords; the comment of a JPEG or GIF is "Comment"."""
    generated: bool = False
    """Whether the picture is marked as created by generative AI, so that it stays marked so."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture: upright, sRGB."""

    pixels: torch.Tensor
    """(3, H, W) float32 in [0, 1], sRGB, RGB, not multiplied with the alpha."""
    alpha: torch.Tensor | None = None
    """(1, H, W) float32 in [0, 1]; None where all is opaque."""
    metadata: Metadata = field(default_factory=Metadata)
    name: str = "picture"
    """What messages call it, such as its path."""
    notes: tuple[str, ...] = ()
    """What could not be honoured, one line each, such as a broken colour profile."""

    def premultiplied(self) -> torch.Tensor:
        """(3, H, W): colour times alpha, the form to resize in, for hidden colours not to bleed into visible ones."""
        return self.pixels if self.alpha is None else self.pixels * self.alpha


def unpremultiply(pixels: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Colour (3, H, W) in [0, 1] of premultiplied `pixels` and `alpha` (1, H, W); black where alpha is 0 in 8 bits."""
    visible = alpha > 0.5 / 255
    return torch.where(visible, pixels / torch.where(visible, alpha, 1), 0).clamp(0, 1)


def decode(source: Source, *, name: str | None = None, opened: Callable[[int, int], object] | None = None) -> Picture:
    """Read a picture.

    Args:
        source: a path, or the bytes of a file, of any kind that Pillow reads except EPS (the first frame; Pillow reduces 16-bit colour to
            8 bits, 16-bit grey stays); a PIL image; a uint8 or uint16 array HW or HWC; a float tensor CHW in [0, 1]. The channels of
            arrays and tensors are grey, grey and alpha, sRGB, or sRGB and alpha.
        name: what messages call it; by default its path.
        opened: is called with the width and height of a file's picture before its pixels are read, from which on it takes memory.

    Returns:
        The picture, turned upright and converted to sRGB by its embedded profile; a profile that does not work is ignored with a note.
        Float grey is read as [0, 1], [0, 255] or [0, 65535] and 32-bit grey as [0, 65535] or [0, 2**31 - 1], the first that holds it.

    Raises PictureError if it is missing, unreadable, empty, truncated, corrupt, above `MAX_PIXELS` or no picture.
    """
    name = name or str(source if isinstance(source, (str, os.PathLike)) else getattr(source, "filename", "") or type(source).__name__)
    if isinstance(source, torch.Tensor):
        return _picture(source, Metadata(), name)
    if isinstance(source, np.ndarray):
        if source.dtype not in (np.uint8, np.uint16):
            raise PictureError(f"{name}: arrays are uint8 or uint16, not {source.dtype}; floats go into a CHW tensor")
        planes = np.atleast_3d(source / np.float32(np.iinfo(source.dtype).max))
        return _picture(torch.from_numpy(np.moveaxis(planes, -1, 0)), Metadata(), name)
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)):
        raise PictureError(f"a picture is a path, bytes, PIL image, array or tensor, not {type(source).__name__}")
    with _reading(name):
        if isinstance(source, Image.Image):
            return _decode_image(source, name)
        with Path(source).open("rb") if isinstance(source, (str, os.PathLike)) else io.BytesIO(source) as file:
            image = _open(file, name)
            if opened:
                opened(*image.size)
            return _decode_image(image, name)


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """The suffixes, such as ".png", of the files that `decode` reads; it goes by contents, but folders are searched by name."""
    with _LOCK:
        Image.init()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in _NOT_READ)


@functools.cache
def software() -> str:
    """This program and its version, as files name it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from a source tree
        return f"gleansr {importlib.metadata.version('gleansr')}"
    return "gleansr"


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """The 8 bits of float values in [-1, 1]: clamped, rounded half to even, as by `to_image` in [0, 1]. NaN gives anything."""
    return pixels.float().clamp(-1, 1).add_(1).div_(2).mul_(255).round_().to(torch.uint8)


def to_image(pixels: torch.Tensor, alpha: torch.Tensor | None = None) -> Image.Image:
    """RGB of `pixels` (3, H, W), or RGBA with `alpha` (1, H, W): float in [0, 1], clamped, rounded half to even; or RGB of uint8.

    The colour is not premultiplied (see `unpremultiply`). Raises PictureError for another shape, for NaN and infinity.
    """
    if pixels.dtype == torch.uint8 and alpha is None and pixels.ndim == 3 and len(pixels) == 3:
        return Image.fromarray(pixels.to("cpu").permute(1, 2, 0).contiguous().numpy())
    if pixels.ndim != 3 or len(pixels) != 3 or not pixels.is_floating_point():
        raise PictureError(f"a picture is a float tensor (3, H, W), not {pixels.dtype} of {tuple(pixels.shape)}")
    planes = (pixels if alpha is None else torch.cat((pixels, alpha.to(pixels)))).detach().float()
    if not planes.isfinite().all():
        raise PictureError("the picture has NaN or infinite values; try --precision float32")
    return Image.fromarray(planes.clamp(0, 1).mul(255).round().to("cpu", torch.uint8).permute(1, 2, 0).numpy())


def check_output(path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """`path`, if `encode` can write to it, to be called before any work. Raises PictureError that says why not."""
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise PictureError(f"{target}: unknown suffix {target.suffix!r}; use one of {', '.join(FORMATS)}")
    if not (target.parent.is_dir() and os.access(target.parent, os.W_OK | os.X_OK)):
        raise PictureError(f"{target}: the folder {target.parent} does not exist or cannot be written to")
    if target.is_dir():
        raise PictureError(f"{target}: is a folder")
    if target.exists() and not overwrite:
        raise PictureError(f"{target}: exists already and may not be overwritten")
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
    """Write a PNG, JPEG, WebP or TIFF, by the suffix of `path`, marked as a picture with synthetic detail.

    The mark is the Software tag, with `model`, and IPTC's Digital Source Type in XMP. Written whole or not at all.

    Args:
        image: in sRGB. A JPEG has no transparency: the picture is laid on white.
        metadata: of the picture that `image` was made of.
        model: the name of the model that made the detail.
        quality: of JPEG (4:4:4) and WebP, 1 to 100. WebP is lossless at 100; PNG and TIFF always are.
        overwrite: whether a file that exists is replaced.

    Raises PictureError if the file cannot be written, RequestError for a `quality` out of range.
    """
    if quality not in range(1, 101):
        raise RequestError(f"quality is a whole number from 1 to 100, not {quality!r}")
    target = check_output(path, overwrite=overwrite)
    kind = FORMATS[target.suffix.lower()]
    try:
        with replacing(target) as temporary:
            save(image, temporary, kind, metadata or Metadata(), model, quality)
    except Exception as error:  # Pillow's writers raise errors of many kinds
        raise PictureError(f"{target}: cannot be written: {one_line(error)}") from error
    return target


def save(
    image: Image.Image, file: Path | BinaryIO, kind: str, metadata: Metadata, model: str | None, quality: int = 95, **more: Any
) -> None:
    """What `encode` writes, into a file or memory. `kind` is Pillow's name of the format; Pillow's writer is given `more`, too."""
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if kind == "JPEG" and image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.info = {}  # of which Pillow's writers would take what suits them
    image.save(file, kind, **_options(kind, metadata, model, image.size, quality), **more)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Keep Pillow's warnings in, and make its errors one line."""
    try:
        with _quiet():
            yield
    except PictureError:
        raise
    except Exception as error:  # on damaged files Pillow's readers raise errors of many kinds
        raise PictureError(f"{name}: cannot be read: {one_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow's modules while any thread is in here.

    Filters belong to the process: threads that restore them as `warnings.catch_warnings` does would restore each other's, and one at a time
    would be slow. So one filter is put in by whoever reads, and taken out of the very lists that it was put into by the last.
    """
    global _READERS
    with _LOCK:
        _READERS += 1
        if not (warnings.filters and _ours(warnings.filters[0])):
            # Moves it to the front if it is there, and meanwhile it is not: never where it already does its work for other threads.
            warnings.filterwarnings("ignore", module=_PILLOW)
        if not any(warnings.filters is filters for filters in _FILTERED):
            _FILTERED.append(warnings.filters)
    try:
        yield
    finally:
        with _LOCK:
            _READERS -= 1
            while not _READERS and _FILTERED:
                filters = _FILTERED.pop()
                filters[:] = [item for item in filters if not _ours(item)]


def _ours(item: tuple[Any, ...]) -> bool:
    """Whether a filter of the module `warnings` is that of `_quiet`."""
    return bool(item[3]) and getattr(item[3], "pattern", "") == _PILLOW


def _open(file: BinaryIO, name: str) -> Image.Image:
    with _LOCK:  # the first call loads plugins, which the lists of Pillow show one by one
        Image.init()
    limit = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    try:
        image = Image.open(file, formats=[kind for kind in Image.ID if kind not in _NOT_READ])
        if image.width * image.height > limit:
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels are more than {limit}")
    except Image.UnidentifiedImageError as error:
        empty = file.seekable() and file.seek(0, io.SEEK_END) == 0
        raise PictureError(f"{name}: {'is empty' if empty else 'is not a picture of a known kind'}") from error
    except Image.DecompressionBombError as error:
        mend = "if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS and gleansr.pictures.MAX_PIXELS"
        raise PictureError(f"{name}: is too large: {error}; {mend}") from error
    return image


def _decode_image(image: Image.Image, name: str) -> Picture:
    image.load()  # first, and where its errors count: what is asked for metadata loads too, and Pillow does not load a second time
    notes, exif, orientation = [], b"", 1
    try:  # any value may be damaged
        orientation = image.getexif().get(Base.Orientation, 1)  # 1 of TIFF files, which Pillow has turned
        exif = _kept_exif(image.getexif()).tobytes()
        if len(exif) >= 60_000:  # more than a JPEG holds
            exif = b""
            notes.append(f"{name}: its Exif metadata was ignored: it is too long")
    except Exception as error:
        notes.append(f"{name}: its Exif metadata was ignored: {one_line(error)}")
    planes = _planes(image, name, notes)
    turned = orientation in (5, 6, 7, 8)
    mirrored = [axis for axis, orientations in ((1, (3, 4, 7, 8)), (2, (2, 3, 6, 7))) if orientation in orientations]
    planes = (planes.mT if turned else planes).flip(mirrored)
    x, y = [float(value) for value in image.info.get("dpi", (0, 0))][:: -1 if turned else 1]
    dpi = (x, y) if 1 <= x <= 65535 and 1 <= y <= 65535 else None  # what a JPEG can hold, and not NaN
    raw = image.info.get("comment")  # of JPEG and GIF
    text = ({"Comment": raw.decode(errors="replace")} if isinstance(raw, bytes) else {}) | getattr(image, "text", {})
    text = {key: str(value) for key, value in text.items() if key in _TEXT_KEPT and 0 < len(value) <= 10_000}
    generated = GENERATED.removeprefix("http") in str(image.info.get("xmp"))  # some write https
    return _picture(planes, Metadata(exif, dpi, text, generated), name, tuple(notes))


def _picture(planes: torch.Tensor, metadata: Metadata, name: str, notes: tuple[str, ...] = ()) -> Picture:
    """Of (C, H, W) in [0, 1]: grey, grey and alpha, RGB or RGBA."""
    if not planes.is_floating_point() or planes.ndim != 3 or len(planes) not in (1, 2, 3, 4) or 0 in planes.shape:
        found = f"{planes.dtype} CHW {tuple(planes.shape)}"
        raise PictureError(f"{name}: takes arrays HW and HWC, float tensors CHW, with up to 4 channels, not {found}")
    planes = planes.detach().to("cpu", torch.float32)
    low, high = (bound.item() for bound in torch.aminmax(planes))
    if not (low >= -0.01 and high <= 1.01):  # the overshoot of an interpolation is clamped; NaN is refused here too
        raise PictureError(f"{name}: values are in [0, 1], not from {low:g} to {high:g}")
    planes = planes.clamp(0, 1)
    colour, alpha = planes.split((len(planes) - 1, 1)) if len(planes) in (2, 4) else (planes, None)
    alpha = None if alpha is None or (alpha == 1).all() else alpha.contiguous()
    return Picture(colour.expand(3, -1, -1).contiguous(), alpha, metadata, name, notes)


def _planes(image: Image.Image, name: str, notes: list[str]) -> torch.Tensor:
    """(C, H, W) float32 in [0, 1], as `_picture` takes it, of an image of any mode."""
    profile, alpha = image.info.get("icc_profile"), None
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        if image.info.get("transparency") is not None:  # one value stands for transparent
            alpha = (values != image.info["transparency"]).astype(np.float32)
        tops = {"F": (1, 255, 65535), "I": (65535, 2**31 - 1)}.get(image.mode, (65535,))
        values = values.clip(0) / next((top for top in tops if values.max() <= top), tops[-1])
        if profile:  # colour management has 8 bits
            values = _to_srgb(Image.fromarray(np.rint(values * 255).astype(np.uint8)), profile, name, notes)
    else:
        if image.has_transparency_data:
            kind = "LA" if image.mode in ("1", "L", "LA", "La") else "RGBA"
            *colour, mask = image.convert(kind).split()
            image, alpha = Image.merge(kind[:-1], colour), np.asarray(mask) / np.float32(255)
        values = _to_srgb(image, profile, name, notes)
    values = np.atleast_3d(values)
    return torch.from_numpy(values if alpha is None else np.dstack((values, alpha))).permute(2, 0, 1)


def _to_srgb(image: Image.Image, profile: bytes | None, name: str, notes: list[str]) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1] of an 8-bit image without alpha, by its profile where that fits and works."""
    if image.mode == "LAB":
        image = ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB").apply(image)
    elif profile:
        try:
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            space = profile[16:20].decode("latin-1")  # of its header
            mode = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}.get(space, "")
            if mode not in {"1": ("L", "RGB"), "L": ("L", "RGB"), "CMYK": ("CMYK",)}.get(image.mode, ("RGB",)):
                raise ValueError(f"it is made for {space}, the picture is {image.mode}")
            transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
            moved = np.asarray(transform.apply(_PROBE), int) - np.asarray(_PROBE) if mode == "RGB" else np.inf
            if np.abs(moved).max() > 1:  # otherwise it is sRGB by another maker, and the pixels stay as they are
                image = transform.apply(image.convert(mode))
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
            notes.append(f"{name}: its colour profile was ignored: {one_line(error)}")
    return np.asarray(image.convert("RGB")) / np.float32(255)


def _kept_exif(exif: Image.Exif) -> Image.Exif:
    """The tags that still hold for a new, upright picture."""

    def raw(value: Any) -> Any:  # Pillow reads any text as Latin-1 and writes it as ASCII with question marks
        return value.encode("latin-1", "replace") if isinstance(value, str) and not value.isascii() else value

    kept, dropped = Image.Exif(), (Base.MakerNote, IFD.Interop, Base.Gamma)
    kept.update({tag: raw(exif[tag]) for tag in exif if tag in _EXIF_KEPT})
    for block in (IFD.Exif, IFD.GPSInfo):
        if tags := {tag: raw(value) for tag, value in exif.get_ifd(block).items() if tag not in dropped}:
            kept[block] = tags
    kept[Base.Orientation] = 1
    return kept


def _options(kind: str, metadata: Metadata, model: str | None, size: tuple[int, int], quality: int) -> dict[str, Any]:
    """What Pillow's writer of this kind of file is called with."""
    mark = software() + (f" (model {model})" if model else "")
    exif = Image.Exif()
    exif.load(metadata.exif)
    exif = _kept_exif(exif)
    details = exif.get(IFD.Exif, {})
    now = {Base.ExifImageWidth: size[0], Base.ExifImageHeight: size[1], Base.ColorSpace: 1}  # 1 is sRGB
    details.update({tag: value for tag, value in now.items() if tag in details})
    exif[Base.Software] = mark
    if metadata.dpi:
        exif.update({Base.XResolution: metadata.dpi[0], Base.YResolution: metadata.dpi[1], Base.ResolutionUnit: 2})
    xmp = _XMP.format(software=quoteattr(mark), source_type=GENERATED if metadata.generated else EDITED).encode()
    if kind == "TIFF":  # uncompressed, because Pillow writes no Exif and GPS blocks into compressed ones
        return {"tiffinfo": dict(exif) | {Base.XMLPacket: xmp}}
    if kind == "WEBP":
        return {"exif": exif, "xmp": xmp, "quality": quality, "lossless": quality == 100}
    dpi = {"dpi": metadata.dpi} if metadata.dpi else {}
    if kind == "JPEG":
        return {"exif": exif, "xmp": xmp, "quality": quality, "subsampling": 0, "comment": metadata.text.get("Comment", "")} | dpi
    text = PngImagePlugin.PngInfo()
    for key, value in {**metadata.text, "Software": mark}.items():
        text.add_text(key, value)
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    return {"exif": exif, "pnginfo": text} | dpi
