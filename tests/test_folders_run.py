"""Streams of jobs through a model: every image once, whatever its size and its neighbours; what is done is skipped; memory is bounded."""

import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

import gleansr
from gleansr import baselines as baselines
from gleansr.errors import ImageError
from gleansr.files import sha256_of
from gleansr.images.codec import DecodedImage, check_output
from gleansr.inference.method import ModelOutput
from gleansr.inference.runner import BatchRunner, FeedForwardModel
from gleansr.inference.tasks import Enlarge, ImageTask, PreparedImage, TaskResult
from gleansr.inference.upscaler import Upscaler
from gleansr.jobs import (
    Job,
    JobResult,
    LocalStorage,
    Manifest,
    OutputError,
    UnreadableFolder,
    Work,
    destinations,
    is_done,
    process,
    run,
    walk,
)
from gleansr.jobs import pipeline as pipeline_module
from gleansr.jobs.batches import BatchCollector
from gleansr.jobs.window import ClosedError, Window


@pytest.fixture
def upscaler(tiny_model: Path) -> Upscaler:
    return gleansr.load(tiny_model, device="cpu")


@pytest.fixture
def work(upscaler: Upscaler) -> Work:
    return Work(cast("ImageTask", Enlarge(upscaler)), 4, "ab" * 32, {"method": "GLEAN"})


def images(root: Path, count: int, sizes: Sequence[tuple[int, int]] = ((9, 7), (8, 8), (20, 30)), seed: int = 0) -> Path:
    """So many random images of these sizes in turn, in folders of ten."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        path = root / f"{i // 10}" / f"{i:03d}{('.png', '.bmp', '.tif')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = sizes[i % len(sizes)]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return root


def do(source: Path, output: Path, work: Work, **options: Any) -> list[JobResult | UnreadableFolder]:
    [place] = destinations([source], output, "")
    assert place.manifest
    with closing(Manifest(place.manifest)) as manifest:
        return list(run(walk(place, 0, manifest.is_result), work, [manifest], **options))


def statuses(outcomes: Sequence[JobResult | UnreadableFolder]) -> dict[str, int]:
    found = [outcome.status if isinstance(outcome, JobResult) else "unlisted" for outcome in outcomes]
    return {status: found.count(status) for status in found}


def results(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


# Every image once


def test_every_image_is_done_as_if_it_were_alone(tmp_path: Path, work: Work, upscaler: Upscaler):
    source = images(tmp_path / "in", 23)
    assert statuses(do(source, tmp_path / "out", work)) == {"done": 23}
    files = sorted(path for path in source.rglob("*.*"))
    assert len(results(tmp_path / "out")) == len(files)
    for file in files:
        expected = np.asarray(upscaler(file)).astype(int)
        got = pixels((tmp_path / "out" / file.relative_to(source)).with_suffix(".png"))
        assert np.abs(got - expected).max() <= 1  # float noise of the batch
    assert not list((tmp_path / "out").rglob("*.part"))


def test_treat_makes_the_same_files_as_the_pipeline(tmp_path: Path, work: Work):
    source = images(tmp_path / "in", 7)
    do(source, tmp_path / "out", work)
    [place] = destinations([source], tmp_path / "other", "")
    jobs = [job for job in walk(place) if isinstance(job, Job)]
    outcomes = list(process(jobs, work))
    assert statuses(outcomes) == {"done": 7}
    assert results(tmp_path / "other") == results(tmp_path / "out")
    assert not (tmp_path / "other" / "gleansr.jsonl").exists()
    with closing(Manifest(cast("Path", place.manifest))) as manifest:
        for outcome in outcomes:
            manifest.add(outcome.entry)
    assert statuses(do(source, tmp_path / "other", work)) == {"skipped": 7}


@pytest.mark.parametrize("threads", [1, 2])
def test_files_do_not_depend_on_the_batch(threads: int, tmp_path: Path, work: Work):
    """On a CPU to the last bit, so that a run that was stopped ends in the same files."""
    torch.set_num_threads(threads)
    try:
        source = images(tmp_path / "in", 9)
        do(source, tmp_path / "whole", work)
        for path in list(source.rglob("*.*"))[::2]:
            path.unlink()
        do(source, tmp_path / "some", work)
        whole, some = results(tmp_path / "whole"), results(tmp_path / "some")
        assert 0 < len(some) < len(whole)
        assert some == {name: whole[name] for name in some}
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("threads", [1, 2])
def test_all_passes_on_a_cpu_are_over_two(threads: int, work: Work, monkeypatch: pytest.MonkeyPatch):
    """Since kernels, and so the last bits, are chosen by the size of a batch."""
    torch.set_num_threads(threads)
    try:
        method, size = work.task.upscaler.method, work.task.upscaler.input_size
        assert size
        sizes: list[int] = []
        one_pass = FeedForwardModel.__call__
        monkeypatch.setattr(FeedForwardModel, "__call__", lambda *given: sizes.append(len(given[1])) or one_pass(*given))
        for count in (1, 3, 4):
            BatchRunner(method, 4)([torch.zeros(3, size, size)] * count)
        assert sizes == [2] * 5
    finally:
        torch.set_num_threads(1)


def test_a_method_for_any_size_takes_mixed_sizes(tmp_path: Path):
    task = Enlarge(baselines.load("bicubic", scale=2, device="cpu"))
    source = images(tmp_path / "in", 20, [(3, 4), (5, 6), (5, 6), (1, 1), (40, 2)])
    for batch_size in (1, 4):
        out = tmp_path / str(batch_size)
        assert statuses(do(source, out, Work(cast("ImageTask", task), batch_size))) == {"done": 20}
        assert {pixels(path).shape[:2] for path in out.rglob("*.png")} == {(8, 6), (12, 10), (2, 2), (4, 80)}
    assert results(tmp_path / "1") == results(tmp_path / "4")


@dataclass(frozen=True)
class Strips:
    """Enlarges as many columns of an image as its first pixel says, each alone."""

    upscaler: Upscaler
    factor: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, image: DecodedImage) -> PreparedImage:
        count = round(float(image.pixels[0, 0, 0]) * 255)
        if count == 77:
            raise ImageError(f"{image.name}: 77")
        if count == 78:
            raise MemoryError("it does not fit")
        lrs = tuple(image.pixels[:, :, i : i + 1] * 2 - 1 for i in range(count))

        def finish(srs: Sequence[Tensor], notes: Sequence[str]) -> TaskResult:
            assert len(srs) == len(notes) == count
            strips = torch.cat([*srs, torch.zeros(3, 2 * image.pixels.shape[1], 1)], 2)
            values = ((strips.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            return TaskResult(Image.fromarray(values), (f"{count} strips",), {"strips": count})

        return PreparedImage(lrs, finish)


@pytest.fixture
def strips() -> Work:
    return Work(cast("ImageTask", Strips(baselines.load("bicubic", scale=2, device="cpu"))), 4)


def striped(root: Path, counts: Sequence[int]) -> Path:
    root.mkdir()
    for i, count in enumerate(counts):
        values = np.random.default_rng(i).integers(0, 256, (4 + i % 2, 60, 3), np.uint8)
        values[0, 0, 0] = count
        Image.fromarray(values).save(root / f"{i:02d}.png")
    return root


def test_tasks_with_no_and_with_several_lrs(tmp_path: Path, strips: Work):
    counts = [0, 1, 50, 3, 0, 2, 9, 1, 0, 33]
    source = striped(tmp_path / "in", counts)
    outcomes = do(source, tmp_path / "out", strips)
    assert statuses(outcomes) == {"done": 10}
    for i, count in enumerate(counts):
        got = pixels(tmp_path / "out" / f"{i:02d}.png")
        assert got.shape == (8 + 2 * (i % 2), 2 * count + 1, 3)
        columns = pixels(source / f"{i:02d}.png")[:, :count]
        if count:  # each strip is its own column, in its own place
            assert np.abs(got[::2, : 2 * count : 2].mean(0) - columns.mean(0)).max() < 60
            enlarged = baselines.load("bicubic", scale=2, device="cpu").method(
                torch.from_numpy(columns[:, :1]).permute(2, 0, 1)[None] / 127.5 - 1
            )
            expected = ((enlarged.images[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
            assert np.abs(got[:, :2] - expected).max() <= 1
    notes = {outcome.job.target_key: outcome.notes for outcome in outcomes if isinstance(outcome, JobResult)}
    assert notes["02.png"] == ("50 strips",)


def test_what_is_wrong_with_one_image_stops_no_other(tmp_path: Path, strips: Work):
    source = striped(tmp_path / "in", [1, 77, 2, 78, 3])
    (source / "05.png").write_bytes(b"")
    (source / "06.png").symlink_to("06.png")
    (source / "07.png").symlink_to("nowhere")
    os.mkfifo(source / "08.png")
    outcomes = do(source, tmp_path / "out", strips)
    assert statuses(outcomes) == {"done": 3, "failed": 6}
    errors = {outcome.job.source[-6:]: str(outcome.error) for outcome in outcomes if isinstance(outcome, JobResult) and outcome.error}
    for name, words in {
        "01": "77",
        "03": "it does not fit",
        "05": "is empty",
        "06": "symbolic links",
        "07": "No such",
        "08": "not a file",
    }.items():
        assert words in errors[f"{name}.png"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "gleansr.jsonl").read_text().splitlines()]
    assert sum(line.get("status") == "failed" for line in lines) == 6
    (source / "05.png").unlink()
    striped(tmp_path / "more", [4])
    (tmp_path / "more" / "00.png").rename(source / "05.png")
    assert statuses(do(source, tmp_path / "out", strips)) == {"skipped": 3, "failed": 5, "done": 1}  # failures are tried again


# What is done already


def test_what_is_done_is_not_read_again(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch):
    source = images(tmp_path / "in", 5)
    do(source, tmp_path / "out", work)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    monkeypatch.setattr(LocalStorage, "read", lambda *_: pytest.fail("it was read"))
    assert statuses(do(source, tmp_path / "out", work)) == {"skipped": 5}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")} == before


def test_whatever_changes_is_done_again(tmp_path: Path, work: Work, upscaler: Upscaler):
    source = images(tmp_path / "in", 3, seed=1)
    out = tmp_path / "out"
    do(source, out, work)
    first = source / "0" / "000.png"

    def touched() -> None:
        os.utime(first, ns=(1, 1))

    def other_pixels_of_the_same_size_and_time() -> None:
        # Equal in size and time of change a file is trusted; so one of the two differs here.
        data = bytearray((source / "0" / "001.bmp").read_bytes())
        data[-1] ^= 255
        (source / "0" / "001.bmp").write_bytes(data)

    changes: list[tuple[Callable[[], object], Work, int]] = [
        (lambda: None, work, 0),
        (touched, work, 0),  # its contents are the same
        (other_pixels_of_the_same_size_and_time, work, 1),
        (lambda: (out / "0" / "000.png").unlink(), work, 1),
        (lambda: (out / "0" / "000.png").write_bytes(b""), work, 1),  # a machine failed before it was on the disk
        (lambda: None, replace(work, model_sha256="cd" * 32), 3),
        (lambda: None, replace(work, settings={"method": "another"}), 3),
        (lambda: None, replace(work, quality=90), 3),
        (lambda: None, replace(work, task=cast("ImageTask", Enlarge(upscaler, "crop"))), 3),
        (lambda: None, replace(work, task=cast("ImageTask", Enlarge(upscaler, back_projection=0.5))), 3),
        (lambda: None, replace(work, sidecar=True, task=cast("ImageTask", Enlarge(upscaler, measured=True))), 3),
        (lambda: None, replace(work, batch_size=1), 0),
    ]
    for number, (change, wanted, expected) in enumerate(changes):
        change()
        found = statuses(do(source, out, wanted))
        assert found.get("done", 0) == expected, number
        assert found.get("skipped", 0) == 3 - expected, number
        assert statuses(do(source, out, wanted)) == {"skipped": 3}, number


def test_a_moved_source_is_compared_by_its_contents(tmp_path: Path, work: Work):
    """Two files of one size and time of change that change places are told apart."""
    for name, seed in (("x", 0), ("y", 1)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / name / "a.bmp")
        os.utime(tmp_path / name / "a.bmp", ns=(10**18, 10**18))
    made = []
    for order in (["x", "y"], ["y", "x"]):
        [place] = destinations([tmp_path / name for name in order], tmp_path / "out", "")
        with closing(Manifest(cast("Path", place.manifest))) as manifest:
            assert statuses(list(run(walk(place), work, [manifest]))) == {"done": 2}
        made.append([(tmp_path / "out" / name).read_bytes() for name in ("a.png", "a.bmp.png")])
    assert made[0] == made[1][::-1]


def test_files_of_others_are_kept_unless_told(tmp_path: Path, work: Work):
    source = images(tmp_path / "in", 2)
    mine = tmp_path / "out" / "0" / "000.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    assert statuses(do(source, tmp_path / "out", work)) == {"done": 1, "failed": 1}
    assert mine.read_text() == "precious"
    assert statuses(do(source, tmp_path / "out", replace(work, overwrite=True))) == {"done": 1, "skipped": 1}
    assert pixels(mine).ndim == 3


def test_a_refusal_stays_one(tmp_path: Path, work: Work):
    source = images(tmp_path / "in", 2)
    mine = tmp_path / "out" / "0" / "000.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    for expected in ({"done": 1, "failed": 1}, {"skipped": 1, "failed": 1}, {"skipped": 1, "failed": 1}):
        assert statuses(do(source, tmp_path / "out", work)) == expected
        assert mine.read_text() == "precious"


def test_only_what_gleansr_wrote_is_replaced(tmp_path: Path, work: Work):
    """Not what somebody has put in the place of a result, however the manifest knows its name."""
    source, out = images(tmp_path / "in", 4), tmp_path / "out" / "0"
    do(source, tmp_path / "out", work)
    other = replace(work, quality=90)
    (out / "000.png").write_text("precious")
    (out / "001.png").write_bytes((out / "001.png").read_bytes() + b"retouched")  # the mark is still in it
    manifest = tmp_path / "out" / "gleansr.jsonl"
    lines = [line for line in manifest.read_text().splitlines(keepends=True) if '"target":"0/002.png"' not in line]
    manifest.write_text("".join(lines))  # as if it had been killed before it could say that it is done
    (out / "002.png").write_text("precious too")
    for _ in range(2):
        found = [one for one in do(source, tmp_path / "out", other) if isinstance(one, JobResult)]
        told = {one.job.target_key: str(one.error) for one in found if one.error}
        assert sorted(told) == ["0/000.png", "0/001.png", "0/002.png"]
        assert all("use --overwrite or -o NAME" in why for why in told.values())
        assert "is not what gleansr wrote there" in told["0/000.png"]
    assert [(out / name).read_bytes()[-8:] for name in ("000.png", "001.png", "002.png")] == [b"precious", b"etouched", b"ious too"]
    assert statuses(do(source, tmp_path / "out", replace(other, overwrite=True))) == {"done": 3, "skipped": 1}


def test_a_failure_does_not_forget_an_earlier_result(tmp_path: Path, work: Work):
    source = images(tmp_path / "in", 1)
    do(source, tmp_path / "out", work)
    whole = (source / "0" / "000.png").read_bytes()
    (source / "0" / "000.png").write_bytes(whole[:50])
    assert statuses(do(source, tmp_path / "out", work)) == {"failed": 1}
    (source / "0" / "000.png").write_bytes(whole)
    assert statuses(do(source, tmp_path / "out", replace(work, quality=90))) == {"done": 1}  # it replaces its own


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_into_itself_keeps_its_images(overwrite: bool, tmp_path: Path, work: Work):
    source = tmp_path / "own"
    source.mkdir()
    for name in ("a.png", "b.bmp"):
        Image.new("RGB", (8, 8), "red").save(source / name)
    before = (source / "a.png").read_bytes()
    for expected in ({"failed": 1, "done": 1}, {"failed": 1, "skipped": 1}):
        found = do(source, source, replace(work, overwrite=overwrite))
        assert statuses(found) == expected
        [error] = [one.error for one in found if isinstance(one, JobResult) and one.error]
        assert "own/a.png is an input and is never replaced" in str(error)
        assert (source / "a.png").read_bytes() == before
    # The result of b.bmp is ours, and not read, so that it may be made anew.
    assert statuses(do(source, source, replace(work, quality=90))) == {"failed": 1, "done": 1}
    (source / "b.png").write_text("precious")  # now it is somebody's, and an input
    assert statuses(do(source, source, replace(work, quality=80, overwrite=True))) == {"failed": 2, "done": 1}
    assert (source / "b.png").read_text() == "precious"


def test_what_a_link_among_the_inputs_leads_to_is_kept(tmp_path: Path, upscaler: Upscaler, work: Work):
    source, output = images(tmp_path / "in", 1), tmp_path / "out"
    (link,) = (path for path in source.rglob("*") if path.is_file())
    kept = output / link.relative_to(source)
    kept.parent.mkdir(parents=True)
    link.rename(kept)
    link.symlink_to(kept)
    before = kept.read_bytes()
    (outcome,) = do(source, output, replace(work, overwrite=True))
    assert isinstance(outcome, JobResult)
    assert "is an input and is never replaced" in str(outcome.error)
    beside = images(tmp_path / "beside", 2)
    first, second = sorted(path for path in beside.rglob("*") if path.is_file())
    linked = first.with_name(f"{first.stem}_8x.png")
    second.rename(linked)
    second.symlink_to(linked.name)
    [place] = destinations([first, second], None, "_8x")
    outcomes = list(run(walk(place), replace(work, overwrite=True), [None]))
    assert statuses(outcomes) == {"failed": 1, "done": 1}
    assert kept.read_bytes() == before
    assert pixels(linked).shape == (8, 8, 3)


def test_a_result_that_a_killed_run_did_not_record_is_ours(tmp_path: Path, work: Work):
    source = images(tmp_path / "in", 2)
    do(source, tmp_path / "out", work)
    manifest = tmp_path / "out" / "gleansr.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if '"done"' not in line))
    assert statuses(do(source, tmp_path / "out", work)) == {"done": 2}


def test_sidecars_tell_how_a_result_was_made(tmp_path: Path, work: Work, upscaler: Upscaler):
    source = images(tmp_path / "in", 1)
    told = replace(work, sidecar=True, task=cast("ImageTask", Enlarge(upscaler, measured=True)))
    do(source, tmp_path / "out", told)
    path = tmp_path / "out" / "0" / "000.json"
    sidecar = json.loads(path.read_text())
    assert sidecar["source"] == "../in/0/000.png"
    assert sidecar["target"] == "0/000.png"
    assert sidecar["sha256"] == hashlib.sha256((source / "0" / "000.png").read_bytes()).hexdigest()
    assert (sidecar["model"], sidecar["model_sha256"]) == ("tiny", "ab" * 32)
    assert sidecar["options"] == {"method": "GLEAN", "fit": "auto", "consistent": 0.0, "quality": 95}
    assert "consistency_db" in sidecar["details"]
    assert sidecar["notes"] == ["9x7: padded to 9x9, shrunk to the model's 8x8"]
    path.unlink()
    assert statuses(do(source, tmp_path / "out", told)) == {"done": 1}
    assert statuses(do(source, tmp_path / "out", replace(told, quality=90))) == {"done": 1}  # it replaces its own
    path.write_text('{"mine": 1}')
    assert statuses(do(source, tmp_path / "out", replace(told, quality=80))) == {"failed": 1}
    assert path.read_text() == '{"mine": 1}'
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "0").mkdir()
    (tmp_path / "new" / "0" / "000.json").write_text("{}")  # somebody else's
    assert statuses(do(source, tmp_path / "new", told)) == {"failed": 1}


def test_the_text_of_tools_is_kept_or_said_to_be_dropped(tmp_path: Path, work: Work):
    texts = {"parameters": "a cat é 猫, steps: 20", "prompt": '{"3": {}}', "workflow": "w" * 300_000, "prompt2": "not known"}
    text = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        text.add_itxt(key, value)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png", pnginfo=text)
    [outcome] = do(tmp_path / "in", tmp_path / "out", work)
    assert isinstance(outcome, JobResult)
    assert outcome.notes == ()
    with Image.open(tmp_path / "out" / "a.png") as result:
        kept = {key: value for key, value in getattr(result, "text", {}).items() if key in texts}
    assert kept == {key: value for key, value in texts.items() if key != "prompt2"}
    [place] = destinations([tmp_path / "in" / "a.png"], tmp_path / "a.jpg", "", to_file=True)
    [outcome] = list(run(walk(place), work, [None]))
    assert isinstance(outcome, JobResult)
    assert outcome.notes == ("its text parameters, prompt, workflow was dropped: only PNG files can hold it",)


def test_sha256_of_a_file(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"model")
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"model").hexdigest()


# Ends


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_where_nothing_can_be_written_it_stops_and_goes_on_later(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch, number: int):
    source = images(tmp_path / "in", 40)
    write_bytes, written = Path.write_bytes, []

    def fail(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) > 5:
            write_bytes(path, data[:10])
            raise OSError(number, os.strerror(number))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OutputError, match=os.strerror(number)):
        do(source, tmp_path / "out", work)
    assert len(written) < 40
    assert len(results(tmp_path / "out")) == 5
    assert not list((tmp_path / "out").rglob("*.part"))
    monkeypatch.undo()
    assert statuses(do(source, tmp_path / "out", work)) == {"skipped": 5, "done": 35}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_cannot_be_written_to_fails_alone(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch, number: int):
    source = images(tmp_path / "in", 40)
    create = os.open

    def refuse(path: Any, *options: Any, **more: Any) -> int:
        if f"{os.sep}out{os.sep}1{os.sep}" in os.fspath(path) and path.suffix == ".part":
            raise OSError(number, os.strerror(number))
        return create(path, *options, **more)

    monkeypatch.setattr(os, "open", refuse)
    found = do(source, tmp_path / "out", work)
    assert statuses(found) == {"done": 30, "failed": 10}
    told = [str(one.error) for one in found if isinstance(one, JobResult) and one.error]
    assert all("out/1/" in why and os.strerror(number) in why for why in told)
    monkeypatch.undo()
    assert statuses(do(source, tmp_path / "out", work)) == {"skipped": 30, "done": 10}


def test_closing_a_manifest_does_not_hide_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(Manifest, "close", full)
    with pytest.raises(TypeError, match="a bug"), Manifest(tmp_path / "out" / "m.jsonl"):
        raise TypeError("a bug")
    with pytest.raises(OutputError), Manifest(tmp_path / "out" / "m.jsonl"):
        pass


def test_it_stops_when_told_and_writes_what_was_computed(tmp_path: Path, work: Work):
    source = images(tmp_path / "in", 40)
    heard: list[JobResult | UnreadableFolder] = []
    [place] = destinations([source], tmp_path / "out", "")
    with closing(Manifest(cast("Path", place.manifest))) as manifest:
        for outcome in run(walk(place), work, [manifest], stopped=lambda: len(heard) >= 8):
            heard.append(outcome)
    assert 8 <= len(heard) < 40
    assert len(results(tmp_path / "out")) == len(heard)
    assert statuses(do(source, tmp_path / "out", work)) == {"skipped": len(heard), "done": 40 - len(heard)}


def test_a_consumer_may_leave(tmp_path: Path, work: Work):
    source = images(tmp_path / "in", 40)
    [place] = destinations([source], tmp_path / "out", "")
    with closing(Manifest(cast("Path", place.manifest))) as manifest:
        stream = run(walk(place), work, [manifest])
        next(stream)
        cast("Any", stream).close()
    assert not [thread for thread in threading.enumerate() if thread.name in ("gleansr-read", "gleansr-write")]
    written = len(results(tmp_path / "out"))
    assert 0 < written < 40
    assert statuses(do(source, tmp_path / "out", work)) == {"skipped": written, "done": 40 - written}


def test_errors_of_the_jobs_source_come_out(tmp_path: Path, work: Work):
    def jobs() -> Iterator[Job]:
        yield Job(str(tmp_path / "none.png"), str(tmp_path / "out.png"), "none.png", "out.png")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(run(jobs(), work, [None]))


class Slow:
    """A method in steps."""

    name, scale, device = "slow", 1, torch.device("cpu")
    in_size: int | None = None

    def __init__(self, seconds: float = 0.0, most: int = 10**9):
        self.calls: list[int] = []
        self.seconds, self.most = seconds, most

    def __call__(self, lr: Tensor, report: Any = None) -> ModelOutput:
        self.calls.append(len(lr))
        if len(lr) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        for step in range(3):
            time.sleep(self.seconds)
            if report:
                report(step + 1, 3)
        return ModelOutput(lr, [f"of {len(lr)}"] * len(lr))


def slow_work(method: Slow, batch_size: int) -> Work:
    from gleansr.checkpoints.native import About

    return Work(cast("ImageTask", Enlarge(Upscaler(method, About("slow")))), batch_size)


def test_slow_methods_report_and_stop_at_a_step(tmp_path: Path):
    source = images(tmp_path / "in", 6, [(4, 4)])
    steps: list[tuple[int, int]] = []
    assert statuses(do(source, tmp_path / "out", slow_work(Slow(), 2), report=lambda *step: steps.append(step))) == {"done": 6}
    assert steps == [(1, 3), (2, 3), (3, 3)] * 3
    method = Slow()
    outcomes = do(source, tmp_path / "other", slow_work(method, 2), stopped=lambda: len(method.calls) == 2)
    assert len(method.calls) == 2  # of which the second was stopped
    assert len(outcomes) == len(results(tmp_path / "other")) == 2


def test_out_of_memory_halves_the_batches_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = images(tmp_path / "in", 16, [(4, 4)])
    method = Slow(most=2)
    with caplog.at_level(logging.WARNING):
        assert statuses(do(source, tmp_path / "out", slow_work(method, 8))) == {"done": 16}
    assert method.calls[-1] == 2
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory on cpu: batches of 4 instead of 8",
        "out of memory on cpu: batches of 2 instead of 4",
    ]
    outcomes = do(source, tmp_path / "none", slow_work(Slow(most=0), 8))
    assert statuses(outcomes) == {"failed": 16}
    assert "with a single image of 4x4" in str(cast("JobResult", outcomes[0]).error)


def test_a_batch_with_a_lr_that_cannot_be_made_is_made_without_it():
    class Picky(Slow):
        def __call__(self, lr: Tensor, report: Any = None) -> ModelOutput:
            if (lr == 9).any():
                raise ImageError("nine")
            return super().__call__(lr, report)

    forward = BatchRunner(Picky(), 4)
    made = forward([torch.full((3, 1, 1), float(i)) for i in (7, 9, 8)])
    assert [None if one.sr is None else float(one.sr[0, 0, 0]) for one in made] == [7, None, 8]
    assert str(made[1].error) == "nine"


# Bounds


@dataclass(frozen=True)
class Counting(LocalStorage):
    """Counts what is open between reading and writing."""

    open: list[str] = field(default_factory=list)
    most: list[int] = field(default_factory=lambda: [0])

    def read(self, path: str) -> bytes:
        self.open.append(path)
        self.most[0] = max(self.most[0], len(self.open))
        return super().read(path)

    def write(self, path: str, data: bytes) -> None:
        time.sleep(0.01)
        super().write(path, data)
        self.open.pop()


def test_readers_do_not_run_ahead_of_a_slow_writer(tmp_path: Path, work: Work):
    storage = Counting()
    source = images(tmp_path / "in", 40)
    assert statuses(do(source, tmp_path / "out", replace(work, storage=storage))) == {"done": 40}
    assert 4 <= storage.most[0] <= 4 * work.batch_size + 4


def test_large_images_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of images that weigh more than half of what may be under way, only few are; and all get through."""
    task = Enlarge(baselines.load("bicubic", scale=2, device="cpu"))
    source = images(tmp_path / "in", 30, [(100, 100), (3, 3), (120, 90)])
    storage = Counting()
    monkeypatch.setattr(pipeline_module, "MEMORY", 10**6)  # one of 100x100 weighs 880 kB
    assert statuses(do(source, tmp_path / "out", Work(cast("ImageTask", task), 8, storage=storage))) == {"done": 30}
    assert storage.most[0] <= 12


def test_the_window_is_in_order_and_bounded():
    most = [0]
    window: Window[int, int, str] = Window(iter(range(200)), 10, 100)
    weights = {i: int(np.random.default_rng(i).choice([1, 5, 30, 70, 300])) for i in range(200)}
    weighed: dict[int, int] = {}
    lock = threading.Lock()

    def read() -> None:
        while begun := window.begin():
            number, job = begun
            time.sleep(job * 7 % 11 / 20_000)
            window.admit(number, weights[job])
            with lock:
                weighed[number] = weights[job]
                most[0] = max(most[0], sum(weighed.values()))
            window.admit(number, 0)
            window.put(number, job)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    got = []
    while (taken := window.take(5)) is not None:
        number, weight, job = taken
        assert number == job
        assert weight == weights[job]
        got.append(job)
        with lock:
            del weighed[number]
        window.release(number)
    for thread in threads:
        thread.join(5)
    assert got == list(range(200))
    assert 50 < most[0] <= 50 + 300


def test_a_closed_window_lets_all_go():
    window: Window[int, int, str] = Window(iter(range(9)), 1, 100)
    assert window.begin() == (0, 0)
    ended = []

    def wait() -> None:
        try:
            window.begin()
        except ClosedError:
            ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    with pytest.raises(TimeoutError):
        window.take(0.01)
    window.close(KeyError("why"))
    thread.join(5)
    assert ended
    with pytest.raises(KeyError, match="why"):
        window.take(1)


def test_batches_follow_from_the_order_and_hold_every_lr_once():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shapes = [(3, 1, int(rng.integers(1, 4))) for _ in range(60)]
        lrs = [[torch.zeros(shape)] * int(rng.choice([0, 1, 1, 2, 7])) for shape in shapes]
        runs = []
        for _ in range(2):
            batches = BatchCollector(4, 6, 50)
            seen = []
            for number, one in enumerate(lrs):
                seen += [[(item.image, item.part) for item in batch] for batch in batches.add(number, 10, one)]
                unseen = {i for i in range(number + 1) for j in range(len(lrs[i])) if not any((i, j) in batch for batch in seen)}
                assert len(unseen) <= 5  # of weight 10 each
            seen += [[(item.image, item.part) for item in batch] for batch in batches.rest()]
            runs.append(seen)
        assert runs[0] == runs[1]
        assert sorted(lr for batch in runs[0] for lr in batch) == [(i, j) for i, one in enumerate(lrs) for j in range(len(one))]
        for batch in runs[0]:
            assert len(batch) <= 4
            assert len({shapes[number] for number, _ in batch}) == 1


def test_skips_needs_the_result(tmp_path: Path, work: Work):
    source = images(tmp_path / "in", 1)
    do(source, tmp_path / "out", work)
    [place] = destinations([source], tmp_path / "out", "")
    with closing(Manifest(cast("Path", place.manifest))) as manifest:
        (job,) = [one for one in walk(place) if isinstance(one, Job)]
        known = manifest.index.get(job.target_key)
        assert is_done(job, work, known)
        assert not is_done(job, work, None)
        assert not is_done(replace(job, source=str(tmp_path / "none")), work, known)
        assert not is_done(replace(job, target=str(tmp_path / "none")), work, known)
        assert not is_done(replace(job, source_key="other"), work, known)


def test_a_link_to_what_is_not_there_is_not_replaced(tmp_path: Path, work: Work):
    source, output = images(tmp_path / "in", 1), tmp_path / "out"
    link = output / "0/000.png"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "not mounted")
    (outcome,) = do(source, output, work)
    assert isinstance(outcome, JobResult)
    assert "already exists" in str(outcome.error)
    assert link.is_symlink()
    with pytest.raises(ImageError, match="already exists"):
        check_output(link, overwrite=False)
