"""Writes results to a video file or a folder of frames, atomically."""

import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from gleansr.errors import GleansrError, ImageError
from gleansr.files import replacing
from gleansr.images.codec import EDITED, Metadata, save, software
from gleansr.jobs import OutputError
from gleansr.jobs.steps import sidecar as sidecar_of
from gleansr.jobs.storage import write_error
from gleansr.video.colour import from_rgb, set_tags
from gleansr.video.copying import StreamCopier
from gleansr.video.pyav import WRITTEN, error_text, pyav
from gleansr.video.reading import Footage

_MAX_SIDE = 16384
"""Largest side in pixels for the encoders of H.264 and VP9."""
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""Errors that further results would meet too."""


class Sink(Protocol):
    """Receives the images of a video in order."""

    notes: list[str]
    """What could not be written."""

    def add(self, image: Image.Image, time: int, duration: int, models: Sequence[str]) -> None:
        """Adds an image with its time and duration, in time bases of the footage, and the names of its models.

        Raises ImageError, OutputError.
        """
        ...


class FrameWriter:
    """Writes numbered PNG files, starting with 000001.png. A `Sink`."""

    def __init__(self, folder: Path):
        self.notes: list[str] = []
        self._folder, self._number = folder, 0

    def add(self, image: Image.Image, time: int, duration: int, models: Sequence[str]) -> None:  # noqa: ARG002, a folder has no times
        self._number += 1
        save(image, self._folder / f"{self._number:06d}.png", "PNG", Metadata(), ", ".join(models) or None, compress_level=1)


class VideoEncoder:
    """Encodes a video: H.264 in .mp4 and .mkv, VP9 in .webm, 4:2:0 with 8 bits; lossless FFV1 (RGB) in .mkv of quality 100. A `Sink`."""

    def __init__(self, raw: Any, target: Path, footage: Footage, quality: int, models: Sequence[str]):
        """
        Args:
            raw: the file to write to, unbuffered, open for reading and writing.
            target: its final name, whose suffix determines the container.
            footage: the source of the times and the sound.
            quality: 1 to 100.
            models: names of those of the objects in later images; the metadata has these and the first image's.
        """
        self.notes: list[str] = []
        self._file, self._target, self._footage, self._quality, self._models = _File(raw), target, footage, quality, models
        self._container: Any = None
        self._stream: Any = None
        self._copier: StreamCopier | None = None
        self._shape = (0, 0)
        self._pixel_format = "yuv420p"
        self._durations: dict[int, int] = {}

    def add(self, image: Image.Image, time: int, duration: int, models: Sequence[str]) -> None:
        with self._translated_errors():
            pixels = np.asarray(image.convert("RGB"))
            if self._container is None:
                self._open(pixels.shape[0], pixels.shape[1], ", ".join(dict.fromkeys([*self._models, *models])))
            if pixels.shape[:2] != self._shape:
                (height, width), (height2, width2) = pixels.shape[:2], self._shape
                raise ImageError(f"{self._target}: a video's frames are of one size, not {width2}x{height2} and {width}x{height}")
            if self._pixel_format == "yuv420p":
                pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
            frame = from_rgb(pixels, self._pixel_format, self._footage.tags)
            frame.pts, frame.time_base = time, self._footage.time_base
            self._durations[time] = duration
            if self._copier:
                self._copier.copy_until(float(time * self._footage.time_base))
            self._mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Flushes the encoder and completes the file."""
        with self._translated_errors():
            self._mux(self._stream.encode(None))
            if self._copier:
                self._copier.copy_until(float("inf"))
            self._container.close()
            self._file.check()

    def close(self) -> None:
        """Releases all resources."""
        if self._copier:
            self._copier.close()
        if self._container is not None:
            with suppress(Exception):  # the file is incomplete and will be removed
                self._container.close()

    def _open(self, height: int, width: int, models: str) -> None:
        suffix, footage = self._target.suffix.lower(), self._footage
        options = {}
        if suffix == ".mp4":
            # The first image's time is stored in the movie's time scale, by default milliseconds.
            units = footage.time_base.denominator
            options = {"movflags": "+faststart", "movie_timescale": str(units * max(1, -(-10_000 // units)))}
        self._container = pyav().open(self._file, "w", format=WRITTEN[suffix], options=options)
        lossless = suffix == ".mkv" and self._quality == 100
        if not lossless and max(height, width) >= _MAX_SIDE:
            raise ImageError(f"{self._target}: frames of {width}x{height} pixels are too large; write to a folder or use a smaller --scale")
        if lossless:
            codec, settings, self._pixel_format = "ffv1", {"level": "3", "slicecrc": "1"}, "bgr0"
        elif suffix == ".webm":
            codec, settings = "libvpx-vp9", {"crf": str(round(62 - 0.4 * self._quality)), "row-mt": "1", "cpu-used": "3"}
        else:
            codec, settings = "libx264", {"crf": str(min(51, round(55 - 0.4 * self._quality))), "preset": "medium"}
        self._shape = (height, width)
        even = self._pixel_format == "yuv420p"
        self._stream = stream = self._container.add_stream(codec, rate=footage.rate.limit_denominator(100_000), options=settings)
        stream.width, stream.height = (width + width % 2, height + height % 2) if even else (width, height)
        stream.pix_fmt = self._pixel_format
        context = stream.codec_context
        context.time_base = stream.time_base = footage.time_base
        context.bit_rate = 0
        set_tags(context, self._pixel_format, footage.tags)
        mark = f"{software()}{f' (model {models})' if models else ''}: detail by a generative model; {EDITED}"
        self._container.metadata["comment"] = mark
        if footage.source:
            self._copier = StreamCopier(footage.source, self._container)
            self.notes += self._copier.notes

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # Encoders drop the duration, which nothing else implies for the last frame.
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Turns errors into one line, preferring the error of the underlying file."""
        try:
            yield
        except GleansrError:
            raise
        except (pyav().FFmpegError, OSError, ValueError, RuntimeError, MemoryError) as error:
            cause = self._file.error or error
            fatal = isinstance(cause, OSError) and cause.errno in _FATAL
            raise (OutputError if fatal else ImageError)(f"{self._target}: cannot be written: {error_text(cause)}") from error


class _File(io.RawIOBase):
    """The file that libav writes to. Records errors, since libav does not always pass them on."""

    def __init__(self, raw: Any):
        self.raw, self.name = raw, raw.name
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.check()
        try:
            view = memoryview(data)
            while view:  # a full disk may accept a part
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


@contextmanager
def open_sink(target: Path, footage: Footage, *, quality: int, models: Sequence[str], overwrite: bool) -> Iterator[Sink]:
    """Opens a sink: a video file if the suffix of `target` is one of `WRITTEN`, otherwise a folder.

    Writes to a temporary neighbour of the target, which replaces the target when the block succeeds.

    Raises:
        ImageError: the target exists and may not be replaced, or the encoder fails.
        OutputError: the location is not writable.
    """
    check_target(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix.lower() in WRITTEN:
            with (
                replacing(target) as temporary,
                temporary.open("w+b", buffering=0) as raw,
                closing(VideoEncoder(raw, target, footage, quality, models)) as encoder,
            ):
                yield encoder
                encoder.finish()
        else:
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
            temporary.mkdir()
            try:
                yield FrameWriter(temporary)
                _move(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise write_error(f"{target}: cannot be written: {error.strerror or error}", error) from error


def check_target(target: Path, *, overwrite: bool, sidecar: bool = False) -> None:
    """Raises ImageError if the results, or with `sidecar` their JSON file, may not be written."""
    video = target.suffix.lower() in WRITTEN
    if video and target.is_dir():
        raise ImageError(f"{target}: is a folder")
    if not video and target.exists() and not target.is_dir():
        raise ImageError(f"{target}: is a file; results are {', '.join(WRITTEN)} files or folders")
    if not overwrite and (os.path.lexists(target) if video else target.is_dir() and any(target.iterdir())):
        raise ImageError(f"{target}: {'already exists' if video else 'is not empty'}; use --overwrite, or choose another --output")
    if sidecar and not overwrite and (details := Path(sidecar_of(str(target)))).exists():
        raise ImageError(f"{details}: already exists; use --overwrite, or choose another --output")


def _move(frames: Path, target: Path) -> None:
    """Moves a folder of frames to its target; if the target has files, moves the frames one by one."""
    if not target.is_dir() or not any(target.iterdir()):
        frames.replace(target)
        return
    for frame in sorted(frames.iterdir()):
        frame.replace(target / frame.name)
