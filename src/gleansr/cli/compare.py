"""`gleansr compare`: several methods on the same images, in tables and side by side."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gleansr.cli.comparisons import DEFAULT_METRICS, Flat, MetricOptions, Output, finish, watching
from gleansr.inference.precision import Precision


def compare(
    data: tyro.conf.Positional[str],
    output: Output = None,
    scale: int = 8,
    methods: str = "glean,bicubic",
    models: tuple[str, ...] = (),
    option: tuple[str, ...] = (),
    metric_options: Annotated[MetricOptions, Flat] = DEFAULT_METRICS,
    size: int | None = None,
    lr: str | None = None,
    limit: int | None = None,
    limit_slow: int | None = None,
    aspect: Literal["squash", "crop", "pad", "bars"] | None = None,
    small: Literal["refuse", "enlarge"] = "refuse",
    degradation: Literal["bicubic", "real"] = "bicubic",
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int = 1,
    jobs: int = 1,
    offline: bool = False,
) -> None:
    """Compare methods on the same images: quality, seconds per image and peak memory. The same command resumes (docs/evaluation.md).

    - gleansr compare val.zip
    - gleansr compare val.zip --methods glean,esrgan+,plain,pulse,dgp,bicubic --limit-slow 16
    - gleansr compare val.zip --models glean=faces-8x --degradation real

    Writes comparison.json, comparison.csv, comparison.md, index.html and pictures/ into the output folder. Exit status 1 if a method
    failed; the others are compared all the same.

    Args:
        data: The ground-truth images: a folder, a zip or tar archive, an LMDB folder, or an address.
        output: Folder for the reports; by default NAME-8x-comparison in the current folder.
        scale: Enlargement.
        methods: Names with commas between, of glean, esrgan+, plain, dgp, pulse and bicubic.
        models: METHOD=MODEL, names or files, such as plain=plain.safetensors; several of one method as METHOD:LABEL=MODEL. Without one, a
            method takes what comes with the package, PULSE and DGP the bank of the first GLEAN that is given, if one is.
        option: Changes to the settings of a method, such as pulse.steps=50.
        metric_options: Metrics and how they are computed.
        size: Side of the ground-truth images, where no method makes images of a size of its own.
        lr: Prepared low-resolution images, of the same names; by default they are made by MATLAB's bicubic, with 8 bits.
        limit: Only the first so many images.
        limit_slow: Only the first so many for pulse and dgp; a second table then has all methods on these.
        aspect: What to do with images that are not square. squash: scale each axis by itself; crop: take the centre square; pad: repeat
            the border; bars: take the centre of aspect 4:3 and add bars. Metrics leave borders out. By default crop, or bars for models of
            such images.
        small: What to do with images that would have to be enlarged to be true ones.
        degradation: How the low-resolution images are made. bicubic: MATLAB's, with 8 bits; real: what happens to thumbnails (blur,
            kernels with and without antialiasing, noise, JPEG), always the same for the same data.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        precision: Arithmetic: auto is float32 on a CPU and bfloat16 on a GPU that has it.
        batch_size: Images per forward pass. With 1, times are what one waits for an image.
        jobs: Images that pulse and dgp search for at once on a CPU, each in a process with its share of the threads. Each takes longer,
            and all together take less time where one search does not keep all cores busy.
        offline: Never download a model.
    """
    from gleansr.cli.progress import fetched, fetching
    from gleansr.evaluation.compare import compare as run
    from gleansr.evaluation.entries import parse_entries
    from gleansr.evaluation.plan import plan
    from gleansr.evaluation.runner import ComputeConfig

    if offline:
        os.environ["GLEANSR_OFFLINE"] = "1"  # for the processes of the methods too, and the metric networks
    entries = parse_entries(methods, models, option, scale)
    for entry in entries:
        if entry.model:
            fetched(entry.model, offline)
    folder = output or Path(f"{Path(data.partition('?')[0]).name.partition('.')[0] or 'pictures'}-{scale}x-comparison")
    options: dict[str, Any] = {
        "size": size,
        "lr": lr,
        "limit": limit,
        "limit_slow": limit_slow,
        "aspect": aspect,
        "small": small,
        "degradation": degradation,
    }
    compute = ComputeConfig(device, precision)
    with fetching("a metric network") as progress:
        comparison = plan(
            data,
            entries,
            scale=scale,
            compute=compute,
            batch_size=batch_size,
            jobs=jobs,
            progress=progress,
            **options,
            **metric_options.options(),
        )
    with watching() as watcher:
        try:
            report = run(comparison, folder, watcher)
        except KeyboardInterrupt:
            watcher.message("stopped; run the same command again to resume")
            raise
    finish(report, folder)
