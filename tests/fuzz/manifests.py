"""Data sets with random damage in manifests, records, archives and databases: each is read or refused, and nothing outside is touched."""

import io
import json
import random
import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

from gleansr.data.prepare import Preparation, prepare
from gleansr.data.sources import open_source
from gleansr.errors import GleansrError
from gleansr.evaluation.records import Records
from gleansr.jobs import Manifest
from tests.fuzz import finding
from tests.fuzz.recipes import damaged

PATHS = ("../outside/a.png", "/etc/hostname", "hr/../../outside/a.png", "..", ".", "", "a\0b", "C:\\a", "hr")


def seeds(folder: Path) -> dict[str, Path]:
    """A place of each kind, and what of it is damaged."""
    images = {f"{i}.png": _png(i) for i in range(4)}
    (folder / "originals").mkdir()
    for name, data in images.items():
        (folder / "originals" / name).write_bytes(data)
    preparation = Preparation("folder", str(folder / "originals"), 8, "crop", "skip", scales=(2,))
    prepare(preparation, folder / "set", workers=1)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in images.items():
            archive.writestr(name, data)
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in images.items():
            info = tarfile.TarInfo(name * 40)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with lmdb.open(str(folder / "lmdb"), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for i in range(40):
            transaction.put(f"{i:04}".encode(), images[f"{i % 4}.png"] * (1 + 40 * (i % 2)))
    lines = [
        {"format": "gleansr-results/1"},
        {"status": "begun", "targets": ["a.png"]},
        {
            "status": "done",
            "source": "a",
            "target": "a.png",
            "bytes": 1,
            "mtime_ns": 2,
            "sha256": "0" * 64,
            "model_sha256": "1" * 64,
            "options": {},
        },
    ]
    (folder / "results").mkdir()
    (folder / "results" / "gleansr.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "records.jsonl").write_text('{"made": {"a": 1}}\n{"name": "a", "psnr": "inf"}\n')
    return {
        "manifest": folder / "set" / "manifest.json",
        "records of a set": folder / "set" / "manifest.jsonl",
        "zip": folder / "a.zip",
        "tar": folder / "a.tar",
        "lmdb": folder / "lmdb" / "data.mdb",
        "results": folder / "results" / "gleansr.jsonl",
        "records": folder / "records.jsonl",
    }


def run(chances: Iterable[random.Random]) -> Counter[str]:
    """Damages one file a trial, uses it and puts it back."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "all"
        outside = Path(name) / "all" / "outside"
        folder.mkdir()
        places = seeds(folder)
        outside.mkdir()
        (outside / "a.png").write_bytes(b"not ours")
        whole = {kind: path.read_bytes() for kind, path in places.items()}
        preparation = Preparation("folder", str(folder / "originals"), 8, "crop", "skip", scales=(2,))
        shutil.copytree(folder / "set", folder / "kept")
        uses: dict[str, Callable[[], object]] = {
            "manifest": lambda: _read_all(folder / "set"),
            "records of a set": lambda: prepare(preparation, folder / "set", workers=1),
            "zip": lambda: _read_all(places["zip"]),
            "tar": lambda: _read_all(places["tar"]),
            "lmdb": lambda: _read_all(folder / "lmdb"),
            "results": lambda: Manifest(places["results"]).close(),
            "records": lambda: dict(Records(places["records"])),
        }
        for rng in chances:
            kind = rng.choice(list(places))
            data = _damaged(kind, whole[kind], rng)
            places[kind].write_bytes(data)
            try:
                uses[kind]()
                counts[f"{kind}: read"] += 1
            except GleansrError as error:
                counts[f"{kind}: refused"] += 1
                if "\n" in str(error):
                    finding(counts, f"{kind}: a message of several lines", data)
            except Exception as error:
                finding(counts, f"{kind}: {type(error).__name__}", data)
            if (outside / "a.png").read_bytes() != b"not ours" or len(list((folder / "originals").iterdir())) != 4:
                finding(counts, f"{kind}: a file outside was changed", data)
                return counts
            if kind == "records of a set":
                shutil.rmtree(folder / "set")
                shutil.copytree(folder / "kept", folder / "set")
            else:
                places[kind].write_bytes(whole[kind])
    return counts


def _read_all(place: Path) -> None:
    source = open_source(place)
    for i in range(len(source)):
        try:
            source.read(i)
        except GleansrError:
            continue


def _damaged(kind: str, data: bytes, rng: random.Random) -> bytes:
    if kind in ("manifest", "records of a set") and rng.random() < 0.5:  # sound, and of another mind
        text = data.decode()
        for _ in range(rng.randint(1, 3)):
            old = rng.choice(["hr/0.png", '"hr"', '"x2"', '"0.png"', "true", "8", '"files"', '"name"', '"options"', "{", "[8]"])
            new = rng.choice([json.dumps(path) for path in PATHS] + [path for path in PATHS if path.isascii()] + ["null", "7", "[]", "{}"])
            text = text.replace(old, new, rng.randint(1, 3))
        return text.encode(errors="surrogateescape")
    if kind in ("lmdb", "zip", "tar"):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.choice([0, 1, 127, 255, rng.randrange(256)])
        return bytes(changed if rng.random() < 0.8 else changed[: rng.randrange(len(changed))])
    return damaged(data, rng)


def _png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()
