"""Generated clips for the tests of videos."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gleansr.inference.tasks import Enlarge
from gleansr.jobs import Work
from gleansr.video import Clip
from tests.photo_parts import upscaler

av: Any = pytest.importorskip("av")

EXACT = 4 | 0x40000 | 0x2000 | 0x4000  # of libswscale: bicubic, accurate rounding, full chroma
CODECS = {".mp4": ("libx264", "yuv420p"), ".mkv": ("ffv1", "bgr0"), ".webm": ("libvpx-vp9", "yuv420p"), ".gif": ("gif", "rgb8")}


def numbered(count: int, size: tuple[int, int] = (24, 16)) -> list[np.ndarray]:
    """Images (height, width, 3) with a ramp of increasing brightness, by which `order` identifies them."""
    width, height = size
    ramp = np.arange(width)[None, :, None] * np.array([1, 2, -1])
    return [
        (np.full((height, width, 3), 30 + 180 * i // max(1, count - 1)) + ramp // 3).clip(0, 255).astype(np.uint8) for i in range(count)
    ]


def order(planes: Sequence[torch.Tensor]) -> list[float]:
    return [float(one.mean()) for one in planes]


def clip(
    path: Path,
    images: Sequence[np.ndarray],
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    *,
    codec: str | None = None,
    kind: str | None = None,
    aspect: Fraction | None = None,
    sound: str | None = None,
    subtitles: bool = False,
    options: dict[str, str] | None = None,
    faststart: bool = False,
    rotation: int = 0,
) -> Path:
    """Writes a video, tagged as BT.709, limited range, if it is YUV."""
    name, usual = CODECS.get(path.suffix, CODECS[".mp4"])
    kind = kind or usual
    with av.open(path, "w", options={"movflags": "+faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec or name, rate=25, options=options or ({"crf": "1"} if name.startswith("lib") else {}))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base, stream.time_base = kind, time_base, time_base
        if kind.startswith("yuv"):
            stream.codec_context.color_range, stream.codec_context.colorspace = 1, 1
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        tone = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        words = container.add_mux_stream("subrip", time_base=Fraction(1, 1000)) if subtitles else None
        container.start_encoding()
        if words:
            packet = av.Packet(b"meow")
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration = words, Fraction(1, 1000), 40, 40, 100
            container.mux(packet)
        if tone:
            for i in range(len(images)):
                samples = np.sin(2 * np.pi * 440 * (np.arange(1920) + 1920 * i) / 48000).astype(np.float32)[None]
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 48000, 1920 * i, Fraction(1, 48000)
                container.mux(tone.encode(frame))
            container.mux(tone.encode(None))
        for time, pixels in zip(times or range(len(images)), images, strict=True):
            frame = yuv(pixels, kind) if pixels.shape[2] == 3 else av.VideoFrame.from_ndarray(pixels, format="bgra")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def yuv(pixels: np.ndarray, kind: str) -> Any:
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    full = 1 if kind.startswith("yuv") else 2
    return frame.reformat(format=kind, src_colorspace=1, dst_colorspace=1, src_color_range=2, dst_color_range=full, interpolation=EXACT)


def planes(path: Path) -> list[torch.Tensor]:
    """The images of a video, (3, H, W) in [0, 1]."""
    return [frame.image.pixels for frame in Clip(path).frames()]


def times(path: Path) -> list[float]:
    footage = Clip(path)
    return [float(frame.time * footage.time_base) for frame in footage.frames()]


def packets(path: Path, kind: str) -> list[bytes]:
    """The packets of the streams of a kind."""
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux() if packet.size and packet.stream.type == kind]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if ".part" in path.name)


def work(scale: int = 2, *, quality: int = 95, overwrite: bool = False) -> Work:
    """Enlarging by bicubic."""
    return Work(Enlarge(upscaler(None, scale)), 4, quality=quality, overwrite=overwrite)
