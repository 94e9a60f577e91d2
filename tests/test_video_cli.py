"""`gleansr upscale` of videos and numbered frames: inputs, messages and exit statuses."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gleansr.cli.video import upscale_videos, videos_among
from gleansr.errors import ImageError, RequestError
from gleansr.inference.tasks import Enlarge
from gleansr.jobs import Work
from gleansr.photos import Photo, PhotoConfig
from gleansr.video import Clip, FrameFolder
from gleansr.video.reading import natural
from tests.photo_parts import stripes, upscaler
from tests.test_video_tracks import Spot
from tests.video_parts import av, clip, leftovers, numbered, order, planes


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Upscales; returns the exit status and the output."""

    def call(
        *inputs: Path,
        output: Path | None = None,
        video: bool = False,
        rate: float | None = None,
        work: Work | None = None,
        fail_fast: bool = False,
    ) -> tuple[int, str]:
        status: object = 0
        work = work or Work(Enlarge(upscaler(None, 2)), 4)
        try:
            videos = videos_among(inputs, output, video=video, rate=rate, detect_every=None, detects=isinstance(work.task, Photo))
            assert videos
            upscale_videos(videos, work, model="still", slow=False, fail_fast=fail_fast, verbose=False, quiet=False)
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return int(str(status or 0)), captured.out + captured.err

    return call


def test_inputs_and_foreign_files_are_never_replaced(run, tmp_path: Path):
    first, second = clip(tmp_path / "a.mkv", numbered(2)), clip(tmp_path / "a_2x.mkv", numbered(2))
    before = second.read_bytes()
    with pytest.raises(RequestError, match=r"a_2x\.mkv: is an input"):
        run(first, second, work=Work(Enlarge(upscaler(None, 2)), 4, overwrite=True))
    assert second.read_bytes() == before
    (tmp_path / "b.json").write_text("precious")
    status, said = run(first, output=tmp_path / "b.mkv", work=Work(Enlarge(upscaler(None, 2)), 4, sidecar=True))
    assert status == 1
    assert "b.json: already exists" in said
    assert (tmp_path / "b.json").read_text() == "precious"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """in/ with frames whose numbers have gaps and no leading zeros, and other files."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i, pixels in zip((1, 2, 9, 10, 11, 100), numbered(6), strict=True):
        Image.fromarray(pixels).save(folder / f"shot{i}.png")
    (folder / "notes1.txt").touch()
    Image.new("RGB", (4, 4)).save(folder / "cover.png")
    return folder


def test_the_default_output_of_a_video(run, tmp_path: Path):
    source = clip(tmp_path / "a.mp4", numbered(5))
    status, said = run(source)
    assert status == 0
    assert said.strip() == f"{source} → {tmp_path / 'a_2x.mp4'}: 24\u00d716 → 48\u00d732, made (5 frames)"
    assert len(planes(tmp_path / "a_2x.mp4")) == 5
    clip(tmp_path / "b.mkv", numbered(2))
    assert run(tmp_path / "b.mkv", clip(tmp_path / "c.gif", numbered(3)), output=tmp_path / "out")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.mkv", "c.mp4"]
    assert run(source, output=tmp_path / "frames")[0] == 0
    assert len(list((tmp_path / "frames").iterdir())) == 5


def test_what_is_a_video(tmp_path: Path):
    clip(tmp_path / "a.gif", numbered(3))
    Image.new("RGB", (4, 4)).save(tmp_path / "still.gif")
    (tmp_path / "folder").mkdir()

    def among(*names: str, output: str | None = None, video: bool = False) -> bool:
        inputs = [tmp_path / name for name in names]
        target = tmp_path / output if output else None
        return videos_among(inputs, target, video=video, rate=None, detect_every=None, detects=False) is not None

    assert among("a.gif")
    assert among("a.gif", output="b.mp4")
    assert not among("a.gif", output="b.png")
    assert not among("still.gif")
    assert among("A.MOV")
    assert not among("folder")
    assert among("folder", video=True)
    assert not among("a.png")


@pytest.mark.parametrize(
    ("inputs", "output", "options", "words"),
    [
        (["a.png"], "b.mp4", {}, "--video a folder of numbered frames"),
        (["a.mp4", "a.png"], None, {}, "a command of their own"),
        (["a.mp4", "b.mp4"], "c.mp4", {}, "one file, but there are several"),
        (["a.mp4"], "c.avi", {}, "written as .mp4, .mkv, .webm"),
        (["a.mp4"], "c.png", {}, "written as .mp4, .mkv, .webm"),
        (["a.mp4"], "c.mp4", {"rate": 30}, "keeps its times"),
        (["folder"], "c.mp4", {"video": True, "rate": 1e9}, "0.01 to 1000"),
        (["a.mp4"], None, {"detect_every": 3}, "give --photo too"),
        (["a.mp4"], None, {"detect_every": 0, "detects": True}, "interval of searched frames"),
        (["a.png"], None, {"video": True}, "--video is for videos"),
        (["a.png"], None, {"rate": 25}, "--rate is for videos"),
    ],
)
def test_requests_that_cannot_be_met(tmp_path: Path, inputs: list[str], output: str | None, options: dict[str, float], words: str):
    (tmp_path / "folder").mkdir()
    usual = {"video": False, "rate": None, "detect_every": None, "detects": False}
    with pytest.raises(RequestError, match=words):
        videos_among([tmp_path / name for name in inputs], tmp_path / output if output else None, **usual | options)  # type: ignore[arg-type]


def test_outputs_that_collide_are_refused(run, tmp_path: Path):
    clip(tmp_path / "a.mp4", numbered(2))
    with pytest.raises(RequestError, match="two inputs"):
        run(tmp_path / "a.mp4", tmp_path / "a.mov")
    with pytest.raises(RequestError, match="is an input"):
        run(tmp_path / "a.mp4", output=tmp_path / "a.mp4")


def test_a_failed_video_does_not_stop_the_others(run, tmp_path: Path):
    (tmp_path / "a.mp4").write_text("no video")
    clip(tmp_path / "b.mp4", numbered(2))
    status, said = run(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "missing.mp4")
    assert status == 1
    lines = said.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"gleansr: {tmp_path / 'a.mp4'}: is not a video of a supported format")
    assert " → " in lines[1]
    assert "no such file" in lines[2]
    status, said = run(tmp_path / "a.mp4", tmp_path / "b.mp4", fail_fast=True)
    assert (status, len(said.splitlines())) == (1, 1)
    status, said = run(tmp_path / "b.mp4", output=tmp_path / "a.mp4" / "c.mp4")
    assert status == 1
    assert "c.mp4: cannot be written: " in said
    assert leftovers(tmp_path) == []


def test_a_folder_of_frames_keeps_names_and_resumes(run, frames: Path, tmp_path: Path):
    status, said = run(frames, video=True)
    assert status == 0
    results = tmp_path / "in_2x"
    assert sorted(path.name for path in results.glob("*.png")) == sorted(f"shot{i}.png" for i in (1, 2, 9, 10, 11, 100))
    assert "2 files are not numbered images, ignored: cover.png, notes1.txt" in said
    before = {path: path.stat().st_mtime_ns for path in results.glob("*.png")}
    (results / "shot9.png").unlink()
    status, said = run(frames, video=True)
    assert "1 image → " in said
    assert "5 done before" in said
    assert all(path.stat().st_mtime_ns == at for path, at in before.items() if path.name != "shot9.png")
    (frames / "shot3.png").write_text("broken")
    status, said = run(frames, video=True)
    assert status == 1
    assert "shot3.png" in said


def test_frames_become_a_video_in_natural_order(run, frames: Path, tmp_path: Path):
    status, said = run(frames, video=True, output=tmp_path / "b.mkv", rate=23.976)
    assert status == 0
    assert "--rate" not in said
    footage = Clip(tmp_path / "b.mkv")
    brightness = order([frame.image.pixels for frame in footage.frames()])
    assert len(brightness) == 6
    assert brightness == sorted(brightness)
    status, said = run(frames, video=True, output=tmp_path / "c.mp4")
    assert status == 0
    assert "25 frames per second, --rate chooses" in said
    with av.open(tmp_path / "c.mp4") as container:
        assert container.streams.video[0].average_rate == 25
    (frames / "shot3.png").write_text("broken")
    status, said = run(frames, video=True, output=tmp_path / "d.mp4")
    assert status == 1
    assert f"{frames / 'shot3.png'}: is not an image of a known kind" in said
    assert not (tmp_path / "d.mp4").exists()


def test_names_are_ordered_by_their_numbers():
    names = ["f10.png", "f9.png", "f1b2.png", "f1b10.png", "2.png", "10.png", "f09.png"]
    assert sorted(names, key=natural) == ["2.png", "10.png", "f1b2.png", "f1b10.png", "f09.png", "f9.png", "f10.png"]


def test_folders_without_numbered_frames_are_refused(run, tmp_path: Path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "cover.png")
    status, said = run(tmp_path / "in", video=True)
    assert status == 1
    assert "no numbered frames in this folder" in said
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "1.png")
    assert FrameFolder(tmp_path / "in").rate == 25


def test_tracking_skips_an_unreadable_frame(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gleansr.photos.task.load_detector", lambda *_: Spot())
    (tmp_path / "in").mkdir()
    for i in range(8):
        pixels = np.full((32, 64, 3), 90, np.uint8)
        pixels[16, 16 + i] = 255
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "4.png").write_text("broken")
    work = Work(Photo(upscaler(16, 2, stripes, category="cats"), PhotoConfig(scale=1, keep_detail=0)), 4, sidecar=True)
    status, said = run(tmp_path / "in", video=True, work=work)
    assert status == 1
    assert said.count("gleansr: ") == 1
    assert len(list((tmp_path / "in_1x").glob("*.png"))) == 7
    assert "8 of 8 images" not in said
    status, said = run(tmp_path / "in", video=True, work=work)
    assert "7 done before" in said


def test_a_folder_of_frames_without_an_object_fails_alone(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gleansr.photos.task.load_detector", lambda *_: Spot())
    for folder in ("empty", "cats"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            pixels = np.full((32, 64, 3), 90, np.uint8)
            pixels[16, 16 + i] = 255 if folder == "cats" else 90
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    work = Work(Photo(upscaler(16, 2, stripes, category="cats"), PhotoConfig(scale=1, keep_detail=0, require_object=True)), 4)
    status, said = run(tmp_path / "empty", tmp_path / "cats", video=True, work=work)
    assert status == 3, said
    assert f"gleansr: {tmp_path / 'empty'}: no cats found" in said
    assert len(list((tmp_path / "cats_1x").glob("*.png"))) == 4
    assert not (tmp_path / "empty_1x").exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(run, tmp_path: Path, kind: signal.Signals):
    source = clip(tmp_path / "a.mkv", numbered(40))
    calls = 0

    def change(sr: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), kind)
        return sr

    status, said = run(source, source.with_name("missing.mp4"), work=Work(Enlarge(upscaler(None, 2, change)), 2))
    assert status == 128 + kind
    assert f"stopped by {kind.name}" in said
    assert "missing" not in said
    assert calls < 20
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


def test_results_that_exist_are_kept(run, tmp_path: Path):
    source = clip(tmp_path / "a.mp4", numbered(2))
    assert run(source)[0] == 0
    status, said = run(source)
    assert status == 1
    assert "already exists; use --overwrite" in said
    assert run(source, work=Work(Enlarge(upscaler(None, 2)), 4, overwrite=True))[0] == 0


def test_an_error_of_the_task_names_the_frame(run, tmp_path: Path):
    def broken(sr: torch.Tensor) -> torch.Tensor:
        raise ImageError("too bad")

    status, said = run(clip(tmp_path / "a.mp4", numbered(2)), work=Work(Enlarge(upscaler(None, 2, broken)), 4))
    assert status == 1
    assert said.strip() == f"gleansr: {tmp_path / 'a.mp4'}: frame 1: too bad"


def test_quality_is_for_videos_and_the_format_of_images_is_not(
    command: Callable[..., tuple[int, str]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Work] = []
    monkeypatch.setattr("gleansr.cli.video.upscale_videos", lambda _, work, **__: asked.append(work))
    source = clip(tmp_path / "a.mp4", numbered(2))
    assert command("upscale", source, "-o", tmp_path / "b.mkv", "--quality", 100, "-m", tiny_model)[0] == 0
    assert asked[0].quality == 100
    status, said = command("upscale", source, "--format", "jpg", "-m", tiny_model)
    assert (status, "--format is for images" in said) == (2, True), said
