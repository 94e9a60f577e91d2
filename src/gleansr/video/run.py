"""Upscales a video: tracks its objects, enlarges its frames, writes the result."""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from gleansr.errors import NoObjectError
from gleansr.files import sha256_of
from gleansr.inference.method import StepReport
from gleansr.inference.tasks import ImageTask, TaskResult
from gleansr.inference.upscaler import Upscaler
from gleansr.jobs import Work
from gleansr.jobs.steps import sidecar
from gleansr.photos import AutoTask, Photo
from gleansr.photos.detect import nouns
from gleansr.photos.search import large_objects
from gleansr.photos.task import PhotoObject
from gleansr.video.pipeline import process_frames
from gleansr.video.reading import Footage, VideoFrame
from gleansr.video.tracking import Track, TrackConfig, TrackedObjects, track_objects
from gleansr.video.writing import check_target, open_sink

_MAX_NOTES = 8
"""Largest number of different notes about single images in a summary."""


@dataclass(frozen=True)
class Summary:
    """The result of a video."""

    images: int
    size: tuple[int, int]
    """Width and height of the result, (0, 0) without frames."""
    models: tuple[str, ...]
    """Names of the models that worked."""
    notes: tuple[str, ...]
    details: Mapping[str, Any]
    """Measurements and tracked objects, as plain JSON values."""


@dataclass(frozen=True, eq=False)
class Tracking:
    """The tracked objects of a video, and the task that enlarges them."""

    task: Photo | AutoTask
    """Of which the settings of the detector apply."""
    objects: Mapping[str, TrackedObjects]
    """By category."""

    def task_with_objects(self, *others: "Tracking") -> ImageTask:
        """The task with the known objects of this video, and of others."""
        return self.task.with_objects({name: known for tracking in (self, *others) for name, known in tracking._known().items()})

    @property
    def cuts(self) -> list[float]:
        """Seconds at which new scenes start."""
        return next(([objects.times[number] for number in objects.cuts] for objects in self.objects.values()), [])

    @property
    def notes(self) -> list[str]:
        """What was found, for the user."""
        counts = [_count(category, objects) for category, objects in self.objects.items() if objects.tracks]
        if isinstance(self.task, Photo):
            return counts or [f"no {category} found in {objects.searched} searched frames" for category, objects in self.objects.items()]
        return [
            *(counts or filter(None, [self.task.nothing_found])),
            *large_objects(self._upscalers.count(None), len(self._upscalers)),
            *self.task.missing_extras(),
        ]

    @property
    def models(self) -> list[str]:
        """Names of the models of all objects."""
        return list(dict.fromkeys(one.name for one in self._upscalers if one))

    @property
    def _upscalers(self) -> list[Upscaler | None]:
        """The model of each object; None for one that none enlarges."""
        return [self._upscaler(category, track) for category, objects in self.objects.items() for track in objects.tracks]

    def _known(self) -> dict[str, list[PhotoObject]]:
        """The objects that a model enlarges, by the name of the image."""
        known: dict[str, list[PhotoObject]] = {}
        for category, objects in self.objects.items():
            known = {name: known.get(name, []) for name in objects.names}
            for track in objects.tracks:
                if upscaler := self._upscaler(category, track):
                    for number, detection in track.smoothed.items():
                        known[objects.names[number]].append(PhotoObject(detection, upscaler))
        return known

    def _upscaler(self, category: str, track: Track) -> Upscaler | None:
        """The model of an object, the same in all frames, so that it does not flicker."""
        return self.task.choose_for_frame(category, statistics.median(one.frame.width for one in track.detections))


def needs_tracking(task: ImageTask, footage: Footage) -> TypeGuard[Photo | AutoTask]:
    """Whether a task's objects must be tracked first: it detects them in frames of this size, instead of using given boxes."""
    return isinstance(task, Photo | AutoTask) and task.tracks(*footage.size)


def track_video(
    footage: Footage,
    task: Photo | AutoTask,
    config: TrackConfig,
    *,
    stopped: Callable[[], bool] = lambda: False,
    on_read: Callable[[int], object] | None = None,
    frames: Iterator[VideoFrame] | None = None,
) -> Tracking:
    """Tracks the objects of a task's categories through a video; see `track_objects`.

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
    detectors = task.detectors
    if not detectors:  # none is installed
        return Tracking(task, {})
    found = track_objects(
        frames or footage.frames(),
        footage.time_base,
        footage.rate,
        list(detectors.values()),
        config,
        task.config,
        stopped=stopped,
        on_read=on_read,
    )
    tracking = Tracking(task, dict(zip(detectors, found, strict=True)))
    if task.config.require_object and not any(objects.tracks for objects in found):
        said = "; ".join(tracking.notes)
        raise NoObjectError(f"{footage.name}: {said}; give --box x,y,w,h, or use --aligned if each whole frame is one object")
    return tracking


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
    task, tracking, notes = work.task, None, list[str]()
    if needs_tracking(task, footage):
        tracking = track_video(footage, task, config or TrackConfig(), stopped=stopped, on_read=on_read)
        notes += tracking.notes
        task = tracking.task_with_objects()
    image_notes: Counter[str] = Counter()
    consistencies: list[float] = []
    written, size = 0, (0, 0)
    models = dict.fromkeys(tracking.models if tracking else ())

    with open_sink(target, footage, quality=work.quality, models=[*models], overwrite=work.overwrite) as sink:

        def write(frame: VideoFrame, result: TaskResult) -> None:
            nonlocal written, size
            names = result.models or (*filter(None, [task.upscaler.about.name]),)
            models.update(dict.fromkeys(names))
            size = result.image.size
            sink.add(result.image, frame.time, frame.duration, names)
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
    if tracking:
        details["cuts"] = [round(time, 4) for time in tracking.cuts]
        details["objects"] = [
            {
                "category": category,
                "from": round(objects.times[track.numbers[0]], 4),
                "to": round(objects.times[track.numbers[-1]], 4),
                "found": len(track.numbers),
                "score": round(track.score, 3),
            }
            for category, objects in tracking.objects.items()
            for track in objects.tracks
        ]
    summary = Summary(written, size, tuple(models), tuple(dict.fromkeys(notes)), details)
    if work.sidecar:
        _write_sidecar(footage, target, work, task.options, summary)
    return summary


def _count(category: str, objects: TrackedObjects) -> str:
    """A note on the number of tracked objects."""
    count, frames = len(objects.tracks), sum(map(bool, objects.detections.values()))
    return f"{count} {nouns(category)[count > 1]} tracked in {frames} of {len(objects.names)} frames"


def _summarise(notes: Counter[str], total: int) -> Sequence[str]:
    """The most frequent notes about single images, with the number of images if not all have them."""
    lines = [note if count == total else f"{note} (in {count} of {total} frames)" for note, count in notes.most_common(_MAX_NOTES)]
    return [*lines, *([f"and {len(notes) - _MAX_NOTES} other notes"] if len(notes) > _MAX_NOTES else [])]


def _consistencies(details: Mapping[str, Any]) -> list[float]:
    """Of an image and its objects."""
    values = [details.get("consistency_db"), *(item.get("consistency_db") for item in details.get("objects", ()))]
    return [value for value in values if value is not None]


def _write_sidecar(footage: Footage, target: Path, work: Work, options: Mapping[str, Any], summary: Summary) -> None:
    """Writes NAME.json beside a result."""
    contents = {
        "source": footage.name,
        "target": str(target),
        "sha256": footage.source and sha256_of(footage.source),
        "model": ", ".join(summary.models) or None,
        "model_sha256": work.model_sha256,
        "options": {**work.settings, **options, "quality": work.quality},
        "notes": summary.notes,
        "details": summary.details,
    }
    work.storage.write(sidecar(str(target)), json.dumps(contents, indent=2).encode() + b"\n")
