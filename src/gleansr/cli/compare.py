"""`gleansr compare`: several methods on the same images, in tables and side by side."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gleansr.cli.comparisons import Output, finish, watching
from gleansr.cli.options import DeviceOptions
from gleansr.evaluation.config import Category, ComputeConfig, GroundTruthConfig, MetricConfig


@dataclass(frozen=True)
class MethodOptions:
    """Which methods are compared, and with which models and settings."""

    scale: int = 8
    """Enlargement."""
    methods: str = "glean,bicubic"
    """Names with commas between, of glean, esrgan+, plain, dgp, pulse and bicubic."""
    category: Category = "cats"
    """Category of the bundled models."""
    models: tuple[str, ...] = ()
    """METHOD=MODEL, names or files, such as plain=plain.safetensors; several of one method as METHOD:LABEL=MODEL. Without one, a method
    takes what comes with the package, PULSE and DGP the bank of the first GLEAN that is given, if one is."""
    option: tuple[str, ...] = ()
    """Changes to the settings of a method, such as pulse.steps=50."""
    limit_slow: int | None = None
    """Only the first so many images for pulse and dgp; a second table then has all methods on these."""


@dataclass(frozen=True)
class ComputeOptions(DeviceOptions):
    """Where and how fast it is computed."""

    batch_size: int = 1
    """Images per forward pass. With 1, times are what one waits for an image."""
    jobs: int = 1
    """Images that pulse and dgp search for at once on a CPU, each in a process with its share of the threads. Each takes longer, and all
    together take less time where one search does not keep all cores busy."""


def compare(
    data: tyro.conf.Positional[str],
    output: Output = None,
    methods: Annotated[MethodOptions, tyro.conf.arg(name="method")] = MethodOptions(),
    images: Annotated[GroundTruthConfig, tyro.conf.arg(name="data")] = GroundTruthConfig(),
    metrics: Annotated[MetricConfig, tyro.conf.arg(name="metric")] = MetricConfig(),
    computing: Annotated[ComputeOptions, tyro.conf.arg(name="device")] = ComputeOptions(),
) -> None:
    """Compare methods on the same images: quality, seconds per image and peak memory. The same command resumes (docs/evaluation.md).

    - gleansr compare val.zip
    - gleansr compare val.zip --methods glean,esrgan+,plain,pulse,dgp,bicubic --limit-slow 16
    - gleansr compare faces.zip --category faces --degradation real

    Writes comparison.json, comparison.csv, comparison.md, index.html and pictures/ into the output folder. Exit status 1 if a method
    failed; the others are compared all the same.

    Args:
        data: The ground-truth images: a folder, a zip or tar archive, an LMDB folder, or an address.
        output: Folder for the reports; by default NAME-8x-comparison in the current folder.
    """
    from gleansr.cli.progress import fetched, fetching
    from gleansr.evaluation.compare import compare as run
    from gleansr.evaluation.entries import parse_entries
    from gleansr.evaluation.plan import plan

    if computing.offline:
        os.environ["GLEANSR_OFFLINE"] = "1"  # for the processes of the methods too, and the metric networks
    scale = methods.scale
    entries = parse_entries(methods.methods, methods.models, methods.option, scale, methods.category)
    for entry in entries:
        if entry.model:
            fetched(entry.model, computing.offline)
    folder = output or Path(f"{Path(data.partition('?')[0]).name.partition('.')[0] or 'pictures'}-{scale}x-comparison")
    compute = ComputeConfig(computing.device, computing.precision, batch_size=computing.batch_size, jobs=computing.jobs)
    with fetching("a metric network") as progress:
        comparison = plan(
            data,
            entries,
            scale=scale,
            images=images,
            metrics=metrics,
            compute=compute,
            limit_slow=methods.limit_slow,
            progress=progress,
        )
    with watching() as watcher:
        try:
            report = run(comparison, folder, watcher)
        except KeyboardInterrupt:
            watcher.message("stopped; run the same command again to resume")
            raise
    finish(report, folder)
