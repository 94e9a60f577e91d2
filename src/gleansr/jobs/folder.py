"""`upscale_folder`: a whole folder with one call."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from gleansr import checkpoints
from gleansr.configs import check_option
from gleansr.errors import RequestError
from gleansr.inference.precision import Precision
from gleansr.inference.router import AUTO
from gleansr.inference.upscaler import Fit, check_fit, load
from gleansr.jobs.jobs import UnreadableFolder, destinations
from gleansr.jobs.manifest import Manifest
from gleansr.jobs.pipeline import run
from gleansr.jobs.plan import plan_task
from gleansr.jobs.steps import JobResult, Work
from gleansr.jobs.walk import count, walk
from gleansr.photos import PhotoConfig


@dataclass(frozen=True)
class FolderSummary:
    """Numbers of a folder run, and its failures."""

    destination: Path
    """Folder of the results."""
    model: str
    scale: int | None
    """None: each image has its own."""
    done: int = 0
    """Images upscaled by this call."""
    skipped: int = 0
    """Images whose results were there already."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Images and folders that failed, with the reason."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Numbers of files that are not images, by reason."""
    seconds: float = 0.0

    def __str__(self) -> str:
        return describe_run(self.done, len(self.failures), self.skipped, str(self.destination), describe_model(self.scale, self.model))


def describe_model(scale: int | None, model: str) -> str:
    """Scale and model for the user; the scale is None where each image has its own."""
    return f"{scale}x, {model}" if scale else f"model {model}"


def describe_run(done: int, failed: int, skipped: int, where: str, what: str, *, missing: int = 0, pace: str = "") -> str:
    """One line on a run that has ended.

    Args:
        done: images upscaled by this run.
        failed: images and folders.
        skipped: images whose results were there already.
        where: folders of the results.
        what: scale and model.
        missing: images that a stopped run did not begin.
        pace: how long it took, such as " in 3 s".
    """
    if skipped and not (done or failed or missing):
        return f"Nothing to do: {'the image is' if skipped == 1 else f'all {skipped:,} images are'} already in {where}"
    images = f"{done:,} {'image' if done == 1 else 'images'}"
    parts = [f"{images} → {where} ({what}){pace}" if done else f"No image was upscaled ({what})"]
    parts += [f"{failed:,} failed"] if failed else []
    parts += [f"{skipped:,} done before"] if skipped else []
    parts += [f"{missing:,} not begun"] if missing else []
    return "; ".join(parts)


def upscale_folder(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    *,
    model: str | os.PathLike[str] = AUTO,
    scale: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    self_ensemble: bool | None = None,
    batch_size: int | None = None,
    fit: Fit = "auto",
    back_projection: float = 0.0,
    quality: int = 95,
    overwrite: bool = False,
    sidecar: bool = False,
    max_megapixels: float = 200,
    allow_truncated: bool = False,
    progress: Callable[[JobResult | UnreadableFolder], object] | None = None,
) -> FolderSummary:
    """Upscales all images of a folder and its subfolders, as `gleansr upscale FOLDER -o DESTINATION` does.

    The results lie in `destination` under the same names, in the same subfolders. Its manifest, gleansr.jsonl, lets a repeated or
    interrupted call skip what is done, also if the command line began it. An image that cannot be used does not stop the others.

    Args:
        source: the folder.
        destination: the folder of the results; by default FOLDER_8x beside it, after the scale, or FOLDER_upscaled if that depends on the
            image.
        model: name or file of a model for all images; "auto": what each needs, see `gleansr.upscale`.
        scale: see `gleansr.upscale`.
        device: as `precision` and `self_ensemble`, see `gleansr.load`.
        precision: of the models.
        self_ensemble: of the models; False halves the time.
        batch_size: images in a forward pass; None: what suits the device.
        fit: for a given model; "auto": as `gleansr.upscale`, otherwise see `Upscaler.fit`.
        back_projection: strength, 0 to 1; see `Upscaler.__call__`.
        quality: of JPEG and WebP, 1 to 100.
        overwrite: replace files that the manifest does not list.
        sidecar: write NAME.json beside each result.
        max_megapixels: largest image that is read.
        allow_truncated: read truncated files as far as they go.
        progress: receives each result as soon as it is written.

    Raises:
        RequestError: the source is not a folder, or an option is out of range.
        OutputError: results can no longer be written.
    """
    started = time.monotonic()
    if not Path(source).is_dir():
        raise RequestError(f"{source} is not a folder; `gleansr.load(model)(image)` upscales one image")
    check_fit(fit)
    check_option(Work, "quality", quality, "quality")
    check_option(Work, "batch_size", batch_size, "batch_size")
    check_option(PhotoConfig, "back_project", back_projection, "back_projection")
    file = None if model == AUTO else checkpoints.model_path(model)
    upscaler = file and load(file, device=device, precision=precision, self_ensemble=self_ensemble)
    config = PhotoConfig(scale=scale, back_project=back_projection, measure_consistency=sidecar)
    plan = plan_task(upscaler, file, config=config, fit=fit, device=device, precision=precision, self_ensemble=self_ensemble)
    work = Work(
        plan.task,
        batch_size or plan.batch_size,
        plan.sha256(),
        plan.settings,
        quality,
        overwrite,
        sidecar,
        max_pixels=round(max_megapixels * 1e6),
        allow_truncated=allow_truncated,
    )
    [place] = destinations([source], destination, plan.suffix(scale))
    statuses = {"done": 0, "skipped": 0}
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        left_out = count(place).left_out  # a wrong request ends here, before any write
        manifest = stack.enter_context(Manifest(place.manifest)) if place.manifest else None
        for result in run(walk(place, 0, manifest and manifest.is_result), work, [manifest]):
            if isinstance(result, UnreadableFolder):
                failures[result.folder] = result.reason
            elif result.error:
                failures[result.job.source] = result.reason
            else:
                statuses[result.status] += 1
            if progress:
                progress(result)
    return FolderSummary(
        place.root,
        plan.label,
        plan.scale(scale),
        **statuses,
        failures=failures,
        left_out={reason: group.files for reason, group in left_out.items()},
        seconds=time.monotonic() - started,
    )
