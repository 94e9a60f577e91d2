"""Between the frames of a video and RGB: matrix and range of YUV, exactly, and the tags that say which they are."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gleansr.video.pyav import pyav

_BT709 = 1
_UNSPECIFIED = (0, 2, 3)
"""Of ISO/IEC 23091-2's (and H.273's) numbers of primaries and transfer characteristics; 0 and 3 are reserved."""
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""libswscale's numbers of the matrices of H.273: BT.709, FCC, BT.601 (two), SMPTE 240M, BT.2020 (two)."""
_BT601 = 5
_HIGH_DEFINITION = 720
"""Rows from which on a video that does not say has BT.709's matrix, as players take it."""
_LIMITED, _FULL = 1, 2
_EXACT = 0x4 | 0x2000 | 0x4000 | 0x40000
"""Of libswscale: bicubic, chroma at full density on both sides, accurate rounding. What it does otherwise loses a step of brightness."""
_HDR = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class Tags:
    """What RGB values mean, by H.273's numbers. They are carried over, since the values are not converted."""

    primaries: int = _BT709
    transfer: int = _BT709


def tags_of(frame: Any) -> Tags:
    """Of a frame as it was decoded; BT.709's where it does not say."""
    given = (frame.color_primaries, frame.color_trc)
    return Tags(*(_BT709 if one in _UNSPECIFIED or not 0 < one < 20 else one for one in map(int, given)))


def to_rgb(frame: Any) -> np.ndarray:
    """(H, W, 3) in 0..255 of a frame as it was decoded; alpha is dropped, more than 8 bits are rounded.

    Matrix and range are the frame's. Where it does not say, the matrix is BT.709's from 720 rows on and otherwise BT.601's, and the range
    that of television, but for YUVJ and grey.
    """
    kind = frame.format.name
    matrix = _MATRICES.get(int(frame.colorspace), _BT709 if frame.height >= _HIGH_DEFINITION else _BT601)
    full = frame.color_range == _FULL or frame.format.is_rgb or frame.format.has_palette or kind.startswith("yuvj")
    if kind.startswith("gray") and frame.color_range != _LIMITED:
        full = True
    return _reformatted(frame, "rgb24", matrix, _FULL if full else _LIMITED, _FULL).to_ndarray()


def from_rgb(pixels: np.ndarray, kind: str, tags: Tags) -> Any:
    """A frame of `pixels` (H, W, 3) in 0..255. yuv420p gets BT.709's matrix and the range of television; bgr0 is RGB as it is."""
    av = pyav()
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = _reformatted(frame, kind, _BT709, _FULL, _FULL if kind == "bgr0" else _LIMITED)
    say(frame, kind, tags)
    return frame


def say(where: Any, kind: str, tags: Tags) -> None:
    """Tags a frame, or the context of an encoder."""
    rgb = kind == "bgr0"
    where.color_range = _FULL if rgb else _LIMITED
    where.colorspace = 0 if rgb else _BT709
    where.color_primaries, where.color_trc = tags.primaries, tags.transfer


def oddities(frame: Any) -> list[str]:
    """What of a frame's values is not kept, or guessed, one line each."""
    notes = []
    bits = max(component.bits for component in frame.format.components)
    if bits > 8 and not frame.format.has_palette:
        notes.append(f"{bits} bits per sample are read as 8")
    if int(frame.color_trc) in _HDR:
        notes.append(f"HDR ({_HDR[int(frame.color_trc)]}) is passed on as it is; the model was made for other images")
    if any(component.is_alpha for component in frame.format.components) and _transparent(frame):
        notes.append("transparency is dropped")
    if frame.is_corrupt:
        notes.append("some frames are damaged, and were patched up by the decoder")
    if frame.interlaced_frame:
        notes.append("it is interlaced: its comb is enlarged with the rest")
    if not frame.format.is_rgb and int(frame.colorspace) not in (*_MATRICES, 0, 2):
        notes.append(f"its colour matrix (number {int(frame.colorspace)}) is not known, and taken for the usual")
    return notes


def _transparent(frame: Any) -> bool:
    """Whether any pixel is not opaque. GIFs are decoded with an alpha of which they may make no use."""
    if frame.format.name not in ("bgra", "rgba"):
        return True
    return bool((frame.to_ndarray()[..., 3] < 255).any())


def _reformatted(frame: Any, kind: str, matrix: int, source_range: int, target_range: int) -> Any:
    """A frame in another format, by libswscale at its most exact."""
    return frame.reformat(
        format=kind,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=source_range,
        dst_color_range=target_range,
        interpolation=_EXACT,
        threads=1,
    )
