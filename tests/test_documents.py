"""JSON and TOML that is damaged or hostile: one kind of error, which names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gleansr.configs import parse_override
from gleansr.data.prepare import Preparation, prepare
from gleansr.data.prepared import is_inside, read_manifest
from gleansr.data.sources import open_source
from gleansr.documents import MAX_DEPTH, DocumentError, parse_json, parse_line, parse_toml, read_json
from gleansr.errors import RequestError
from gleansr.evaluation.records import Records
from gleansr.jobs import Manifest
from gleansr.training.config import NetworkRecipe, load_recipe

JSON = {
    "deep": b"[" * 100_000,
    "deep and whole": b"[" * 100 + b"]" * 100,
    "deep tables": b'{"a":' * 100_000,
    "not UTF-8": b'{"a": "caf\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "huge integer": b'{"a": ' + b"9" * 5000 + b"}",
    "large integer": b'{"a": 9223372036854775808}',
    "large float": b'{"a": [1, 1e999]}',
    "not a number": b'{"a": NaN}',
    "infinity": b"-Infinity",
    "twice": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "torn": b'{"a": 1, "b"',
    "empty": b"",
    "two values": b"1 2",
    "nothing": b"\0" * 20,
}
TOML = {
    "deep": b"a = " + b"[" * 100_000,
    "deep and whole": b"a = " + b"[" * 100 + b"]" * 100,
    "deep keys": b".".join([b"a"] * 100) + b" = 1",
    "deep tables": b"[" + b".".join([b"a"] * 100) + b"]",
    "deep inline tables": b"a = " + b"{ a = " * 50_000,
    "not UTF-8": b'a = "caf\xe9"',
    "UTF-16": "a = 1".encode("utf-16"),
    "huge integer": b"a = " + b"9" * 5000,
    "large integer": b"a = 9223372036854775808",
    "not a number": b"a = nan",
    "infinity": b"a = [1.0, -inf]",
    "large float": b"a = 1e999",
    "twice": b"a = 1\na = 2",
    "torn": b'a = "\nb = 1',
}


@pytest.mark.parametrize(("parse", "data"), [(parse_json, d) for d in JSON.values()] + [(parse_toml, d) for d in TOML.values()])
def test_damage_is_one_line_that_names_the_file(parse: Callable[..., Any], data: bytes):
    with pytest.raises(DocumentError) as caught:
        parse(data, "some.file", hint="fetch it again")
    message = str(caught.value)
    assert message.startswith("some.file: ")
    assert message.endswith("; fetch it again")
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(("name", "line"), [("not UTF-8", 3), ("torn", 3)])
def test_the_line_is_named(name: str, line: int):
    with pytest.raises(DocumentError, match=f"line {line}"):
        parse_json(b"\n\n" + JSON[name], "x")
    with pytest.raises(DocumentError, match=f"line {line}"):
        parse_toml(b"\n\n" + TOML[name], "x")


def test_what_is_sound_is_read(tmp_path: Path):
    value = {"a": [1, -(2**63), 2.5, None, True, "é\ud800"], "b": {}}
    for i in range(MAX_DEPTH - 3):
        value = {str(i): value} if i % 2 else [value]
    text = json.dumps(value)
    assert parse_json(text, "x") == parse_json(b"\xef\xbb\xbf" + text.encode(), "x") == value
    (tmp_path / "bom.json").write_text("\ufeff[1]", encoding="utf-8")
    assert read_json(tmp_path / "bom.json") == [1]
    assert parse_toml(b'\xef\xbb\xbfa = 1\nb.c = "d"', "x") == {"a": 1, "b": {"c": "d"}}


def test_a_file_without_end_is_not_read_to_it(tmp_path: Path):
    with (tmp_path / "long.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DocumentError, match="more than 67,108,864 bytes"):
        read_json(tmp_path / "long.json")


@pytest.mark.parametrize("data", TOML.values())
def test_a_damaged_recipe_is_refused(data: bytes, tmp_path: Path):
    (tmp_path / "mine.toml").write_bytes(data)
    with pytest.raises(RequestError, match=r"mine\.toml: "):
        load_recipe(NetworkRecipe, str(tmp_path / "mine.toml"))


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path: Path):
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf[run]\niterations = 5\n")
    with pytest.raises(RequestError) as caught:  # other keys are missing
        load_recipe(NetworkRecipe, str(tmp_path / "mine.toml"))
    assert "iterations" not in str(caught.value)
    assert "TOML" not in str(caught.value)


@pytest.mark.parametrize(
    "change", ["a=" + "[" * 100_000, ".".join("a" * 1000) + "=1", ".".join("a" * 1000) + "=no TOML", "a=" + "9" * 5000]
)
def test_a_hostile_change_is_refused(change: str):
    with pytest.raises(RequestError) as caught:
        parse_override(change)
    assert len(str(caught.value)) < 400


def test_a_message_does_not_repeat_all_of_a_long_value():
    with pytest.raises(RequestError) as caught:
        load_recipe(NetworkRecipe, "cats-8x-compact", changes={"run": {"iterations": "x" * 10**6, "y" * 10**6: 1}})
    assert len(str(caught.value)) < 1000


LINES = [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"1", b"[]", b'{"status": []}', b'{"name": 1}', b""]


def test_lines_that_somebody_changed_are_left_out(tmp_path: Path):
    assert [parse_line(line) for line in LINES] == [None, None, None, 1, [], {"status": []}, {"name": 1}, None]
    head = b'{"format": "gleansr-results/1"}\n'
    (tmp_path / "gleansr.jsonl").write_bytes(head + b"\n".join(LINES) + b'\n{"status": "begun", "targets": ["a.png"]}\n')
    manifest = Manifest(tmp_path / "gleansr.jsonl")
    manifest.close()
    assert manifest.is_result("a.png")
    (tmp_path / "records.jsonl").write_bytes(b'{"made": {}}\n{"name": "a"}\n' + LINES[0] + b'\n{"name": "b"}\n')
    assert list(Records(tmp_path / "records.jsonl")) == ["a"]


# ----------------------------------------------------------------------------------------------------------- prepared sets


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    (tmp_path / "originals").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "originals" / f"{i}.png")
    prepare(preparation(tmp_path), tmp_path / "set")
    return tmp_path / "set"


def preparation(folder: Path, **changes: Any) -> Preparation:
    return Preparation("folder", str(folder / "originals"), 8, "crop", "skip", scales=(2,), **changes)


MANIFESTS = {
    "no more keys": {"low": None, "pictures": None, "complete": None, "options": None},
    "upwards": {"pictures": "../originals"},
    "elsewhere": {"pictures": "/etc"},
    "low upwards": {"low": {"2": "x2/../../originals"}},
    "low of numbers": {"low": {"2": 2}},
    "low of a list": {"low": ["x2"]},
    "complete is text": {"complete": "yes"},
    "itself": {"pictures": "."},
}


@pytest.mark.parametrize("changes", MANIFESTS.values(), ids=list(MANIFESTS))
def test_a_hostile_manifest_is_refused_and_leads_nowhere(changes: dict[str, Any], prepared: Path):
    file = prepared / "manifest.json"
    manifest = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))
    for use in (
        lambda: open_source(prepared),
        lambda: read_manifest(prepared),
        lambda: prepare(preparation(prepared.parent), prepared, overwrite=True),
    ):
        with pytest.raises(RequestError, match=r"manifest\.json: .*prepare the set again"):
            use()
    assert len(list((prepared.parent / "originals").iterdir())) == 2


@pytest.mark.parametrize("name", JSON)
def test_a_damaged_manifest_of_ours_is_refused_and_another_program_s_ignored(name: str, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "manifest.json").write_bytes(JSON[name])
    assert open_source(tmp_path).names == ["a.png"]
    (tmp_path / "manifest.json").write_bytes(b'{"format": "gleansr-pictures/1", "x": ' + JSON[name])
    with pytest.raises(DocumentError, match=r"manifest\.json: .*prepare the set again"):
        open_source(tmp_path)


@pytest.mark.parametrize("path", ["../originals/0.png", "/etc/passwd", "hr/../../originals/0.png", "C:/x", "..\\x", ""])
def test_records_of_a_set_remove_nothing_outside_of_it(path: str, prepared: Path):
    victim = prepared.parent / "originals" / "0.png"
    assert not is_inside(path)
    records = prepared / "manifest.jsonl"
    hostile = {"name": "gone.png", "files": {path: {"bytes": 1}}}
    others = [{"files": {"hr/0.png": {"bytes": 1}}}, {"name": "0.png", "files": [1]}, {"name": [], "files": {}}, 7]
    records.write_text(records.read_text() + "".join(json.dumps(line) + "\n" for line in [hostile, *others]) + "[" * 100_000 + "\n")
    result = prepare(preparation(prepared.parent), prepared)
    assert victim.is_file()
    assert (result.written, result.reused) == (2, 2)
