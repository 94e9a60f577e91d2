"""A slice of the fuzzers of checkpoints, in a process that may not take more memory or time than it should."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMITED = """
import resource, sys
sys.path.insert(0, ".")
from tests.fuzz import findings
import tests.fuzz.{name} as fuzzer

mapped = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (mapped + 1_200_000_000, resource.getrlimit(resource.RLIMIT_AS)[1]))
counts = fuzzer.run({seconds}, 0)
print("; ".join(findings(counts)) or "nothing")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the bounds are Linux's")
@pytest.mark.parametrize(("name", "seconds"), [("checkpoints", 3), ("onnx", 2)])
def test_nothing_is_found(name: str, seconds: float):
    child = [sys.executable, "-c", LIMITED.format(name=name, seconds=seconds)]
    done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert (done.stdout.strip(), done.returncode) == ("nothing", 0), done.stderr[-2000:]
