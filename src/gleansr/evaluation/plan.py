"""Plans a comparison and checks it before anything runs."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from gleansr import baselines
from gleansr.checkpoints import model_path
from gleansr.checkpoints.download import DownloadProgress
from gleansr.data.shards import without_query
from gleansr.errors import RequestError
from gleansr.evaluation.config import ComputeConfig, GroundTruthConfig, MetricConfig
from gleansr.evaluation.entries import ComparedMethod, check_labels
from gleansr.evaluation.ground_truth import EvaluationTask, GroundTruth, default_aspect, default_border
from gleansr.evaluation.metric_suite import METRICS, MetricSuite, default_metrics
from gleansr.evaluation.records import Record
from gleansr.evaluation.runner import machine
from gleansr.evaluation.summary import MethodSummary
from gleansr.files import sha256_of
from gleansr.inference.devices import find_device, find_precision
from gleansr.inference.upscaler import Upscaler
from gleansr.version import version

# Part of the conditions in records: a changed text makes a comparison start again.
_LR_TEXTS = {
    "bicubic": "MATLAB's bicubic with antialiasing, rounded to 8 bits",
    "real": "what happens to thumbnails (blur, kernels, noise, compression), drawn with fixed seeds",
}


@dataclass(frozen=True)
class Participant:
    """A method whose model has been checked."""

    entry: ComparedMethod
    images: int
    """Number of test images that it processes."""
    file: str | None
    """Name of the model's file."""
    sha256: str | None
    """SHA-256 of the model's file."""
    licence: str | None

    def summary(self, records: Mapping[str, Record], failed: str | None = None) -> MethodSummary:
        """Its summary, without features."""
        entry = self.entry
        return MethodSummary(entry.label, entry.method, self.file, self.sha256, dict(entry.settings), self.licence, failed, records)


@dataclass(frozen=True)
class Comparison:
    """A checked comparison, see `plan`."""

    data: str
    gts: GroundTruth
    lr: str | None
    participants: Sequence[Participant]
    suite: MetricSuite
    compute: ComputeConfig
    groups: Mapping[str, str] = field(default_factory=dict)
    """Group of each image by name; empty: no results by group."""

    def jobs_of(self, entry: ComparedMethod) -> int:
        """Number of processes of a method; a network has one, so that nothing else disturbs its time."""
        return self.compute.jobs if entry.searches else 1

    def compute_of(self, entry: ComparedMethod) -> ComputeConfig:
        """Device and arithmetic of each process of a method; the processes share the threads."""
        return replace(self.compute, threads=max(1, (self.compute.threads or torch.get_num_threads()) // self.jobs_of(entry)))

    @property
    def task(self) -> EvaluationTask:
        return self.gts.task

    def protocol(self) -> dict[str, Any]:
        """Everything that the results of all methods depend on."""
        precision = {"precision": str(find_precision(self.compute.precision, find_device(self.compute.device))).removeprefix("torch.")}
        return {
            "data": Path(without_query(self.data)).name,
            "pictures": len(self.gts),
            "task": asdict(self.task),
            "low": Path(without_query(self.lr)).name if self.lr else _LR_TEXTS[self.task.degradation],
            "batch_size": self.compute.batch_size,
            "jobs": self.compute.jobs,
            "judge": {"metrics": [metric.name for metric in self.suite.metrics]} | self.suite.protocol,
            "place": machine(find_device(self.compute.device)) | precision | {"threads": self.compute.threads or torch.get_num_threads()},
            "versions": {"gleansr": version(), "torch": torch.__version__},
        }

    def conditions(self, participant: Participant) -> dict[str, Any]:
        """Everything that the records of a method depend on; while it is unchanged, they stay valid."""
        shared = {key: value for key, value in self.protocol().items() if key not in ("data", "pictures")}
        shared |= {
            "jobs": self.jobs_of(participant.entry),
            "place": shared["place"] | {"threads": self.compute_of(participant.entry).threads},
        }
        settings = dict(participant.entry.settings)
        files = {key: sha256_of(value) for key, value in settings.items() if isinstance(value, str) and Path(value).is_file()}
        return shared | {"method": participant.entry.method, "model": participant.sha256, "settings": settings, "setting_files": files}


def plan(
    data: str,
    entries: Sequence[ComparedMethod],
    *,
    scale: int,
    images: GroundTruthConfig = GroundTruthConfig(),
    metrics: MetricConfig = MetricConfig(),
    compute: ComputeConfig = ComputeConfig(),
    limit_slow: int | None = None,
    groups: Path | None = None,
    progress: DownloadProgress | None = None,
) -> Comparison:
    """Plans a comparison: loads every model once and computes the metrics on the first image, before hours of work. Writes nothing.

    Args:
        data: the ground-truth images, as for `open_source`.
        entries: the methods.
        scale: scale of all methods.
        images: size and number of the ground-truth images, and what methods receive of them.
        metrics: metrics and how they are computed.
        compute: of the methods; metrics use the same device. Default: a GPU if there is one.
        limit_slow: number of images of searches, from the first.
        groups: a CSV file, see `read_groups`, for results by group.
        progress: see `MetricSuite`.

    Raises:
        RequestError: the arguments do not fit together.
        CheckpointError, DownloadError, ImageError: a model or the first image cannot be used.
    """
    check_labels(entries)
    if not entries:
        raise RequestError("no method to compare; give some with --methods")
    if compute.batch_size < 1:
        raise RequestError(f"--batch-size must be at least 1, not {compute.batch_size}")
    if compute.jobs < 1:
        raise RequestError(f"--jobs must be at least 1, not {compute.jobs}")
    if limit_slow is not None and limit_slow < 1:
        raise RequestError(f"--limit-slow must be at least 1, not {limit_slow}")
    find_precision(compute.precision, device := find_device(compute.device))
    if compute.jobs > 1 and device.type != "cpu":
        raise RequestError(f"--jobs {compute.jobs} is for searches on a CPU; on a GPU use --batch-size")
    upscalers = {entry.label: entry.load(scale, "cpu") for entry in entries}
    loaded = upscalers.values()
    size, aspect = _common_size(upscalers, images.size), images.aspect or default_aspect(loaded)
    task = EvaluationTask(size, scale, aspect, images.small, default_border(loaded), images.degradation)
    gts = GroundTruth(data, task, lr=images.lr, limit=images.limit)
    groups_by_name = {} if groups is None else read_groups(groups, gts.names)
    participants = []
    for entry in entries:
        model = entry.model or (None if entry.method == "bicubic" else baselines.bundled(entry.method, scale))
        path = None if model is None else model_path(model)
        n = min(limit_slow or len(gts), len(gts)) if entry.searches else len(gts)
        licence = upscalers[entry.label].license
        participants.append(Participant(replace(entry, model=model), n, path and path.name, path and sha256_of(path), licence))
    fewest = min(participant.images for participant in participants)
    names = metrics.names or default_metrics(metrics, task.size - 2 * metrics.crop)
    sets = [name for name in names if name in METRICS and METRICS[name].of_set] if fewest < 2 else []
    if sets and metrics.names:
        raise RequestError(f"{' and '.join(sets)} need at least 2 images, not {fewest}: raise --limit or leave them out")
    names = [name for name in names if name not in sets]
    suite = MetricSuite(names, rounding=metrics.rounding, crop=metrics.crop, device=device, files=metrics, progress=progress)
    example = gts[0]
    suite(example.inside(example.lr), example.inside(example.gt), example.inside(example.gt))
    return Comparison(data, gts, images.lr, participants, suite, compute, groups_by_name)


def read_groups(file: Path, names: Sequence[str]) -> dict[str, str]:
    """The group of each image in `names`, in their order.

    The file is CSV with the columns "name" and "group". Names are those in the data, with or without suffix.

    Raises:
        RequestError: the file cannot be read or is invalid, lists an image twice, or lacks one of `names`.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            if not {"name", "group"} <= set(rows.fieldnames or ()):
                raise RequestError(f"--groups {file}: the first line must name the columns name and group, such as: name,group")
            listed = [((row["name"] or "").strip(), (row["group"] or "").strip()) for row in rows]
    except OSError as error:
        raise RequestError(f"--groups {file}: cannot be read: {error.strerror or error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise RequestError(f"--groups {file}: is not a CSV file: {error}") from None
    groups: dict[str, str] = {}
    for name, group in listed:
        if not name or not group:
            raise RequestError(f"--groups {file}: a line has no name or no group: {name},{group}")
        if name in groups:
            raise RequestError(f"--groups {file}: {name} is listed twice")
        groups[name] = group
    matched = {name: groups.get(name) or groups.get(PurePosixPath(name).stem) for name in names}
    if missing := [name for name, group in matched.items() if group is None]:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise RequestError(f"--groups {file}: has no group for {', '.join(missing[:3])}{more}")
    return {name: group for name, group in matched.items() if group is not None}


def _common_size(upscalers: Mapping[str, Upscaler], size: int | None) -> int:
    """The size of all methods' results; `size` if they have none of their own."""
    sizes: dict[int, str] = {}
    for label, upscaler in upscalers.items():
        if upscaler.output_size:
            sizes.setdefault(upscaler.output_size, label)
    if size is not None:
        sizes.setdefault(size, "--size")
    if not sizes:
        raise RequestError("none of these methods has a fixed size: give one, such as --size 256")
    if len(sizes) > 1:
        listed = ", ".join(f"{label} {side}" for side, label in sizes.items())
        raise RequestError(f"the methods must return images of one size, not {listed}")
    return next(iter(sizes))
