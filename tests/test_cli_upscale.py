"""`gleansr upscale` of folders: going on after a kill, what it says, with what it exits."""

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from gleansr.cli import main
from gleansr.errors import ImageError
from gleansr.images.codec import DecodedImage
from gleansr.inference.tasks import PreparedImage, TaskResult
from gleansr.inference.upscaler import Upscaler


@pytest.fixture
def run(command: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """Runs `gleansr upscale`; see `command`."""
    return partial(command, "upscale")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """in/ with twelve images."""
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "in" / str(i % 2) / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return tmp_path / "in"


def results(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_many_results_get_one_line_and_few_one_each(run, folder: Path, tiny_model: Path, tmp_path: Path):
    status, said = run(folder, "-o", tmp_path / "out", "-m", tiny_model)
    assert status == 0
    assert said.splitlines()[-1].startswith(f"12 images → {tmp_path / 'out'} (4x, tiny) in ")
    assert "images/s" in said
    assert " → " not in said[: said.rindex("12 images")]
    status, said = run(folder, "-o", tmp_path / "out2", "-m", tiny_model, "--verbose")
    assert said.count(" → ") == 25  # two for each image, one for all
    (tmp_path / "out" / "0" / "00.png").unlink()
    status, said = run(folder, "-o", tmp_path / "out", "-m", tiny_model)
    assert status == 0
    assert "1 image → " in said
    assert "11 done before" in said


def test_failures_are_said_as_they_happen_and_in_a_table(run, folder: Path, tiny_model: Path, tmp_path: Path):
    for i in range(25):
        (folder / f"bad{i:02d}.png").write_text("x")
    status, said = run(folder, "-o", tmp_path / "out", "-m", tiny_model)
    assert status == 1
    lines = said.splitlines()
    assert sum(line.startswith("gleansr: ") for line in lines) == 25
    assert "12 images → " in said
    assert "25 failed" in said
    table = said[said.index("Failures") :].replace("\n", "")
    assert sum(f"bad{i:02d}" in table for i in range(25)) == 20
    assert "and 5 more, see" in table
    assert "gleansr.jsonl" in table


def test_fail_fast(run, folder: Path, tiny_model: Path, tmp_path: Path):
    (folder / "0" / "00.png").write_text("x")
    status, said = run(folder, "-o", tmp_path / "out", "-m", tiny_model, "--fail-fast", "--batch-size", 1)
    assert status == 1
    assert "1 failed" in said
    assert len(results(tmp_path / "out")) < 11
    assert run(folder, "-o", tmp_path / "out", "-m", tiny_model)[0] == 1
    assert len(results(tmp_path / "out")) == 11


def test_a_killed_run_goes_on_without_a_wrong_or_missing_file(run, folder: Path, tiny_model: Path, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "gleansr",
        "upscale",
        str(folder),
        "-o",
        str(tmp_path / "out"),
        "-m",
        str(tiny_model),
        "--batch-size",
        "1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").is_dir() or not results(tmp_path / "out"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(folder, "-o", tmp_path / "out", "-m", tiny_model, "--batch-size", 1)[0] == 0
    assert run(folder, "-o", tmp_path / "whole", "-m", tiny_model, "--batch-size", 1)[0] == 0
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_it_and_it_says_how_to_go_on(
    run, folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch, number: int, status: int
):
    from gleansr.cli.results import Tally

    add = Tally.add

    def then_signal(self: Any, outcome: Any) -> None:
        add(self, outcome)
        if self.done == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Tally, "add", then_signal)
    got, said = run(folder, "-o", tmp_path / "out", "-m", tiny_model, "--batch-size", 1)
    assert got == status
    assert "run the same command again to resume" in said
    assert 2 <= len(results(tmp_path / "out")) < 12
    monkeypatch.undo()
    assert run(folder, "-o", tmp_path / "out", "-m", tiny_model)[0] == 0
    assert len(results(tmp_path / "out")) == 12


def test_a_full_disk_ends_in_one_line(run, folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    status, said = run(folder, "-o", tmp_path / "out", "-m", tiny_model)
    assert status == 1
    assert len(said.strip().splitlines()) == 1
    assert "No space left on device; run the same command again to resume" in said
    assert results(tmp_path / "out") == {}


def test_a_missing_image_is_named_before_a_model_is_loaded(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gleansr.jobs.plan.plan_task", None)
    status, said = run(tmp_path / "nope.jpg")
    assert status == 1
    assert "nope.jpg: cannot be read: No such file or directory" in said


def test_a_name_that_the_system_does_not_take_is_one_line(run, tmp_path: Path):
    status, said = run(tmp_path / ("x" * 300 + ".jpg"))
    assert status == 1
    assert said.strip().endswith("x.jpg: File name too long")


def test_other_folders_are_told_of(run, folder: Path, tiny_model: Path, tmp_path: Path):
    (folder / "loop").symlink_to("..")
    assert run(folder, "-m", tiny_model, "-o", folder / "out")[0] == 0
    status, said = run(folder, "-m", tiny_model, "-o", tmp_path / "again")
    assert status == 0
    assert "links to folders are not followed (1)" in said
    assert "1 result of an earlier run" in said
    assert "12 images → " in said
    for name in ("a.dng", "b.dng", "clip.mp4"):
        (folder / name).touch()
    said = " ".join(run(folder, "-m", tiny_model, "-o", tmp_path / "more")[1].split())
    assert f"2 files, such as {folder / 'a.dng'}, are left out (camera raw file (DNG): develop it to a TIFF or JPEG first" in said
    assert f"{folder / 'clip.mp4'} is left out (video (MP4): pass it to `gleansr upscale` in a separate command)" in said


def test_results_in_the_folder_of_their_images(run, folder: Path, tiny_model: Path):
    for path in folder.rglob("*.png"):
        path.rename(path.with_suffix(".bmp"))  # by its contents still a PNG
    for _ in range(2):
        status, said = run(folder, "-o", folder, "-m", tiny_model)
        assert status == 0, said
        assert len(results(folder)) == 12
    assert "all 12 images are already in" in said


def test_a_lone_image_has_no_manifest_unless_told(run, folder: Path, tiny_model: Path, tmp_path: Path):
    image = folder / "0" / "00.png"
    assert run(image, "-m", tiny_model)[0] == 0
    assert sorted(path.name for path in image.parent.iterdir() if "00" in path.name or path.suffix != ".png") == ["00.png", "00_4x.png"]
    status, said = run(image, "-m", tiny_model)
    assert status == 1
    assert "already exists" in said
    (tmp_path / "kept").mkdir()
    told = ("--manifest", tmp_path / "kept" / "m.jsonl", "-o", tmp_path / "result.png", "-m", tiny_model)
    assert run(image, *told)[0] == 0
    entry = json.loads((tmp_path / "kept" / "m.jsonl").read_text().splitlines()[-1])
    assert (entry["source"], entry["target"]) == ("../in/0/00.png", "../result.png")
    before = (tmp_path / "result.png").stat().st_mtime_ns
    assert run(image, *told)[0] == 0
    assert (tmp_path / "result.png").stat().st_mtime_ns == before


def test_report_and_consistency(run, folder: Path, tiny_model: Path, tmp_path: Path):
    told = {}
    for name, options in {"plain": (), "true": ("--back-project",), "half": ("--back-project-strength", 0.5)}.items():
        assert run(folder / "0" / "00.png", "-o", tmp_path / name / "a.png", "-m", tiny_model, "--sidecar", *options)[0] == 0
        told[name] = json.loads((tmp_path / name / "a.json").read_text())
    strengths = [told[name]["options"]["consistent"] for name in ("plain", "half", "true")]
    assert strengths == [0.0, 0.5, 1.0]
    plain, half, true = (told[name]["details"]["consistency_db"] for name in ("plain", "half", "true"))
    assert plain < half < true
    assert told["plain"]["options"]["method"] == "GLEAN"
    assert len(told["plain"]["model_sha256"]) == 64


def test_any_bytes_in_names(run, tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "500")  # so that no name is folded
    source = (folder / "0" / "00.png").read_bytes()
    (tmp_path / "odd").mkdir()
    names = ["line\nbreak.png", "\udcff\udcfe.png", "😀.png", "-dash.png", "[red]x.png"]
    for name in names:
        (tmp_path / "odd" / name).write_bytes(source)
    (tmp_path / "odd" / "bad[bold]\n\udcff.png").write_text("x")
    status, said = run(tmp_path / "odd", "-o", tmp_path / "out", "-m", tiny_model)
    assert status == 1
    assert sorted(results(tmp_path / "out")) == sorted(names)
    assert "bad[bold]\\n\\udcff.png: is not an image" in said
    assert said.count("bad[bold]") == 2  # in the table, too
    assert "[red]x.png →" in said
    status, said = run(tmp_path / "odd", "-o", tmp_path / "out", "-m", tiny_model)
    assert "5 done before" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--scale", 2, "--fit", "pad"), "with --fit, "),
        (("--aligned", "--fit", "pad"), "--photo too"),
        (("--background", "x", "--fit", "pad"), "--photo too"),
        (("--require-object", "--method", "glean"), "--photo too"),
        (("--scale", 65), "--scale must be 1 to 64, not 65"),
        (("--batch-size", 0), "--batch-size must be 1 or more, not 0"),
        (("--quality", 0), "--quality must be 1 to 100, not 0"),
        (("--keep-detail", "nan"), "--keep-detail must be 0 to 1, not nan"),
        (("--box", "1,2,3"), "--box takes left,top,width,height"),
        (("--back-project-strength", 2), "--back-project-strength must be 0 to 1, not 2"),
        (("--option", "steps=1"), "--method pulse"),
        (("--manifest", "a.png"), "--manifest a.png: is a name of a result"),
        (("--manifest", "a.json", "--sidecar"), "--manifest a.json: is a name of a result"),
    ],
)
def test_wrong_requests(run, folder: Path, tiny_model: Path, options: Sequence[object], words: str):
    status, said = run(folder, "-m", tiny_model, *options)
    assert status == 2
    assert words in said
    assert len(said.strip().splitlines()) == 1


class NothingError(ImageError):
    """As photographs without an object raise."""

    exit_code = 3


@dataclass(frozen=True)
class Finding:
    """A task that finds nothing in some images, as photographs do."""

    upscaler: Upscaler
    config: Any
    background: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    factor = 4

    def prepare(self, image: DecodedImage) -> PreparedImage:
        if self.config.require_object and "0/00" in image.name:
            raise NothingError(f"{image.name}: 0 found")
        lr = self.upscaler.fit(image).lr

        def finish(srs: Sequence[Tensor], notes: Sequence[str]) -> TaskResult:
            return TaskResult(Image.new("RGB", (4, 4)), ("1 found",), {"objects": [list(box) for box in self.config.boxes]})

        return PreparedImage((lr,), finish)


def test_photographs(run, folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gleansr.jobs.plan.Photo", Finding)
    image = folder / "0" / "00.png"
    out = tmp_path / "a.png"
    status, said = run(image, "-m", tiny_model, "-o", out, "--box", "1,2,3,4", "--box=-1,2,3,4", "--sidecar")
    assert status == 0, said
    assert "1 found" in said
    assert json.loads((tmp_path / "a.json").read_text())["details"] == {"objects": [[1, 2, 3, 4], [-1, 2, 3, 4]]}
    assert run(image, "-m", tiny_model, "-o", tmp_path / "b.png", "--photo", "--require-object")[0] == 3
    status, said = run(folder, "-m", tiny_model, "-o", tmp_path / "out", "--photo", "--require-object")
    assert status == 3
    assert "11 images → " in said
    (folder / "bad.png").write_text("x")
    assert run(folder, "-m", tiny_model, "-o", tmp_path / "out", "--photo", "--require-object")[0] == 1


def test_the_output_folder_of_another_process(run, folder: Path, tiny_model: Path, tmp_path: Path):
    from gleansr.files import lock_folder

    (tmp_path / "out").mkdir()
    with lock_folder(tmp_path / "out", "testing"):
        status, said = run(folder, "-m", tiny_model, "-o", tmp_path / "out")
    assert status == 2
    assert "another process" in said
    with contextlib.suppress(FileNotFoundError):
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_truncated_image_is_refused_and_read_on_request(run, tiny_model: Path, tmp_path: Path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(1, 256, (64, 48, 3), np.uint8)).save(path, compress_level=0)
    path.write_bytes(path.read_bytes()[: 57 + 50 * (1 + 3 * 48)])
    status, said = run(path, "-o", tmp_path / "a.png", "-m", tiny_model)
    assert status == 1
    assert "truncated" in said
    assert "--allow-truncated" in said
    status, said = run(path, "-o", tmp_path / "a.png", "-m", tiny_model, "--allow-truncated")
    assert status == 0
    assert "of 64 rows are missing" in said
    assert (tmp_path / "a.png").exists()


def test_the_largest_image_is_an_option(run, tiny_model: Path, tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGB", (200, 100)).save(path)
    status, said = run(path, "-o", tmp_path / "b.png", "-m", tiny_model, "--max-megapixels", "0.019")
    assert status == 1
    assert "200x100 pixels are more than 19000" in said
    assert run(path, "-o", tmp_path / "b.png", "-m", tiny_model, "--max-megapixels", "0.02")[0] == 0
    status, said = run(path, "-o", tmp_path / "b.png", "-m", tiny_model, "--max-megapixels", "0")
    assert status == 2
    assert "--max-megapixels must be above 0" in said


def test_a_run_without_a_new_result_says_so(run, folder: Path, tiny_model: Path, tmp_path: Path):
    assert run(folder, "-o", tmp_path / "out", "-m", tiny_model)[0] == 0
    (folder / "bad.png").write_text("x")
    status, said = run(folder, "-o", tmp_path / "out", "-m", tiny_model)
    assert status == 1
    assert "No image was upscaled (4x, tiny); 1 failed; 12 done before" in said


def test_a_large_image_shows_its_progress(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gleansr.photos.search.DETECTED", ())
    monkeypatch.setattr("gleansr.cli.progress.Pace.INTERVAL", 0)
    Image.new("RGB", (460, 24)).save(tmp_path / "wide.png")
    status, said = run(tmp_path / "wide.png", "--scale", 2)
    assert status == 0
    assert "1 of 2 tiles (50%), about " in said
    assert "2 of 2" not in said


def test_the_format_of_results(run, folder: Path, tiny_model: Path, tmp_path: Path):
    image = folder / "0" / "00.png"
    assert run(image, "-m", tiny_model, "--format", "webp", "--quality", 50)[0] == 0
    with Image.open(image.with_name("00_4x.webp")) as result:
        assert result.format == "WEBP"
    assert run(folder, "-o", tmp_path / "out", "-m", tiny_model, "--format", "jpg")[0] == 0
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg")}
    assert names == {name.replace(".png", ".jpg") for name in results(folder)}
    for options, words in (
        (("--quality", 50), "--quality is for JPEG and WebP; results are PNG: give --format jpg or -o NAME.jpg too"),
        (("--format", "tif", "--quality", 50), "results are TIF"),
        (("--format", "webp", "-o", tmp_path / "a.jpg"), "has the format of its name; leave --format webp out"),
    ):
        status, said = run(image, "-m", tiny_model, *options)
        assert (status, words in said) == (2, True), said


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, bytes, str]]:
    """Runs `gleansr upscale` with these bytes at the standard input; returns its exit status and what it wrote."""

    def call(data: bytes, *arguments: object) -> tuple[int, bytes, str]:
        status: int | str | None = 0
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        try:
            main(["upscale", *map(str, arguments)])
        except SystemExit as end:
            status = end.code
        written = capfdbinary.readouterr()
        return int(status or 0), written.out, written.err.decode()

    return call


def test_the_standard_input_and_output(pipe, folder: Path, tiny_model: Path, tmp_path: Path):
    image, options = folder / "0" / "00.png", ["-m", tiny_model, "--device", "cpu"]
    data = image.read_bytes()
    pipe(b"", image, *options)
    expected = pixels_of(image.with_name("00_4x.png"))
    for arguments in (["-"], ["-", "-o", "-"], [image, "-o", "-"]):
        status, written, said = pipe(data, *arguments, *options)
        assert status == 0
        assert np.array_equal(pixels_of(io.BytesIO(written)), expected)
        assert " → -: 8\N{MULTIPLICATION SIGN}8 → 32\N{MULTIPLICATION SIGN}32, tiny" in said
    status, written, said = pipe(data, "-", "--format", "jpg", "-q", *options)
    assert (status, written[:3], said) == (0, b"\xff\xd8\xff", "")
    out = tmp_path / "a.png"
    assert pipe(data, "-", "-o", out, *options)[:2] == (0, b"")
    assert np.array_equal(pixels_of(out), expected)
    status, _, said = pipe(data, "-", "-o", out, *options)
    assert (status, "already exists" in said) == (1, True)
    for wrong, words in ((b"", "standard input: is empty"), (b"x", "standard input: is not an image")):
        status, written, said = pipe(wrong, "-", *options)
        assert (status, written, words in said) == (1, b"", True), said


def pixels_of(file: Any) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image)


@pytest.mark.parametrize("arguments", [("-", "a.png"), ("-", "--sidecar"), ("-", "--manifest", "m.jsonl")])
def test_a_pipe_takes_one_image(run, tiny_model: Path, arguments: Sequence[object]):
    status, said = run(*arguments, "-m", tiny_model)
    assert (status, "- is for one image" in said) == (2, True), said


def test_an_empty_input_is_refused(run, tiny_model: Path):
    for empty in ("", " "):
        status, said = run(empty, "-m", tiny_model)
        assert (status, "an input is empty" in said) == (2, True), said
