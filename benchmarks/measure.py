"""Shared parts of the benchmarks: interleaved timing, child processes, mmagic's classes, one-line errors."""

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
    """A child process failed."""


@functools.cache  # mmagic_glean.py replaces packages of mmagic and cannot be called twice
def mmagic(folder: str) -> dict[str, Any]:
    """mmagic's networks by name; `folder` holds mmagic_glean.py, which makes them importable on a CPU.

    Raises RequestError if the file or a package that it needs is missing.
    """
    if not Path(folder, "mmagic_glean.py").is_file():
        raise RequestError(f"--peer {folder}: has no mmagic_glean.py; without --peer the plain formulation is the baseline")
    if missing := [name for name in ("mmagic", "mmcv", "mmengine") if importlib.util.find_spec(name) is None]:
        raise RequestError(f"--peer needs {', '.join(missing)}; mmagic_glean.py says how to install it with gleansr")
    sys.path.insert(0, folder)
    try:
        from mmagic_glean import classes  # pyright: ignore[reportMissingImports]

        return classes()
    except ImportError as error:
        raise RequestError(f"--peer {folder}: mmagic_glean.py needs a package: {one_line(error)}") from error
    finally:
        sys.path.remove(folder)


def clock(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of a call until its results are complete on the device, including kernel launches."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def kernel_clock(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call on the device: on a GPU between two events, without kernel launches."""
    if device.type != "cuda":
        return clock(call, device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def interleaved(runs: Mapping[str, Callable[[], float]], rounds: int, warm_ups: int = 1, rest: float = 0) -> dict[str, list[float]]:
    """The values that each run returns, such as seconds, over `rounds` rounds that call all runs in turn, after warm-up rounds.

    `rest`: seconds of pause before each run, in which the threads of another library fall asleep.
    """
    values: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + warm_ups):
        for name, run in runs.items():
            time.sleep(rest)
            value = run()
            if round_ >= warm_ups:
                values[name].append(value)
    return values


def times(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians and ranges, for a report."""
    return {
        "seconds_median": {name: statistics.median(values) for name, values in seconds.items()},
        "seconds_min_max": {name: (min(values), max(values)) for name, values in seconds.items()},
    }


def peak_mib(device: torch.device) -> float | None:
    """Peak memory of this process in MiB: torch's allocations on a GPU, otherwise the resident size; None where unknown."""
    peak = peak_memory(device)
    return None if peak is None else peak / 2**20


def child(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs `python -m benchmarks.MODULE ARGUMENTS` and returns the JSON object in its last line of output.

    Raises ChildError with its last error message, or the signal that ended it.
    """
    process = subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments], capture_output=True, text=True)
    if status := process.returncode:
        lines = process.stderr.strip().splitlines()
        reason = f"signal {-status}, possibly for lack of memory" if status < 0 else f"status {status}"
        raise ChildError(f"benchmarks.{module} {' '.join(arguments)} ended with {reason}: {lines[-1] if lines else 'no error message'}")
    return json.loads(process.stdout.splitlines()[-1])


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


@contextmanager
def errors_in_one_line(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Exits with a one-line message on a GleansrError: status 2 for an invalid request, otherwise 1."""
    try:
        yield
    except GleansrError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {one_line(error)}\n")
