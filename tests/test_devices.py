"""What the process itself is set to."""

import json
import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, resource, sys
from gleansr.devices import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [bytes(10_000_000) + b"1" for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(json.dumps([[faults() for _ in range(3)][-1], os.environ.get("MALLOC_TRIM_THRESHOLD_")]))
"""


def after(how: str, **environment: str) -> tuple[int, str | None]:
    """Page faults of taking 30 MB that were freed before, and what the environment says to processes that this one starts."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], env=clean | environment, capture_output=True, text=True, check=True)
    return tuple(json.loads(run.stdout))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is set")
def test_memory_that_was_freed_is_kept():
    assert after("leave")[0] > 1000
    assert after("keep") == (pytest.approx(0, abs=100), str(2**30))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is set")
def test_what_the_environment_says_about_memory_holds():
    small = {"MALLOC_TRIM_THRESHOLD_": "100000", "MALLOC_MMAP_THRESHOLD_": "100000"}
    faults, said = after("keep", **small)
    assert faults > 1000
    assert said == "100000"
