"""Fuzzers: random damage to what gleansr reads, and what must hold whatever the damage.

A module here is a fuzzer if it has `run(chances: Iterable[Random]) -> Counter[str]`: how often each outcome was met, in one trial for each
random state. An outcome that must not be is counted by `finding`. `python -m tests.fuzz NAME --seconds 60 --seed 0` runs one, and ends with
1 if there is a finding; a short slice of each is in tests/test_fuzz_NAME.py. Trial number n of a seed is the same wherever it runs, so a
finding is met again by its seed.
"""

import hashlib
import itertools
import pkgutil
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

_FINDING = "FINDING "


def names() -> list[str]:
    """Of the fuzzers, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "__main__")


def trials(seed: int) -> Iterator[random.Random]:
    """The random states of all trials, without end. Tests take the first so many, which does not depend on the machine's speed."""
    return (random.Random(f"{seed}/{number}") for number in itertools.count())  # noqa: S311, not for secrets


def lasting(seconds: float, chances: Iterable[random.Random]) -> Iterator[random.Random]:
    """What comes within about so many seconds, and the first in any case."""
    end = time.monotonic() + seconds
    for number, chance in enumerate(chances):
        if number and time.monotonic() > end:
            return
        yield chance


def finding(counts: Counter[str], what: str, data: bytes = b"") -> None:
    """Counts an outcome that must not be. The first input of a kind is kept in a file for temporary ones, which the outcome names."""
    known = next((key for key in counts if key.startswith(f"{_FINDING}{what}: ")), "")
    if known:
        counts[known] += 1
        return
    path = Path(tempfile.gettempdir()) / f"fuzz-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    counts[f"{_FINDING}{what}: {path}"] += 1


def findings(counts: Counter[str]) -> list[str]:
    """The outcomes that must not be."""
    return [outcome for outcome in counts if outcome.startswith(_FINDING)]
