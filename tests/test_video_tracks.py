"""Tracking of objects through a video: linking, dropping, filling and smoothing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gleansr.errors import NoObjectError, RequestError
from gleansr.images.codec import DecodedImage
from gleansr.inference.categories import Category
from gleansr.inference.router import Models
from gleansr.inference.tasks import TaskResult
from gleansr.jobs import Work
from gleansr.photos import AutoTask, Photo, PhotoConfig, auto, search
from gleansr.photos.align import Frame, crop, make_frame
from gleansr.photos.detect import Detection
from gleansr.video import Clip, TrackConfig, needs_tracking, upscale
from gleansr.video.pipeline import process_frames
from gleansr.video.reading import Footage, FrameFolder, VideoFrame
from gleansr.video.tracking import TrackedObjects, link, local_linear_fit, median_filter, smooth_frames, track_objects
from tests.photo_parts import stripes, upscaler
from tests.video_parts import av, clip

EVERY = TrackConfig(detect_every=1)


def seen(x: float, y: float = 50, side: float = 20, angle: float = 0, score: float = 1.0) -> Detection:
    return Detection((x - side / 2, y - side / 2, side, side), Frame(x, y, side, side, angle), score)


def at(count: int, rate: float = 25) -> list[float]:
    return [i / rate for i in range(count)]


def test_uniform_motion_is_preserved():
    sightings = {i: [seen(10 + 1.5 * i, 90 - i, 20 + 0.5 * i, -170 - 2.5 * i if i < 4 else 190 - 2.5 * i)] for i in range(40)}
    [track] = link(sightings, at(40), [], EVERY)
    frames = smooth_frames(track, at(40), EVERY)
    assert sorted(frames) == list(range(40))
    for i, frame in frames.items():
        assert (frame.x, frame.y, frame.width, frame.height) == pytest.approx((10 + 1.5 * i, 90 - i, 20 + 0.5 * i, 20 + 0.5 * i), abs=1e-6)
        assert np.cos(np.radians(frame.angle + 170 + 2.5 * i)) == pytest.approx(1, abs=1e-9)  # across the half turn
        assert -180 < frame.angle <= 180
        assert frame.angle  # upright frames would be rounded to whole pixels


def test_jitter_shrinks_and_nothing_lags():
    rng = np.random.default_rng(0)
    times = np.array(at(200))
    path = 100 + 20 * np.sin(2 * np.pi * times / 4)
    sightings = {i: [seen(path[i] + rng.normal(0, 1), 50, 40 * np.exp(rng.normal(0, 0.1)))] for i in range(200)}
    [track] = link(sightings, at(200), [], EVERY)
    frames = smooth_frames(track, at(200), EVERY)
    before = np.array([[one[0].frame.x, one[0].frame.width] for one in sightings.values()])
    after = np.array([[frames[i].x, frames[i].width] for i in range(200)])
    steps = [np.diff(values - np.column_stack([path, np.full(200, 40)]), axis=0).std(0) for values in (before, after)]
    assert (steps[1] < steps[0] * [0.1, 0.05]).all()
    lags = [
        float(((after[10:-10, 0] - 100) * 20 * np.sin(2 * np.pi * (times[10:-10] - lag) / 4)).mean()) for lag in np.arange(-0.2, 0.21, 0.02)
    ]
    assert abs(int(np.argmax(lags)) - 10) <= 1
    backwards = local_linear_fit(-times[::-1], before[::-1], 0.1)[::-1]
    assert np.allclose(backwards, local_linear_fit(times, before, 0.1))


def test_smoothing_is_a_weighted_fit_of_lines_at_any_times():
    rng = np.random.default_rng(0)
    times, values = np.cumsum(rng.uniform(0.01, 0.1, 30)), rng.normal(0, 1, (30, 2))
    for i, found in enumerate(local_linear_fit(times, values, 0.12)):
        root = np.exp(-0.25 * ((times - times[i]) / 0.12) ** 2)[:, None]
        fit = np.linalg.lstsq(root * np.column_stack([np.ones(30), times - times[i]]), root * values, rcond=None)[0]
        assert np.allclose(found, fit[0], atol=2e-3)  # weights end after four deviations
    assert np.allclose(local_linear_fit(np.array([1.0]), np.array([[5.0]]), 0.1), 5)


def test_single_outliers_have_no_effect():
    sightings = {i: [seen(50, side=30 if i in (7, 15) else 20)] for i in range(25)}
    [track] = link(sightings, at(25), [], EVERY)
    assert all(frame.width == pytest.approx(20) for frame in smooth_frames(track, at(25), EVERY).values())
    assert (median_filter(np.arange(9.0)[:, None], 2) == np.arange(9.0)[:, None]).all()


def test_blips_are_dropped_and_gaps_are_filled():
    sightings: dict[int, Sequence[Detection]] = {i: [] if 10 <= i < 18 else [seen(20 + 2 * i)] for i in range(40)}
    sightings[5] = [*sightings[5], seen(300)]
    sightings[6] = [*sightings[6], seen(301)]
    [track] = link(sightings, at(40), [], EVERY)
    frames = smooth_frames(track, at(40), EVERY)
    assert sorted(frames) == list(range(40))
    assert [frames[i].x for i in range(40)] == pytest.approx([20 + 2 * i for i in range(40)])
    lost = {i: [] if 10 <= i < 30 else [seen(100)] for i in range(40)}  # for longer than half a second
    assert [(one.numbers[0], one.numbers[-1]) for one in link(lost, at(40), [], EVERY)] == [(0, 9), (30, 39)]


def test_two_objects_stay_two():
    sightings = {i: [seen(60 + i, 40, score=2), seen(200 - i, 90)][:: 1 if i % 2 else -1] for i in range(50)}
    tracks = link(sightings, at(50), [], EVERY)
    assert [one.score for one in tracks] == [2, 1]
    assert {one.frame.y for one in tracks[0].detections} == {40}
    sizes = {i: [seen(60, side=20), seen(62, side=60)] for i in range(10)}
    assert len(link(sizes, at(10), [], EVERY)) == 2


def test_nothing_is_linked_or_smoothed_across_a_cut():
    sightings = {i: [seen(100 if i < 20 else 108)] for i in range(40)}
    assert len(link(sightings, at(40), [], EVERY)) == 1
    first, second = sorted(link(sightings, at(40), [20], EVERY), key=lambda one: one.numbers)
    assert {round(frame.x, 6) for frame in smooth_frames(first, at(40), EVERY).values()} == {100}
    assert {round(frame.x, 6) for frame in smooth_frames(second, at(40), EVERY).values()} == {108}


def test_short_scenes_keep_objects_detected_throughout():
    assert len(link({0: [seen(10)], 1: [seen(11)]}, at(2), [], EVERY)) == 1
    assert len(link({0: [seen(10)], 1: []}, at(2), [], EVERY)) == 0


@pytest.mark.parametrize("wrong", [{"detect_every": 0}, {"smooth": -1}, {"smooth": float("nan")}, {"gap": 11}, {"min_detections": 0}])
def test_settings_out_of_bounds_are_refused(wrong: dict[str, float]):
    with pytest.raises(RequestError):
        TrackConfig(**wrong)  # type: ignore[arg-type]


@dataclass
class Spot:
    """Detects the brightest pixel of an image, as a square of 12 pixels, if it is bright."""

    calls: list[bool] = field(default_factory=list)
    blind: bool = False
    """Whether only a search for rotated objects detects it."""

    def detect(self, photo: Tensor, *, min_score: float | None, rotated: bool) -> list[Detection]:  # noqa: ARG002
        self.calls.append(rotated)
        if float(photo.max()) < 0.9 or (self.blind and not rotated):
            return []
        y, x = divmod(int(photo[0].argmax()), photo.shape[2])
        return [seen(x + 0.5, y + 0.5, 12)]


def spots(places: Sequence[int | None], brightness: Sequence[float] | None = None) -> Iterator[VideoFrame]:
    """Images of 64x32 with a white pixel at the given column, or none."""
    for i, place in enumerate(places):
        pixels = torch.full((3, 32, 64), brightness[i] if brightness else 0.3)
        if place is not None:
            pixels[:, 16, place] = 1
        yield VideoFrame(DecodedImage(pixels, name=f"n{i}"), i, 1)


def track(frames: Iterator[VideoFrame], detector: Spot, config: TrackConfig, **options: bool) -> TrackedObjects:
    [found] = track_objects(frames, Fraction(1, 25), Fraction(25), [detector], config, PhotoConfig(**options))  # type: ignore[arg-type]
    return found


def test_few_images_are_searched_and_the_others_are_interpolated():
    detector = Spot()
    found = track(spots(range(10, 51)), detector, TrackConfig(detect_every=6), rotated=False)
    assert len(detector.calls) == found.searched == 8  # 0, 6, ... 36, and the last
    assert [found.detections[f"n{i}"][0].frame.x for i in range(41)] == pytest.approx([10.5 + i for i in range(41)])
    assert len(track(spots(range(10, 51)), Spot(), TrackConfig(), rotated=False).detections) == 41


def test_both_sides_of_a_cut_are_searched():
    brightness = [0.2] * 10 + [0.6] * 10
    found = track(spots([20] * 10 + [25] * 10, brightness), Spot(), TrackConfig(detect_every=7))
    assert found.cuts == [10]
    assert [found.detections[f"n{i}"][0].frame.x for i in range(20)] == pytest.approx([20.5] * 10 + [25.5] * 10)


def test_searches_for_rotated_objects_are_rare():
    detector = Spot()
    track(spots([20] * 50), detector, EVERY)
    assert sum(detector.calls) == 2  # in two seconds
    detector = Spot(blind=True)
    found = track(spots([20] * 10), detector, EVERY)
    assert sum(detector.calls) == 10  # what was found so would be lost otherwise
    assert all(found.detections.values())
    assert not any(track(spots([20] * 10), Spot(blind=True), EVERY, rotated=False).detections.values())


def moving(tmp_path: Path) -> Path:
    images = []
    for i in range(12):
        pixels = np.full((32, 64, 3), 90, np.uint8)
        pixels[12:20, 12 + 2 * i : 20 + 2 * i] = 120
        pixels[16, 16 + 2 * i] = 255
        images.append(pixels)
    return clip(tmp_path / "a.mkv", images)


def test_tracked_objects_are_pasted_at_their_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gleansr.photos.task.load_detector", lambda *_: Spot())
    task = Photo(upscaler(16, 2, stripes, category="cats"), PhotoConfig(scale=2, keep_detail=0))
    plain = Photo(task.upscaler, PhotoConfig(scale=2), detections={})
    source = moving(tmp_path)
    assert needs_tracking(task, Clip(source))
    assert not needs_tracking(Photo(task.upscaler, PhotoConfig(aligned=True)), Clip(source))
    summary = upscale(Clip(source), tmp_path / "b.mkv", Work(task, 4, quality=100), EVERY)
    assert summary.notes[0] == "1 cat tracked in 12 of 12 frames"
    [said] = summary.details["objects"]
    assert (said["from"], said["to"], said["found"]) == (0, 0.44, 12)
    results: list[TaskResult] = []
    process_frames(Clip(source).frames(), plain, 4, lambda _, result: results.append(result))
    for i, (frame, without) in enumerate(zip(Clip(tmp_path / "b.mkv").frames(), results, strict=True)):
        changed = (frame.image.pixels * 255 - torch.from_numpy(np.array(without.image)).permute(2, 0, 1)).abs().amax(0) > 2
        middle = changed.nonzero().float().mean(0)
        assert middle.tolist() == pytest.approx([33, 2 * (16.5 + 2 * i)], abs=1.5)


def test_a_given_box_disables_tracking(tmp_path: Path):
    task = Photo(upscaler(16, 2, stripes), PhotoConfig(boxes=((8, 8, 16, 16),), scale=1))
    source = moving(tmp_path)
    assert not needs_tracking(task, Clip(source))
    details: list[object] = []
    process_frames(Clip(source).frames(), task, 4, lambda _, result: details.append(result.details["objects"][0]["frame"]))
    assert details == [[[8, 8], [24, 8], [24, 24], [8, 24]]] * 12


def test_a_video_without_an_object_is_enlarged_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = clip(tmp_path / "a.mkv", [np.full((16, 16, 3), 90, np.uint8)] * 4)
    monkeypatch.setattr("gleansr.photos.task.load_detector", lambda *_: Spot())
    task = Photo(upscaler(16, 2, stripes, category="cats"), PhotoConfig(scale=2))
    assert upscale(Clip(source), tmp_path / "b.mkv", Work(task, 4)).notes == ("no cats found in 3 searched frames",)
    task = Photo(task.upscaler, PhotoConfig(scale=2, require_object=True))
    with pytest.raises(NoObjectError, match="no cats found"):
        upscale(Clip(source), tmp_path / "c.mkv", Work(task, 4))
    assert not (tmp_path / "c.mkv").exists()


def test_a_video_gets_the_models_that_its_objects_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    detectors = {"faces": Spot(blind=True), "cats": Spot()}
    models = {"cats-2x": upscaler(16, 2, stripes, called="cats-2x"), "general-4x": upscaler(None, 2, called="general-4x")}
    monkeypatch.setattr(search, "load_detector", lambda category, *_, **__: detectors[category])
    monkeypatch.setattr(search, "classify", lambda _: Category("cats", 1.0))  # so that the face is a mistake
    monkeypatch.setattr(auto, "best_model", lambda *_: SimpleNamespace(name="cats-2x"))
    task = AutoTask(PhotoConfig(scale=2, keep_detail=0), models=cast("Models", models), photo=True)
    source = moving(tmp_path)
    assert needs_tracking(task, Clip(source))
    work = Work(task, 4, quality=100, sidecar=True)
    summary = upscale(Clip(source), tmp_path / "b.mkv", work, EVERY)
    assert summary.notes[0] == "1 cat tracked in 12 of 12 frames"
    [said] = summary.details["objects"]
    assert (said["category"], said["found"]) == ("cats", 12)
    facts = json.loads((tmp_path / "b.json").read_text())
    assert "known" in facts["options"]
    assert facts["model"] == "cats-2x, general-4x"
    with av.open(tmp_path / "b.mkv") as container:
        comments = {name.lower(): text for name, text in container.metadata.items()}
        assert "(model cats-2x, general-4x)" in comments["comment"]
    results: list[TaskResult] = []
    process_frames(Clip(source).frames(), task.with_objects({}), 4, lambda _, result: results.append(result))
    for i, (frame, without) in enumerate(zip(Clip(tmp_path / "b.mkv").frames(), results, strict=True)):
        changed = (frame.image.pixels * 255 - torch.from_numpy(np.array(without.image)).permute(2, 0, 1)).abs().amax(0) > 2
        assert changed.nonzero().float().mean(0).tolist() == pytest.approx([33, 2 * (16.5 + 2 * i)], abs=1.5)
    monkeypatch.setattr(auto, "LARGEST", 0.5)
    assert "1 of 1 enlarged like the rest" in upscale(Clip(source), tmp_path / "c.mkv", work, EVERY).notes[1]
    monkeypatch.setattr(search, "classify", lambda _: Category("other", 1.0))
    assert upscale(Clip(source), tmp_path / "d.mkv", work, EVERY).notes[0] == "no face or cat found"
    assert not needs_tracking(AutoTask(PhotoConfig(aligned=True), models=cast("Models", models), photo=True), Clip(source))


@pytest.mark.parametrize("frames", [False, True])
def test_objects_of_a_named_model_are_tracked_in_frames_larger_than_thumbnails(tmp_path: Path, *, frames: bool):
    def footage(height: int, width: int) -> Footage:
        images = [np.full((height, width, 3), 90, np.uint8)] * 2
        if not frames:
            return Clip(clip(tmp_path / f"{width}.mkv", images))
        folder = tmp_path / f"{width}"
        folder.mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i}.png")
        return FrameFolder(folder)

    thumbnails, large = footage(24, 32), footage(32, 64)
    cats, cars = (AutoTask(model=upscaler(16, 2, category=category)) for category in ("cats", "cars"))
    assert not needs_tracking(cats, thumbnails)  # at most twice the model's input: each frame is one cat
    assert needs_tracking(cats, large)
    assert not needs_tracking(cars, large)  # for which there is no detector
    assert not needs_tracking(AutoTask(model=upscaler(None, 2)), large)


def test_options_depend_on_the_given_detections(tmp_path: Path):
    def options(x: float) -> object:
        return Photo(upscaler(16, 2), PhotoConfig(), detections={"a": [seen(x)]}).options["known"]

    assert options(10) == options(10)
    assert options(10) != options(10.5)
    assert "known" not in Photo(upscaler(16, 2), PhotoConfig(aligned=True)).options


def test_unrounded_frames_move_the_models_input_smoothly():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    photo = (0.5 + 0.4 * torch.sin(x / 5) * torch.cos(y / 7))[None].expand(3, -1, -1)
    steps = []
    for frames in ([Frame(40 + 0.25 * i, 32, 32, 32, 1e-6) for i in range(9)], [make_frame(40 + 0.25 * i, 32, 32) for i in range(9)]):
        lows = torch.stack([crop(photo, frame, 16, 16) for frame in frames])
        steps.append((lows[1:] - lows[:-1]).abs().mean((1, 2, 3)))
    assert steps[0].max() < 2 * steps[0].min()
    assert steps[1].max() > 2 * steps[0].max()
    assert steps[1].min() == 0
