"""A video file as it is encoded: its images, and the sound that belongs to them."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gleansr.errors import GleansrError, ImageError
from gleansr.images.codec import EDITED, software
from gleansr.jobs import OutputError
from gleansr.video.colour import from_rgb, say
from gleansr.video.copying import Copied
from gleansr.video.pyav import WRITTEN, pyav, reason
from gleansr.video.reading import Footage

_LARGEST = 16384
"""Pixels of a side that the encoders of H.264 and VP9 take."""
_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


class VideoFile:
    """Encodes a video: .mp4 and .mkv H.264, .webm VP9, each 4:2:0 with 8 bits; .mkv of quality 100 FFV1, RGB without loss. A `Sink`."""

    def __init__(self, raw: Any, target: Path, footage: Footage, quality: int, model: str | None):
        """
        Args:
            raw: the file to write to, unbuffered, open for reading and writing.
            target: what it will be called. Its suffix decides on the kind.
            footage: what is enlarged: its times, its sound.
            quality: 1 to 100.
            model: its name, for the mark.
        """
        self.notes: list[str] = []
        self._file, self._target, self._footage, self._quality, self._model = _File(raw), target, footage, quality, model
        self._container: Any = None
        self._stream: Any = None
        self._copied: Copied | None = None
        self._shape = (0, 0)
        self._kind = "yuv420p"
        self._durations: dict[int, int] = {}

    def add(self, image: Image.Image, time: int, duration: int) -> None:
        with self._failing():
            self._add(image, time, duration)

    def end(self) -> None:
        """Writes what is left. Without it the file is not whole."""
        with self._failing():
            self._mux(self._stream.encode(None))
            if self._copied:
                self._copied.until(float("inf"))
            self._container.close()
            self._file.check()

    def close(self) -> None:
        """Lets go of all."""
        if self._copied:
            self._copied.close()
        if self._container is not None:
            with suppress(Exception):  # of one that is given up
                self._container.close()

    def _add(self, image: Image.Image, time: int, duration: int) -> None:
        pixels = np.asarray(image.convert("RGB"))
        if self._container is None:
            self._open(*pixels.shape[:2])
        if pixels.shape[:2] != self._shape:
            (height, width), (height2, width2) = pixels.shape[:2], self._shape
            raise ImageError(f"{self._target}: a video's frames are of one size, not {width2}x{height2} and {width}x{height}")
        if self._kind == "yuv420p":
            pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        frame = from_rgb(pixels, self._kind, self._footage.tags)
        frame.pts, frame.time_base = time, self._footage.time_base
        self._durations[time] = duration
        if self._copied:
            self._copied.until(float(time * self._footage.time_base))
        self._mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        suffix, footage = self._target.suffix.lower(), self._footage
        options = {}
        if suffix == ".mp4":
            # The first image's time is told in units of the movie, by default milliseconds.
            units = footage.time_base.denominator
            options = {"movflags": "+faststart", "movie_timescale": str(units * max(1, -(-10_000 // units)))}
        self._container = pyav().open(self._file, "w", format=WRITTEN[suffix], options=options)
        lossless = suffix == ".mkv" and self._quality == 100
        if not lossless and max(height, width) >= _LARGEST:
            raise ImageError(
                f"{self._target}: frames of {width}x{height} pixels are too large; give a folder for them, or a smaller --factor"
            )
        if lossless:
            codec, settings, self._kind = "ffv1", {"level": "3", "slicecrc": "1"}, "bgr0"
        elif suffix == ".webm":
            codec, settings = "libvpx-vp9", {"crf": str(round(62 - 0.4 * self._quality)), "row-mt": "1", "cpu-used": "3"}
        else:
            codec, settings = "libx264", {"crf": str(min(51, round(55 - 0.4 * self._quality))), "preset": "medium"}
        self._shape = (height, width)
        even = self._kind == "yuv420p"
        self._stream = stream = self._container.add_stream(codec, rate=footage.rate.limit_denominator(100_000), options=settings)
        stream.width, stream.height = (width + width % 2, height + height % 2) if even else (width, height)
        stream.pix_fmt = self._kind
        context = stream.codec_context
        context.time_base = stream.time_base = footage.time_base
        context.bit_rate = 0
        say(context, self._kind, footage.tags)
        mark = f"{software()}{f' (model {self._model})' if self._model else ''}: detail by a generative model; {EDITED}"
        self._container.metadata["comment"] = mark
        if footage.source:
            self._copied = Copied(footage.source, self._container)
            self.notes += self._copied.notes

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # Encoders do not pass it on, and of the last frame nothing else would tell it.
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Whatever goes wrong is said in one line, by the error of the file beneath where there is one."""
        try:
            yield
        except GleansrError:
            raise
        except (pyav().FFmpegError, OSError, ValueError, RuntimeError, MemoryError) as error:
            cause = self._file.error or error
            number = getattr(cause, "errno", None)
            raise refusal(self._target, cause, hopeless=isinstance(cause, OSError) and number in _HOPELESS) from error


def refusal(target: Path, error: BaseException, *, hopeless: bool) -> GleansrError:
    """Why a result cannot be written; `hopeless` where the next could not either."""
    return (OutputError if hopeless else ImageError)(f"{target}: cannot be written: {reason(error)}")


class _File(io.RawIOBase):
    """The file that libav writes to. What fails is kept, since libav does not always pass it on."""

    def __init__(self, raw: Any):
        self.raw, self.name = raw, raw.name
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.check()
        try:
            view = memoryview(data)
            while view:  # a full disk may take a part
                view = view[self.raw.write(view) :]
            return len(data)
        except OSError as error:
            self.error = error
            raise

    def check(self) -> None:
        if self.error:
            raise self.error

    def read(self, size: int = -1) -> bytes:
        return self.raw.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.raw.seek(offset, whence)

    def tell(self) -> int:
        return self.raw.tell()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
