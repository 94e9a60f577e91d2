"""`gleansr evaluate`: how good a model is on held-out images."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

from gleansr.cli.comparisons import DEFAULT_METRICS, Flat, MetricOptions, Output, finish, watching
from gleansr.errors import RequestError
from gleansr.files import sha256_of
from gleansr.inference.precision import Precision

if TYPE_CHECKING:
    from gleansr.models.generator import Generator


def evaluate(
    model: tyro.conf.Positional[str],
    data: tyro.conf.Positional[str],
    metric_options: Annotated[MetricOptions, Flat] = DEFAULT_METRICS,
    size: int | None = None,
    lr: str | None = None,
    limit: int | None = None,
    aspect: Literal["squash", "crop", "pad", "bars"] | None = None,
    small: Literal["refuse", "enlarge"] = "refuse",
    degradation: Literal["bicubic", "real"] = "bicubic",
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    groups: Path | None = None,
    samples: int | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    output: Output = None,
    offline: bool = False,
) -> None:
    """Measure a model on ground-truth images, beside bicubic interpolation; of a bank, measure its samples (docs/evaluation.md).

    - gleansr evaluate faces-8x val.zip
    - gleansr evaluate faces-8x val.zip --degradation real --json faces-8x.json
    - gleansr evaluate faces-bank val.zip

    Args:
        model: Name of a model (see `gleansr models`), or file with a GLEAN, an ESRGAN+, an ESRGAN or a plain network; or with a bank.
        data: The ground-truth images: a folder, a zip or tar archive, an LMDB folder, or an address.
        metric_options: Metrics and how they are computed.
        size: Side of the ground-truth images, for a model that takes images of any size.
        lr: Prepared low-resolution images, of the same names; by default they are made by MATLAB's bicubic, with 8 bits.
        limit: Only the first so many images.
        aspect: What to do with images that are not square. squash: scale each axis by itself; crop: take the centre square; pad: repeat
            the border; bars: take the centre of aspect 4:3 and add bars. Metrics leave borders out. By default crop, or bars for models of
            such images.
        small: What to do with images that would have to be enlarged to be true ones.
        degradation: How the low-resolution images are made. bicubic: MATLAB's, with 8 bits; real: what happens to thumbnails (blur,
            kernels with and without antialiasing, noise, JPEG), always the same for the same data.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        precision: Arithmetic: auto is float32 on a CPU and bfloat16 on a GPU that has it.
        batch_size: Images per forward pass; by default as many as suit the device.
        groups: CSV file with the columns name and group, one line for each image: the figures of each group are told too.
        samples: How many images a bank draws; by default as many as there are true ones.
        json_file: File for all figures and how they were measured.
        output: Folder for images and reports, as `gleansr compare` writes them; images are then taken one by one.
        offline: Never download a model.
    """
    from gleansr.cli.progress import fetched, fetching
    from gleansr.evaluation.compare import compare
    from gleansr.evaluation.entries import ComparedMethod
    from gleansr.evaluation.evaluate import evaluate as run
    from gleansr.evaluation.plan import plan
    from gleansr.evaluation.runner import ComputeConfig
    from gleansr.inference.upscaler import load

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise RequestError(f"--json {json_file}: the folder {json_file.parent} does not exist")
    if json_file is not None and json_file.exists() and not _is_report(json_file):
        raise RequestError(f"--json {json_file}: already exists and is no report of an evaluation; give another name")
    if offline:
        os.environ["GLEANSR_OFFLINE"] = "1"  # for the metric networks too
    compute = ComputeConfig(device, precision)
    file = fetched(model, offline)
    if bank := _bank(file):
        if size or lr or output or groups or degradation != "bicubic":
            raise RequestError(f"{model}: is a bank, which enlarges no images: leave out what is about enlarging")
        _evaluate_bank(
            bank, file, data, metric_options, device, json_file, limit=limit, aspect=aspect or "crop", small=small, samples=samples
        )
        return
    if samples is not None:
        raise RequestError(f"--samples is for banks, but {model} enlarges images")
    upscaler = load(file, device=device, precision=precision)
    method = {"GLEAN": "glean", "ESRGAN+": "esrgan+", "ESRGAN": "esrgan+", "plain": "plain"}[upscaler.method.name]
    label = re.sub(r"[^A-Za-z0-9+_-]", "-", Path(model).stem).lstrip("-_+")[:40] or method
    entries = [ComparedMethod("bicubic", "bicubic"), ComparedMethod(label, method, model)]
    if batch_size is None:
        batch_size = 1 if output else upscaler.default_batch_size()
    options: dict[str, Any] = {
        "size": size,
        "lr": lr,
        "limit": limit,
        "aspect": aspect,
        "small": small,
        "degradation": degradation,
        "batch_size": batch_size,
        "groups": groups,
    }
    with fetching("a metric network") as progress:
        comparison = plan(data, entries, scale=upscaler.scale, compute=compute, progress=progress, **options, **metric_options.options())
    with watching() as watcher:
        report = run(comparison, watcher) if output is None else compare(comparison, output, watcher)
    if json_file is not None:
        json_file.write_text(f"{json.dumps(report, indent=2)}\n", encoding="utf-8")
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
    bank: "Generator",
    file: Path,
    data: str,
    metric_options: MetricOptions,
    device: str,
    json_file: Path | None,
    *,
    limit: int | None,
    aspect: Literal["squash", "crop", "pad", "bars"],
    small: Literal["refuse", "enlarge"],
    samples: int | None,
) -> None:
    from gleansr.cli.progress import fetching
    from gleansr.evaluation.banks import evaluate_bank
    from gleansr.evaluation.ground_truth import EvaluationTask, GroundTruth
    from gleansr.evaluation.metric_suite import MetricSuite
    from gleansr.inference.devices import find_device

    options = metric_options.options()
    names = options.pop("metrics") or ["squeezenet_frechet", *(["mobilenet_frechet"] if metric_options.mobilenet else [])]
    with fetching("a metric network") as progress:
        suite = MetricSuite(names, device=find_device(device), progress=progress, **options)
    gts = GroundTruth(data, EvaluationTask(bank.config.size, 2, aspect, small), limit=limit)
    samples = len(gts) if samples is None else samples
    with watching() as watcher:
        scores = evaluate_bank(bank, gts, suite, samples=samples, progress=lambda done, total: watcher.progress("evaluating", done, total))
    if json_file is not None:
        report = {"protocol": {"sha256": sha256_of(file), "judge": suite.protocol}, "methods": [scores.report()], "common": None}
        json_file.write_text(f"{json.dumps(report, indent=2)}\n", encoding="utf-8")
    print(scores.table())


def _is_report(path: Path) -> bool:
    """Whether a file is what `--json` wrote before: only that is replaced."""
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and {"protocol", "methods", "common"} <= report.keys()
