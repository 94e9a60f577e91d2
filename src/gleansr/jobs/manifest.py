"""The manifest: JSON lines that record the finished images, so that an interrupted run resumes and a finished one repeats nothing."""

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
"""Value of `format` in the first line of a manifest."""

_SYNC_SECONDS = 5.0
"""Interval of fsync: what a machine failure can lose. A killed process loses nothing."""

_HEAD = f'{{"format":"{FORMAT}"'.encode()
"""Start of the first line. A file that is a prefix of it, without a line break, is a torn manifest and is started again."""

_KEPT_BACK = 20
"""Failures held in memory until the results folder exists."""


class Manifest:
    """The manifest of one results folder. It locks the folder against other processes until it is closed.

    The last line of each target counts; torn lines are ignored. Several threads may add lines at once. The lines, with paths relative to
    the manifest's folder and forward slashes:

        {"format": "gleansr-results/1", "version": "gleansr 1.0.0"}              the first line
        {"status": "begun", "targets": ["a.png", "sub/b.png"]}                  gleansr is about to write these files
        {"status": "done", "source": "../images/a.jpg", "target": "a.png", "bytes": ..., "mtime_ns": ..., "sha256": ..., "model": ...,
         "model_sha256": ..., "options": {...}, "notes": [...], "details": {...}, "result_sha256": ..., "seconds": ...}
        {"status": "failed", "source": ..., "target": ..., "error": ...}        nothing was written; the next run tries again
    """

    def __init__(self, file: Path):
        """Reads the file, and removes half-written results of killed runs.

        Raises:
            RequestError: the file is not a manifest, or another process uses its folder.
            OutputError: the file cannot be read, or its folder cannot be locked.
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

    def is_result(self, key: str) -> bool:
        """Whether an earlier run wrote, or began to write, this file; `key` is relative to the manifest's folder. Whether the present file
        is still that result is decided by its contents (`steps.is_result`)."""
        return key in self.index

    def begin(self, jobs: Iterable[Job]) -> None:
        """Records that the results of these jobs are about to be written. Call it before they are."""
        if targets := [job.target_key for job in jobs]:
            with self._lock:
                self._write([{"status": "begun", "targets": targets}])

    def add(self, entry: Mapping[str, Any]) -> None:
        """Appends a line. Failures wait in memory while there is no results folder, so that failures alone create none."""
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
        """Closes the manifest. An error in closing does not hide an error of the block."""
        with suppress(OutputError) if error else nullcontext():
            self.close()

    def close(self) -> None:
        """Writes the waiting failures, if the folder exists, and unlocks it. Raises OutputError if that fails."""
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
        """Fills the index. Returns the targets that were begun and not finished."""
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
            raise RequestError(f"{self.file} is not a manifest of this version of gleansr ({FORMAT}); move it away or give --manifest FILE")

    def _take(self, line: Mapping[str, Any], begun: dict[str, None]) -> None:
        with suppress(LookupError, TypeError, ValueError, AttributeError, struct.error):  # a torn or edited line
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
        except ImageError as error:  # a file has the name of the folder
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
        """Writes a line with one call, so that a kill can tear only the last line."""
        data = (b"\n" if self._torn else b"") + json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        self._torn = True
        if self._descriptor is None or os.write(self._descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False


def _parsed(data: bytes) -> dict[str, Any]:
    """A line as a dictionary; empty if it is not a JSON object."""
    line = parse_line(data)
    return line if isinstance(line, dict) else {}
