"""`gleansr evaluate --groups`: figures by group."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gleansr.errors import RequestError
from gleansr.evaluation.plan import read_groups
from gleansr.evaluation.summary import MethodSummary, summarise, tables

NAMES = ["a.png", "sub/b.png", "c.png", "d.png"]


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize((32, 32)).save(path)
    return path.parent


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "groups.csv"
    path.write_bytes(text.encode())
    return path


def test_the_command_tells_the_mean_of_each_group(images, tiny_model, tmp_path, command):
    groups = table(tmp_path, "group,name\nold,a.png\nnew,b\r\nold,c.png\nnew,d.png\n")
    options = ("--device", "cpu", "--metrics", "psnr,squeezenet_distance", "--groups", groups)
    status, said = command("evaluate", tiny_model, images, *options, "--json", tmp_path / "e.json")
    assert status == 0, said
    report = json.loads((tmp_path / "e.json").read_text())
    assert [(row["group"], row["pictures"]) for row in report["groups"]] == [("new", 2), ("old", 2)]
    of_groups = {method["label"]: method["means"]["psnr"] for method in report["groups"][0]["methods"]}
    others = {method["label"]: method["means"]["psnr"] for method in report["groups"][1]["methods"]}
    for method in report["methods"]:
        assert of_groups[method["label"]] != others[method["label"]]
        assert (of_groups[method["label"]] + others[method["label"]]) / 2 == pytest.approx(method["means"]["psnr"])
    assert "By group" in said
    assert f"| new: bicubic | 2 | {of_groups['bicubic']:.2f}" in said.replace("**", "")
    # The same through files, one image at a time.
    status, said = command("evaluate", tiny_model, images, *options, "-o", tmp_path / "out", "--json", tmp_path / "f.json")
    again = json.loads((tmp_path / "f.json").read_text())
    assert [m["means"] for row in again["groups"] for m in row["methods"]] == [
        pytest.approx(m["means"], rel=1e-4) for row in report["groups"] for m in row["methods"]
    ]
    assert "old: bicubic" in (tmp_path / "out" / "index.html").read_text()


def test_without_groups_there_are_none(images, tiny_model, tmp_path, command):
    status, said = command("evaluate", tiny_model, images, "--device", "cpu", "--metrics", "psnr", "--json", tmp_path / "e.json")
    assert (status, "By group" in said) == (0, False)
    assert json.loads((tmp_path / "e.json").read_text())["groups"] is None


def test_only_what_all_methods_have_done_counts():
    def outcome(label: str, values: dict[str, float]) -> MethodSummary:
        rows = {name: {"seconds": 1.0, "peak": 2, "own": 1, "note": "", "metrics": {"psnr": value}} for name, value in values.items()}
        return MethodSummary(label, "glean", None, None, {}, None, None, rows)

    groups = {"a": "x", "b": "x", "c": "y"}
    report = summarise([outcome("m", {"a": 1.0, "b": 3.0, "c": 5.0}), outcome("n", {"a": 2.0})], groups)
    assert [(row["group"], row["pictures"]) for row in report["groups"]] == [("x", 1)]
    assert [method["means"] for method in report["groups"][0]["methods"]] == [{"psnr": 1.0}, {"psnr": 2.0}]
    by_group = list(tables(report))[-1]
    assert (by_group.title, list(by_group.rows)) == ("By group", ["x: m", "x: n"])


def test_the_share_of_images_above_bicubic():
    def outcome(method: str, values: list[float]) -> MethodSummary:
        rows = {str(i): {"seconds": 1.0, "peak": 2, "own": 1, "note": "", "metrics": {"psnr": value}} for i, value in enumerate(values)}
        return MethodSummary(method, method, None, None, {}, None, None, rows)

    report = summarise([outcome("bicubic", [20.0, 21.0, 22.0, 23.0]), outcome("glean", [21.0, 21.0, 23.0, 24.0]), outcome("plain", [])])
    assert [method["above_bicubic"] for method in report["methods"]] == [None, 0.75, None]
    relative = next(table for table in tables(report) if table.title.startswith("Relative"))
    assert (relative.columns[-1].title, relative.rows["glean"][-1].text) == ("PSNR above bicubic's", "75.0")
    assert next(iter(tables(summarise([outcome("glean", [1.0])])))).columns[-1].title != "PSNR above bicubic's"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("name;group\na.png;x\n", "must name the columns name and group"),
        ("", "must name the columns name and group"),
        ("name,group\na.png,x\n", r"has no group for sub/b\.png, c\.png, d\.png"),
        ("name,group\n", r"has no group for a\.png, sub/b\.png, c\.png and 1 more"),
        ("name,group\na.png,\n", r"a line has no name or no group: a\.png,"),
        ("name,group\na.png\n", r"a line has no name or no group: a\.png,"),
        ("name,group\na.png,x\na.png,y\n", r"a\.png is listed twice"),
        ('name,group\n"a.png,x\n', "is not a CSV file"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, text, error):
    with pytest.raises(RequestError, match=error):
        read_groups(table(tmp_path, text), NAMES)


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "groups.csv"
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        read_groups(path, NAMES)
    path.write_bytes(b"name,group\n\xff\xfe,x\n")
    with pytest.raises(RequestError, match="is not a CSV file"):
        read_groups(path, NAMES)
