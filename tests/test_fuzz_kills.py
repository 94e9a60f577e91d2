"""A short slice of the fuzzer of kills and failing disks."""

import shutil
import sys
from itertools import islice

import pytest

from tests.fuzz import findings, kills, trials


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_commands_survive_kills_and_failing_disks():
    counts = kills.run(islice(trials(0), 2), ("folder", "training of a bank"))
    assert findings(counts) == [], counts
    assert any("killed" in outcome for outcome in counts)
