"""Comparisons as a user meets them: figures, files, going on after being killed, failures, bad requests."""

import copy
import csv
import dataclasses
import html
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from gleansr.cli import main
from gleansr.errors import ImageError, RequestError
from gleansr.evaluation import runner
from gleansr.evaluation.compare import Watcher, compare, read_png
from gleansr.evaluation.config import ComputeConfig, GroundTruthConfig, MetricConfig
from gleansr.evaluation.entries import ComparedMethod, parse_entries
from gleansr.evaluation.evaluate import evaluate
from gleansr.evaluation.ground_truth import EvaluationTask, GroundTruth
from gleansr.evaluation.metrics import frechet_distance, psnr
from gleansr.evaluation.plan import Comparison, plan
from gleansr.evaluation.records import Records
from gleansr.evaluation.report import remarks
from gleansr.evaluation.runner import MethodError, MethodProcess
from gleansr.evaluation.summary import MethodSummary, summarise, tables
from gleansr.images.pixels import quantize
from gleansr.images.resize import degrade, resize

NAMES = ["a&b.png", "c d.png", "sub/é'<i>.png"]
SEARCH = {"steps": 60, "fit_samples": 50}


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stores PULSE's fits in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLEANSR_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three smooth images of 32x32 with names that need quoting."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize((32, 32)).save(folder / name)
    return folder


def entries(model: Path, **search: Any) -> list[ComparedMethod]:
    return [
        ComparedMethod("glean", "glean", str(model)),
        ComparedMethod("bicubic", "bicubic"),
        ComparedMethod("pulse", "pulse", str(model), SEARCH | search),
    ]


def planned(data: Path, methods: Sequence[ComparedMethod], **options: Any) -> Comparison:
    return plan(str(data), methods, **({"scale": 4, "compute": ComputeConfig("cpu", threads=1), "limit_slow": 2} | options))


@dataclasses.dataclass
class FinishedComparison:
    """A finished comparison: GLEAN and bicubic on three images, PULSE on two."""

    output: Path
    report: dict[str, Any]

    def method(self, label: str) -> dict[str, Any]:
        return next(method for method in self.report["methods"] if method["label"] == label)

    def records(self, label: str) -> dict[str, Any]:
        return dict(Records(self.output / "records" / f"{label}.jsonl"))


@pytest.fixture(scope="module")
def done(images: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedComparison:
    output = tmp_path_factory.mktemp("comparison") / "out"
    return FinishedComparison(output, compare(planned(images, entries(tiny_model)), output))


def without_costs(value: Any) -> Any:
    """`value` without time and memory."""
    if isinstance(value, dict):
        return {key: without_costs(item) for key, item in value.items() if key not in ("seconds", "waited", "memory", "peak", "own")}
    return [without_costs(item) for item in value] if isinstance(value, list) else value


def listening() -> tuple[Watcher, list[str]]:
    messages: list[str] = []
    return Watcher(message=messages.append), messages


# ---------------------------------------------------------------------------------------------------------------- figures


def test_figures_are_those_of_the_stored_images(done: FinishedComparison, images: Path):
    assert [method["label"] for method in done.report["methods"]] == ["glean", "bicubic", "pulse"]
    assert [method["pictures"] for method in done.report["methods"]] == [3, 3, 2]
    assert done.report["common"]["pictures"] == 2
    for label, n in (("glean", 3), ("bicubic", 3), ("pulse", 2)):
        results = torch.cat([read_png((done.output / "pictures" / label / name).with_suffix(".png")) for name in NAMES[:n]])
        gts = torch.cat([read_png(images / name) for name in NAMES[:n]])
        values = psnr(results, gts).tolist()
        method = done.method(label)
        assert math.isclose(method["means"]["psnr"], sum(values) / n, rel_tol=1e-12)
        assert math.isclose(method["standard_errors"]["psnr"], float(np.std(values, ddof=1)) / math.sqrt(n), rel_tol=1e-9)
        common = next(row for row in done.report["common"]["methods"] if row["label"] == label)
        assert math.isclose(common["means"]["psnr"], sum(values[:2]) / 2, rel_tol=1e-12)
        assert "squeezenet_frechet" in method["means"]
        assert "squeezenet_frechet" not in method["standard_errors"]
        assert method["memory"]["peak"] > method["memory"]["own"] >= 0
        assert method["seconds"]["median"] > 0
    lr = read_png(done.output / "pictures" / "low" / NAMES[0])
    gt = read_png(images / NAMES[0])
    assert torch.equal(lr, degrade(gt, 4))
    assert torch.equal(read_png(done.output / "pictures" / "bicubic" / NAMES[0]), quantize(resize(lr, size=32)))
    assert "compositeWithTrainedAlgorithmicMedia" in (done.output / "pictures" / "glean" / NAMES[0]).read_bytes().decode("latin-1")


def test_json_holds_the_protocol(done: FinishedComparison, tiny_model: Path):
    report = json.loads((done.output / "comparison.json").read_text())
    assert report == done.report
    protocol = report["protocol"]
    assert protocol["task"] == {
        "size": 32,
        "scale": 4,
        "aspect": "crop",
        "small": "refuse",
        "border": "repeat",
        "degradation": "bicubic",
    }
    assert protocol["judge"]["colour_space"] == "RGB"
    assert set(protocol["judge"]["sha256"]) == {"squeezenet"}
    assert protocol["place"]["precision"] == "float32"
    assert protocol["place"]["threads"] == 1
    assert protocol["versions"]["torch"] == torch.__version__
    assert done.method("pulse")["settings"] == SEARCH
    assert done.method("glean")["model"] == tiny_model.name
    assert len(done.method("glean")["sha256"]) == 64
    assert done.method("glean")["licence"] == "CC0-1.0"


def test_csv_has_a_row_for_each_image_and_method(done: FinishedComparison):
    with (done.output / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["picture"]) for row in rows] == [
        *(("glean", name) for name in NAMES),
        *(("bicubic", name) for name in NAMES),
        *(("pulse", name) for name in NAMES[:2]),
    ]
    for row in rows:
        record = done.records(row["method"])[row["picture"]]
        assert float(row["psnr"]) == record["metrics"]["psnr"]
        assert float(row["seconds"]) == record["seconds"]
    assert all("PULSE did not reach eps" in row["note"] for row in rows if row["method"] == "pulse")


def test_markdown_compares_like_with_like(done: FinishedComparison):
    text = (done.output / "comparison.md").read_text(encoding="utf-8")
    everything, shared, relative = re.split(r"\n## ", text)[1:4]
    assert not re.search(r"\*\*[\d.]+ ±", everything)  # methods had different numbers of images
    assert "| images |" in everything
    assert shared.startswith("The 2 images of all methods")
    best = max(done.report["common"]["methods"], key=lambda method: method["means"]["psnr"])
    assert re.search(rf"^\| {best['label']} \| \*\*{best['means']['psnr']:.2f} ± ", shared, re.MULTILINE)
    assert shared.count("\n| bicubic |") == 1
    means = {method["label"]: method["means"] for method in done.report["common"]["methods"]}
    gain = means["glean"]["psnr"] - means["bicubic"]["psnr"]
    ratio = means["glean"]["squeezenet_distance"] / means["bicubic"]["squeezenet_distance"]
    assert re.search(rf"^\| glean \| {re.escape(f'{gain:+.2f}')} \|.* {ratio:.3f} \|", relative, re.MULTILINE)
    assert "\n- glean: model tiny.safetensors (sha256 " in text
    assert "\n- pulse: model tiny.safetensors (sha256 " in text
    assert "steps=60" in text


def test_page_shows_every_image_and_loads_nothing_else(done: FinishedComparison):
    page = (done.output / "index.html").read_text(encoding="utf-8")
    sources = [unquote(html.unescape(source)) for source in re.findall(r'<img src="([^"]+)"', page)]
    wanted = {f"pictures/{label}/{name}" for label in ("low", "truth", "glean", "bicubic") for name in NAMES}
    assert set(sources) == wanted | {f"pictures/pulse/{name}" for name in NAMES[:2]}
    assert all((done.output / source).is_file() for source in sources)
    assert "://" not in page
    assert "{{" not in page
    assert "é'<i>" not in page
    assert page.count('<div class="pane empty">not run</div>') == 1
    assert page.count("<b>input</b>") == page.count("<b>ground truth</b>") == len(NAMES)
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert text
    data = json.loads(text[1])
    assert [image["name"] for image in data["pictures"]] == NAMES
    assert data["pictures"][0]["figures"]["glean"] == done.records("glean")[NAMES[0]]["metrics"]


def test_evaluating_gives_the_same_figures(done: FinishedComparison, images: Path, tiny_model: Path):
    report = evaluate(planned(images, entries(tiny_model)[:2]))
    for method in report["methods"]:
        means, wanted = dict(method["means"]), dict(done.method(method["label"])["means"])
        assert means.pop("squeezenet_frechet") == pytest.approx(wanted.pop("squeezenet_frechet"), rel=1e-4)  # in batches of another size
        assert means == wanted
        assert method["memory"] == {"peak": None, "own": None}
    batched = evaluate(planned(images, entries(tiny_model)[:2], compute=ComputeConfig("cpu", threads=1, batch_size=2)))
    for method in batched["methods"]:
        assert method["means"] == pytest.approx(done.method(method["label"])["means"], rel=1e-4)


def test_sets_are_compared_over_the_same_images():
    generator = torch.Generator().manual_seed(0)
    a, b, gt = (torch.randn(5, 8, generator=generator) for _ in range(3))

    def outcome(label: str, features: torch.Tensor, n: int) -> MethodSummary:
        record = {"seconds": 1.0, "peak": 2, "own": 1, "note": "", "metrics": {"psnr": math.inf}}
        records = {str(i): record for i in range(n)}
        return MethodSummary(
            label, "glean", None, None, {}, None, None, records, {"squeezenet_frechet": features[:n]}, {"squeezenet_frechet": gt[:n]}
        )

    report = summarise([outcome("a", a, 5), outcome("b", b, 3)])
    assert report["methods"][0]["means"]["squeezenet_frechet"] == frechet_distance(a, gt)
    assert [m["means"]["squeezenet_frechet"] for m in report["common"]["methods"]] == [frechet_distance(x[:3], gt[:3]) for x in (a, b)]
    assert report["methods"][0]["means"]["psnr"] == "inf"
    assert report["methods"][0]["standard_errors"] == {}
    assert list(tables(report))[1].rows["a"][0].text == "inf"


def test_times_of_a_busy_machine_are_told_as_too_long(monkeypatch: pytest.MonkeyPatch):
    clocks = {"waiting": iter([5.0, 5.5]), "worked": iter([1.0, 2.5]), "time": iter([10.0, 13.0])}
    monkeypatch.setattr(runner, "_waiting_time", lambda: next(clocks["waiting"]))
    monkeypatch.setattr(runner.time, "process_time", lambda: next(clocks["worked"]))
    monkeypatch.setattr(runner.time, "perf_counter", lambda: next(clocks["time"]))
    stopwatch = runner.Stopwatch(torch.device("cpu"))
    stopwatch.stop()
    assert (stopwatch.seconds, stopwatch.waited) == (3.0, 0.25)

    def said(*waited: float | None) -> str:
        costs = [{"seconds": seconds, "waited": share} for seconds, share in zip((3.0, 1.0), waited, strict=True)]
        records = {str(i): cost | {"peak": None, "own": None, "note": "", "metrics": {"psnr": 20.0}} for i, cost in enumerate(costs)}
        report = summarise([MethodSummary("a", "glean", None, None, {}, None, None, records)])
        return "\n".join(remarks({"protocol": {"judge": {"metrics": []}}} | report))

    assert "waited for a free processor 20% of the time, so that its times are too long" in said(0.2, 0.2)
    assert "processor 15%" in said(0.2, 0.0)  # the longer image counts more
    assert "processor 20%" in said(0.2, None)
    assert "processor" not in said(0.1, 0.0)
    assert "processor" not in said(None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts it")
def test_linux_counts_how_long_threads_wait_for_a_processor():
    before = runner._waiting_time()  # pyright: ignore[reportPrivateUsage]
    if before is None:
        pytest.skip("this kernel does not count it")
    assert 0 < before <= (runner._waiting_time() or 0)  # pyright: ignore[reportPrivateUsage]


def test_the_least_time_and_memory_are_the_best(done: FinishedComparison):
    table = next(iter(tables(done.report)))
    for title in ("time", "memory"):
        column = next(i for i, column in enumerate(table.columns) if column.title == title)
        cells = [row[column] for row in table.rows.values()]
        assert [cell.best for cell in cells] == [cell.value == min(other.value or 0 for other in cells) for cell in cells]


# --------------------------------------------------------------------------------------------------------------- resuming

_SCRIPT = """
import sys, torch
from pathlib import Path
from gleansr.evaluation.compare import compare
from gleansr.evaluation.config import ComputeConfig
from gleansr.evaluation.entries import ComparedMethod
from gleansr.evaluation.plan import plan
images, model, output = sys.argv[1:]
torch.set_num_threads(1)
entry = ComparedMethod("pulse", "pulse", model, {search})
compare(plan(images, [entry], scale=4, compute=ComputeConfig("cpu", threads=1), limit_slow=2), Path(output))
"""


def test_a_killed_run_resumes_with_equal_results(done: FinishedComparison, images: Path, tiny_model: Path, tmp_path: Path):
    command = [sys.executable, "-c", _SCRIPT.format(search=SEARCH), str(images), str(tiny_model), str(tmp_path / "out")]
    process = subprocess.Popen(command)
    file = tmp_path / "out" / "records" / "pulse.jsonl"
    wait_for(lambda: file.exists() and file.read_text().count("\n") == 2)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    with file.open("a") as torn:
        torn.write('{"name": "c d.p')
    watcher, messages = listening()
    report = compare(planned(images, entries(tiny_model)[2:]), tmp_path / "out", watcher)
    assert messages == ["pulse: 2 of 2 images, 1 of them from an earlier run"]
    alone = {"above_bicubic": None}  # here without bicubic
    assert without_costs(report["methods"][0]) == without_costs(done.method("pulse")) | alone
    resumed = FinishedComparison(tmp_path / "out", report)
    assert without_costs(resumed.records("pulse")) == without_costs(done.records("pulse"))
    for name in NAMES[:2]:
        assert (resumed.output / "pictures" / "pulse" / name).read_bytes() == (done.output / "pictures" / "pulse" / name).read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if sys.platform == "linux" else []


def test_parallel_searches_give_equal_results(done: FinishedComparison, images: Path, tiny_model: Path, tmp_path: Path):
    compute = ComputeConfig("cpu", threads=2, jobs=2)
    comparison = planned(images, entries(tiny_model), compute=compute)
    glean, _, pulse = comparison.participants
    assert [(c["jobs"], c["place"]["threads"]) for c in map(comparison.conditions, (glean, pulse))] == [(1, 2), (2, 1)]
    comparison = planned(images, entries(tiny_model)[2:], compute=compute)
    together = FinishedComparison(tmp_path / "out", compare(comparison, tmp_path / "out"))
    assert without_costs(together.records("pulse")) == without_costs(done.records("pulse"))
    for name in NAMES[:2]:
        assert (together.output / "pictures" / "pulse" / name).read_bytes() == (done.output / "pictures" / "pulse" / name).read_bytes()
    assert "searches 2 images at once, each with 1 thread" in (together.output / "comparison.md").read_text(encoding="utf-8")


def test_a_failing_search_ends_parallel_ones(images: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    comparison = planned(images, entries(tiny_model, steps=10**6)[2:], compute=ComputeConfig("cpu", threads=2, jobs=2), limit_slow=None)

    def killed(self: MethodProcess, lr: torch.Tensor, report: Any = None) -> Any:
        self._process.kill()
        return call(self, lr, report)

    call = MethodProcess.__call__
    kept = [killed, call]  # the first of the two
    monkeypatch.setattr(
        MethodProcess, "__call__", lambda self, *arguments: kept.pop(0)(self, *arguments) if kept else call(self, *arguments)
    )
    [pulse] = compare(comparison, tmp_path / "out")["methods"]
    assert "was ended by SIGKILL" in pulse["failed"]
    assert not multiprocessing.active_children()


def test_a_repeated_comparison_runs_nothing_and_new_metrics_use_the_stored_images(
    done: FinishedComparison, images: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gleansr.evaluation.compare.MethodProcess", None)
    watcher, messages = listening()
    assert compare(planned(images, entries(tiny_model)), done.output, watcher) == done.report
    assert messages == [
        "glean: 3 of 3 images, 3 of them from an earlier run",
        "bicubic: 3 of 3 images, 3 of them from an earlier run",
        "pulse: 2 of 2 images, 2 of them from an earlier run",
    ]
    fewer = compare(planned(images, entries(tiny_model), images=GroundTruthConfig(limit=2)), done.output, watcher)
    assert [method["pictures"] for method in fewer["methods"]] == [2, 2, 2]
    assert fewer["common"] is None
    assert compare(planned(images, entries(tiny_model)), done.output, watcher) == done.report
    other = compare(planned(images, entries(tiny_model), metrics=MetricConfig("psnr", crop=4)), done.output, watcher)
    assert list(other["methods"][0]["means"]) == ["psnr"]
    assert other["methods"][0]["means"]["psnr"] != done.method("glean")["means"]["psnr"]
    assert "glean: measures the stored images again: changed judge.crop_border, judge.metrics, judge.sha256.squeezenet" in messages
    # Computed from the files, the values are bit for bit those computed from the network's output.
    assert compare(planned(images, entries(tiny_model)), done.output, watcher) == done.report


def test_changed_methods_start_again_and_failures_do_not_stop_others(
    done: FinishedComparison, images: Path, tiny_model: Path, tmp_path: Path
):
    changed = tmp_path / "pictures"
    (changed / "sub").mkdir(parents=True)
    for name in NAMES:
        (changed / name).write_bytes((images / name).read_bytes())
    with Image.open(changed / NAMES[1]) as image:
        image.rotate(90).save(changed / NAMES[1])
    output = tmp_path / "out"
    copy_tree(done.output, output)
    model = tmp_path / tiny_model.name
    model.write_bytes(tiny_model.read_bytes())
    comparison = planned(changed, entries(model, steps=1))
    model.unlink()
    watcher, messages = listening()
    after = FinishedComparison(output, compare(comparison, output, watcher))
    assert f"glean: failed: {model}: no such file" in messages[0]
    assert messages[1:4] == [
        "glean: 2 of 3 images, 2 of them from an earlier run",
        "bicubic: 3 of 3 images, 2 of them from an earlier run",
        "pulse: starts again: changed settings.steps",
    ]
    assert after.method("glean")["failed"].startswith(f"{model}: no such file")
    assert after.method("bicubic")["failed"] is None
    before, now = done.records("bicubic"), after.records("bicubic")
    assert [name for name in NAMES if now[name] != before[name]] == [NAMES[1]]
    assert now[NAMES[1]]["sha256"] != before[NAMES[1]]["sha256"]
    gt = read_png(output / "pictures" / "truth" / NAMES[1])
    assert now[NAMES[1]]["metrics"]["psnr"] == float(psnr(read_png(output / "pictures" / "bicubic" / NAMES[1]), gt))
    text = (output / "comparison.md").read_text(encoding="utf-8")
    assert "FAILED" in text
    assert "| glean |" not in text


def copy_tree(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


def test_a_process_that_ends_is_a_failed_method():
    with MethodProcess(ComparedMethod("bicubic", "bicubic"), 4, ComputeConfig("cpu", threads=1)) as runner:
        lr = torch.zeros(2, 3, 4, 4)
        runner.warm_up(lr)
        os.kill(runner._process.pid or 0, signal.SIGINT)  # Ctrl-C reaches it too, and is not for it
        run = runner(lr)
        assert torch.equal(run.images, torch.zeros(2, 3, 16, 16))
        assert run.notes == ["", ""]
        os.kill(runner._process.pid or 0, signal.SIGKILL)
        with pytest.raises(MethodError, match=r"its process was ended by SIGKILL, possibly for lack of memory"):
            runner(torch.zeros(1, 3, 4, 4))


def test_records_drop_an_incomplete_line_and_list_changes(tmp_path: Path):
    conditions = {"model": "a", "place": {"threads": 1}, "size": math.inf}
    records = Records(tmp_path / "records" / "x.jsonl")
    assert records.conditions is None
    assert records.differences(conditions) == []
    records.begin(conditions, {})
    for name, value in (("one", 1.5), ("two", math.inf), ("one", 2.5)):
        records.add({"name": name, "value": value})
    whole = records.path.read_text()
    for end in range(len(whole) + 1):
        records.path.write_text(whole[:end])
        read = Records(records.path)
        assert {name: float(record["value"]) for name, record in read.items()} in (
            {},
            {"one": 1.5},
            {"one": 1.5, "two": math.inf},
            {"one": 2.5, "two": math.inf},
        )
    assert dict(read) == {"one": {"name": "one", "value": 2.5}, "two": {"name": "two", "value": "inf"}}
    assert read.differences(conditions) == []
    assert read.differences(copy.deepcopy(conditions) | {"model": "b", "place": {"threads": 2, "gpu": "x"}}) == [
        "model",
        "place.gpu",
        "place.threads",
    ]
    records.path.write_text('{"other": 1}\n')
    with pytest.raises(RequestError, match="is not a records file"):
        Records(records.path)


# ----------------------------------------------------------------------------------------------------------- test images


def test_ground_truths_are_fitted_and_prepared_images_matched(tmp_path: Path, cat: Image.Image):
    sr, lr = tmp_path / "high", tmp_path / "low"
    for folder in (sr / "sub", lr / "sub"):
        folder.mkdir(parents=True)
    cat.save(sr / "b.png")
    cat.resize((64, 96)).save(sr / "sub" / "a.webp", lossless=True)
    plain = GroundTruth(str(sr), EvaluationTask(32, 4))
    assert (plain.names, plain.files) == (["b.png", "sub/a.webp"], ["b", "sub/a"])
    assert [example.gt.shape for example in plain] == [(1, 3, 32, 32)] * 2
    assert torch.equal(plain[1].lr, degrade(plain[1].gt, 4))
    assert plain[0].low_sha256 is None

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(lr / "b.bmp")
    assert len(GroundTruth(str(sr), EvaluationTask(32, 4), lr=str(lr), limit=1)) == 1
    with pytest.raises(RequestError, match=r"has no image for sub/a.webp of .*such as sub/a.png, or leave --lr out"):
        GroundTruth(str(sr), EvaluationTask(32, 4), lr=str(lr))
    Image.fromarray(pixels).save(lr / "sub" / "a.png")
    prepared = GroundTruth(str(sr), EvaluationTask(32, 4), lr=str(lr))[0]
    assert torch.equal(prepared.lr, ((torch.from_numpy(pixels).permute(2, 0, 1)[None].double() - 127.5) / 127.5).float())
    assert prepared.low_sha256 != prepared.sha256
    with pytest.raises(ImageError, match=r"b.bmp: is 8x8, but the images of --lr must be 4x4"):
        GroundTruth(str(sr), EvaluationTask(32, 8), lr=str(lr))[0]
    Image.fromarray(pixels).save(lr / "b.png")
    with pytest.raises(RequestError, match=r"b.bmp and b.png differ only in their suffix"):
        GroundTruth(str(sr), EvaluationTask(32, 4), lr=str(lr))

    with pytest.raises(ImageError, match=r"b.png: 64x64 is too small for 128x128; --small enlarge"):
        GroundTruth(str(sr), EvaluationTask(128, 4))[0]
    assert GroundTruth(str(sr), EvaluationTask(128, 4, small="enlarge"))[0].gt.shape == (1, 3, 128, 128)
    (sr / "z.png").write_text("no image")
    with pytest.raises(ImageError, match=r"z.png: is not an image of a known kind; .*; remove it from the test images"):
        GroundTruth(str(sr), EvaluationTask(32, 4))[2]
    for wrong, words in {"size 32 ": (32, 3), "size 30 ": (30, 4), "--scale": (32, 1)}.items():
        with pytest.raises(RequestError, match=wrong):
            EvaluationTask(*words)


# ---------------------------------------------------------------------------------------------------------------- requests


def test_entries_of_a_command_line():
    models = ["plain=p.pth", "glean:mine=m.pth", "glean:yours=cats-8x", "esrgan+=e.pth"]
    changes = ["pulse.steps=50", "pulse.schedule=fixed", "mine.x=1"]
    assert parse_entries("glean, plain,esrgan+,PULSE,bicubic", models, changes, 8) == [
        ComparedMethod("mine", "glean", "m.pth", {"x": 1}),
        ComparedMethod("yours", "glean", "cats-8x"),
        ComparedMethod("plain", "plain", "p.pth"),
        ComparedMethod("esrgan+", "esrgan+", "e.pth"),
        ComparedMethod("pulse", "pulse", "m.pth", {"steps": 50, "schedule": "fixed"}),
        ComparedMethod("bicubic", "bicubic"),
    ]
    assert parse_entries("glean,pulse", [], [], 16) == [
        ComparedMethod("glean", "glean", "cats-16x"),
        ComparedMethod("pulse", "pulse", "cats-bank"),
    ]
    assert parse_entries("glean,dgp", [], [], 32, "faces") == [
        ComparedMethod("glean", "glean", "faces-32x"),
        ComparedMethod("dgp", "dgp", "faces-bank"),
    ]
    with pytest.raises(RequestError, match=r"^plain needs a file: --models plain=FILE$"):  # there is no recipe for it
        parse_entries("bicubic,plain", [], [], 8, "faces")


def test_the_error_for_a_missing_model_names_the_recipe(monkeypatch: pytest.MonkeyPatch):
    def bundled(method: str, scale: int, category: str) -> str:
        raise RequestError("none")

    monkeypatch.setattr("gleansr.baselines.bundled", bundled)
    with pytest.raises(
        RequestError, match=r"^plain needs a file: --models plain=FILE; train one with `gleansr train plain-cats-8x-compact`$"
    ):
        parse_entries("bicubic,plain", [], [], 8)


@pytest.mark.parametrize(
    ("methods", "models", "changes", "words"),
    [
        ("glaen", [], [], "unknown method 'glaen'; did you mean 'glean'?"),
        (" ,", [], [], "--methods takes comma-separated names"),
        (
            "plain,esrgan+",
            [],
            [],
            "plain needs a file: --models plain=FILE; esrgan+ needs a file",
        ),
        ("glean", ["glean=a", "glean=b"], [], "--models gives glean twice; add labels: glean:one=FILE glean:two=FILE"),
        ("bicubic,bicubic", [], [], "two methods have the label 'bicubic'"),
        ("glean,plain", ["glean=a", "plain:GLEAN=b"], [], "two methods have the label 'GLEAN'"),
        ("glean", ["plain=a"], [], "plain is not one of --methods glean"),
        ("glean", ["a.pth"], [], "--models takes METHOD=FILE"),
        ("bicubic", ["bicubic=a"], [], "bicubic takes no model"),
        ("glean", ["glean:truth=a"], [], "invalid label 'truth'"),
        ("glean", ["glean:../x=a"], [], "invalid label '../x'"),
        ("bicubic", [], ["pulse.steps=5"], "--option takes METHOD.name=value, such as pulse.steps=50, with a method of bicubic"),
        ("bicubic", [], ["steps"], "--option takes METHOD.name=value"),
    ],
)
def test_invalid_methods_are_refused(methods: str, models: list[str], changes: list[str], words: str):
    with pytest.raises(RequestError) as error:
        parse_entries(methods, models, changes, 32)
    assert words in str(error.value)


def test_invalid_comparisons_are_refused_before_anything_runs(images: Path, tiny_model: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    bicubic, glean = ComparedMethod("bicubic", "bicubic"), ComparedMethod("glean", "glean", str(tiny_model))
    for words, (data, methods, options) in {
        "none of these methods has a fixed size": (images, [bicubic], {}),
        "must return images of one size, not glean 32, --size 16": (images, [glean], {"images": GroundTruthConfig(size=16)}),
        "has a scale of 4x, not 3x": (images, [glean], {"scale": 3}),
        "--scale must divide the size 32": (images, [bicubic], {"scale": 3, "images": GroundTruthConfig(size=32)}),
        "no images in it": (tmp_path / "empty", [glean], {}),
        "no such file or folder": (tmp_path / "missing.zip", [glean], {}),
        "unknown metric 'psrn': did you mean psnr?": (images, [glean], {"metrics": MetricConfig("psrn")}),
        "squeezenet_frechet need at least 2 images, not 1": (
            images,
            [glean],
            {"images": GroundTruthConfig(limit=1), "metrics": MetricConfig("squeezenet_frechet")},
        ),
        "ms_ssim needs images of at least 176x176": (images, [glean], {"metrics": MetricConfig("ms_ssim")}),
        "--batch-size must be at least 1": (images, [glean], {"compute": ComputeConfig("cpu", batch_size=0)}),
        "--limit must be at least 1": (images, [glean], {"images": GroundTruthConfig(limit=0)}),
        "--limit-slow must be at least 1": (images, [glean], {"limit_slow": 0}),
        "--jobs must be at least 1": (images, [glean], {"compute": ComputeConfig("cpu", jobs=0)}),
        "two methods have the label": (images, [glean, glean], {}),
        "no method to compare": (images, [], {}),
        "glean has no settings": (images, [dataclasses.replace(glean, settings={"steps": 5})], {}),
        "unknown key stepz, did you mean steps?": (images, [ComparedMethod("p", "pulse", str(tiny_model), {"stepz": 5})], {}),
        "the device 'nowhere' is not there": (images, [glean], {"compute": ComputeConfig("nowhere")}),
    }.items():
        with pytest.raises(RequestError) as error:
            plan(str(data), methods, **({"scale": 4, "compute": ComputeConfig("cpu")} | options))
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    suite = planned(images, [glean], images=GroundTruthConfig(limit=1)).suite
    assert [metric.name for metric in suite.metrics] == [
        "psnr",
        "ssim",
        "squeezenet_distance",
        "consistency",
    ]


def test_other_folders_are_refused(images: Path, tmp_path: Path):
    comparison = planned(images, [ComparedMethod("bicubic", "bicubic")], images=GroundTruthConfig(size=32))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "index.html").write_text("mine")
    with pytest.raises(RequestError, match="is neither empty nor the folder of a comparison"):
        compare(comparison, tmp_path / "notes")
    with pytest.raises(RequestError, match="choose another folder, outside the images"):
        compare(comparison, images / "out")
    with pytest.raises(RequestError, match="the folder cannot be created or read"):
        compare(comparison, tmp_path / "notes" / "index.html" / "out")
    (tmp_path / "music" / "records").mkdir(parents=True)
    (tmp_path / "music" / "records" / "kind of blue.flac").touch()
    with pytest.raises(RequestError, match="is neither empty nor the folder of a comparison"):
        compare(comparison, tmp_path / "music")
    from filelock import FileLock

    (tmp_path / "busy").mkdir()
    with FileLock(tmp_path / "busy" / ".lock"), pytest.raises(RequestError, match="another process is writing"):
        compare(comparison, tmp_path / "busy")
    assert (tmp_path / "notes" / "index.html").read_text() == "mine"
    assert not (images / "out").exists()


def test_the_command_lines(images: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        status: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return int(status or 0), captured.out, captured.err

    status, out, err = run(
        "evaluate", tiny_model, images, "--device", "cpu", "--metrics", "psnr,consistency", "--json", tmp_path / "e.json"
    )
    assert status == 0, err
    from gleansr.cli.evaluate import _is_report

    assert _is_report(tmp_path / "e.json")  # the same command may replace it
    report = json.loads((tmp_path / "e.json").read_text())
    means = {method["label"]: method["means"] for method in report["methods"]}
    assert f"| tiny | **{means['tiny']['psnr']:.2f} ± " in out or f"| bicubic | **{means['bicubic']['psnr']:.2f} ± " in out
    assert list(means["tiny"]) == ["psnr", "consistency"]
    assert f"{means['tiny']['psnr'] - means['bicubic']['psnr']:+.2f}" in out

    (images / "notes.json").write_text('{"data": "mine"}')
    compare_tiny = ("compare", images, "--methods", "glean", "--models", f"glean={tiny_model}", "--device", "cpu")
    for words, arguments in {
        "has a scale of 4x, not 8x": compare_tiny,
        "plain needs a file: --models plain=FILE": ("compare", images, "--methods", "plain", "--scale", "32"),
        "no model is named": ("evaluate", "dogs-8x", images),
        "no such file or folder": ("evaluate", tiny_model, tmp_path / "none"),
        "is no report": ("evaluate", tiny_model, images, "--json", images / "notes.json"),
        "the folder": ("evaluate", tiny_model, images, "--json", tmp_path / "no" / "e.json"),
    }.items():
        status, out, err = run(*arguments)
        assert status == 2, err
        assert words in err
        assert len(err.strip().splitlines()) == 1
        assert "Traceback" not in err
    assert (images / "notes.json").read_text() == '{"data": "mine"}'

    output = tmp_path / "out"
    status, out, err = run(*compare_tiny, "--scale", "4", "--limit", "1", "-o", output)
    assert status == 0, err
    assert f"side by side: {output / 'index.html'}" in err
    assert "| glean |" in out
    assert (output / "index.html").is_file()
