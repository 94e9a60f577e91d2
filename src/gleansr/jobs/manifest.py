"""What is done, in JSON lines beside the results, so that a run that was killed goes on and one that ended does nothing twice."""

import errno
import json
import os
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from gleansr.documents import parse_line
from gleansr.errors import ImageError, RequestError
from gleansr.files import leftovers, lock_folder
from gleansr.images.codec import software
from gleansr.jobs.index import Index
from gleansr.jobs.jobs import Job
from gleansr.jobs.storage import OutputError, make_folder

FORMAT = "gleansr-results/1"
"""What the first line of a manifest says of its format."""

_SYNC_SECONDS = 5.0
"""Between two times that the lines are brought to the disk: what a machine loses that fails. A process that is killed loses none."""

_HEAD = f'{{"format":"{FORMAT}"'.encode()
"""How the first line begins. Nothing else that has no end of line is taken for a torn manifest, and begun anew."""

_KEPT_BACK = 20
"""Failures that wait for a folder of results to be made."""


class Manifest:
    """The manifest of one folder of results, whose folder is held against other processes until it is closed.

    Of each target the last line counts; torn lines are ignored. Several threads may add at once. Lines, with paths relative to the
    manifest's folder and forward slashes:

        {"format": "gleansr-results/1", "version": "gleansr 0.1.0"}              the first line
        {"status": "begun", "targets": ["a.png", "sub/b.png"]}                  from here on these files may be ours
        {"status": "done", "source": "../pictures/a.jpg", "target": "a.png", "bytes": ..., "mtime_ns": ..., "sha256": ..., "model": ...,
         "model_sha256": ..., "options": {...}, "notes": [...], "details": {...}, "result_sha256": ..., "seconds": ...}
        {"status": "failed", "source": ..., "target": ..., "error": ...}        nothing was written; tried again by the next run
    """

    def __init__(self, file: Path):
        """Reads what is there, and removes what killed runs left half written.

        Raises:
            RequestError: the file is no manifest, or another process works in its folder.
            OutputError: it cannot be read, or its folder not be held.
        """
        self.file = file
        self.index = Index()
        self._lock = threading.Lock()
        self._held = ExitStack()
        self._descriptor: int | None = None
        self._kept_back: list[Mapping[str, Any]] = []
        self._headed = self._torn = False
        self._synced = time.monotonic()
        if not file.parent.is_dir():
            return
        with ExitStack() as undone:
            undone.callback(self._held.close)
            try:
                self._hold()
                for target in self._read():
                    for left in leftovers(file.parent / target):
                        left.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{file}: cannot be used: {error.strerror or error}") from error
            undone.pop_all()

    def ours(self, key: str) -> bool:
        """Whether an earlier run wrote a file of this name, relative to the manifest's folder, or began to. That the file there is still
        that one, its contents tell (`steps.is_ours`)."""
        return key in self.index

    def begin(self, jobs: Iterable[Job]) -> None:
        """Says that the results of these jobs will be ours, to be called before they are written."""
        if targets := [job.target_key for job in jobs]:
            with self._lock:
                self._write([{"status": "begun", "targets": targets}])

    def add(self, entry: Mapping[str, Any]) -> None:
        """Appends what became of an image. Failures are kept back while nothing was written: no folder is made for nothing."""
        with self._lock:
            if entry["status"] == "failed" and self._descriptor is None and len(self._kept_back) < _KEPT_BACK:
                self._kept_back.append(entry)
                return
            self._write([entry])
            due = time.monotonic() - self._synced > _SYNC_SECONDS
            if due:
                self._synced = time.monotonic()
        if due and self._descriptor is not None:
            os.fsync(self._descriptor)

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Closes it. What goes wrong with that does not hide the error that ended the block."""
        with suppress(OutputError) if error else nullcontext():
            self.close()

    def close(self) -> None:
        """Writes what was kept back, if there is a folder by now, and lets go of it. Raises OutputError if that fails."""
        with self._lock, self._held:
            try:
                if self._kept_back and self.file.parent.is_dir():
                    self._write([])
            finally:
                if self._descriptor is not None:
                    os.close(self._descriptor)
                    self._descriptor = None

    def _hold(self) -> None:
        self._held.enter_context(lock_folder(self.file.parent, "writing results"))

    def _read(self) -> list[str]:
        """Fills the index. Returns the targets that were begun and not ended."""
        begun: dict[str, None] = {}
        with suppress(FileNotFoundError), self.file.open("rb") as file:
            for data in file:
                self._torn = not data.endswith(b"\n")
                line = _parsed(data)
                if self._headed:
                    self._take(line, begun)
                elif line or not (self._torn and _HEAD.startswith(data[: len(_HEAD)])):
                    self._check(line)
                    self._headed = True
        for target in begun:
            self.index.add({"status": "begun", "target": target})
        self.index.finish()
        return list(begun)

    def _check(self, line: Mapping[str, Any]) -> None:
        if line.get("format") != FORMAT:
            raise RequestError(f"{self.file}: is no manifest of this version of gleansr ({FORMAT}); move it away, or give --manifest FILE")

    def _take(self, line: Mapping[str, Any], begun: dict[str, None]) -> None:
        with suppress(LookupError, TypeError, ValueError, AttributeError, struct.error):  # a torn line, or one that somebody has changed
            if line["status"] == "begun":
                begun.update(dict.fromkeys(line["targets"]))
            else:
                self.index.add(line)
                begun.pop(line["target"], None)

    def _write(self, entries: list[Mapping[str, Any]]) -> None:
        try:
            if self._descriptor is None:
                self._open()
            entries, self._kept_back = self._kept_back + entries, []
            for entry in entries:
                self._append(entry)
        except ImageError as error:  # a file is where its folder is to be
            raise OutputError(str(error)) from error
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written: {error.strerror or error}") from error

    def _open(self) -> None:
        if not self.file.parent.is_dir():
            make_folder(self.file.parent)
            self._hold()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0) | (0 if self._headed else os.O_TRUNC)
        self._descriptor = os.open(self.file, flags, 0o666)
        if not self._headed:
            self._torn = False
            self._append({"format": FORMAT, "version": software()})
            self._headed = True

    def _append(self, entry: Mapping[str, Any]) -> None:
        """In one write, so that a kill tears the last line at most."""
        data = (b"\n" if self._torn else b"") + json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        self._torn = True
        if self._descriptor is None or os.write(self._descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False


def _parsed(data: bytes) -> dict[str, Any]:
    """A line; nothing of one that is no JSON object."""
    line = parse_line(data)
    return line if isinstance(line, dict) else {}
