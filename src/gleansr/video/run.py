"""A video through a model: its objects followed, its images enlarged, its results put together."""

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
from gleansr.photos.detect import finder, nouns
from gleansr.video.finding import Followed, follow
from gleansr.video.flow import flow
from gleansr.video.reading import Footage, Shot
from gleansr.video.tracks import TrackConfig
from gleansr.video.writing import check_target, written

_NOTES = 8
"""How many different notes of single images are told."""


@dataclass(frozen=True)
class Summary:
    """What was made of a video."""

    images: int
    notes: tuple[str, ...]
    details: Mapping[str, Any]
    """What was measured or found, as plain JSON values."""


def follows(task: ImageTask) -> bool:
    """Whether a task's objects are to be found and followed first: where they are not given."""
    return isinstance(task, Photo) and not (task.config.boxes or task.config.aligned)


def followed(
    footage: Footage,
    task: Photo,
    config: TrackConfig,
    *,
    stopped: Callable[[], bool] = lambda: False,
    seen: Callable[[int], object] | None = None,
    shots: Iterator[Shot] | None = None,
) -> tuple[Photo, Followed]:
    """The task with the objects of a video, followed through it and their frames smoothed; see `follow`.

    Args:
        footage: the video.
        task: what to do with each image.
        config: how objects are followed.
        stopped: asked for each image.
        seen: is told how many images have been read.
        shots: instead of those of `footage`.

    Raises:
        NoObjectError: nothing is found, and the task's configuration requires something.
        StoppedError, ImageError: as `follow`.
    """
    name = task.upscaler.about.name or "the model"
    found = follow(
        shots or footage.shots(),
        footage.time_base,
        footage.rate,
        finder(task.upscaler.category, name),
        config,
        task.config,
        stopped=stopped,
        seen=seen,
    )
    if task.config.require_object and not found.tracks:
        raise NoObjectError(f"{footage.name}: {_said(found, task)}; give --box x,y,w,h, or --aligned if all of it is one object")
    return Photo(task.upscaler, task.config, background=task.background, known=found.known), found


def upscale(
    footage: Footage,
    target: Path,
    work: Work,
    config: TrackConfig | None = None,
    *,
    stopped: Callable[[], bool] = lambda: False,
    finding: Callable[[int], object] | None = None,
    upscaling: Callable[[int], object] | None = None,
    report: StepReport | None = None,
) -> Summary:
    """Enlarges a video, frame by frame.

    Args:
        footage: a `Clip`, or a `Numbered` folder.
        target: a file .mp4, .mkv or .webm, or a folder for frames.
        work: what to do with each image, its quality, whether a target is replaced, and whether NAME.json tells how it was made.
        config: how objects are followed, for whole photographs.
        stopped: asked again and again; when it says so, nothing is written.
        finding: is told how many images were looked at in the first pass, where there is one.
        upscaling: is told how many images are written.
        report: is told of the progress of a slow method with each batch.

    Raises:
        StoppedError: it was stopped.
        OutputError: it cannot be written; neither could others.
        GleansrError: it cannot be read or written.
    """
    check_target(target, overwrite=work.overwrite, sidecar=work.sidecar)
    task, found = work.task, None
    if isinstance(task, Photo) and follows(task):
        task, found = followed(footage, task, config or TrackConfig(), stopped=stopped, seen=finding)
    notes: Counter[str] = Counter()
    consistencies: list[float] = []
    done = 0

    with written(target, footage, quality=work.quality, model=task.upscaler.about.name, overwrite=work.overwrite) as sink:

        def write(shot: Shot, result: TaskResult) -> None:
            nonlocal done
            sink.add(result.image, shot.time, shot.duration)
            notes.update(list(dict.fromkeys(result.notes)))
            consistencies.extend(_consistencies(result.details))
            done += 1
            if upscaling:
                upscaling(done)

        flow(footage.shots(), task, work.batch_size, write, stopped=stopped, report=report)
    told = [*([_said(found, task)] if found and isinstance(task, Photo) else []), *_of_frames(notes, done), *footage.notes, *sink.notes]
    details: dict[str, Any] = {"frames": done}
    if consistencies:
        details["consistency_db"] = {"mean": round(statistics.fmean(consistencies), 2), "least": min(consistencies)}
    if found:
        details["cuts"] = [round(found.times[number], 4) for number in found.cuts]
        details["objects"] = [
            {
                "from": round(found.times[one.numbers[0]], 4),
                "to": round(found.times[one.numbers[-1]], 4),
                "found": len(one.numbers),
                "score": round(one.score, 3),
            }
            for one in found.tracks
        ]
    summary = Summary(done, tuple(dict.fromkeys(told)), details)
    if work.sidecar:
        _tell(footage, target, work, task, summary)
    return summary


def _said(found: Followed, task: Photo) -> str:
    one, several = nouns(task.upscaler.category)
    count, shown = len(found.tracks), sum(bool(objects) for objects in found.known.values())
    where = f" in {shown} of {len(found.names)} frames" if count else f" in {found.searched} frames that were searched"
    return f"{count} {one if count == 1 else several} followed{where}" if count else f"no {several} found{where}"


def _of_frames(notes: Counter[str], total: int) -> Sequence[str]:
    """Notes of single images, with how many say so where not all do."""
    told = [note if count == total else f"{note} (in {count} of {total} frames)" for note, count in notes.most_common(_NOTES)]
    return [*told, *([f"and {len(notes) - _NOTES} other notes"] if len(notes) > _NOTES else [])]


def _consistencies(details: Mapping[str, Any]) -> list[float]:
    """Of an image, or of its objects."""
    found = [details.get("consistency_db"), *(one.get("consistency_db") for one in details.get("objects", ()))]
    return [value for value in found if value is not None]


def _tell(footage: Footage, target: Path, work: Work, task: ImageTask, summary: Summary) -> None:
    """Writes NAME.json beside a result."""
    options = {**work.settings, **task.options, "quality": work.quality}
    told = {
        "source": footage.name,
        "target": str(target),
        "sha256": footage.source and sha256_of(footage.source),
        "model": task.upscaler.about.name,
        "model_sha256": work.model_sha256,
        "options": options,
        "notes": summary.notes,
        "details": summary.details,
    }
    work.storage.write(sidecar(str(target)), json.dumps(told, indent=2).encode() + b"\n")
