"""Damage to files of weights: each is read or refused in one line, within five seconds and a gigabyte, and nothing in it is executed."""

import pickle
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from gleansr.checkpoints import load_model, native
from gleansr.errors import CheckpointError
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from tests import foreign_layouts as layouts
from tests.fuzz import finding
from tests.hostile_files import FILES

SECONDS = 5
BEYOND = 10**9
"""Bytes that reading may take beyond the file's size."""


def run(chances: Iterable[random.Random]) -> Counter[str]:
    """Loads damaged files; see the package."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        wholes = _wholes(path)
        for chance in chances:
            data = _damaged(chance.choice(wholes), chance)
            path.write_bytes(data)
            before, peak = time.process_time(), _peak()
            try:
                load_model(path)
                counts["loaded"] += 1
            except CheckpointError as error:
                if "\n" in str(error) or not str(error).startswith(str(path)) or len(str(error)) > 2500:
                    finding(counts, "a refusal of more than a line", data)
                counts["refused"] += 1
            except Exception as error:  # whatever else it is, is a finding
                finding(counts, f"{type(error).__name__}", data)
            if time.process_time() - before > SECONDS:
                finding(counts, "it took long", data)
            if _peak() - peak > len(data) + BEYOND:
                finding(counts, "it took much memory", data)
    return counts


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _wholes(path: Path) -> list[bytes]:
    """One file of each form, and those that are made to be endless."""
    torch.manual_seed(0)
    network, generator = layouts.rrdbnet_tensors(4), layouts.generator_tensors("rosinality", (4, 6, 5))
    found = [data for data in FILES.values() if len(data) < 100_000]
    for contents in ({"params": network, "opt": {"lr": [1.0]}}, {"g_ema": generator, "latent_avg": torch.zeros(16)}):
        for in_zip in (True, False):
            torch.save(contents, path, _use_new_zipfile_serialization=in_zip)
            found.append(path.read_bytes())
        found.append(pickle.dumps(contents, protocol=4))
    save_file(network, path)
    found.append(path.read_bytes())
    native.save(path, {"generator": RRDBNet(RRDBNetConfig(2, 4, 2, 1))}, native.About("tiny"))
    found.append(path.read_bytes())
    native.save(path, {"generator": RRDBNet(RRDBNetConfig(2, 24, 16, 1))}, native.About("tiny"), dtype=torch.int8)
    found.append(path.read_bytes())
    return found


def _damaged(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        # Most of a file is numbers, and what matters is at its beginning or its end.
        near = chance.randrange(min(len(damaged), 4000)) if damaged else 0
        at = chance.choice((near, len(damaged) - 1 - near, chance.randrange(max(len(damaged), 1))))
        kind = chance.randrange(5)
        if kind == 0:
            damaged[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            damaged[at : at + 4] = struct.pack("<I", chance.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1)))
        elif kind == 2:
            del damaged[at : at + chance.choice((1, 4, 100))]
        elif kind == 3:
            damaged[at:at] = damaged[at : at + chance.choice((1, 20, 300))] * chance.choice((1, 2, 50))
        else:
            del damaged[at:]
    return bytes(damaged)
