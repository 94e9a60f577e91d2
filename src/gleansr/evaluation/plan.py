"""What is compared on what: checked before anything runs."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from gleansr import baselines as baselines
from gleansr.checkpoints import model_path
from gleansr.checkpoints.download import DownloadProgress
from gleansr.data.fit import Aspect
from gleansr.data.shards import without_query
from gleansr.errors import RequestError
from gleansr.evaluation.entries import ComparedMethod, check_labels
from gleansr.evaluation.ground_truth import Degradation, EvaluationTask, GroundTruth, Small, usual_aspect, usual_border
from gleansr.evaluation.judges import METRICS, MetricFiles, MetricSuite, default_metrics
from gleansr.evaluation.metrics import Rounding
from gleansr.evaluation.records import Record
from gleansr.evaluation.runner import ComputeConfig, machine
from gleansr.evaluation.summary import MethodSummary
from gleansr.files import sha256_of
from gleansr.inference.devices import find_device, find_precision
from gleansr.inference.upscaler import Upscaler
from gleansr.version import version

_LOWS = {
    "bicubic": "MATLAB's bicubic with antialiasing, rounded to 8 bits",
    "real": "what happens to thumbnails (blur, kernels, noise, compression), drawn with fixed seeds",
}


@dataclass(frozen=True)
class Participant:
    """An entry whose model has been read and found to fit."""

    entry: ComparedMethod
    images: int
    """How many of the test images it gets."""
    file: str | None
    """Name of the model's file."""
    sha256: str | None
    """Of the model's file."""
    licence: str | None

    def outcome(self, records: Mapping[str, Record], failed: str | None = None) -> MethodSummary:
        """What came of it, without the features of its images; see `MethodSummary`."""
        entry = self.entry
        return MethodSummary(entry.label, entry.method, self.file, self.sha256, dict(entry.settings), self.licence, failed, records)


@dataclass(frozen=True)
class Comparison:
    """What is to be compared; made by `plan`."""

    data: str
    gts: GroundTruth
    lr: str | None
    participants: Sequence[Participant]
    judge: MetricSuite
    place: ComputeConfig
    batch_size: int = 1
    jobs: int = 1
    """Images that a search works on at once."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Of each image by name; none: figures are not told by group."""

    def jobs_of(self, entry: ComparedMethod) -> int:
        """How many processes it has: a network has one, so that its time is that of a machine of its own."""
        return self.jobs if entry.searches else 1

    def place_of(self, entry: ComparedMethod) -> ComputeConfig:
        """Where each of its processes computes: they share the threads."""
        return replace(self.place, threads=max(1, (self.place.threads or torch.get_num_threads()) // self.jobs_of(entry)))

    @property
    def task(self) -> EvaluationTask:
        return self.gts.task

    def protocol(self) -> dict[str, Any]:
        """What all figures depend on but the methods' own settings."""
        place = {"precision": str(find_precision(self.place.precision, find_device(self.place.device))).removeprefix("torch.")}
        return {
            "data": Path(without_query(self.data)).name,
            "pictures": len(self.gts),
            "task": asdict(self.task),
            "low": Path(without_query(self.lr)).name if self.lr else _LOWS[self.task.degradation],
            "batch_size": self.batch_size,
            "jobs": self.jobs,
            "judge": {"metrics": [metric.name for metric in self.judge.metrics]} | self.judge.protocol,
            "place": machine(find_device(self.place.device)) | place | {"threads": self.place.threads or torch.get_num_threads()},
            "versions": {"gleansr": version(), "torch": torch.__version__},
        }

    def made(self, participant: Participant) -> dict[str, Any]:
        """What the records of a method depend on: where none of it has changed, they need not be made again."""
        shared = {key: value for key, value in self.protocol().items() if key not in ("data", "pictures")}
        shared |= {
            "jobs": self.jobs_of(participant.entry),
            "place": shared["place"] | {"threads": self.place_of(participant.entry).threads},
        }
        settings = dict(participant.entry.settings)
        files = {key: sha256_of(value) for key, value in settings.items() if isinstance(value, str) and Path(value).is_file()}
        return shared | {"method": participant.entry.method, "model": participant.sha256, "settings": settings, "setting_files": files}


def plan(
    data: str,
    entries: Sequence[ComparedMethod],
    *,
    scale: int,
    metrics: Sequence[str] | None = None,
    rounding: Rounding = "8-bit",
    crop: int = 0,
    files: MetricFiles | None = None,
    size: int | None = None,
    lr: str | None = None,
    limit: int | None = None,
    limit_slow: int | None = None,
    aspect: Aspect | None = None,
    small: Small = "refuse",
    degradation: Degradation = "bicubic",
    place: ComputeConfig | None = None,
    batch_size: int = 1,
    jobs: int = 1,
    groups: Path | None = None,
    progress: DownloadProgress | None = None,
) -> Comparison:
    """Checks all that can be checked before hours of work: every model is read once, and the first image is judged.

    Args:
        data: the ground-truth images, as `open_source` takes them.
        entries: the methods.
        scale: of all methods.
        metrics: names of `gleansr.evaluation.judges.METRICS`; by default those that need nothing but the package and `files`.
        rounding: see `MetricSuite`, as `crop`, `files` and `progress`.
        size: side of the results; by default what the methods make.
        lr: prepared low-resolution images, see `GroundTruth`.
        limit: only the first so many images.
        limit_slow: only the first so many for methods that search.
        aspect: see `EvaluationTask`; by default "bars" for models of images between black bars, otherwise "crop".
        small: see `EvaluationTask`, as `degradation`.
        place: where the methods compute, and the judge; by default on a GPU if there is one.
        batch_size: images that a method gets together; with 1 the time of an image is what one waits for it.
        jobs: images, or batches, that a search works on at once on a CPU, each in a process with its share of the threads.
        groups: a CSV file, see `read_groups`: figures are told by group too.

    Raises:
        RequestError: something of it does not fit together; nothing was written.
        CheckpointError, DownloadError, ImageError: a model or the first image cannot be used.
    """
    place = place or ComputeConfig()
    check_labels(entries)
    if not entries:
        raise RequestError("there is no method to compare; name some with --methods")
    if batch_size < 1:
        raise RequestError(f"--batch-size must be at least 1, not {batch_size}")
    if jobs < 1:
        raise RequestError(f"--jobs must be at least 1, not {jobs}")
    if limit_slow is not None and limit_slow < 1:
        raise RequestError(f"--limit-slow must be at least 1, not {limit_slow}")
    find_precision(place.precision, device := find_device(place.device))
    if jobs > 1 and device.type != "cpu":
        raise RequestError(f"--jobs {jobs} is for searches on a CPU; a GPU works on several images at once with --batch-size")
    upscalers = {entry.label: entry.load(scale, "cpu") for entry in entries}
    every = upscalers.values()
    task = EvaluationTask(_common_size(upscalers, size), scale, aspect or usual_aspect(every), small, usual_border(every), degradation)
    gts = GroundTruth(data, task, lr=lr, limit=limit)
    of = {} if groups is None else read_groups(groups, gts.names)
    participants = []
    for entry in entries:
        model = entry.model or (None if entry.method == "bicubic" else baselines.bundled(entry.method, scale))
        path = None if model is None else model_path(model)
        n = min(limit_slow or len(gts), len(gts)) if entry.searches else len(gts)
        licence = upscalers[entry.label].licence
        participants.append(Participant(replace(entry, model=model), n, path and path.name, path and sha256_of(path), licence))
    fewest = min(participant.images for participant in participants)
    names = default_metrics(files, task.size - 2 * crop) if metrics is None else list(metrics)
    sets = [name for name in names if name in METRICS and METRICS[name].of_set] if fewest < 2 else []
    if sets and metrics is not None:
        raise RequestError(f"{' and '.join(sets)} want sets of at least 2 images, not of {fewest}: raise --limit or leave them out")
    names = [name for name in names if name not in sets]
    judge = MetricSuite(names, rounding=rounding, crop=crop, device=device, files=files, progress=progress)
    example = gts[0]
    judge(example.inside(example.lr), example.inside(example.gt), example.inside(example.gt))
    return Comparison(data, gts, lr, participants, judge, place, batch_size, jobs, of)


def read_groups(file: Path, names: Sequence[str]) -> dict[str, str]:
    """The group of each of the images `names`, in their order.

    The file is CSV with the columns "name" and "group". A name is an image's in the data, with or without its ending.

    Raises:
        RequestError: the file cannot be read or is no such file, an image is in it twice, or one of `names` is not in it.
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
        raise RequestError(f"--groups {file}: is no CSV file: {error}") from None
    groups: dict[str, str] = {}
    for name, group in listed:
        if not name or not group:
            raise RequestError(f"--groups {file}: a line lacks its name or its group: {name},{group}")
        if name in groups:
            raise RequestError(f"--groups {file}: {name} is listed twice")
        groups[name] = group
    found = {name: groups.get(name) or groups.get(PurePosixPath(name).stem) for name in names}
    if missing := [name for name, group in found.items() if group is None]:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise RequestError(f"--groups {file}: has no group for {', '.join(missing[:3])}{more}")
    return {name: group for name, group in found.items() if group is not None}


def _common_size(upscalers: Mapping[str, Upscaler], size: int | None) -> int:
    """The size that all methods make, or that was asked for where they make any."""
    sizes: dict[int, str] = {}
    for label, upscaler in upscalers.items():
        if upscaler.output_size:
            sizes.setdefault(upscaler.output_size, label)
    if size is not None:
        sizes.setdefault(size, "--size")
    if not sizes:
        raise RequestError("none of these methods makes images of a size of its own: give one, such as --size 256")
    if len(sizes) > 1:
        differing = ", ".join(f"{label} {side}" for side, label in sizes.items())
        raise RequestError(f"images of one size can be compared, but these differ: {differing}")
    return next(iter(sizes))
