"""Sound, subtitles and chapters, carried from one container to another as they are."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gleansr.video.pyav import opened, pyav, start

_KEPT = ("title", "artist", "album", "date", "year", "copyright", "description", "creation_time", "location", "make", "model")
"""Of what a container says of its contents; what it says of its form does not hold any more."""


class Copied:
    """The sound, subtitles and chapters of a video file, for a container that is written.

    They are read once more, as far as the images have come, so that little of them is ever in memory.
    """

    def __init__(self, source: Path, target: Any):
        """
        Args:
            source: a video file.
            target: a container before its first packet, which gets the streams.

        Raises:
            ImageError: it cannot be read.
        """
        self.notes: list[str] = []
        self._ending = ExitStack()
        container = self._ending.enter_context(opened(source))
        self._streams: dict[int, Any] = {}
        if chapters := container.chapters():
            target.set_chapters(chapters)
        left_out: dict[str, int] = {}
        for stream in container.streams:
            if stream.type == "video" or (stream.type == "data" and chapters):  # in which an MP4 has them
                continue
            new = _like(stream, target) if stream.type in ("audio", "subtitle") else None
            if new is not None:
                self._streams[stream.index] = new
            else:
                what = {"audio": "sound", "subtitle": "subtitles"}.get(stream.type, f"{stream.type} stream")
                what += f" ({stream.codec_context.name})" if stream.codec_context is not None else ""
                left_out[what] = left_out.get(what, 0) + 1
        for what, count in left_out.items():
            self.notes.append(f"left out, since {target.format.name} does not take it: {what}{f', {count} times' if count > 1 else ''}")
        for key, value in container.metadata.items():
            if key.lower() in _KEPT:
                target.metadata[key] = value
        self._target, self._below_zero = target, target.format.name == "mp4"
        self._began = start(container)
        self._packets = self._demuxed(container) if self._streams else iter(())
        self._next: Any = next(self._packets, None)

    def until(self, seconds: float) -> None:
        """Writes what comes before that time."""
        while self._next is not None and float((self._next.dts or 0) * self._next.time_base) < seconds:
            packet = self._next
            self._next = next(self._packets, None)
            packet.stream = self._streams[packet.stream.index]
            self._target.mux(packet)

    def close(self) -> None:
        self._ending.close()

    def _demuxed(self, container: Any) -> Iterator[Any]:
        for packet in container.demux([container.streams[index] for index in self._streams]):
            # What ends before 0, as the first packet of AAC, only prepares the decoder. Where a container has no times below 0, it would
            # delay all else.
            if packet.pts is not None and packet.dts is not None:
                began = round(self._began / packet.time_base)
                packet.pts, packet.dts = packet.pts - began, packet.dts - began
            if packet.size and packet.dts is not None and (self._below_zero or (packet.pts or 0) + (packet.duration or 0) > 0):
                yield packet


def _like(stream: Any, target: Any) -> Any:
    """A stream of the target for the packets of that one; None where the target does not take such."""
    context = stream.codec_context
    if context is None or not {context.codec.name, context.codec.canonical_name} & target.supported_codecs:
        return None
    try:
        new = target.add_stream_from_template(stream, opaque=True)
    except (ValueError, pyav().FFmpegError):
        return None
    new.metadata.update({key: value for key, value in stream.metadata.items() if key.lower() in ("language", "title")})
    new.disposition = stream.disposition.value
    return new
