"""What is carried from an image to its result beside the pixels, and the mark of synthetic detail."""

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

# What people and cameras said of the scene is kept; what programs said of the old file (sizes, profiles) is not.
_EXIF_KEPT = {Base.ImageDescription, Base.Make, Base.Model, Base.DateTime, Base.Artist, Base.Copyright, Base.Rating}
_TEXT_KEPT = {"Title", "Author", "Description", "Copyright", "Creation Time", "Source", "Comment"}

# What tools that make images with AI write into a PNG, to make it again: Automatic1111 and its kin, ComfyUI, InvokeAI.
TOOL_TEXT = frozenset(
    {
        *("parameters", "postprocessing", "extras"),
        *("prompt", "workflow"),
        *("Dream", "sd-metadata", "invokeai_metadata", "invokeai_workflow", "invokeai_graph"),
    }
)
"""Keywords of the texts of such tools, which may be long, and are kept in a PNG."""

_MOST_EXIF = 60_000
"""Bytes: what a JPEG holds."""
_MOST_TEXT = 10_000
_MOST_TOOL_TEXT = 2**20


@dataclass(frozen=True)
class Metadata:
    """What is carried from an image to the one that is made of it."""

    exif: bytes = b""
    """Exif without thumbnail, maker note and orientation (pixels are upright). Place and camera are in it."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch of the upright image, horizontal and vertical."""
    text: Mapping[str, str] = field(default_factory=dict)
    """Values of PNG's standard keywords, and of the `TOOL_TEXT`; the comment of a JPEG or GIF is "Comment"."""
    generated: bool = False
    """Whether the image is marked as created by generative AI, so that it stays marked so."""


@functools.cache
def software() -> str:
    """This program and its version, as files name it."""
    return "gleansr" if version() == "unknown" else f"gleansr {version()}"


def is_marked(data: bytes) -> bool:
    """Whether a file, or its beginning, says that this program wrote it, in the mark of `writer_options`."""
    return b'xmp:CreatorTool="gleansr' in data or b"Software\0gleansr" in data


def read_metadata(
    getexif: Callable[[], Image.Exif], info: Mapping[Any, Any], text: Mapping[str, str], name: str, notes: list[str]
) -> tuple[Metadata, int]:
    """What is kept of an image, and its Exif orientation. Any value may be damaged; what is left out for that is noted.

    Args:
        getexif: as of Pillow's images, `info` too.
        text: of a PNG, by keyword.
        name: what notes call the image.
        notes: is added to.
    """
    exif, orientation, dpi = b"", 1, None
    try:
        orientation = getexif().get(Base.Orientation, 1)  # 1 of TIFF files that Pillow has turned
        exif = kept_exif(getexif()).tobytes()
        if len(exif) > _MOST_EXIF:
            notes.append(f"{name}: its Exif metadata was ignored: {len(exif)} bytes are too many")
            exif = b""
    except Exception as error:
        notes.append(f"{name}: its Exif metadata was ignored: {one_line(error)}")
    with contextlib.suppress(Exception):
        x, y = [float(value) for value in info.get("dpi", (0, 0))][:: -1 if orientation in (5, 6, 7, 8) else 1]
        dpi = (x, y) if 1 <= x <= 65535 and 1 <= y <= 65535 else None  # what a JPEG can hold, and not NaN
    comment = info.get("comment")  # of JPEG and GIF
    text = ({"Comment": comment.decode(errors="replace")} if isinstance(comment, bytes) else {}) | dict(text)
    kept = {key: str(value) for key, value in text.items() if (key in _TEXT_KEPT or key in TOOL_TEXT) and value}
    for key in [key for key, value in kept.items() if len(value) > (_MOST_TOOL_TEXT if key in TOOL_TEXT else _MOST_TEXT)]:
        notes.append(f"{name}: its text {key} was ignored: {len(kept.pop(key))} characters are too many")
    generated = GENERATED.removeprefix("http") in str(info.get("xmp"))  # some write https
    return Metadata(exif, dpi, kept, generated), orientation


def kept_exif(exif: Image.Exif) -> Image.Exif:
    """The tags that still hold for a new, upright image."""

    def raw(value: Any) -> Any:  # Pillow reads any text as Latin-1 and writes it as ASCII with question marks
        return value.encode("latin-1", "replace") if isinstance(value, str) and not value.isascii() else value

    kept, dropped = Image.Exif(), (Base.MakerNote, IFD.Interop, Base.Gamma)
    kept.update({tag: raw(exif[tag]) for tag in exif if tag in _EXIF_KEPT})
    for block in (IFD.Exif, IFD.GPSInfo):
        if tags := {tag: raw(value) for tag, value in exif.get_ifd(block).items() if tag not in dropped}:
            kept[block] = tags
    kept[Base.Orientation] = 1
    return kept


def writer_options(kind: str, metadata: Metadata, model: str | None, size: tuple[int, int], quality: int) -> dict[str, Any]:
    """What Pillow's writer of this kind of file is called with."""
    mark = software() + (f" (model {model})" if model else "")
    exif = Image.Exif()
    exif.load(metadata.exif)
    exif = kept_exif(exif)
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
    for key, value in {"Software": mark, **metadata.text}.items():  # at the beginning, where folders look for it
        text.add_text(key, value)
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    return {"exif": exif, "pnginfo": text} | dpi
