"""Conversion between video frames and RGB: YUV matrix and range, exactly, and the colour tags."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gleansr.video.pyav import pyav

_BT709 = 1
_UNSPECIFIED = (0, 2, 3)
"""Codes of primaries and transfer characteristics in ISO/IEC 23091-2 (H.273); 0 and 3 are reserved."""
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""From H.273's matrix codes to libswscale's: BT.709, FCC, BT.601 (two), SMPTE 240M, BT.2020 (two)."""
_BT601 = 5
_HIGH_DEFINITION = 720
"""Minimum number of rows at which an untagged video has BT.709's matrix, as players assume."""
_LIMITED, _FULL = 1, 2
_EXACT = 0x4 | 0x2000 | 0x4000 | 0x40000
"""libswscale flags: bicubic, full chroma on both sides, accurate rounding. The defaults lose a step of brightness."""
_HDR = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class Tags:
    """The meaning of RGB values, as H.273 codes. Copied to the result, since the values are not converted."""

    primaries: int = _BT709
    transfer: int = _BT709


def read_tags(frame: Any) -> Tags:
    """The tags of a decoded frame; BT.709's where unspecified."""
    codes = map(int, (frame.color_primaries, frame.color_trc))
    return Tags(*(_BT709 if code in _UNSPECIFIED or not 0 < code < 20 else code for code in codes))


def to_rgb(frame: Any) -> np.ndarray:
    """Converts a decoded frame to (H, W, 3) in 0..255. Drops alpha and rounds more than 8 bits.

    Uses the frame's matrix and range. If unspecified, the matrix is BT.709 from 720 rows and BT.601 below, and the range is limited, except
    for YUVJ and grey.
    """
    pixel_format = frame.format.name
    matrix = _MATRICES.get(int(frame.colorspace), _BT709 if frame.height >= _HIGH_DEFINITION else _BT601)
    full = frame.color_range == _FULL or frame.format.is_rgb or frame.format.has_palette or pixel_format.startswith("yuvj")
    if pixel_format.startswith("gray") and frame.color_range != _LIMITED:
        full = True
    return _reformat(frame, "rgb24", matrix, _FULL if full else _LIMITED, _FULL).to_ndarray()


def from_rgb(pixels: np.ndarray, pixel_format: str, tags: Tags) -> Any:
    """Converts `pixels` (H, W, 3) in 0..255 to a frame: yuv420p with BT.709's matrix and limited range, or bgr0 without conversion."""
    frame = pyav().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = _reformat(frame, pixel_format, _BT709, _FULL, _FULL if pixel_format == "bgr0" else _LIMITED)
    set_tags(frame, pixel_format, tags)
    return frame


def set_tags(target: Any, pixel_format: str, tags: Tags) -> None:
    """Tags a frame, or the context of an encoder."""
    rgb = pixel_format == "bgr0"
    target.color_range = _FULL if rgb else _LIMITED
    target.colorspace = 0 if rgb else _BT709
    target.color_primaries, target.color_trc = tags.primaries, tags.transfer


def frame_notes(frame: Any) -> list[str]:
    """Notes about values of a frame that are lost or guessed."""
    notes = []
    bits = max(component.bits for component in frame.format.components)
    if bits > 8 and not frame.format.has_palette:
        notes.append(f"{bits} bits per sample are read as 8")
    if int(frame.color_trc) in _HDR:
        notes.append(f"HDR ({_HDR[int(frame.color_trc)]}) is passed on unchanged; the model was trained on other images")
    if any(component.is_alpha for component in frame.format.components) and _transparent(frame):
        notes.append("transparency is dropped")
    if frame.is_corrupt:
        notes.append("some frames are damaged and were concealed by the decoder")
    if frame.interlaced_frame:
        notes.append("the video is interlaced; its combing is enlarged too")
    if not frame.format.is_rgb and int(frame.colorspace) not in (*_MATRICES, 0, 2):
        notes.append(f"the colour matrix (code {int(frame.colorspace)}) is unknown and treated as unspecified")
    return notes


def _transparent(frame: Any) -> bool:
    """Whether any pixel is not opaque. GIFs are always decoded with an alpha channel."""
    if frame.format.name not in ("bgra", "rgba"):
        return True
    return bool((frame.to_ndarray()[..., 3] < 255).any())


def _reformat(frame: Any, pixel_format: str, matrix: int, source_range: int, target_range: int) -> Any:
    """Converts a frame with libswscale's most exact settings."""
    return frame.reformat(
        format=pixel_format,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=source_range,
        dst_color_range=target_range,
        interpolation=_EXACT,
        threads=1,
    )
