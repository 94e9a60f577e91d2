"""What the benchmarks against mmagic share: its classes, times taken in turn, peak memory of a process of its own."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gleansr.evaluation.runner import peak_memory


def mmagic(folder: str) -> dict[str, Any]:
    """mmagic's networks by name; `folder` holds mmagic_glean.py, which makes them importable on a CPU."""
    sys.path.insert(0, folder)
    from mmagic_glean import classes  # pyright: ignore[reportMissingImports]

    return classes()


def in_turn(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The seconds that each run returns, `rounds` times one after the other, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            took = run()
            if round_:
                seconds[name].append(took)
    return seconds


def times(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians and extremes, for a report."""
    return {
        "seconds_median": {name: statistics.median(values) for name, values in seconds.items()},
        "seconds_min_max": {name: (min(values), max(values)) for name, values in seconds.items()},
    }


def print_peak(device: torch.device) -> None:
    """Prints this process's peak memory in MiB, as `peak_of` reads it: on a GPU what torch allocated at most, else the resident size."""
    peak = peak_memory(device)
    print(json.dumps({"peak_mib": peak and peak / 2**20}))


def peak_of(module: str, arguments: list[str]) -> float:
    """What `python -m benchmarks.MODULE ARGUMENTS`, a fresh process, prints as its peak memory in MiB."""
    output = subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments], check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])["peak_mib"]  # mmagic prints a line of its own
