"""Video files: colours, times, sound, metadata and results."""

import json
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gleansr
from gleansr.cli.video import videos_among
from gleansr.errors import ImageError
from gleansr.images.codec import DecodedImage, decode
from gleansr.inference.tasks import Enlarge
from gleansr.jobs import Work
from gleansr.video import Clip, upscale
from gleansr.video.colour import Tags, from_rgb, to_rgb
from gleansr.video.pipeline import process_frames
from gleansr.video.reading import VideoFrame
from tests.photo_parts import stripes, upscaler
from tests.video_parts import av, clip, leftovers, numbered, order, packets, planes, times, work

LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
def test_colours_are_those_of_the_matrix_and_range(matrix: int, full: bool):
    rng = np.random.default_rng(matrix)
    y, cb, cr = rng.integers(60, 180, (16, 16)), *np.kron(rng.integers(100, 150, (2, 2, 2)), np.ones((8, 8), int))
    frame = av.VideoFrame.from_ndarray(np.stack([y, cb, cr]).astype(np.uint8), format="yuv444p")
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    red, blue = LUMA[matrix]
    light, b, r = (y / 255, (cb - 128) / 255, (cr - 128) / 255) if full else ((y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224)
    r, b = light + 2 * (1 - red) * r, light + 2 * (1 - blue) * b
    expected = np.stack([r, (light - red * r - blue * b) / (1 - red - blue), b], -1).clip(0, 1) * 255
    assert np.abs(to_rgb(frame) - expected).max() <= 1


def test_untagged_colours_are_interpreted_as_by_players():
    def grey(rows: int, kind: str) -> np.ndarray:
        frame = av.VideoFrame(16, rows, kind)
        for plane, value in zip(frame.planes, (235, 90, 190), strict=False):
            plane.update(bytes([value]) * plane.buffer_size)
        return to_rgb(frame)[0, 0].astype(int)

    low, high, full = grey(480, "yuv444p"), grey(720, "yuv444p"), grey(480, "yuvj444p")
    assert low[1] != high[1]  # BT.601 and BT.709
    assert full[1] < low[1]  # 235 is white in limited range, less in full range
    assert tuple(grey(480, "gray")) == (235, 235, 235)


@pytest.mark.parametrize(("kind", "most"), [("bgr0", 0), ("yuv420p", 3)])
def test_encoding_keeps_colours(kind: str, most: int):
    pixels = np.kron(np.random.default_rng(0).integers(30, 220, (2, 2, 3)), np.ones((16, 16, 1), int)).astype(np.uint8)
    frame = from_rgb(pixels, kind, Tags())
    back = to_rgb(frame).astype(int)
    assert np.abs((back - pixels).reshape(2, 16, 2, 16, 3)[:, 4:12, :, 4:12]).max() <= most  # away from where colours meet
    assert (frame.color_range, frame.colorspace) == ((2, 0) if kind == "bgr0" else (1, 1))


@pytest.mark.parametrize(
    ("name", "to", "time_base", "exact"),
    [
        ("a.mp4", "b.mp4", Fraction(1001, 30000), 1e-9),
        ("a.mkv", "b.mkv", Fraction(1, 1000), 1e-9),
        ("a.mp4", "b.webm", Fraction(1, 30), 6e-4),
    ],
)
def test_images_keep_times_count_and_order(tmp_path: Path, name: str, to: str, time_base: Fraction, exact: float):
    at = [3, 4, 6, 9, 10, 15, 16, 30, 31, 33, 50]  # variable, and not from 0 on
    source = clip(tmp_path / name, numbered(11), at, time_base)
    summary = upscale(Clip(source), tmp_path / to, work())
    assert summary.images == 11
    assert np.allclose(times(source), [float(time * time_base) for time in at], rtol=0, atol=1.1e-3)
    assert np.allclose(times(tmp_path / to), times(source), rtol=0, atol=exact)
    brightness = order(planes(tmp_path / to))
    assert np.allclose(brightness, order(planes(source)), atol=0.02)
    assert brightness == sorted(brightness)
    assert planes(tmp_path / to)[0].shape == (3, 32, 48)
    assert leftovers(tmp_path) == []


def test_the_last_image_of_an_mp4_keeps_its_duration(tmp_path: Path):
    source = clip(tmp_path / "a.mp4", numbered(5), [0, 1, 2, 3, 13])
    upscale(Clip(source), tmp_path / "b.mp4", work())
    with av.open(source) as before, av.open(tmp_path / "b.mp4") as after:
        assert before.duration == after.duration


def test_results_equal_those_of_single_images(tmp_path: Path):
    source = clip(tmp_path / "a.mkv", numbered(6))
    task = Enlarge(upscaler(None, 2))
    expected = [np.asarray(task.upscaler(DecodedImage(one))) for one in planes(source)]
    upscale(Clip(source), tmp_path / "frames", work())
    upscale(Clip(source), tmp_path / "b.mkv", work(quality=100))
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == [f"{i:06d}.png" for i in range(1, 7)]
    for name, one, kept in zip(names, expected, planes(tmp_path / "b.mkv"), strict=True):
        assert (np.asarray(Image.open(tmp_path / "frames" / name)) == one).all()
        assert (kept.mul(255).round().byte().permute(1, 2, 0).numpy() == one).all()


def test_metadata_of_a_video(tmp_path: Path):
    source = clip(tmp_path / "a.mp4", numbered(3))
    upscale(Clip(source), tmp_path / "b.mp4", work(quality=80))
    with av.open(tmp_path / "b.mp4") as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc) == ("yuv420p", 1, 1, 1, 1)
        assert "generative model" in container.metadata["comment"]
    kinds = [part for part in (b"ftyp", b"moov", b"mdat") if part in (tmp_path / "b.mp4").read_bytes()]
    data = (tmp_path / "b.mp4").read_bytes()
    assert kinds == sorted(kinds, key=data.index)  # the index first, for players that stream


def test_odd_sizes_are_padded(tmp_path: Path):
    source = clip(tmp_path / "a.mkv", numbered(2, (15, 9)))
    upscale(Clip(source), tmp_path / "b.mp4", work(1))
    before, after = planes(source)[0], planes(tmp_path / "b.mp4")[0]
    assert after.shape == (3, 10, 16)
    assert (after[:, :9, :15] - before).abs().mean() < 0.02
    assert (after[:, 9] - after[:, 8]).abs().mean() < 0.02


@pytest.mark.parametrize(("to", "copied"), [("b.mp4", True), ("b.mkv", True), ("b.webm", False)])
def test_sound_is_copied_if_the_container_supports_it(tmp_path: Path, to: str, copied: bool):
    source = clip(tmp_path / "a.mp4", numbered(10), sound="aac")
    summary = upscale(Clip(source), tmp_path / to, work())
    heard = packets(source, "audio")
    if copied:
        assert packets(tmp_path / to, "audio") == (heard if to == "b.mp4" else heard[1:])  # the first only prepares the decoder
        assert np.allclose(times(tmp_path / to), times(source), atol=6e-4)
    else:
        assert packets(tmp_path / to, "audio") == []
        assert "dropped, unsupported by webm: sound (aac)" in summary.notes


def test_subtitles_are_copied_if_the_container_supports_them(tmp_path: Path):
    source = clip(tmp_path / "a.mkv", numbered(4), subtitles=True)
    assert upscale(Clip(source), tmp_path / "b.mkv", work()).notes == ()
    assert packets(tmp_path / "b.mkv", "subtitle") == [b"meow"]
    assert any("subtitles" in note for note in upscale(Clip(source), tmp_path / "b.mp4", work()).notes)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_chapters_and_titles_are_kept(tmp_path: Path, suffix: str):
    with av.open(tmp_path / f"a{suffix}", "w") as container:
        stream = container.add_stream("libx264", rate=25, width=16, height=16, pix_fmt="yuv420p")
        container.metadata["title"] = "Garden"
        parts = [(0, 200, "one"), (200, 400, "two")]
        told = [
            {"id": i, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
            for i, (start, end, title) in enumerate(parts)
        ]
        container.set_chapters(told)
        for i in range(10):
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert upscale(Clip(tmp_path / f"a{suffix}"), tmp_path / "b.mp4", work()).notes == ()
    with av.open(tmp_path / "b.mp4") as container:
        assert container.metadata["title"] == "Garden"
        kept = [(one["start"] * one["time_base"], one["end"] * one["time_base"], one["metadata"]["title"]) for one in container.chapters()]
    assert kept == [(Fraction(start, 1000), Fraction(end, 1000), title) for start, end, title in parts]


@pytest.mark.parametrize("matrix", ["cw", "ccw", "half", "mirrored"])
def test_the_display_matrix_is_applied(tmp_path: Path, matrix: str):
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 255, (2, 3, 3)), np.ones((8, 8, 1), int)).astype(np.uint8)
    source = clip(tmp_path / "a.mp4", [pixels])
    upright = planes(source)[0]
    # The matrix of the track's header, in which (x, y) becomes (a x + c y, b x + d y), as 16.16 numbers.
    a, b, c, d = {"cw": (0, 1, -1, 0), "ccw": (0, -1, 1, 0), "half": (-1, 0, 0, -1), "mirrored": (-1, 0, 0, 1)}[matrix]
    data = bytearray(source.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    for place, value in ((0, a), (4, b), (12, c), (16, d)):
        data[start + place : start + place + 4] = (value << 16).to_bytes(4, "big", signed=True)
    source.write_bytes(data)
    expected = {
        "cw": torch.rot90(upright, -1, (1, 2)),
        "ccw": torch.rot90(upright, 1, (1, 2)),
        "half": torch.rot90(upright, 2, (1, 2)),
        "mirrored": upright.flip(2),
    }
    assert (planes(source)[0] == expected[matrix]).all()


def test_pixels_become_square(tmp_path: Path):
    source = clip(tmp_path / "a.mp4", numbered(2), aspect=Fraction(4, 3))
    footage = Clip(source)
    assert next(footage.frames()).image.pixels.shape == (3, 16, 32)
    assert "pixels of 4:3 became square: 32x16" in footage.notes
    assert planes(clip(tmp_path / "b.mp4", numbered(2), aspect=Fraction(1, 2)))[0].shape == (3, 32, 24)
    upscale(footage, tmp_path / "c.mp4", work())
    assert planes(tmp_path / "c.mp4")[0].shape == (3, 32, 64)


def test_losses_are_noted(tmp_path: Path):
    deep = clip(tmp_path / "a.mkv", numbered(2), codec="ffv1", kind="yuv420p10le")
    assert "10 bits per sample are read as 8" in upscale(Clip(deep), tmp_path / "b.mp4", work()).notes
    alpha = [np.full((16, 16, 4), 200, np.uint8), np.full((16, 16, 4), 255, np.uint8)]
    shown = clip(tmp_path / "b.mkv", alpha, codec="ffv1", kind="bgra")
    opaque = clip(tmp_path / "c.mkv", alpha[1:] * 2, codec="ffv1", kind="bgra")
    assert "transparency is dropped" in upscale(Clip(shown), tmp_path / "c.mp4", work()).notes
    assert upscale(Clip(opaque), tmp_path / "d.mp4", work()).notes == ()


def test_equal_frames_have_equal_results_wherever_they_are(tmp_path: Path, tiny_model: Path):
    rng = np.random.default_rng(0)
    same, other = (rng.integers(0, 255, (8, 8, 3)).astype(np.uint8) for _ in range(2))
    source = clip(tmp_path / "a.mkv", [same, other, *[same] * 8, other])
    model = gleansr.load(tiny_model)
    noise = [value for name, value in gleansr.load_model(tiny_model).state_dict().items() if "noise_" in name and value.ndim == 4]
    assert noise  # of which each image gets the same
    for batch in (1, 2, 4, 8):
        found: list[np.ndarray] = []
        process_frames(Clip(source).frames(), Enlarge(model), batch, lambda _, result, found=found: found.append(np.asarray(result.image)))
        assert all((found[i] == found[0]).all() for i in (0, 2, 3, 4, 5, 6, 7, 8, 9))
        assert (found[10] == found[1]).all()
        assert (found[1] != found[0]).any()


def test_few_frames_are_pending_and_all_are_written_in_order():
    read: list[int] = []
    written: list[int] = []
    most = 0

    def frames() -> Iterator[VideoFrame]:
        for i in range(60):
            read.append(i)
            yield VideoFrame(DecodedImage(torch.full((3, 4, 4), i / 60)), i, 1)

    def write(frame: VideoFrame, _: object) -> None:
        nonlocal most
        time.sleep(0.002)
        most = max(most, len(read) - len(written))
        assert frame.image.pixels.numel() == 0
        written.append(frame.time)

    process_frames(frames(), Enlarge(upscaler(None, 2)), 3, write)
    assert written == list(range(60))
    assert 3 < most <= 16
    most, read, written = 0, [], []
    process_frames(frames(), Enlarge(upscaler(None, 2)), 3, write, memory=1)  # where one is already too much
    assert written == list(range(60))
    assert most <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gleansr-video")]


def test_the_sidecar_of_a_video(tmp_path: Path):
    source = clip(tmp_path / "a.mkv", numbered(3))
    task = Enlarge(upscaler(None, 2, stripes), measured=True)
    upscale(Clip(source), tmp_path / "b.mp4", Work(task, 4, sidecar=True))
    told = json.loads((tmp_path / "b.json").read_text())
    assert told["details"]["frames"] == 3
    assert told["details"]["consistency_db"]["least"] <= told["details"]["consistency_db"]["mean"]
    assert told["source"] == str(source)
    assert len(told["sha256"]) == 64


@pytest.mark.parametrize("suffix", [".webm", ".mkv", ".mp4"])
def test_a_video_that_starts_late_keeps_its_times(suffix: str, tmp_path: Path):
    source = clip(tmp_path / f"late{suffix}", numbered(8), times=range(50, 58))
    frames = list(Clip(source).frames())
    assert [float(frame.time * Clip(source).time_base) for frame in frames] == pytest.approx([2 + i / 25 for i in range(8)])
    assert Clip(source).expected in (8, None)
    upscale(Clip(source), tmp_path / f"large{suffix}", Work(Enlarge(upscaler(None, 2)), 4))
    again = Clip(tmp_path / f"large{suffix}")
    assert [float(frame.time * again.time_base) for frame in again.frames()] == pytest.approx([2 + i / 25 for i in range(8)], abs=0.001)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".3gp", "mpeg4"),
        (".ts", "libx264"),
        (".m2ts", "libx264"),
        (".wmv", "wmv2"),
        (".flv", "flv"),
        (".mpg", "mpeg2video"),
        (".mov", "mpeg4"),
    ],
)
def test_other_containers_are_read_from_0(suffix: str, codec: str, tmp_path: Path):
    source = clip(tmp_path / f"a{suffix}", numbered(8), codec=codec, kind="yuv420p", options={"qmin": "2", "qmax": "2"})
    footage = Clip(source)
    frames = list(footage.frames())
    assert len(frames) == 8
    assert [float(frame.time * footage.time_base) for frame in frames] == pytest.approx([i / 25 for i in range(8)], abs=0.002)
    ordered = order([frame.image.pixels for frame in frames])
    assert ordered == sorted(ordered)
    assert videos_among([source], None, video=False, rate=None, detect_every=None, detects=False)
    bare = source.rename(tmp_path / "bare")
    assert videos_among([bare], None, video=False, rate=None, detect_every=None, detects=False)
    assert len(list(Clip(bare).frames())) == 8


def test_sound_of_a_transport_stream_stays_with_its_images(tmp_path: Path):
    source = clip(tmp_path / "a.ts", numbered(25), sound="aac")
    upscale(Clip(source), tmp_path / "b.mp4", Work(Enlarge(upscaler(None, 2)), 4))
    with av.open(tmp_path / "b.mp4") as container:
        starts = [float(stream.start_time * stream.time_base) for stream in container.streams]
    assert starts == pytest.approx([0, 0], abs=0.06)


def test_suffixes_that_contradict_the_content(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.mp4")
    with pytest.raises(ImageError, match=r"a\.mp4: is not a video but a PNG image: rename it to a\.png"):
        Clip(tmp_path / "a.mp4")
    clip(tmp_path / "b.mkv", numbered(2)).rename(tmp_path / "b.png")
    assert videos_among([tmp_path / "b.png"], None, video=False, rate=None, detect_every=None, detects=False) is None
    with pytest.raises(ImageError, match=r"b\.png: is a video \(Matroska\), not an image: rename it to b\.mkv"):
        decode(tmp_path / "b.png")
