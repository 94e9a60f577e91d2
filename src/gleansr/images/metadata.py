"""Metadata that results keep, and the mark of synthetic detail."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import quoteattr

from PIL import Image, PngImagePlugin
from PIL.ExifTags import IFD, Base

from gleansr.errors import one_line
from gleansr.version import version

# Of https://cv.iptc.org/newscodes/digitalsourcetype/. The first is "Edited using Generative AI": a generative model has augmented an
# existing image, as a latent bank does. IPTC's algorithmicallyEnhanced excludes generative AI.
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmp:CreatorTool={software} xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{source_type}"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""

# Facts of the scene are kept; facts of the old file (sizes, profiles) are not.
_KEPT_EXIF = {Base.ImageDescription, Base.Make, Base.Model, Base.DateTime, Base.Artist, Base.Copyright, Base.Rating}
_KEPT_TEXT = {"Title", "Author", "Description", "Copyright", "Creation Time", "Source", "Comment"}

# Generation settings that Automatic1111 and its forks, ComfyUI and InvokeAI write into PNGs.
TOOL_TEXT = frozenset(
    {
        *("parameters", "postprocessing", "extras"),
        *("prompt", "workflow"),
        *("Dream", "sd-metadata", "invokeai_metadata", "invokeai_workflow", "invokeai_graph"),
    }
)
"""Keywords of PNG texts of AI image tools, which may be long."""

_MAX_EXIF = 60_000
"""Bytes: the capacity of a JPEG."""
_MAX_TEXT = 10_000
_MAX_TOOL_TEXT = 2**20


@dataclass(frozen=True)
class Metadata:
    """Metadata that a result takes from its input."""

    exif: bytes = b""
    """Exif without thumbnail, maker note and orientation (pixels are upright); with location and camera."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch of the upright image, horizontal and vertical."""
    text: Mapping[str, str] = field(default_factory=dict)
    """PNG texts with standard keywords or those of `TOOL_TEXT`; the comment of a JPEG or GIF is "Comment"."""
    generated: bool = False
    """Whether the image is marked as created by generative AI; the mark is kept."""


@functools.cache
def software() -> str:
    """The program and its version, for files."""
    return "gleansr" if version() == "unknown" else f"gleansr {version()}"


def is_marked(data: bytes) -> bool:
    """Whether a file, or its beginning, has the mark of `writer_options`."""
    return b'xmp:CreatorTool="gleansr' in data or b"Software\0gleansr" in data


def read_metadata(
    getexif: Callable[[], Image.Exif], info: Mapping[Any, Any], text: Mapping[str, str], name: str, notes: list[str]
) -> tuple[Metadata, int]:
    """The metadata to keep and the Exif orientation. Damaged values are dropped with a note.

    Args:
        getexif: as of Pillow's images.
        info: as of Pillow's images.
        text: texts of a PNG by keyword.
        name: the image's name for notes.
        notes: extended.
    """
    exif, orientation, dpi = b"", 1, None
    try:
        orientation = getexif().get(Base.Orientation, 1)  # 1 of TIFF files that Pillow has turned
        exif = filter_exif(getexif()).tobytes()
        if len(exif) > _MAX_EXIF:
            notes.append(f"{name}: its Exif metadata was ignored: {len(exif)} bytes exceed the limit of {_MAX_EXIF}")
            exif = b""
    except Exception as error:
        notes.append(f"{name}: its Exif metadata was ignored: {one_line(error)}")
    with contextlib.suppress(Exception):
        x, y = [float(value) for value in info.get("dpi", (0, 0))][:: -1 if orientation in (5, 6, 7, 8) else 1]
        dpi = (x, y) if 1 <= x <= 65535 and 1 <= y <= 65535 else None  # the range of a JPEG; excludes NaN
    comment = info.get("comment")  # of JPEG and GIF
    text = ({"Comment": comment.decode(errors="replace")} if isinstance(comment, bytes) else {}) | dict(text)
    kept = {key: str(value) for key, value in text.items() if (key in _KEPT_TEXT or key in TOOL_TEXT) and value}
    for key in [key for key, value in kept.items() if len(value) > (_MAX_TOOL_TEXT if key in TOOL_TEXT else _MAX_TEXT)]:
        notes.append(f"{name}: its text {key} was ignored: {len(kept.pop(key))} characters exceed the limit")
    generated = GENERATED.removeprefix("http") in str(info.get("xmp"))  # some write https
    return Metadata(exif, dpi, kept, generated), orientation


def filter_exif(exif: Image.Exif) -> Image.Exif:
    """The tags that remain valid for a new, upright image."""

    def raw(value: Any) -> Any:  # Pillow reads text as Latin-1 and writes ASCII with question marks
        return value.encode("latin-1", "replace") if isinstance(value, str) and not value.isascii() else value

    kept, dropped = Image.Exif(), (Base.MakerNote, IFD.Interop, Base.Gamma)
    kept.update({tag: raw(exif[tag]) for tag in exif if tag in _KEPT_EXIF})
    for block in (IFD.Exif, IFD.GPSInfo):
        if tags := {tag: raw(value) for tag, value in exif.get_ifd(block).items() if tag not in dropped}:
            kept[block] = tags
    kept[Base.Orientation] = 1
    return kept


def writer_options(kind: str, metadata: Metadata, model: str | None, size: tuple[int, int], quality: int) -> dict[str, Any]:
    """The arguments of Pillow's writer for a format."""
    mark = software() + (f" (model {model})" if model else "")
    exif = Image.Exif()
    exif.load(metadata.exif)
    exif = filter_exif(exif)
    details = exif.get(IFD.Exif, {})
    updates = {Base.ExifImageWidth: size[0], Base.ExifImageHeight: size[1], Base.ColorSpace: 1}  # 1 is sRGB
    details.update({tag: value for tag, value in updates.items() if tag in details})
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
    for key, value in {"Software": mark, **metadata.text}.items():  # at the beginning, where `is_marked` looks
        text.add_text(key, value)
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    return {"exif": exif, "pnginfo": text} | dpi
