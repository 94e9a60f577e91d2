"""Damaged and hostile videos, other files, full disks, stops: one-line errors, and no partial files."""

import errno
import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gleansr.errors import ImageError, RequestError
from gleansr.inference.tasks import Enlarge
from gleansr.jobs import OutputError, Work
from gleansr.jobs.pipeline import SearchStoppedError
from gleansr.video import Clip, FrameFolder, upscale
from gleansr.video import pyav as libav
from gleansr.video.writing import _File
from tests.photo_parts import upscaler
from tests.video_parts import av, clip, leftovers, numbered, work


def cut_off(path: Path, share: float) -> Path:
    short = path.with_stem(f"{path.stem}-short")
    short.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return short


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("name", "faststart"), [("a.mp4", False), ("a.mp4", True), ("a.mkv", False), ("a.webm", False)])
def test_a_truncated_video_is_refused(tmp_path: Path, name: str, faststart: bool, share: float):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (32, 32, 3)).astype(np.uint8) for _ in range(50)]
    short = cut_off(clip(tmp_path / name, images, faststart=faststart), share)
    with pytest.raises(ImageError, match="cut off") as caught:
        upscale(Clip(short), tmp_path / "b.mp4", work())
    assert str(caught.value).startswith(str(short))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b.mp4").exists()
    assert leftovers(tmp_path) == []


def test_files_other_than_videos_are_refused(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    (tmp_path / "image.mp4").write_bytes((tmp_path / "image.png").read_bytes())
    (tmp_path / "text.mp4").write_text("no video " * 100)
    (tmp_path / "empty.mp4").touch()
    clip(tmp_path / "real.mp4", numbered(2))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile real.mp4\n")  # would make us read other files
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/real.mp4\n#EXT-X-ENDLIST\n"
    (tmp_path / "playlist.mp4").write_text(playlist)
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    said = {
        "image.mp4": "is not a video but a PNG image",
        "text.mp4": "not a video of a supported format",
        "empty.mp4": "is empty",
        "list.mp4": "not a video of a supported format",
        "playlist.mp4": "not a video of a supported format",
        "folder.mp4": "is not a file",
        "pipe.mp4": "is not a file",
        "missing.mp4": "there is no such file",
    }
    for name, words in said.items():
        with pytest.raises(ImageError, match=words):
            Clip(tmp_path / name)


def test_files_without_images_are_refused(tmp_path: Path):
    with av.open(tmp_path / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ImageError, match="no video stream, only audio"):
        Clip(tmp_path / "sound.mp4")
    with av.open(tmp_path / "none.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=16, height=16, pix_fmt="bgr0")
        container.start_encoding()
    with pytest.raises(ImageError, match="damaged or cut off"):
        upscale(Clip(tmp_path / "none.mkv"), tmp_path / "b.mkv", work())
    assert not (tmp_path / "b.mkv").exists()


def test_a_damaged_video_is_refused_in_one_line(tmp_path: Path):
    rng = np.random.default_rng(0)
    source = clip(tmp_path / "a.mp4", [rng.integers(0, 255, (32, 32, 3)).astype(np.uint8) for _ in range(30)])
    data = source.read_bytes()
    for seed in range(20):
        places = np.random.default_rng(seed).integers(0, len(data), 60)
        broken = bytearray(data)
        for place in places:
            broken[place] ^= 0xFF
        source.write_bytes(broken)
        try:
            upscale(Clip(source), tmp_path / f"b{seed}.mp4", work())
        except ImageError as error:
            assert "\n" not in str(error)  # noqa: PT017, others get through
            assert not (tmp_path / f"b{seed}.mp4").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("after", [0, 500, 5000])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_a_full_disk_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, after: int):
    rng = np.random.default_rng(0)
    source = clip(tmp_path / "a.mkv", [rng.integers(0, 255, (32, 32, 3)).astype(np.uint8) for _ in range(20)])
    usual, written = _File.write, 0

    def write(self: _File, data: memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > after:
            self.error = OSError(errno.ENOSPC, "No space left on device")
            raise self.error
        return usual(self, data)

    monkeypatch.setattr(_File, "write", write)
    with pytest.raises(OutputError, match="cannot be written: no space left on device"):
        upscale(Clip(source), tmp_path / f"b{suffix}", work())
    assert not (tmp_path / f"b{suffix}").exists()
    assert leftovers(tmp_path) == []


def test_failed_and_stopped_videos_leave_no_files(tmp_path: Path):
    source = clip(tmp_path / "a.mkv", numbered(40))
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="cannot be written"):
        upscale(Clip(source), tmp_path / "file" / "b.mp4", work())
    for target in (tmp_path / "b.mp4", tmp_path / "frames"):
        done: list[int] = []
        with pytest.raises(SearchStoppedError):
            upscale(Clip(source), target, work(), stopped=lambda done=done: len(done) > 5, on_written=done.append)

        def broken(sr: torch.Tensor) -> torch.Tensor:
            raise ImageError("broken")

        with pytest.raises(ImageError, match=r"a\.mkv: frame 1: broken"):
            upscale(Clip(source), target, Work(Enlarge(upscaler(None, 2, broken)), 4))
        assert not target.exists()
    assert leftovers(tmp_path) == []


def test_results_are_replaced_only_when_asked(tmp_path: Path):
    source = clip(tmp_path / "a.mkv", numbered(3))
    for target in (tmp_path / "b.mp4", tmp_path / "frames"):
        upscale(Clip(source), target, work())
        with pytest.raises(ImageError, match="--overwrite"):
            upscale(Clip(source), target, work())
        upscale(Clip(source), target, work(overwrite=True))
    (tmp_path / "taken").touch()
    with pytest.raises(ImageError, match="is a file"):
        upscale(Clip(source), tmp_path / "taken", work())
    assert leftovers(tmp_path) == []


def test_frames_of_different_sizes_are_refused(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16 + 2 * (i == 2))).save(tmp_path / "in" / f"{i}.png")
    with pytest.raises(ImageError, match="of one size, not 32x32 and 32x36"):
        upscale(FrameFolder(tmp_path / "in"), tmp_path / "b.mp4", work())
    assert leftovers(tmp_path) == []


def test_without_pyav_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = clip(tmp_path / "a.mkv", numbered(2))
    usual = importlib.import_module

    def missing(name: str) -> object:
        if name == "av":
            raise ImportError("no av")
        return usual(name)

    libav.pyav.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    try:
        with pytest.raises(RequestError, match=r"pip install 'gleansr\[video\]'"):
            Clip(source)
    finally:
        libav.pyav.cache_clear()
