"""`gleansr evaluate`: how good a model is on held-out images."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from gleansr.cli.comparisons import Output, finish, watching
from gleansr.cli.options import BatchOptions
from gleansr.errors import RequestError
from gleansr.evaluation.config import ComputeConfig, GroundTruthConfig, MetricConfig
from gleansr.files import sha256_of

if TYPE_CHECKING:
    from gleansr.models.generator import Generator


@dataclass(frozen=True)
class ReportOptions:
    """What is written besides the printed tables."""

    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """File for all figures and how they were measured."""
    output: Output = None
    """Folder for images and reports, as `gleansr compare` writes them; images are then taken one by one."""


def evaluate(
    model: tyro.conf.Positional[str],
    data: tyro.conf.Positional[str],
    images: Annotated[GroundTruthConfig, tyro.conf.arg(name="data")] = GroundTruthConfig(),
    metrics: Annotated[MetricConfig, tyro.conf.arg(name="metric")] = MetricConfig(),
    groups: Path | None = None,
    samples: int | None = None,
    files: Annotated[ReportOptions, tyro.conf.arg(name="output")] = ReportOptions(),
    computing: Annotated[BatchOptions, tyro.conf.arg(name="device")] = BatchOptions(),
) -> None:
    """Measure a model on ground-truth images, beside bicubic interpolation; of a bank, measure its samples (docs/evaluation.md).

    - gleansr evaluate faces-8x val.zip
    - gleansr evaluate faces-8x val.zip --degradation real --json faces-8x.json
    - gleansr evaluate faces-bank val.zip

    Args:
        model: Name of a model (see `gleansr models`), or file with a GLEAN, an ESRGAN+, an ESRGAN or a plain network; or with a bank.
        data: The ground-truth images: a folder, a zip or tar archive, an LMDB folder, or an address.
        groups: CSV file with the columns name and group, one line for each image: the figures of each group are told too.
        samples: How many images a bank draws; by default as many as there are true ones.
    """
    from gleansr.cli.progress import fetched, fetching
    from gleansr.evaluation.compare import compare
    from gleansr.evaluation.entries import ComparedMethod
    from gleansr.evaluation.evaluate import evaluate as run
    from gleansr.evaluation.plan import plan
    from gleansr.inference.upscaler import load

    json_file, output = files.json_file, files.output
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise RequestError(f"--json {json_file}: the folder {json_file.parent} does not exist")
    if json_file is not None and json_file.exists() and not _is_report(json_file):
        raise RequestError(f"--json {json_file}: already exists and is no report of an evaluation; give another name")
    if computing.offline:
        os.environ["GLEANSR_OFFLINE"] = "1"  # for the metric networks too
    file = fetched(model, computing.offline)
    if bank := _bank(file):
        if images.size or images.lr or output or groups or images.degradation != "bicubic":
            raise RequestError(f"{model}: is a bank, which enlarges no images: leave out what is about enlarging")
        report, table = _evaluate_bank(bank, file, data, images, metrics, samples, computing.device)
        _write(report, json_file)
        print(table)
        return
    if samples is not None:
        raise RequestError(f"--samples is for banks, but {model} enlarges images")
    upscaler = load(file, device=computing.device, precision=computing.precision)
    method = {"GLEAN": "glean", "ESRGAN+": "esrgan+", "ESRGAN": "esrgan+", "plain": "plain"}[upscaler.method.name]
    label = re.sub(r"[^A-Za-z0-9+_-]", "-", Path(model).stem).lstrip("-_+")[:40] or method
    entries = [ComparedMethod("bicubic", "bicubic"), ComparedMethod(label, method, model)]
    batch_size = computing.batch_size
    if batch_size is None:
        batch_size = 1 if output else upscaler.default_batch_size()
    compute = ComputeConfig(computing.device, computing.precision, batch_size=batch_size)
    with fetching("a metric network") as progress:
        comparison = plan(
            data, entries, scale=upscaler.scale, images=images, metrics=metrics, compute=compute, groups=groups, progress=progress
        )
    with watching() as watcher:
        report = run(comparison, watcher) if output is None else compare(comparison, output, watcher)
    _write(report, json_file)
    finish(report, output)


def _bank(file: Path) -> "Generator | None":
    """The bank in a file, if that is what it holds."""
    from gleansr import checkpoints

    if file.suffix.lower() == ".onnx":
        return None
    checkpoint = checkpoints.read(file)
    generator = checkpoint.networks.get("generator")
    is_bank = generator is not None and generator.kind in ("stylegan2", "stylegan")
    return cast("Generator", checkpoint.build("generator", file)) if is_bank else None


def _evaluate_bank(
    bank: "Generator", file: Path, data: str, images: GroundTruthConfig, metrics: MetricConfig, samples: int | None, device: str
) -> tuple[dict[str, Any], str]:
    """The report of a bank, and its table."""
    from gleansr.cli.progress import fetching
    from gleansr.evaluation.banks import evaluate_bank
    from gleansr.evaluation.ground_truth import EvaluationTask, GroundTruth
    from gleansr.evaluation.metric_suite import MetricSuite
    from gleansr.inference.devices import find_device

    names = metrics.names or ["squeezenet_frechet", *(["mobilenet_frechet"] if metrics.mobilenet else [])]
    with fetching("a metric network") as progress:
        suite = MetricSuite(
            names, rounding=metrics.rounding, crop=metrics.crop, device=find_device(device), files=metrics, progress=progress
        )
    gts = GroundTruth(data, EvaluationTask(bank.config.size, 2, images.aspect or "crop", images.small), limit=images.limit)
    samples = len(gts) if samples is None else samples
    with watching() as watcher:
        scores = evaluate_bank(bank, gts, suite, samples=samples, progress=lambda done, total: watcher.progress("evaluating", done, total))
    protocol = {"sha256": sha256_of(file), "judge": suite.protocol}
    return {"protocol": protocol, "methods": [scores.report()], "common": None}, scores.table()


def _write(report: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        file.write_text(f"{json.dumps(report, indent=2)}\n", encoding="utf-8")


def _is_report(path: Path) -> bool:
    """Whether a file is what `--json` wrote before: only that is replaced."""
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and {"protocol", "methods", "common"} <= report.keys()
