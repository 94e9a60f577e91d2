"""The manifest of a folder's results and its index, beside what runs of whole folders show."""

import json
from pathlib import Path
from typing import Any

import pytest

from gleansr.jobs import Manifest
from gleansr.jobs.index import Index, fingerprint
from gleansr.jobs.manifest import FORMAT

DONE: dict[str, Any] = {
    **{"status": "done", "source": "a.jpg", "target": "a.png", "bytes": 5, "mtime_ns": 7, "sha256": "ab" * 32},
    **{"model_sha256": "cd" * 32, "options": {"fit": "pad", "scale": 8}, "result_sha256": "ef" * 32},
}
EDITED: dict[str, Any] = {
    "not an object": [DONE],
    "no target": {"status": "done"},
    "a target that is no text": DONE | {"target": 5},
    "no text for the source": DONE | {"target": "b.png", "source": None},
    "a hash that is none": DONE | {"target": "b.png", "sha256": "zz"},
    "a hash that is no text": DONE | {"target": "b.png", "sha256": 5},
    "a size that is no number": DONE | {"target": "b.png", "bytes": "5"},
    "a size beyond 64 bits": DONE | {"target": "b.png", "bytes": 2**70},
    "targets that are no list": {"status": "begun", "targets": 5},
    "no status": {"target": "b.png"},
}


@pytest.mark.parametrize("name", EDITED)
def test_an_edited_line_is_ignored(name: str, tmp_path: Path):
    file = tmp_path / "gleansr.jsonl"
    lines = [{"format": FORMAT, "version": "gleansr 1"}, DONE, EDITED[name], DONE | {"target": "c.png"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Manifest(file) as manifest:
        assert [manifest.is_result(target) for target in ("a.png", "b.png", "c.png")] == [True, False, True]
        assert len(manifest.index) == 2


def test_the_index_returns_what_a_line_states():
    index = Index()
    index.add(DONE)
    index.add({"status": "begun", "target": "b.png"})
    index.add({key: value for key, value in DONE.items() if key != "result_sha256"} | {"target": "c.png"})
    index.add(DONE | {"target": "c.png", "status": "failed"})
    index.finish()
    made_by = fingerprint(DONE["model_sha256"], DONE["options"])
    [done, begun, unhashed] = [index.get(name) for name in ("a.png", "b.png", "c.png")]
    assert done
    assert (done.size, done.mtime_ns, done.sha256, done.made_by, done.result) == (5, 7, b"\xab" * 16, made_by, b"\xef" * 8)
    assert (done.is_of("a.jpg"), done.is_of("b.jpg")) == (True, False)
    assert begun
    assert (begun.size, begun.mtime_ns, begun.sha256, begun.made_by, begun.result) == (0, 0, bytes(16), None, None)
    assert unhashed
    assert (unhashed.made_by, unhashed.result) == (made_by, None)
    assert (index.done(made_by), index.done("another")) == (2, 0)
    assert index.get("d.png") is None


def test_a_later_line_of_a_target_counts():
    index = Index()
    for size in (1, 2, 3):
        index.add(DONE | {"bytes": size})
    index.finish()
    found = index.get("a.png")
    assert found
    assert (len(index), found.size) == (1, 3)


def test_the_order_of_options_makes_no_difference():
    assert fingerprint("ab", {"fit": "pad", "scale": 8}) == fingerprint("ab", {"scale": 8, "fit": "pad"})
    assert fingerprint("ab", {"fit": "pad"}) != fingerprint("ab", {"fit": "crop"})
    assert fingerprint("ab", {}) != fingerprint("cd", {})
