"""What the benchmarks share: times taken in turn, peak memory of a process of its own, mmagic's classes, errors of one line."""

import argparse
import functools
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gleansr.errors import GleansrError, RequestError, one_line
from gleansr.evaluation.runner import peak_memory, synchronise


class ChildError(GleansrError):
    """A process that measures alone has failed."""


@functools.cache  # a second call would fail: mmagic_glean.py puts packages of its own in the place of mmagic's
def mmagic(folder: str) -> dict[str, Any]:
    """mmagic's networks by name; `folder` holds mmagic_glean.py, which makes them importable on a CPU.

    Raises RequestError where it does not, or what it needs is not installed.
    """
    if not Path(folder, "mmagic_glean.py").is_file():
        raise RequestError(f"--peer {folder}: it must hold mmagic_glean.py; without --peer our own plain formulation takes part")
    if missing := [name for name in ("mmagic", "mmcv", "mmengine") if importlib.util.find_spec(name) is None]:
        raise RequestError(f"--peer wants {', '.join(missing)}; mmagic_glean.py says how to install it beside gleansr")
    sys.path.insert(0, folder)
    try:
        from mmagic_glean import classes  # pyright: ignore[reportMissingImports]

        return classes()
    except ImportError as error:
        raise RequestError(f"--peer {folder}: mmagic_glean.py lacks a package: {one_line(error)}") from error
    finally:
        sys.path.remove(folder)


def clock(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call until its results are there on the device, by the clock: what a caller waits, launching included."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def kernel_clock(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that the device computes: on a GPU between two of its events, so that launching one kernel is not in it."""
    if device.type != "cuda":
        return clock(call, device)
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    call()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000


def in_turn(runs: Mapping[str, Callable[[], float]], rounds: int, warm_ups: int = 1, rest: float = 0) -> dict[str, list[float]]:
    """What each run returns, its seconds for instance: of so many rounds one after the other, after warm-ups.

    `rest`: seconds before each, in which the threads of the one before come to sleep, where they are not those of the next one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + warm_ups):
        for name, run in runs.items():
            time.sleep(rest)
            took = run()
            if round_ >= warm_ups:
                seconds[name].append(took)
    return seconds


def times(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians and extremes, for a report."""
    return {
        "seconds_median": {name: statistics.median(values) for name, values in seconds.items()},
        "seconds_min_max": {name: (min(values), max(values)) for name, values in seconds.items()},
    }


def peak_mib(device: torch.device) -> float | None:
    """This process's peak memory in MiB: on a GPU what torch allocated at most, else the resident size; None where that is not known."""
    peak = peak_memory(device)
    return None if peak is None else peak / 2**20


def child(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON object that `python -m benchmarks.MODULE ARGUMENTS`, a fresh process, prints as its last line.

    Raises ChildError with what it said, or by what it was ended.
    """
    ended = subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments], capture_output=True, text=True)
    if ended.returncode:
        said = ended.stderr.strip().splitlines()
        how = f"signal {-ended.returncode}, perhaps for lack of memory" if ended.returncode < 0 else f"status {ended.returncode}"
        raise ChildError(f"benchmarks.{module} {' '.join(arguments)} ended with {how}: {said[-1] if said else 'it said nothing'}")
    return json.loads(ended.stdout.splitlines()[-1])


def print_report(report: Mapping[str, Any]) -> None:
    """The last line of a process that `child` reads."""
    print(json.dumps(report))


def positive(text: str) -> int:
    """A number of the command line, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


@contextmanager
def errors_in_one_line(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Where a request cannot be met, or work fails, the process ends with what was wrong: status 2, or 1."""
    try:
        yield
    except GleansrError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {one_line(error)}\n")
