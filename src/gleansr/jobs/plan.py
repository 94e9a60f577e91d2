"""What is done with each image of a run: the task, and what identifies it in manifests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gleansr.errors import ImageError
from gleansr.files import sha256_of
from gleansr.inference import router
from gleansr.inference.devices import find_precision
from gleansr.inference.precision import Precision
from gleansr.inference.tasks import ImageTask, fitted_task
from gleansr.inference.upscaler import Fit, Upscaler
from gleansr.jobs.jobs import Suffix
from gleansr.photos import AutoTask, Photo, PhotoConfig


@dataclass(frozen=True, eq=False)
class TaskPlan:
    """A task, and what identifies it in manifests."""

    task: ImageTask
    label: str
    """Names the model, for the user."""
    settings: dict[str, Any] = field(default_factory=dict)
    """As `Work.settings`."""
    file: Path | None = None
    """The model's file; None for a method without one, and if each image gets its own model."""

    def sha256(self) -> str | None:
        """As `Work.model_sha256`."""
        if self.file:
            return sha256_of(self.file)
        return router.fingerprint() if isinstance(self.task, AutoTask) else None

    @property
    def batch_size(self) -> int:
        """The batch size that suits the device."""
        return self.task.default_batch_size() if isinstance(self.task, AutoTask) else self.task.upscaler.default_batch_size()

    def scale(self, requested: int | None) -> int | None:
        """Scale of all results; None if it depends on what the images show."""
        return requested or (self.task.common_scale if isinstance(self.task, AutoTask) else self.task.factor)

    def suffix(self, scale: int | None) -> Suffix:
        """Of the names of results: "_8x", or a function of the input if the scale depends on what it shows."""
        task = self.task
        if scale or not isinstance(task, AutoTask):
            return f"_{scale or task.factor}x"
        return partial(_suffix_of, task)


def _suffix_of(task: AutoTask, path: Path) -> str:
    if path.is_dir():
        return f"_{task.common_scale}x" if task.common_scale else "_upscaled"
    try:
        return f"_{task.scale_of(path)}x"
    except ImageError:  # the job reports it
        return f"_{task.factor}x"


def run_settings(upscaler: Upscaler, precision: Precision, options: Sequence[str] = ()) -> dict[str, Any]:
    """What determines results besides model, task and quality, as the manifest records it; `options` are those of PULSE and DGP."""
    kind = str(find_precision(precision, upscaler.device)).removeprefix("torch.")
    return {"method": upscaler.method.name, "scale": upscaler.scale, "set": list(options), "precision": kind}


def plan_task(
    upscaler: Upscaler | None,
    file: Path | None = None,
    *,
    config: PhotoConfig | None = None,
    photo: bool = False,
    background: Upscaler | None = None,
    background_file: Path | None = None,
    fit: Fit = "auto",
    options: Sequence[str] = (),
    device: str = "auto",
    precision: Precision = "auto",
    self_ensemble: bool | None = None,
) -> TaskPlan:
    """The task for images of any kind.

    Args:
        upscaler: enlarges all images; None: each gets the model that it needs.
        file: of the model of `upscaler`.
        config: settings for objects in photos. For images as a whole, its scale, strength of back-projection and `measure_consistency`
            hold.
        photo: search objects in thumbnails too, and paste results of a given model into objects of any size.
        background: enlarges the rest of photos.
        background_file: of its model.
        fit: for a given model, see `Upscaler.fit`; "auto" lets results be exactly the scale times as large as their images.
        options: of PULSE and DGP.
        device: for models that are still to be loaded, as `precision` and `self_ensemble`; see `gleansr.load`.
        precision: of the models.
        self_ensemble: of the models, those of `upscaler` and `background` included.

    Raises:
        RequestError: the arguments do not fit together.
    """
    config = config or PhotoConfig()
    if upscaler and photo:
        task = Photo(upscaler, config, background=background)
    else:
        task = fitted_task(upscaler, fit, config.scale, config.back_project, measured=config.measure_consistency) or AutoTask(
            config, device=device, precision=precision, self_ensemble=self_ensemble, model=upscaler, background=background, photo=photo
        )
    settings = run_settings(upscaler or task.upscaler, precision, options)
    if self_ensemble is not None:
        settings["self_ensemble"] = self_ensemble
    if photo or background_file:
        settings["background_sha256"] = background_file and sha256_of(background_file)
    return TaskPlan(task, file.stem if file else router.AUTO, settings, file)
