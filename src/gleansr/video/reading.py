"""A video file as a sequence of images with their times."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gleansr.errors import ImageError
from gleansr.images import codec as images
from gleansr.images.codec import DecodedImage
from gleansr.images.resize import resize
from gleansr.video.colour import Tags, oddities, tags_of, to_rgb
from gleansr.video.pyav import opened, start

_USUAL_RATE = Fraction(25)


@dataclass(frozen=True, eq=False)
class Shot:
    """An image of a video."""

    image: DecodedImage
    """Upright, of square pixels. Its name is the same whenever the video is read."""
    time: int
    """When it is shown, in time bases; above that of the one before."""
    duration: int
    """How long, in time bases, as far as it is known; 0 where it is not."""


class Footage(Protocol):
    """A video, or what stands for one. It can be read more than once."""

    name: str
    time_base: Fraction
    """Seconds."""
    rate: Fraction
    """Images per second, about."""
    expected: int | None
    """How many images there are, as far as it is known before they are read."""
    tags: Tags
    """Of the first image, when that has been read."""
    notes: dict[str, None]
    """What to say of it, one line each; complete when it has been read."""

    @property
    def source(self) -> Path | None:
        """The file whose sound and subtitles belong to it."""
        ...

    def shots(self) -> Iterator[Shot]:
        """One after the other, never more than a few of them decoded. Raises ImageError where it is damaged."""
        ...


class Clip:
    """A video file. A `Footage`."""

    def __init__(self, path: Path):
        """
        Raises:
            RequestError: PyAV is not installed.
            ImageError: it cannot be read, or has no video.
        """
        self.name, self.source, self.notes, self.tags = str(path), path, dict[str, None](), Tags()
        with opened(path) as container:
            stream = self._stream(container)
            self.time_base = stream.time_base or Fraction(1, 1000)
            rate = stream.average_rate or stream.guessed_rate
            self.rate = rate if rate and Fraction(1, 1000) < rate < 1000 else _USUAL_RATE
            # A matroska tells no number of frames, but how long it is.
            seconds = container.duration / 1_000_000 if container.duration and container.duration > 0 else 0
            matroska = "matroska" in container.format.name
            # A matroska's duration is when it ends, also if its first image comes later than 0.
            shown = seconds - (container.start_time or 0) / 1_000_000 if matroska else seconds
            self.expected = stream.frames or (round(shown * float(self.rate)) if 0 < shown < 1e6 else 0) or None
            self._told = seconds if matroska and seconds else None
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > images.MAX_PIXELS:
                raise ImageError(f"{path}: frames of {width}x{height} pixels are too large, the most are {images.MAX_PIXELS}")
            # An MP4 with its index in front can be read as far as it goes, too.
            if max((one.pos + one.size for one in getattr(stream, "index_entries", ())), default=0) > path.stat().st_size:
                raise ImageError(f"{path}: is cut off: its index tells of frames beyond its end")
            if len(_videos(container)) > 1:
                self.notes["only the first of its video streams is taken"] = None

    def shots(self) -> Iterator[Shot]:
        with opened(self.source) as container:
            stream = self._stream(container)
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(images.MAX_PIXELS)}
            began = round(start(container) / self.time_base)
            usual = max(1, round(1 / self.rate / self.time_base))
            frames, first, last, longest, guessed = _Frames(container, stream), None, None, 0, False
            for number, frame in enumerate(frames):
                time = None if frame.pts is None else frame.pts - began
                if time is None or (last is not None and time <= last):
                    time, guessed = (0 if last is None else last + usual), True
                if first is None:
                    first = (frame.width, frame.height)
                    self.tags = tags_of(frame)
                elif (frame.width, frame.height) != first:
                    raise ImageError(
                        f"{self.name}: frame {number + 1} is {frame.width}x{frame.height}, those before {first[0]}x{first[1]}: "
                        "videos that change their size are not read"
                    )
                longest = max(longest, time - last if last is not None else 0)
                last = time
                self.notes.update(dict.fromkeys(oddities(frame)))
                image = DecodedImage(self._upright(frame, stream), name=f"{self.name}: frame {number + 1}")
                yield Shot(image, time, int(getattr(frame, "duration", 0) or 0) or usual)
            if last is None:
                raise ImageError(f"{self.name}: has a video stream, but no frame can be read from it: it is damaged or cut off")
            if guessed:
                self.notes["times that were missing or out of order were put in order"] = None
            end = max(frames.end, float((last + usual) * self.time_base))
            # A matroska that is cut off ends like a whole one. The last frame's duration is often not told.
            if self._told and end + 2 * max(longest, usual) * self.time_base + 0.05 < self._told:
                raise ImageError(
                    f"{self.name}: ends after {end:.2f} of {self._told:.2f} seconds: it is cut off; if it is not, "
                    "`ffmpeg -i IN -c copy OUT.mkv` mends what it says"
                )

    def _stream(self, container: Any) -> Any:
        found = _videos(container)
        if not found:
            kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
            raise ImageError(f"{self.name}: has no video stream{', only ' + ' and '.join(kinds) if kinds else ''}")
        if found[0].codec_context is None:
            raise ImageError(f"{self.name}: its video is of a kind that this PyAV cannot decode")
        return found[0]

    def _upright(self, frame: Any, stream: Any) -> Tensor:
        """(3, H, W) in [0, 1], turned as its display matrix says, with square pixels."""
        pixels = to_rgb(frame)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        width, height = frame.width, frame.height
        if 1 / 8 <= aspect <= 8:  # of others nothing can be meant
            width, height = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
        if width * height > images.MAX_PIXELS:
            raise ImageError(f"{self.name}: frames of {width}x{height} square pixels are too large")
        planes = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)
        if planes.shape[-2:] != (height, width):
            self.notes[f"pixels of {aspect.numerator}:{aspect.denominator} became square: {width}x{height}"] = None
            planes = resize(planes, size=(height, width)).clamp_(0, 1)
        return self._turned(planes, frame.side_data.get("DISPLAYMATRIX")).contiguous()

    def _turned(self, planes: Tensor, matrix: Any) -> Tensor:
        """By the nine numbers of a display matrix, of which (x, y) becomes (a x + c y, b x + d y)."""
        if matrix is None:
            return planes
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if not (a or d) and b and c:
            planes, across, down = planes.mT, c, b
        elif not (b or c) and a and d:
            across, down = a, d
        else:
            self.notes["a rotation other than by quarters is left out"] = None
            return planes
        return planes.flip([axis for axis, sign in ((2, across), (1, down)) if sign < 0])


class _Frames:
    """The frames of a stream. `end` is when the last packet of any stream ends, in seconds, as far as it was read."""

    def __init__(self, container: Any, stream: Any):
        self._container, self._stream, self.end = container, stream, 0.0

    def __iter__(self) -> Iterator[Any]:
        for packet in self._container.demux():
            if packet.pts is not None and packet.time_base:
                self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not None and packet.stream.index == self._stream.index:
                yield from packet.decode()


def _videos(container: Any) -> list[Any]:
    """Its video streams without covers of music."""
    return [stream for stream in container.streams.video if "attached_pic" not in str(stream.disposition)]
