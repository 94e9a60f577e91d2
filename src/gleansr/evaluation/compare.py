"""Runs several methods on the same test images and measures quality, time and memory; an interrupted comparison resumes."""

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
from gleansr.evaluation.summary import MethodSummary, concatenated, summarise
from gleansr.files import lock_folder, replacing
from gleansr.images.codec import encode, to_image
from gleansr.images.pixels import from_bytes, quantize
from gleansr.inference.method import StepReport

_BATCH = 16
"""Batch size for the features of stored images."""


@dataclass(frozen=True)
class Watcher:
    """Callbacks for the progress of a comparison."""

    progress: Callable[[str, int, int], None] = lambda what, done, total: None  # noqa: ARG005
    """Current activity, images done, total images."""
    steps: StepReport = lambda done, total: None  # noqa: ARG005
    """Steps done and total steps of a search within an image."""
    message: Callable[[str], None] = lambda text: None  # noqa: ARG005
    """A line of text."""


QUIET = Watcher()


@plain_torch()
def compare(comparison: Comparison, output: Path, watcher: Watcher = QUIET) -> dict[str, Any]:
    """Runs the methods in turn and writes comparison.json, comparison.csv, comparison.md and index.html into the folder `output`.

    A method that fails does not stop the others. An interrupted comparison in the folder resumes. A method starts again if anything that
    its results depend on has changed; if only the metrics have changed and `rounding` is "8-bit", the stored images are measured again.

    Returns:
        The content of comparison.json. "failed" of a method is None, or the reason in one line.

    Raises:
        RequestError: the folder holds something else or is in use, or a metric does not apply to an image.
        ImageError: a test image cannot be used, or the folder cannot be written to.
    """
    try:
        with _locked(output, comparison.data):
            inputs = _write_inputs(comparison, output, watcher)
            summaries = [_run(comparison, participant, inputs, output, watcher) for participant in comparison.participants]
            summaries = _with_features(comparison, summaries, output, watcher)
            report = {"protocol": comparison.protocol()} | summarise(summaries, comparison.groups)
            write_reports(output, report, summaries, dict(zip(comparison.gts.names, comparison.gts.files, strict=True)))
            return report
    except OSError as error:
        raise ImageError(f"{output}: cannot be written to: {error.strerror or error}; finished images are kept") from error


@contextmanager
def _locked(output: Path, data: str) -> Iterator[None]:
    """Creates and locks the output folder."""
    keep_apart(data, output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        usable = _is_comparison(output) or all(file.name == ".lock" for file in output.iterdir())
    except OSError as error:
        raise RequestError(f"{output}: the folder cannot be created or read: {error.strerror}; give another one with --output") from None
    if not usable:
        raise RequestError(f"{output}: is neither empty nor the folder of a comparison; give another folder with --output")
    with lock_folder(output, "writing a comparison"):
        yield


def _is_comparison(folder: Path) -> bool:
    """Whether the folder is that of a finished or interrupted comparison."""
    records = folder / "records"
    try:
        if not any(records.iterdir()):  # interrupted before its first record
            return {file.name for file in folder.iterdir()} <= {"records", ".lock"}
        return Records(records / "inputs.jsonl").conditions is not None
    except (FileNotFoundError, NotADirectoryError, RequestError):
        return False


def _write_inputs(comparison: Comparison, output: Path, watcher: Watcher) -> Records:
    """Writes ground truths and low-resolution images, which reads all test images before the first method runs."""
    gts = comparison.gts
    records = Records(output / "records" / "inputs.jsonl")
    conditions = {"task": asdict(comparison.task), "low": comparison.lr}
    records.begin(conditions, {} if records.differences(conditions) else records)
    for i, file in enumerate(gts.files):
        watcher.progress("reading the test images", i, len(gts))
        example = gts[i]
        images = {output / "pictures" / "truth" / f"{file}.png": example.gt, output / "pictures" / "low" / f"{file}.png": example.lr}
        record = _source_record(example)
        if records.get(example.name) != record or not all(path.is_file() for path in images):
            for path, image in images.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as temporary:
                    to_image((image[0] + 1) / 2).save(temporary, "PNG")
            records.add(record)
    return records


def _run(comparison: Comparison, participant: Participant, inputs: Records, output: Path, watcher: Watcher) -> MethodSummary:
    """Runs a method on those of its images that have no record."""
    entry, gts, size = participant.entry, comparison.gts, comparison.compute.batch_size
    records, folder = _resume(comparison, participant, inputs, output, watcher)
    names = gts.names[: participant.images]
    # The same whole batches in every run: the last bits of a network's result can depend on the batch size.
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
                    stack.enter_context(MethodProcess(entry, comparison.task.scale, comparison.compute_of(entry))) for _ in range(jobs)
                ]
                if not entry.searches:  # a search has so many steps that the first ones do not matter
                    runners[0].warm_up(gts[todo[0][0]].lr)
                for batch, examples, run in stack.enter_context(closing(_run_batches(runners, gts, todo, watcher))):
                    _store(comparison, batch, examples, run, records, folder)
                    watcher.progress(entry.label, sum(name in records for name in names), len(names))
        except MethodError as error:
            failed = str(error)
            watcher.message(f"{entry.label}: failed: {failed}")
    finished = {name: records[name] for name in names if name in records}
    resumed = f", {earlier:,} of them from an earlier run" if earlier else ""
    watcher.message(f"{entry.label}: {len(finished):,} of {len(names):,} images{resumed}")
    return participant.summary(finished, failed)


def _resume(comparison: Comparison, participant: Participant, inputs: Records, output: Path, watcher: Watcher) -> tuple[Records, Path]:
    """The records of a method with the valid ones of an earlier run, and the folder of its images."""
    label, gts = participant.entry.label, comparison.gts
    records = Records(output / "records" / f"{label}.jsonl")
    folder = output / "pictures" / label
    conditions = comparison.conditions(participant)
    images = {name: folder / f"{gts.files[gts.index[name]]}.png" for name in records if name in gts.index}
    kept = {name: records[name] for name, path in images.items() if path.is_file() and {**records[name], **inputs[name]} == records[name]}
    differences = records.differences(conditions)
    if differences and comparison.suite.rounding == "8-bit" and all(key.startswith("judge.") for key in differences):
        watcher.message(f"{label}: measures the stored images again: changed {', '.join(differences)}")
        for i, (name, record) in enumerate(kept.items()):
            watcher.progress(f"measuring {label}", i, len(kept))
            kept[name] = record | {"metrics": _measure(comparison, gts[gts.index[name]], read_png(images[name]))}
    elif differences:
        watcher.message(f"{label}: starts again: changed {', '.join(differences)}")
        kept = {}
    else:  # also those beyond --limit, for a later run without it
        kept |= {name: record for name, record in records.items() if name not in gts.index}
    records.begin(conditions, kept)
    return records, folder


def _run_batches(
    runners: Sequence[MethodProcess], gts: GroundTruth, todo: Sequence[range], watcher: Watcher
) -> Generator[tuple[range, list[Example], Run]]:
    """Yields each batch with its examples and its run, in the order of completion. A process gets its next batch after the consumer has
    handled the last one."""
    steps = watcher.steps if len(runners) == 1 else None
    free, pending = list(runners), iter(todo)
    running: dict[Future[Run], tuple[MethodProcess, range, list[Example]]] = {}
    with ThreadPoolExecutor(len(runners)) as pool:
        try:
            while True:
                while free and (batch := next(pending, None)) is not None:
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
            for runner in runners:  # or the pool would wait for running batches
                runner.close()


def _store(comparison: Comparison, batch: range, examples: Sequence[Example], run: Run, records: Records, folder: Path) -> None:
    """Writes the images and records of a batch."""
    gts = comparison.gts
    if not run.images.isfinite().all():
        raise MethodError(
            f"returned NaN or infinite values for {' or '.join(example.name for example in examples)}; try --precision float32"
        )
    for i, example, image, note in zip(batch, examples, run.images.split(1), run.notes, strict=True):
        cost = {"seconds": run.seconds / len(batch), "waited": run.waited, "peak": run.peak, "own": run.own}
        record = _source_record(example) | cost | {"note": note, "metrics": _measure(comparison, example, image)}
        path = folder / f"{gts.files[i]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(to_image((quantize(image)[0] + 1) / 2), path, model=folder.name)
        records.add(record)


def _measure(comparison: Comparison, example: Example, result: Tensor) -> dict[str, float]:
    try:
        return comparison.suite(*(example.inside(image) for image in (example.lr, result, example.gt)))[0]
    except RequestError as error:
        raise RequestError(f"{example.name}: {error}") from None


def _with_features(comparison: Comparison, summaries: Sequence[MethodSummary], output: Path, watcher: Watcher) -> list[MethodSummary]:
    """The summaries with the features of the stored images, for metrics of sets."""
    if not any(metric.of_set for metric in comparison.suite.metrics):
        return list(summaries)
    gts = comparison.gts

    def features(label: str, names: Sequence[str]) -> dict[str, Tensor]:
        parts = []
        for start in range(0, len(names), _BATCH):
            watcher.progress(f"extracting features: {label}", start, len(names))
            indices = [gts.index[name] for name in names[start : start + _BATCH]]
            images = [read_png(output / "pictures" / label / f"{gts.files[i]}.png") for i in indices]
            if comparison.task.aspect in ("pad", "bars"):
                images = [gts[i].inside(image) for i, image in zip(indices, images, strict=True)]
            by_size = itertools.groupby(images, lambda image: image.shape)
            parts += [comparison.suite.pooled(torch.cat(list(group))) for _, group in by_size]
        return concatenated(parts)

    gt_features = features("truth", gts.names)
    return [
        replace(
            summary,
            features=features(summary.label, list(summary.records)),
            gt_features={metric: values[[gts.index[name] for name in summary.records]] for metric, values in gt_features.items()},
        )
        for summary in summaries
    ]


def read_png(path: Path) -> Tensor:
    """A stored image (1, 3, H, W) on the 8-bit grid. Raises ImageError."""
    try:
        with Image.open(path) as image:
            # Contiguous as the methods' results: with another memory layout networks round differently.
            return from_bytes(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].contiguous())
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({error}); remove it and run the same command again") from None


def _source_record(example: Example) -> Record:
    """The name and hashes of a test image; a record is valid only while they match."""
    return {"name": example.name, "sha256": example.sha256, "low_sha256": example.low_sha256}
