"""What is done with an image around the model's forward passes: the same for one image, a folder and a cluster."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import RequestError
from gleansr.images.back_projection import back_project, consistency
from gleansr.images.codec import DecodedImage
from gleansr.inference.upscaler import Fit, Upscaler


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What was made of an image."""

    image: Image.Image
    notes: tuple[str, ...] = ()
    """What to say of it, one line each."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What was measured or found, as plain JSON values."""


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image between reading and writing."""

    lrs: tuple[Tensor, ...]
    """What the model is to enlarge, each (3, h, w), RGB in [-1, 1], on the CPU; none where there is nothing."""
    finish: Callable[[Sequence[Tensor], Sequence[str]], TaskResult]
    """The result, of what the model made of each, (3, scale * h, scale * w), on the CPU, not clamped, and its note, which may be empty."""
    eight_bits: bool = False
    """Whether `finish` takes 8 bits (`pixels.to_bytes`) as well: a GPU then sends home a quarter."""


class ImageTask(Protocol):
    """A way to treat images. `prepare` and `finish` use the CPU alone, and several threads may call them at once."""

    @property
    def upscaler(self) -> Upscaler:
        """Whose method makes the forward passes."""
        ...

    @property
    def factor(self) -> int:
        """How many times larger than its image a result is."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """All but the model that decides what a result looks like, as plain JSON values."""
        ...

    def prepare(self, decoded: DecodedImage) -> PreparedImage:
        """Raises GleansrError for an image that cannot be treated."""
        ...


@dataclass(frozen=True)
class Enlarge:
    """Enlarges the image as a whole."""

    upscaler: Upscaler
    fit: Fit = "auto"
    consistent: float = 0.0
    """Strength of back-projection; see `fidelity.back_project`."""
    measured: bool = False
    """Whether details tell the consistency in dB, of the result before the border that was added to fit is cut off."""

    def __post_init__(self) -> None:
        if not 0 <= self.consistent <= 1:
            raise RequestError(f"the strength of consistency must be from 0 to 1, not {self.consistent}")

    @property
    def factor(self) -> int:
        return self.upscaler.scale

    @property
    def options(self) -> Mapping[str, Any]:
        return {"fit": self.fit, "consistent": self.consistent}

    @plain_torch()
    def prepare(self, decoded: DecodedImage) -> PreparedImage:
        fitted = self.upscaler.fit(decoded, self.fit)
        # What finishing needs is kept, not the image as it came, while it waits.
        fitted = dataclasses.replace(fitted, image=DecodedImage(torch.empty(3, 0, 0)))

        decoded_notes = decoded.notes

        @plain_torch()
        def finish(srs: Sequence[Tensor], notes: Sequence[str]) -> TaskResult:
            sr = back_project(fitted.lr, srs[0], strength=self.consistent) if self.consistent else srs[0]
            image = self.upscaler.finish(fitted, sr, notes[0])
            details = {"consistency_db": decibels(fitted.lr, sr)} if self.measured else {}
            return TaskResult(image, tuple(filter(None, [image.info.get("gleansr"), *decoded_notes])), details)

        return PreparedImage((fitted.lr,), finish, eight_bits=fitted.alpha is None and not (self.consistent or self.measured))


def decibels(lr: Tensor, sr: Tensor) -> float | None:
    """Consistency of one result (3, s * h, s * w) with its input (3, h, w), both in [-1, 1]; None where nothing differs, for JSON."""
    value = float(consistency(lr[None], sr[None])[0])
    return None if value == float("inf") else round(value, 2)
