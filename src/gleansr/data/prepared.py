"""The folder of a prepared set: its manifest, and its records of finished images."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from gleansr.documents import DocumentError, parse_line, read_json
from gleansr.errors import RequestError
from gleansr.files import lock_folder, replacing
from gleansr.version import version

PREPARED = "gleansr-pictures/1"
"""Format of a prepared set, in its manifest."""

MANIFEST = "manifest.json"
"""The file that makes a folder a prepared set."""

RECORDS = "manifest.jsonl"
"""JSON lines, sorted: the name of an image, and its files with sizes and hashes or the reason why it was skipped."""

GT_FOLDER = "hr"
"""The folder of the images; low-resolution images of scale 8 are in x8."""

Record = dict[str, Any]
"""Of an image, a line of `RECORDS`."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest of a prepared set; None for any other folder. Raises RequestError if it is damaged or leads out of the folder."""
    file = folder / MANIFEST
    remedy = "prepare the set again, or move the file away to use the folder as it is"
    try:
        manifest = read_json(file, hint=remedy)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except DocumentError:
        with file.open("rb") as stream:
            prepared = PREPARED.encode() in stream.read(1000)
        if prepared:
            raise
        return None  # another program's manifest
    if not isinstance(manifest, dict) or manifest.get("format") != PREPARED:
        return None
    lr = manifest.get("low")
    folders = [manifest.get("pictures"), *(lr.values() if isinstance(lr, dict) else [None])]
    if (
        not all(is_inside(name) for name in folders)
        or not isinstance(manifest.get("complete"), bool)
        or not isinstance(manifest.get("options"), dict)
    ):
        raise RequestError(f"{file}: is not a valid manifest, or names folders outside the set; {remedy}")
    return manifest


def is_inside(path: object) -> bool:
    """Whether `path`, an untrusted value, is a relative path with / between folders that stays inside its folder."""
    if not isinstance(path, str) or not path.strip("./") or "\\" in path or "\0" in path or ":" in path:
        return False
    parts = PurePosixPath(path).parts
    return not PurePosixPath(path).is_absolute() and ".." not in parts


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Creates the folder and locks it against other processes."""
    output.mkdir(parents=True, exist_ok=True)
    if read_manifest(output) is None and any(file.name != ".lock" for file in output.iterdir()):
        raise RequestError(f"{output}: is neither empty nor a set of `gleansr data prepare`; choose another folder")
    with lock_folder(output, "preparing images"):
        yield


def begin(output: Path, options: Mapping[str, Any], scales: Sequence[int], overwrite: bool) -> dict[str, Any]:
    """Writes the manifest of an unfinished set; with `overwrite` it removes the old set first.

    Raises RequestError for a set of other options, unless `overwrite`.
    """
    manifest = read_manifest(output)
    if manifest and overwrite:
        # Mark the old set as unfinished first, so that an interruption leaves no set that looks complete.
        _write_json(output / MANIFEST, manifest | {"complete": False})
        (output / RECORDS).unlink(missing_ok=True)
        for folder in (manifest["pictures"], *manifest["low"].values()):
            if (output / folder).exists():
                shutil.rmtree(output / folder)
    elif manifest and manifest["options"] != options:
        old = manifest["options"]
        differences = (f"{key} {old.get(key)!r}, not {new!r}" for key, new in options.items() if new != old.get(key))
        raise RequestError(f"{output}: was prepared with {', '.join(differences)}; use --overwrite to replace it, or another folder")
    manifest = {
        "format": PREPARED,
        "gleansr": version(),
        "complete": False,
        "pictures": GT_FOLDER,
        "low": {str(scale): f"x{scale}" for scale in scales},
        "options": options,
    }
    _write_json(output / MANIFEST, manifest)
    (output / GT_FOLDER).mkdir(exist_ok=True)
    return manifest


def finished(output: Path, targets: dict[str, str]) -> set[str]:
    """Names of the images whose files are complete. Other records and their files are removed."""
    for base, _, files in os.walk(output):
        for file in files:
            if file.startswith(".") and file.endswith(".part"):  # left by a killed process
                (Path(base) / file).unlink(missing_ok=True)
    done: set[str] = set()
    lossless: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": "\n"}  # keeps arbitrary bytes
    try:
        records = (output / RECORDS).open(**lossless)
    except FileNotFoundError:
        return done
    with records, replacing(output / RECORDS) as temporary, temporary.open("w", **lossless) as valid_records:
        for line in records:
            if (record := _record(line)) is None:
                continue
            files = record["files"]
            if record["name"] in targets and f"{GT_FOLDER}/{targets[record['name']]}" in files and _is_complete(output, files):
                done.add(record["name"])
                valid_records.write(line)
            else:
                for file in files:
                    (output / file).unlink(missing_ok=True)
    return done


def _record(line: str) -> Record | None:
    """Parses a line of the records; None if it is truncated, or names files outside the set."""
    record = parse_line(line)
    if not isinstance(record, dict) or not isinstance(record.get("name"), str):
        return None
    record.setdefault("files", {})
    sizes = record["files"].items() if isinstance(record["files"], dict) else [("", None)]
    valid = all(is_inside(file) and isinstance(facts, dict) and isinstance(facts.get("bytes"), int) for file, facts in sizes)
    return record if valid else None


def _is_complete(output: Path, files: dict[str, dict[str, Any]]) -> bool:
    try:
        return all((output / file).stat().st_size == facts["bytes"] for file, facts in files.items())
    except FileNotFoundError:
        return False


def finish(output: Path, manifest: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    """Sorts the records, so that they do not depend on interruptions, and writes the manifest of a complete set."""
    lines = sorted((output / RECORDS).read_bytes().splitlines(keepends=True))
    with replacing(output / RECORDS) as temporary:
        temporary.write_bytes(b"".join(lines))
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    _write_json(output / MANIFEST, {**manifest, "complete": True, "counts": counts, "records_sha256": digest.hexdigest()})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(f"{json.dumps(value, indent=2)}\n", encoding="utf-8")
