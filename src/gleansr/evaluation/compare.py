"""Runs several methods on the same test images and measures quality, time and memory. What is done is kept, and gone on with."""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.data.prepare import keep_apart
from gleansr.errors import ImageError, RequestError
from gleansr.evaluation.ground_truth import Example, GroundTruth
from gleansr.evaluation.plan import Comparison, Participant
from gleansr.evaluation.records import Record, Records
from gleansr.evaluation.report import write_reports
from gleansr.evaluation.runner import MethodError, MethodProcess, Run
from gleansr.evaluation.summary import MethodSummary, joined, summary
from gleansr.files import lock_folder, replacing
from gleansr.images.codec import encode, to_image
from gleansr.images.pixels import from_bytes, quantize
from gleansr.inference.method import StepReport

_BATCH = 16
"""Stored images of which the features are computed together."""


@dataclass(frozen=True)
class Watcher:
    """Is told how a comparison goes."""

    progress: Callable[[str, int, int], None] = lambda what, done, total: None  # noqa: ARG005
    """What is being done, images done, images in all."""
    steps: StepReport = lambda done, total: None  # noqa: ARG005
    """Progress of a slow method within an image."""
    say: Callable[[str], None] = lambda text: None  # noqa: ARG005
    """A line worth reading."""


QUIET = Watcher()


@plain_torch()
def compare(comparison: Comparison, output: Path, watcher: Watcher = QUIET) -> dict[str, Any]:
    """Runs the methods in turn and writes comparison.json, comparison.csv, comparison.md and index.html into the folder `output`.

    A method that fails does not stop the others. What an earlier run that was stopped has done in this folder is gone on with, as long as
    it was done in the same way. A method of which anything has changed starts anew; if only the metrics have changed, and images are
    judged as they are stored, it is judged anew from its stored images.

    Returns:
        What comparison.json holds. "failed" of a method is None, or the reason in one line.

    Raises:
        RequestError: the folder is another's or in use, or an image cannot be judged by a metric.
        ImageError: a test image cannot be used, or the folder cannot be written to.
    """
    try:
        with _claimed(output, comparison.data):
            inputs = _write_inputs(comparison, output, watcher)
            outcomes = [_run(comparison, participant, inputs, output, watcher) for participant in comparison.participants]
            outcomes = _with_features(comparison, outcomes, output, watcher)
            report = {"protocol": comparison.protocol()} | summary(outcomes, comparison.groups)
            write_reports(output, report, outcomes, dict(zip(comparison.gts.names, comparison.gts.files, strict=True)))
            return report
    except OSError as error:
        raise ImageError(f"{output}: cannot be written to: {error.strerror or error}; what is done is kept") from error


@contextmanager
def _claimed(output: Path, data: str) -> Iterator[None]:
    """The folder, made if need be and held against other processes."""
    keep_apart(data, output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        ours = _is_comparison(output) or all(file.name == ".lock" for file in output.iterdir())
    except OSError as error:
        raise RequestError(f"{output}: the folder cannot be made or read: {error.strerror}; give another one with --output") from None
    if not ours:
        raise RequestError(f"{output}: is not empty, and not of an earlier comparison; give another folder with --output")
    with lock_folder(output, "writing a comparison"):
        yield


def _is_comparison(folder: Path) -> bool:
    """Whether an earlier comparison, as far as it came, wrote this folder."""
    records = folder / "records"
    try:
        if not any(records.iterdir()):  # it was stopped before its first record
            return {file.name for file in folder.iterdir()} <= {"records", ".lock"}
        return Records(records / "inputs.jsonl").made is not None
    except (FileNotFoundError, NotADirectoryError, RequestError):
        return False


def _write_inputs(comparison: Comparison, output: Path, watcher: Watcher) -> Records:
    """Writes the ground truth and the low-resolution images, so that all of them have been read before the first method runs."""
    gts = comparison.gts
    records = Records(output / "records" / "inputs.jsonl")
    made = {"task": asdict(comparison.task), "low": comparison.lr}
    records.begin(made, {} if records.differences(made) else records)
    for i, file in enumerate(gts.files):
        watcher.progress("reading the test images", i, len(gts))
        example = gts[i]
        images = {output / "pictures" / "truth" / f"{file}.png": example.gt, output / "pictures" / "low" / f"{file}.png": example.lr}
        record = _of(example)
        if records.get(example.name) != record or not all(path.is_file() for path in images):
            for path, image in images.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as temporary:
                    to_image((image[0] + 1) / 2).save(temporary, "PNG")
            records.add(record)
    return records


def _run(comparison: Comparison, participant: Participant, inputs: Records, output: Path, watcher: Watcher) -> MethodSummary:
    """Has a method enlarge those of its images that are not done yet."""
    entry, gts, size = participant.entry, comparison.gts, comparison.batch_size
    records, folder = _gone_on_with(comparison, participant, inputs, output, watcher)
    names = gts.names[: participant.images]
    # Whole batches, always the same ones: what a network makes of an image can depend in its last bits on how many there are.
    batches = [range(start, min(start + size, len(names))) for start in range(0, len(names), size)]
    todo = [batch for batch in batches if any(names[i] not in records for i in batch)]
    earlier = sum(name in records for name in names)
    failed = None
    if todo:
        watcher.progress(entry.label, earlier, len(names))
        try:
            with ExitStack() as stack:
                jobs = min(comparison.jobs_of(entry), len(todo))
                runners = [
                    stack.enter_context(MethodProcess(entry, comparison.task.scale, comparison.place_of(entry))) for _ in range(jobs)
                ]
                if not entry.searches:  # of many steps, the first ones cost nothing
                    runners[0].warm_up(gts[todo[0][0]].lr)
                for batch, examples, run in stack.enter_context(closing(_enlarged(runners, gts, todo, watcher))):
                    _keep(comparison, batch, examples, run, records, folder)
                    watcher.progress(entry.label, sum(name in records for name in names), len(names))
        except MethodError as error:
            failed = str(error)
            watcher.say(f"{entry.label}: failed: {failed}")
    done = {name: records[name] for name in names if name in records}
    before = f", {earlier:,} of them before" if earlier else ""
    watcher.say(f"{entry.label}: {len(done):,} of {len(names):,} images{before}")
    return participant.outcome(done, failed)


def _gone_on_with(
    comparison: Comparison, participant: Participant, inputs: Records, output: Path, watcher: Watcher
) -> tuple[Records, Path]:
    """The records of a method with what of an earlier run still holds, and the folder of its images."""
    label, gts = participant.entry.label, comparison.gts
    records = Records(output / "records" / f"{label}.jsonl")
    folder = output / "pictures" / label
    made = comparison.made(participant)
    images = {name: folder / f"{gts.files[gts.index[name]]}.png" for name in records if name in gts.index}
    kept = {name: records[name] for name, path in images.items() if path.is_file() and {**records[name], **inputs[name]} == records[name]}
    differences = records.differences(made)
    if differences and comparison.judge.rounding == "8-bit" and all(key.startswith("judge.") for key in differences):
        watcher.say(f"{label}: is judged anew from its images: other {', '.join(differences)}")
        for i, (name, record) in enumerate(kept.items()):
            watcher.progress(f"judging {label}", i, len(kept))
            kept[name] = record | {"metrics": _judged(comparison, gts[gts.index[name]], read_png(images[name]))}
    elif differences:
        watcher.say(f"{label}: starts anew: other {', '.join(differences)}")
        kept = {}
    else:  # those beyond --limit too, for a later run without
        kept |= {name: record for name, record in records.items() if name not in gts.index}
    records.begin(made, kept)
    return records, folder


def _enlarged(
    runners: Sequence[MethodProcess], gts: GroundTruth, todo: Sequence[range], watcher: Watcher
) -> Generator[tuple[range, list[Example], Run]]:
    """Each batch with its examples and what became of it, in the order in which they end; a runner has one at a time, and waits while what
    it made is looked at."""
    steps = watcher.steps if len(runners) == 1 else None
    free, waiting = list(runners), iter(todo)
    running: dict[Future[Run], tuple[MethodProcess, range, list[Example]]] = {}
    with ThreadPoolExecutor(len(runners)) as pool:
        try:
            while True:
                while free and (batch := next(waiting, None)) is not None:
                    examples = [gts[i] for i in batch]
                    runner = free.pop()
                    running[pool.submit(runner, torch.cat([example.lr for example in examples]), steps)] = runner, batch, examples
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    runner, batch, examples = running.pop(future)
                    yield batch, examples, future.result()
                    free.append(runner)
        finally:
            for runner in runners:  # or the pool would wait for what they are doing
                runner.close()


def _keep(comparison: Comparison, batch: range, examples: Sequence[Example], run: Run, records: Records, folder: Path) -> None:
    """Keeps images and records of what became of a batch."""
    gts = comparison.gts
    if not run.images.isfinite().all():
        raise MethodError(f"made NaN or infinite values of {' or '.join(example.name for example in examples)}; try --precision float32")
    for i, example, image, note in zip(batch, examples, run.images.split(1), run.notes, strict=True):
        cost = {"seconds": run.seconds / len(batch), "peak": run.peak, "own": run.own}
        record = _of(example) | cost | {"note": note, "metrics": _judged(comparison, example, image)}
        path = folder / f"{gts.files[i]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(to_image((quantize(image)[0] + 1) / 2), path, model=folder.name)
        records.add(record)


def _judged(comparison: Comparison, example: Example, result: Tensor) -> dict[str, float]:
    try:
        return comparison.judge(*(example.inside(image) for image in (example.lr, result, example.gt)))[0]
    except RequestError as error:
        raise RequestError(f"{example.name}: {error}") from None


def _with_features(comparison: Comparison, outcomes: Sequence[MethodSummary], output: Path, watcher: Watcher) -> list[MethodSummary]:
    """The outcomes with the features by which sets of images are compared, of the images as they are stored."""
    if not any(metric.of_set for metric in comparison.judge.metrics):
        return list(outcomes)
    gts = comparison.gts

    def features(label: str, names: Sequence[str]) -> dict[str, Tensor]:
        parts = []
        for start in range(0, len(names), _BATCH):
            watcher.progress(f"comparing sets: {label}", start, len(names))
            numbers = [gts.index[name] for name in names[start : start + _BATCH]]
            images = [read_png(output / "pictures" / label / f"{gts.files[i]}.png") for i in numbers]
            if comparison.task.aspect in ("pad", "bars"):
                images = [gts[i].inside(image) for i, image in zip(numbers, images, strict=True)]
            of_one_size = itertools.groupby(images, lambda image: image.shape)
            parts += [comparison.judge.pooled(torch.cat(list(alike))) for _, alike in of_one_size]
        return joined(parts)

    wanted = features("truth", gts.names)
    return [
        replace(
            outcome,
            features=features(outcome.label, list(outcome.records)),
            gt_features={metric: values[[gts.index[name] for name in outcome.records]] for metric, values in wanted.items()},
        )
        for outcome in outcomes
    ]


def read_png(path: Path) -> Tensor:
    """A stored image (1, 3, H, W) on the grid of 8-bit values. Raises ImageError."""
    try:
        with Image.open(path) as image:
            # In the order of memory that methods' results have: networks round otherwise in another one.
            return from_bytes(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].contiguous())
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({error}); remove it, and the same command makes it again") from None


def _of(example: Example) -> Record:
    """What a record says of the test image, so that it does not outlive it."""
    return {"name": example.name, "sha256": example.sha256, "low_sha256": example.low_sha256}
