"""`gleansr upscale` of videos and of folders of numbered frames."""

import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TaskID

from gleansr.cli.progress import CountedProgress, steps_of, warnings_above
from gleansr.errors import GleansrError, ImageError, RequestError
from gleansr.files import check_not_input, printable
from gleansr.signals import Stop, stop_on_signal

if TYPE_CHECKING:
    from gleansr.inference.tasks import ImageTask
    from gleansr.jobs import Work
    from gleansr.video import Footage, FrameFolder, TrackConfig, Tracking


@dataclass(frozen=True)
class Videos:
    """What is asked for."""

    inputs: tuple[Path, ...]
    """Video files, and folders of numbered frames."""
    output: Path | None
    rate: Fraction | None
    config: "TrackConfig"


def videos_among(
    inputs: Sequence[Path], output: Path | None, *, video: bool, rate: float | None, detect_every: int | None, detects: bool
) -> Videos | None:
    """The videos that are asked for; None where it is images.

    A file is a video by the suffix of its name, or by its contents where that is not the suffix of images; a .gif where it moves, and no
    image is to be made of it. A folder is one where `video` says so. `detects`: objects of videos are detected.

    Raises:
        RequestError: the request cannot be met.
    """
    from gleansr.images.codec import FORMATS
    from gleansr.video import READ, WRITTEN, TrackConfig

    kind = output.suffix.lower() if output is not None and not output.is_dir() else ""
    found = [path for path in inputs if (video if path.is_dir() else _is_video(path, kind in FORMATS))]
    if not found:
        if kind in WRITTEN:
            raise RequestError(f"{output}: is a video, and no input is one; with --video a folder of numbered frames is")
        if video or rate is not None or detect_every is not None:
            option = "video" if video else "rate" if rate is not None else "detect-every"
            raise RequestError(f"--{option} is for videos ({', '.join(READ)}) and, with --video, folders of numbered frames; there is none")
        return None
    if len(found) < len(inputs):
        other = next(path for path in inputs if path not in found)
        raise RequestError(f"{other}: videos and images go one after the other; give the images to a command of their own")
    if kind in (*READ, *FORMATS) and kind not in WRITTEN:
        raise RequestError(f"{output}: videos are written as {', '.join(WRITTEN)}, and as frames into a folder")
    if kind in WRITTEN and len(inputs) > 1:
        raise RequestError(f"{output}: is one file, but there are several videos; give a folder with --output")
    if rate is not None and not (any(path.is_dir() for path in inputs) and kind in WRITTEN):
        raise RequestError("--rate is for numbered frames that become a video; a video keeps its times")
    if rate is not None and not 0.01 <= rate <= 1000:
        raise RequestError(f"--rate must be 0.01 to 1000 frames per second, not {rate}")
    if detect_every is not None and not detects:
        raise RequestError("--detect-every is for photos: give --photo too")
    return Videos(tuple(dict.fromkeys(inputs)), output, None if rate is None else _rational(rate), TrackConfig(detect_every))


def upscale_videos(videos: Videos, work: "Work", *, model: str, slow: bool, fail_fast: bool, verbose: bool, quiet: bool) -> None:
    """Enlarges one after the other, says what becomes of each, and exits where not all was done, as `results.upscale_all` does.

    Raises:
        RequestError: the request is wrong.
        OutputError: nothing more can be written.
    """
    from gleansr.cli.results import upscale_all
    from gleansr.jobs import OutputError, destinations
    from gleansr.jobs.pipeline import SearchStoppedError
    from gleansr.video import RATE, WRITTEN, Clip, FrameFolder

    console = Console(stderr=True, soft_wrap=True)
    targets = _targets(videos, work.task.factor)
    failed: list[GleansrError] = []
    folders: list[tuple[FrameFolder, Path]] = []
    with ExitStack() as ending:
        stop = ending.enter_context(stop_on_signal())
        ending.enter_context(warnings_above(console))
        progress = ending.enter_context(CountedProgress(console, lines=not quiet))
        for source, target in targets.items():
            try:
                footage = FrameFolder(source, videos.rate) if source.is_dir() else Clip(source)
                if isinstance(footage, FrameFolder) and target.suffix.lower() not in WRITTEN:
                    folders.append((footage, target))
                    continue
                if isinstance(footage, FrameFolder) and videos.rate is None:
                    footage.notes[f"{RATE} frames per second, --rate chooses"] = None
                _one(console, progress, stop, footage, target, work, videos.config, slow=slow)
            except SearchStoppedError:
                break
            except OutputError:
                raise
            except GleansrError as error:
                failed.append(error)
                _say(console, f"gleansr: {error}", "red")
                if fail_fast:
                    break
        if folders and not stop.name and not (failed and fail_fast):
            with suppress(SearchStoppedError):
                task, lacking = _followed(console, progress, stop, [one for one, _ in folders], work, videos.config)
                work = replace(work, task=task)
                failed += lacking.values()
                folders = [(one, target) for one, target in folders if one.name not in lacking]
    if stop.name:
        _say(console, f"gleansr: stopped by {stop.name}; a video is not written in part, and starts anew", "yellow")
        raise SystemExit(128 + signal.Signals[stop.name])
    exit_codes = {3 if error.exit_code == 3 else 1 for error in failed}
    if folders and not (failed and fail_fast):
        found = [place for one, target in folders for place in destinations(one.paths, target, "")]
        try:
            upscale_all(found, work, model=model, scale=work.task.factor, slow=slow, fail_fast=fail_fast, verbose=verbose, quiet=quiet)
        except SystemExit as end:  # which does not know of what failed before
            if end.code not in (1, 3):
                raise
            exit_codes.add(int(str(end.code)))
    if exit_codes:
        raise SystemExit(3 if exit_codes == {3} else 1)


def _one(
    console: Console, progress: Progress, stop: Stop, footage: "Footage", target: Path, work: "Work", config: "TrackConfig", *, slow: bool
) -> None:
    from gleansr.jobs.steps import describe_sizes
    from gleansr.video import needs_tracking, upscale

    finding = progress.add_task("finding", total=footage.expected, visible=needs_tracking(work.task, footage))
    upscaling = progress.add_task("upscaling", total=footage.expected)
    read = 0

    def seen(count: int) -> None:
        nonlocal read
        read = count
        progress.update(finding, completed=count)

    def made(count: int) -> None:
        progress.update(upscaling, completed=count, total=read or footage.expected)

    try:
        summary = upscale(
            footage,
            target,
            work,
            config,
            stopped=lambda: stop.name is not None,
            on_read=seen,
            on_written=made,
            report=steps_of(progress) if slow else None,
        )
    finally:
        progress.remove_task(finding)
        progress.remove_task(upscaling)
    notes = "; ".join([f"{summary.images} frames", *summary.notes])
    sizes = describe_sizes(footage.size, summary.size)
    _say(console, f"{footage.name} → {target}: {sizes}, {', '.join(summary.models)} ({notes})")


def _followed(
    console: Console, progress: Progress, stop: Stop, folders: "Sequence[FrameFolder]", work: "Work", config: "TrackConfig"
) -> "tuple[ImageTask, dict[str, GleansrError]]":
    """The task for folders of frames, with the objects of each followed through it, and the errors of folders of which that failed."""
    from gleansr.photos import AutoTask, Photo
    from gleansr.video import needs_tracking, track_video

    for one in folders:
        for note in one.notes:
            _say(console, f"{one.name}: {note}")
    task = work.task
    if not (isinstance(task, Photo | AutoTask) and any(needs_tracking(task, one) for one in folders)):
        return task, {}
    tracked: list[Tracking] = []
    lacking: dict[str, GleansrError] = {}
    for one in folders:
        finding = progress.add_task("finding", total=one.expected)
        seen = partial(_advance, progress, finding)
        frames = one.frames(lenient=True)
        try:
            tracked.append(track_video(one, task, config, stopped=lambda: stop.name is not None, on_read=seen, frames=frames))
            if isinstance(task, AutoTask):
                _say(console, f"{one.name}: {'; '.join(tracked[-1].notes)}")
        except ImageError as error:  # of this folder
            lacking[one.name] = error
            _say(console, f"gleansr: {error}", "red")
        finally:
            progress.remove_task(finding)
    return tracked[0].task_with_objects(*tracked[1:]) if tracked else task, lacking


def _advance(progress: Progress, task: TaskID, count: int) -> None:
    progress.update(task, completed=count)


def _targets(videos: Videos, factor: int) -> dict[Path, Path]:
    """Where the result of each input goes."""
    from gleansr.video import WRITTEN

    targets: dict[Path, Path] = {}
    for path in videos.inputs:
        suffix = "" if path.is_dir() else path.suffix.lower() if path.suffix.lower() in WRITTEN else ".mp4"
        name = path.resolve().name if path.is_dir() else path.stem
        if videos.output is None:
            folder = path.resolve().parent if path.is_dir() and path.name in ("", "..") else path.parent
            target = folder / f"{name}_{factor}x{suffix}"
        else:
            target = videos.output if len(videos.inputs) == 1 else videos.output / f"{name}{suffix}"
        if target in targets.values():
            raise RequestError(f"{target}: would be the result of two inputs; give them to commands of their own")
        check_not_input(target, videos.inputs)
        targets[path] = target
    return targets


def _is_video(path: Path, to_image: bool) -> bool:
    from gleansr.images.formats import identify
    from gleansr.images.readers import readable_suffixes
    from gleansr.video import READ

    suffix = path.suffix.lower()
    if suffix == ".gif":
        return not to_image and _moves(path)
    if suffix in READ or suffix in readable_suffixes() or not path.is_file():
        return suffix in READ
    with suppress(OSError), path.open("rb") as file:  # one that cannot be read is refused as an image
        return (found := identify(file)) is not None and found.group == "video"
    return False


def _moves(path: Path) -> bool:
    """Whether a GIF has several frames. One that cannot be read is an image, and refused as such."""
    from PIL import Image

    try:
        with Image.open(path, formats=["GIF"]) as image:
            return getattr(image, "is_animated", False)
    except Exception:  # Pillow's readers raise errors of many kinds
        return False


def _rational(rate: float) -> Fraction:
    """24000/1001 where 23.976 is meant."""
    whole = round(rate)
    return Fraction(whole * 1000, 1001) if rate != whole and abs(rate - whole / 1.001) < 0.005 else Fraction(rate).limit_denominator(1000)


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(printable(text), markup=False, highlight=False, style=style)
