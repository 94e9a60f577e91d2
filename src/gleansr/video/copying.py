"""Copies sound, subtitles and chapters between containers without re-encoding."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gleansr.video.pyav import open_container, pyav, start_time

_METADATA = ("title", "artist", "album", "date", "year", "copyright", "description", "creation_time", "location", "make", "model")
"""Keys that describe a container's content; those that describe its encoding no longer apply."""


class StreamCopier:
    """Copies the sound, subtitles and chapters of a video file to another container.

    Reads the file a second time, in step with the images, so that few packets are in memory.
    """

    def __init__(self, source: Path, target: Any):
        """
        Args:
            source: a video file.
            target: an open container before its first packet; gets the streams.

        Raises:
            ImageError: the file cannot be read.
        """
        self.notes: list[str] = []
        self._resources = ExitStack()
        container = self._resources.enter_context(open_container(source))
        self._streams: dict[int, Any] = {}
        if chapters := container.chapters():
            target.set_chapters(chapters)
        dropped: dict[str, int] = {}
        for stream in container.streams:
            if stream.type == "video" or (stream.type == "data" and chapters):  # MP4 stores chapters as data
                continue
            copy = _add_copy(stream, target) if stream.type in ("audio", "subtitle") else None
            if copy is not None:
                self._streams[stream.index] = copy
            else:
                name = {"audio": "sound", "subtitle": "subtitles"}.get(stream.type, f"{stream.type} stream")
                name += f" ({stream.codec_context.name})" if stream.codec_context is not None else ""
                dropped[name] = dropped.get(name, 0) + 1
        for name, count in dropped.items():
            self.notes.append(f"dropped, unsupported by {target.format.name}: {name}{f' ({count} streams)' if count > 1 else ''}")
        for key, value in container.metadata.items():
            if key.lower() in _METADATA:
                target.metadata[key] = value
        self._target, self._negative_times = target, target.format.name == "mp4"
        self._start = start_time(container)
        self._packets = self._demux(container) if self._streams else iter(())
        self._next: Any = next(self._packets, None)

    def copy_until(self, seconds: float) -> None:
        """Writes the packets before that time."""
        while self._next is not None and float((self._next.dts or 0) * self._next.time_base) < seconds:
            packet = self._next
            self._next = next(self._packets, None)
            packet.stream = self._streams[packet.stream.index]
            self._target.mux(packet)

    def close(self) -> None:
        self._resources.close()

    def _demux(self, container: Any) -> Iterator[Any]:
        for packet in container.demux([container.streams[index] for index in self._streams]):
            # Packets that end before 0, such as AAC's first, only prime the decoder. Containers without negative times would delay
            # everything else for them.
            if packet.pts is not None and packet.dts is not None:
                start = round(self._start / packet.time_base)
                packet.pts, packet.dts = packet.pts - start, packet.dts - start
            if packet.size and packet.dts is not None and (self._negative_times or (packet.pts or 0) + (packet.duration or 0) > 0):
                yield packet


def _add_copy(stream: Any, target: Any) -> Any:
    """Adds a stream for another's packets to the target; returns None if the target does not support it."""
    context = stream.codec_context
    if context is None or not {context.codec.name, context.codec.canonical_name} & target.supported_codecs:
        return None
    try:
        copy = target.add_stream_from_template(stream, opaque=True)
    except (ValueError, pyav().FFmpegError):
        return None
    copy.metadata.update({key: value for key, value in stream.metadata.items() if key.lower() in ("language", "title")})
    copy.disposition = stream.disposition.value
    return copy
