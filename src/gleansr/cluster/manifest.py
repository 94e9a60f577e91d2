"""The manifest in an object store, which cannot append to files: a folder of parts."""

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gleansr.cluster.urls import RemoteStorage, file_system
from gleansr.errors import RequestError, one_line
from gleansr.jobs import MANIFEST, Job, Manifest, OutputError
from gleansr.stores import is_url

_SECONDS = 30.0
"""Seconds between two parts. If the driver is killed, the images of this time are processed again."""


class StoredManifest(Manifest):
    """A manifest at a URL such as s3://bucket/results/gleansr.jsonl: a folder whose files, in the order of their names, hold the lines.

    A local copy exists during a run; new lines are uploaded as one file. Two concurrent drivers can write to the same results; all their
    parts are read.
    """

    def __init__(self, url: str):
        """Downloads the parts. Raises the errors of `jobs.Manifest`."""
        self.url = url
        self._folder = Path(tempfile.mkdtemp(prefix="gleansr-"))
        self._uploading = threading.Lock()
        try:
            copy = self._folder / MANIFEST
            self._parts = self._fetch(copy)
            super().__init__(copy)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._uploaded = copy.stat().st_size if copy.exists() else 0
        self._due = time.monotonic() + _SECONDS

    def begin(self, jobs: Iterable[Job]) -> None:
        super().begin(jobs)
        self._upload_if_due()

    def add(self, entry: Mapping[str, Any]) -> None:
        super().add(entry)
        self._upload_if_due()

    def upload(self) -> None:
        """Uploads the new lines. Call it before workers begin, so that their files are recorded."""
        with self._uploading:
            self._due = time.monotonic() + _SECONDS
            if not self.file.exists():
                return
            with self.file.open("rb") as file:
                file.seek(self._uploaded)
                lines = file.read()
            if not (lines := lines[: lines.rfind(b"\n") + 1]):
                return
            name = f"{self.url}/{self._parts:08d}-{secrets.token_hex(4)}.jsonl"
            try:
                RemoteStorage().write(name, lines)
            except Exception as error:
                raise OutputError(f"{error}") from error
            self._parts += 1
            self._uploaded += len(lines)

    def close(self) -> None:
        try:
            super().close()
            self.upload()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _upload_if_due(self) -> None:
        if time.monotonic() > self._due:
            self.upload()

    def _fetch(self, copy: Path) -> int:
        """Downloads all parts into one file. Returns the number of the next part."""
        system, name = file_system(self.url)
        try:
            parts = sorted(entry for entry in system.ls(name, detail=False) if entry.endswith(".jsonl"))
        except FileNotFoundError:
            return 0
        except Exception as error:
            raise RequestError(f"{self.url}: cannot be listed: {one_line(error)}") from error
        numbers = [part.rpartition("/")[2].partition("-")[0] for part in parts]
        try:
            with copy.open("wb") as file:
                for part in parts:
                    file.write(system.cat_file(part))
        except Exception as error:
            raise OutputError(f"{self.url}: cannot be read: {one_line(error)}") from error
        return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def open_manifest(file: Path | str) -> Manifest:
    """The manifest at a path or a URL. Raises the errors of `jobs.Manifest`."""
    return StoredManifest(file) if isinstance(file, str) and is_url(file) else Manifest(Path(file))
