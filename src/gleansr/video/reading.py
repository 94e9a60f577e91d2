"""Video files and folders of numbered frames, as sequences of images with their times."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gleansr.errors import ImageError, RequestError
from gleansr.files import printable
from gleansr.images import codec as images
from gleansr.images.codec import DecodedImage, decode, readable_suffixes
from gleansr.images.resize import resize
from gleansr.jobs import LocalStorage
from gleansr.video.colour import Tags, frame_notes, read_tags, to_rgb
from gleansr.video.pyav import open_container, start_time

RATE = Fraction(25)
"""Default frames per second."""


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """An image of a video."""

    image: DecodedImage
    """Upright, with square pixels. Its name is the same whenever the video is read."""
    time: int
    """Presentation time in time bases; strictly increasing."""
    duration: int
    """In time bases; 0 if unknown."""


class Footage(Protocol):
    """A video file or a folder of frames. Can be read more than once."""

    name: str
    time_base: Fraction
    """Seconds."""
    rate: Fraction
    """Approximate frames per second."""
    expected: int | None
    """Estimated number of frames, before they are read."""
    tags: Tags
    """Of the first frame, once that has been read."""
    notes: dict[str, None]
    """Notes about the video, complete once it has been read."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first frame, before a rotation; zeros if it cannot be read."""
        ...

    @property
    def source(self) -> Path | None:
        """The file with its sound and subtitles."""
        ...

    def frames(self) -> Iterator[VideoFrame]:
        """Decodes the frames one by one. Raises ImageError if the video is damaged."""
        ...


class Clip:
    """A video file. A `Footage`."""

    def __init__(self, path: Path):
        """
        Raises:
            RequestError: PyAV is not installed.
            ImageError: the file cannot be read, or has no video.
        """
        self.name, self.source, self.notes, self.tags = str(path), path, dict[str, None](), Tags()
        with open_container(path) as container:
            stream = self._stream(container)
            self.time_base = stream.time_base or Fraction(1, 1000)
            rate = stream.average_rate or stream.guessed_rate
            self.rate = rate if rate and Fraction(1, 1000) < rate < 1000 else RATE
            # Matroska has no number of frames, only a duration, which is its end even if the first image comes later than 0.
            seconds = container.duration / 1_000_000 if container.duration and container.duration > 0 else 0
            matroska = "matroska" in container.format.name
            length = seconds - (container.start_time or 0) / 1_000_000 if matroska else seconds
            self.expected = stream.frames or (round(length * float(self.rate)) if 0 < length < 1e6 else 0) or None
            self._declared_end = seconds if matroska and seconds else None
            width, height = stream.codec_context.width, stream.codec_context.height
            self.size = height, width
            if width * height > images.MAX_PIXELS:
                raise ImageError(f"{path}: frames of {width}x{height} pixels are too large; the limit is {images.MAX_PIXELS} pixels")
            # An MP4 with its index first is readable up to where it is cut off.
            if max((entry.pos + entry.size for entry in getattr(stream, "index_entries", ())), default=0) > path.stat().st_size:
                raise ImageError(f"{path}: is cut off: its index lists frames beyond its end")
            if len(_videos(container)) > 1:
                self.notes["only the first of its video streams is used"] = None

    def frames(self) -> Iterator[VideoFrame]:
        with open_container(self.source) as container:
            stream = self._stream(container)
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(images.MAX_PIXELS)}
            start = round(start_time(container) / self.time_base)
            usual = max(1, round(1 / self.rate / self.time_base))
            decoder, size, last, longest, guessed = _Decoder(container, stream), None, None, 0, False
            for number, frame in enumerate(decoder):
                time = None if frame.pts is None else frame.pts - start
                if time is None or (last is not None and time <= last):
                    time, guessed = (0 if last is None else last + usual), True
                if size is None:
                    size = (frame.width, frame.height)
                    self.tags = read_tags(frame)
                elif (frame.width, frame.height) != size:
                    raise ImageError(
                        f"{self.name}: frame {number + 1} is {frame.width}x{frame.height}, those before {size[0]}x{size[1]}: "
                        "videos that change their size are not supported"
                    )
                longest = max(longest, time - last if last is not None else 0)
                last = time
                self.notes.update(dict.fromkeys(frame_notes(frame)))
                image = DecodedImage(self._upright(frame, stream), name=f"{self.name}: frame {number + 1}")
                yield VideoFrame(image, time, int(getattr(frame, "duration", 0) or 0) or usual)
            if last is None:
                raise ImageError(f"{self.name}: has a video stream, but no frame can be read from it: it is damaged or cut off")
            if guessed:
                self.notes["missing or unordered times were replaced"] = None
            end = max(decoder.end, float((last + usual) * self.time_base))
            # A truncated Matroska ends like a complete one. The last frame often has no duration.
            if self._declared_end and end + 2 * max(longest, usual) * self.time_base + 0.05 < self._declared_end:
                raise ImageError(
                    f"{self.name}: ends after {end:.2f} of {self._declared_end:.2f} seconds: it is cut off; if it is not, "
                    "`ffmpeg -i IN -c copy OUT.mkv` corrects its duration"
                )

    def _stream(self, container: Any) -> Any:
        videos = _videos(container)
        if not videos:
            kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
            raise ImageError(f"{self.name}: has no video stream{', only ' + ' and '.join(kinds) if kinds else ''}")
        if videos[0].codec_context is None:
            raise ImageError(f"{self.name}: this PyAV has no decoder for its video")
        return videos[0]

    def _upright(self, frame: Any, stream: Any) -> Tensor:
        """(3, H, W) in [0, 1] with square pixels, oriented by the display matrix."""
        pixels = to_rgb(frame)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        width, height = frame.width, frame.height
        if 1 / 8 <= aspect <= 8:  # others are errors
            width, height = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
        if width * height > images.MAX_PIXELS:
            raise ImageError(f"{self.name}: frames of {width}x{height} square pixels are too large")
        planes = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)
        if planes.shape[-2:] != (height, width):
            self.notes[f"pixels of {aspect.numerator}:{aspect.denominator} became square: {width}x{height}"] = None
            planes = resize(planes, size=(height, width)).clamp_(0, 1)
        return self._rotate(planes, frame.side_data.get("DISPLAYMATRIX")).contiguous()

    def _rotate(self, planes: Tensor, matrix: Any) -> Tensor:
        """Applies a display matrix of nine numbers, which maps (x, y) to (a x + c y, b x + d y)."""
        if matrix is None:
            return planes
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if not (a or d) and b and c:
            planes, across, down = planes.mT, c, b
        elif not (b or c) and a and d:
            across, down = a, d
        else:
            self.notes["a rotation other than by quarter turns is ignored"] = None
            return planes
        return planes.flip([axis for axis, sign in ((2, across), (1, down)) if sign < 0])


class _Decoder:
    """Decodes a stream. `end` is the end of the latest packet of any stream read so far, in seconds."""

    def __init__(self, container: Any, stream: Any):
        self._container, self._stream, self.end = container, stream, 0.0

    def __iter__(self) -> Iterator[Any]:
        for packet in self._container.demux():
            if packet.pts is not None and packet.time_base:
                self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not None and packet.stream.index == self._stream.index:
                yield from packet.decode()


def _videos(container: Any) -> list[Any]:
    """The video streams, without cover art."""
    return [stream for stream in container.streams.video if "attached_pic" not in str(stream.disposition)]


class FrameFolder:
    """The images of a folder whose names contain a number, in natural order. A `Footage`.

    Numbers need no leading zeros and may have gaps. Ignores folders, and other files with a note.
    """

    def __init__(self, folder: Path, rate: Fraction | None = None):
        """
        Raises:
            RequestError: the folder has no numbered image, or cannot be read.
        """
        self.name, self.source, self.tags = str(folder), None, Tags()
        self.rate = rate or RATE
        self.time_base = 1 / self.rate
        try:
            names = [name for name in os.listdir(folder) if not name.startswith(".")]  # noqa: PTH208, of a bytes-safe str
        except OSError as error:
            raise RequestError(f"{folder}: cannot be read: {error.strerror}") from error
        numbered = [name for name in names if Path(name).suffix.lower() in readable_suffixes() and re.search(r"\d", Path(name).stem)]
        if not numbered:
            raise RequestError(printable(f"{folder}: no numbered frames in this folder, such as 0001.png"))
        self.paths = [folder / name for name in sorted(numbered, key=natural)]
        self.expected: int | None = len(numbered)
        self._size: tuple[int, int] | None = None
        others = sorted(set(names) - set(numbered))
        self.notes = dict.fromkeys([_ignored(others)] if others else [])

    @property
    def size(self) -> tuple[int, int]:
        if self._size is None:
            first = next(self.frames(lenient=True), None)
            self._size = first.image.size if first else (0, 0)
        return self._size

    def frames(self, *, lenient: bool = False) -> Iterator[VideoFrame]:
        """Decodes the images one by one. Raises ImageError if one cannot be read; with `lenient` skips it."""
        storage = LocalStorage()
        for number, path in enumerate(self.paths):
            try:
                image = decode(storage.read(str(path)), name=str(path))
            except ImageError:
                if lenient:
                    continue
                raise
            yield VideoFrame(image, number, 1)


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key that orders numbers by value: f2 before f10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)], name


def _ignored(names: list[str]) -> str:
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {'files are not numbered images' if len(names) > 1 else 'file is not a numbered image'}, ignored: {listed}"
