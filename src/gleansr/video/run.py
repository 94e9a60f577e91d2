"""Upscales a video: tracks its objects, enlarges its frames, writes the result."""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gleansr.errors import NoObjectError
from gleansr.files import sha256_of
from gleansr.inference.method import StepReport
from gleansr.inference.tasks import ImageTask, TaskResult
from gleansr.jobs import Work
from gleansr.jobs.steps import sidecar
from gleansr.photos import Photo
from gleansr.photos.detect import nouns
from gleansr.photos.task import load_detector
from gleansr.video.pipeline import process_frames
from gleansr.video.reading import Footage, VideoFrame
from gleansr.video.tracking import TrackConfig, TrackedObjects, track_objects
from gleansr.video.writing import check_target, open_sink

_MAX_NOTES = 8
"""Largest number of different notes about single images in a summary."""


@dataclass(frozen=True)
class Summary:
    """The result of a video."""

    images: int
    notes: tuple[str, ...]
    details: Mapping[str, Any]
    """Measurements and tracked objects, as plain JSON values."""


def needs_tracking(task: ImageTask) -> bool:
    """Whether a task's objects must be tracked first: it detects them, instead of using given boxes."""
    return isinstance(task, Photo) and not (task.config.boxes or task.config.aligned)


def track_video(
    footage: Footage,
    task: Photo,
    config: TrackConfig,
    *,
    stopped: Callable[[], bool] = lambda: False,
    on_read: Callable[[int], object] | None = None,
    frames: Iterator[VideoFrame] | None = None,
) -> TrackedObjects:
    """Tracks the objects of a task's category through a video; see `track_objects`.

    Args:
        footage: the video.
        task: whose settings of the detector apply.
        config: of the tracking.
        stopped: called for each image; stops the pass if true.
        on_read: called with the number of images read.
        frames: replace those of `footage`.

    Raises:
        NoObjectError: no object is found, and the task's config requires one.
        SearchStoppedError, ImageError: as `track_objects`.
    """
    detector = load_detector(task.upscaler.category, task.upscaler.about.name or "the model")
    objects = track_objects(
        frames or footage.frames(), footage.time_base, footage.rate, detector, config, task.config, stopped=stopped, on_read=on_read
    )
    if task.config.require_object and not objects.tracks:
        raise NoObjectError(
            f"{footage.name}: {_count(objects, task)}; give --box x,y,w,h, or use --aligned if each whole frame is one object"
        )
    return objects


def upscale(
    footage: Footage,
    target: Path,
    work: Work,
    config: TrackConfig | None = None,
    *,
    stopped: Callable[[], bool] = lambda: False,
    on_read: Callable[[int], object] | None = None,
    on_written: Callable[[int], object] | None = None,
    report: StepReport | None = None,
) -> Summary:
    """Enlarges a video, frame by frame.

    Args:
        footage: a `Clip` or a `FrameFolder`.
        target: a file .mp4, .mkv or .webm, or a folder for frames.
        work: the task for each image, the quality, whether to replace a target, and whether to write NAME.json.
        config: of the tracking, for whole photographs.
        stopped: called repeatedly; once true, nothing is written.
        on_read: called with the number of images read in the tracking pass, if there is one.
        on_written: called with the number of images written.
        report: called with the progress of a slow method in each batch.

    Raises:
        SearchStoppedError: `stopped` returned true.
        OutputError: no result can be written, of this video or another.
        GleansrError: the video cannot be read or written.
    """
    check_target(target, overwrite=work.overwrite, sidecar=work.sidecar)
    task, objects, notes = work.task, None, list[str]()
    if isinstance(task, Photo) and needs_tracking(task):
        objects = track_video(footage, task, config or TrackConfig(), stopped=stopped, on_read=on_read)
        notes.append(_count(objects, task))
        task = Photo(task.upscaler, task.config, background=task.background, detections=objects.detections)
    image_notes: Counter[str] = Counter()
    consistencies: list[float] = []
    written = 0

    with open_sink(target, footage, quality=work.quality, model=task.upscaler.about.name, overwrite=work.overwrite) as sink:

        def write(frame: VideoFrame, result: TaskResult) -> None:
            nonlocal written
            sink.add(result.image, frame.time, frame.duration)
            image_notes.update(list(dict.fromkeys(result.notes)))
            consistencies.extend(_consistencies(result.details))
            written += 1
            if on_written:
                on_written(written)

        process_frames(footage.frames(), task, work.batch_size, write, stopped=stopped, report=report)
    notes += [*_summarise(image_notes, written), *footage.notes, *sink.notes]
    details: dict[str, Any] = {"frames": written}
    if consistencies:
        details["consistency_db"] = {"mean": round(statistics.fmean(consistencies), 2), "least": min(consistencies)}
    if objects:
        details["cuts"] = [round(objects.times[number], 4) for number in objects.cuts]
        details["objects"] = [
            {
                "from": round(objects.times[track.numbers[0]], 4),
                "to": round(objects.times[track.numbers[-1]], 4),
                "found": len(track.numbers),
                "score": round(track.score, 3),
            }
            for track in objects.tracks
        ]
    summary = Summary(written, tuple(dict.fromkeys(notes)), details)
    if work.sidecar:
        _write_sidecar(footage, target, work, task, summary)
    return summary


def _count(objects: TrackedObjects, task: Photo) -> str:
    """A note on the number of tracked objects."""
    singular, plural = nouns(task.upscaler.category)
    count, frames = len(objects.tracks), sum(bool(detections) for detections in objects.detections.values())
    if not count:
        return f"no {plural} found in {objects.searched} searched frames"
    return f"{count} {singular if count == 1 else plural} tracked in {frames} of {len(objects.names)} frames"


def _summarise(notes: Counter[str], total: int) -> Sequence[str]:
    """The most frequent notes about single images, with the number of images if not all have them."""
    lines = [note if count == total else f"{note} (in {count} of {total} frames)" for note, count in notes.most_common(_MAX_NOTES)]
    return [*lines, *([f"and {len(notes) - _MAX_NOTES} other notes"] if len(notes) > _MAX_NOTES else [])]


def _consistencies(details: Mapping[str, Any]) -> list[float]:
    """Of an image and its objects."""
    values = [details.get("consistency_db"), *(item.get("consistency_db") for item in details.get("objects", ()))]
    return [value for value in values if value is not None]


def _write_sidecar(footage: Footage, target: Path, work: Work, task: ImageTask, summary: Summary) -> None:
    """Writes NAME.json beside a result."""
    contents = {
        "source": footage.name,
        "target": str(target),
        "sha256": footage.source and sha256_of(footage.source),
        "model": task.upscaler.about.name,
        "model_sha256": work.model_sha256,
        "options": {**work.settings, **task.options, "quality": work.quality},
        "notes": summary.notes,
        "details": summary.details,
    }
    work.storage.write(sidecar(str(target)), json.dumps(contents, indent=2).encode() + b"\n")
