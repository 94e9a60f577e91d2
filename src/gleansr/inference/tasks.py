"""The processing of an image before and after its forward passes: the same for one image, a folder and a cluster."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import ImageError, RequestError
from gleansr.images.back_projection import back_project, consistency_db
from gleansr.images.codec import DecodedImage
from gleansr.images.pixels import quantize
from gleansr.images.resize import degrade
from gleansr.inference.upscaler import Fit, Upscaler


@dataclass(frozen=True, eq=False)
class TaskResult:
    """The result of an image."""

    image: Image.Image
    notes: tuple[str, ...] = ()
    """Notes for the user, one line each."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Measurements and detections, as plain JSON values."""
    models: tuple[str, ...] = ()
    """Names of the models that made the image; empty: the task's model."""
    summary: str = ""
    """What was recognised and which models enlarged it, for the user."""


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image that waits for its forward passes."""

    lrs: tuple[Tensor, ...]
    """Inputs of the model, each (3, h, w), RGB in [-1, 1], on the CPU; empty if nothing is to be enlarged."""
    finish: Callable[[Sequence[Tensor], Sequence[str]], TaskResult]
    """Builds the output from the model's results, (3, scale * h, scale * w), on the CPU, not clamped, and their notes, "" for none."""
    eight_bits: bool = False
    """Whether `finish` accepts uint8 (`pixels.to_bytes`), which takes a quarter of the transfer from a GPU."""
    upscalers: tuple[Upscaler, ...] = ()
    """The model of each of `lrs`; empty: the task's for all."""


class ImageTask(Protocol):
    """Processes images. `prepare` and `finish` use only the CPU, and several threads may call them at once."""

    @property
    def upscaler(self) -> Upscaler:
        """The Upscaler that runs the forward passes, except those for which a `PreparedImage` names others."""
        ...

    @property
    def factor(self) -> int:
        """Scale of a result."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """All options that determine a result, except the model, as plain JSON values."""
        ...

    def prepare(self, decoded: DecodedImage) -> PreparedImage:
        """Raises GleansrError for an image that cannot be processed."""
        ...

    def moved(self, device: str, move: Callable[[Upscaler], Upscaler]) -> "ImageTask":
        """The same task on another device; `move` brings a loaded model there."""
        ...


@dataclass(frozen=True)
class Enlarge:
    """Upscales the image as a whole."""

    upscaler: Upscaler
    fit: Fit = "auto"
    back_projection: float = 0.0
    """Strength of back-projection, 0 to 1; see `images.back_projection`."""
    measured: bool = False
    """Whether details contain the consistency in dB, measured before padding is cut off."""
    may_shrink: bool = True
    """Whether a result may be smaller than its image."""
    scale: int | None = None
    """Results are exactly so many times as large as their images; None: as large as the model makes them. `fit` must be "pad"."""

    def __post_init__(self) -> None:
        if not 0 <= self.back_projection <= 1:
            raise RequestError(f"the strength of back-projection must be from 0 to 1, not {self.back_projection}")

    @property
    def factor(self) -> int:
        return self.scale or self.upscaler.scale

    @property
    def options(self) -> Mapping[str, Any]:
        return {"fit": self.fit, "consistent": self.back_projection}

    def moved(self, device: str, move: Callable[[Upscaler], Upscaler]) -> "Enlarge":  # noqa: ARG002, no model is still to be loaded
        return dataclasses.replace(self, upscaler=move(self.upscaler))

    @plain_torch()
    def prepare(self, decoded: DecodedImage) -> PreparedImage:
        fitted = self.upscaler.fit(decoded, self.fit)
        if not self.may_shrink and max(decoded.size) > max(fitted.keep[2:]):
            height, width = decoded.size
            raise ImageError(
                f"{decoded.name}: {width}x{height} is larger than what {self.upscaler.about.name or 'the model'} makes, "
                f"{fitted.keep[3]}x{fitted.keep[2]}; leave --fit out to enlarge it as a photo, or --model too for the models that it needs"
            )
        # Drop the pixels while the image waits: finishing does not need them.
        fitted = dataclasses.replace(fitted, image=DecodedImage(torch.empty(3, 0, 0)))

        decoded_notes, size = decoded.notes, decoded.size
        exact = self.scale if self.scale and (self.scale != self.upscaler.scale or not self.upscaler.takes(size)) else None

        @plain_torch()
        def finish(srs: Sequence[Tensor], notes: Sequence[str]) -> TaskResult:
            sr = back_project(fitted.lr, srs[0], strength=self.back_projection) if self.back_projection else srs[0]
            if exact:
                image, found = self.upscaler.finish_exactly(fitted, sr, size, exact), [notes[0]]
            else:
                image = self.upscaler.finish(fitted, sr, notes[0])
                found = [image.info.get("gleansr")]
            details = {}
            if self.measured:
                details["consistency_db"] = consistency_db(fitted.lr, degrade(quantize(sr[None]), self.upscaler.scale)[0])
            return TaskResult(image, tuple(filter(None, [*found, *decoded_notes])), details)

        eight_bits = fitted.alpha is None and not (self.back_projection or self.measured or exact)
        return PreparedImage((fitted.lr,), finish, eight_bits=eight_bits)


def fitted_task(
    upscaler: Upscaler | None, fit: Fit, scale: int | None = None, back_projection: float = 0.0, *, measured: bool = False
) -> Enlarge | None:
    """The task for images that are fitted to the input of one model; None with `fit` "auto", which leaves the choice to others.

    Args:
        upscaler: the model; None: each image gets its own, which "auto" alone permits.
        fit: see `Upscaler.fit`.
        scale: the requested scale, if any, which must be the model's.
        back_projection: as `measured`, see `Enlarge`.
        measured: whether to measure the consistency.

    Raises:
        RequestError: the arguments do not fit together.
    """
    if fit == "auto":
        return None
    if upscaler is None:
        raise RequestError("--fit is for one model: give --model too; without it, each image is fitted to the model that it needs")
    if scale not in (None, upscaler.scale):
        name = upscaler.about.name or "the model"
        raise RequestError(f"--scale {scale}: with --fit, {name} enlarges {upscaler.scale} times; leave --fit out")
    return Enlarge(upscaler, fit, back_projection, measured=measured, may_shrink=False)
