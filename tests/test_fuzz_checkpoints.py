"""A slice of the fuzzers of checkpoints, in a process that may not take more memory or time than it should."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMITED = """
import resource, sys
from itertools import islice
sys.path.insert(0, ".")
from tests.fuzz import findings, trials
import tests.fuzz.{name} as fuzzer

mapped = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (mapped + 1_200_000_000, resource.getrlimit(resource.RLIMIT_AS)[1]))
counts = fuzzer.run(islice(trials(0), {trials}))
print("; ".join(findings(counts)) or "nothing")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the bounds are Linux's")
@pytest.mark.parametrize(("name", "number"), [("checkpoints", 300), ("onnx", 300)])
def test_nothing_is_found(name: str, number: int):
    child = [sys.executable, "-c", LIMITED.format(name=name, trials=number)]
    done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert (done.stdout.strip(), done.returncode) == ("nothing", 0), done.stderr[-2000:]
