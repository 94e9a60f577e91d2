"""The manifest of results in an object store, where nothing can be appended: written in parts."""

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gleansr.cluster.urls import Addresses, file_system, is_url
from gleansr.errors import RequestError
from gleansr.jobs import MANIFEST, Job, OutputError
from gleansr.jobs import Manifest as LocalManifest

_SECONDS = 30.0
"""Between two parts: what is done in this time is done again if the driver is killed."""


class StoredManifest(LocalManifest):
    """The manifest at an address such as s3://bucket/results/gleansr.jsonl: a folder there, whose files, in the order of their names, are
    the lines of a manifest. A copy of them all lies here as long as a run lasts, and what is new in it is brought there as one file.

    Two drivers at once are not kept from writing to the same results; their parts are all read.
    """

    def __init__(self, url: str):
        """Fetches what is there. Raises as `folders.Manifest`."""
        self.url = url
        self._folder = Path(tempfile.mkdtemp(prefix="gleansr-"))
        self._bringing = threading.Lock()
        try:
            copy = self._folder / MANIFEST
            self._parts = self._fetch(copy)
            super().__init__(copy)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._brought = copy.stat().st_size if copy.exists() else 0
        self._due = time.monotonic() + _SECONDS

    def begin(self, jobs: Iterable[Job]) -> None:
        super().begin(jobs)
        self._bring_if_due()

    def add(self, entry: Mapping[str, Any]) -> None:
        super().add(entry)
        self._bring_if_due()

    def bring(self) -> None:
        """Brings what is new to the store. Called before workers begin: what they write must be known to be ours."""
        with self._bringing:
            self._due = time.monotonic() + _SECONDS
            if not self.file.exists():
                return
            with self.file.open("rb") as file:
                file.seek(self._brought)
                lines = file.read()
            if not (lines := lines[: lines.rfind(b"\n") + 1]):
                return
            name = f"{self.url}/{self._parts:08d}-{secrets.token_hex(4)}.jsonl"
            try:
                Addresses().write(name, lines)
            except Exception as error:
                raise OutputError(f"{error}") from error
            self._parts += 1
            self._brought += len(lines)

    def close(self) -> None:
        try:
            super().close()
            self.bring()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _bring_if_due(self) -> None:
        if time.monotonic() > self._due:
            self.bring()

    def _fetch(self, copy: Path) -> int:
        """Returns the number of the next part."""
        system, name = file_system(self.url)
        try:
            parts = sorted(entry for entry in system.ls(name, detail=False) if entry.endswith(".jsonl"))
        except FileNotFoundError:
            return 0
        except Exception as error:
            raise RequestError(f"{self.url}: cannot be listed: {' '.join(str(error).split())}") from error
        numbers = [part.rpartition("/")[2].partition("-")[0] for part in parts]
        try:
            with copy.open("wb") as file:
                for part in parts:
                    file.write(system.cat_file(part))
        except Exception as error:
            raise OutputError(f"{self.url}: cannot be read: {' '.join(str(error).split())}") from error
        return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def opened(file: Path | str) -> LocalManifest:
    """The manifest at a path or an address. Raises as `folders.Manifest`."""
    return StoredManifest(file) if isinstance(file, str) and is_url(file) else LocalManifest(Path(file))
