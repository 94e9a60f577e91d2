"""Damage to ONNX files: each runs on one image, or is refused in one line; none ends in a traceback."""

import random
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from gleansr.errors import CheckpointError
from gleansr.inference.onnx_runtime import OnnxModel
from tests.fuzz import finding
from tests.test_onnx_files import network


def run(chances: Iterable[random.Random]) -> Counter[str]:
    """Loads and runs damaged files; see the package."""
    counts: Counter[str] = Counter()
    whole = network().SerializeToString()
    lr, cpu = torch.zeros(1, 3, 4, 4), torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.onnx"
        for chance in chances:
            data = _damaged(whole, chance)
            path.write_bytes(data)
            try:
                sr = OnnxModel(path, cpu)(lr)
                counts["ran"] += 1
                if sr.shape[:2] != (1, 3) or sr.dtype != torch.float32:
                    finding(counts, "a result that is no image", data)
            except CheckpointError as error:
                if "\n" in str(error) or len(str(error)) > 2500:
                    finding(counts, "a refusal of more than a line", data)
                counts["refused"] += 1
            except MemoryError:
                counts["memory was short"] += 1
            except Exception as error:  # whatever else it is, is a finding
                finding(counts, type(error).__name__, data)
    return counts


def _damaged(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(damaged)) if damaged else 0
        kind = chance.randrange(4)
        if kind == 0:
            damaged[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del damaged[at : at + chance.choice((1, 4, 100))]
        elif kind == 2:
            damaged[at:at] = damaged[at : at + chance.choice((1, 20, 200))] * chance.choice((1, 2, 50))
        else:
            del damaged[at:]
    return bytes(damaged)
