"""What is done with a picture around the model's forward passes: the same for one picture, a folder and a cluster."""

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
from gleansr.images.codec import Picture
from gleansr.inference.upscaler import Fit, Upscaler


@dataclass(frozen=True, eq=False)
class Result:
    """What was made of a picture."""

    image: Image.Image
    notes: tuple[str, ...] = ()
    """What to say of it, one line each."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What was measured or found, as plain JSON values."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture between reading and writing."""

    lows: tuple[Tensor, ...]
    """What the model is to enlarge, each (3, h, w), RGB in [-1, 1], on the CPU; none where there is nothing."""
    finish: Callable[[Sequence[Tensor], Sequence[str]], Result]
    """The result, of what the model made of each, (3, scale * h, scale * w), on the CPU, not clamped, and its note, which may be empty."""
    eight_bits: bool = False
    """Whether `finish` takes 8 bits (`pictures.to_bytes`) as well: a GPU then sends home a quarter."""


class Task(Protocol):
    """A way to treat pictures. `prepare` and `finish` use the CPU alone, and several threads may call them at once."""

    @property
    def upscaler(self) -> Upscaler:
        """Whose method makes the forward passes."""
        ...

    @property
    def factor(self) -> int:
        """How many times larger than its picture a result is."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """All but the model that decides what a result looks like, as plain JSON values."""
        ...

    def prepare(self, picture: Picture) -> Prepared:
        """Raises GleansrError for a picture that cannot be treated."""
        ...


@dataclass(frozen=True)
class Enlarge:
    """Enlarges the picture as a whole."""

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
    def prepare(self, picture: Picture) -> Prepared:
        fitted = self.upscaler.fit(picture, self.fit)
        # What finishing needs is kept, not the picture as it came, while it waits.
        fitted = dataclasses.replace(fitted, picture=Picture(torch.empty(3, 0, 0)))

        notes_of_picture = picture.notes

        @plain_torch()
        def finish(highs: Sequence[Tensor], notes: Sequence[str]) -> Result:
            high = back_project(fitted.low, highs[0], strength=self.consistent) if self.consistent else highs[0]
            image = self.upscaler.finish(fitted, high, notes[0])
            details = {"consistency_db": decibels(fitted.low, high)} if self.measured else {}
            return Result(image, tuple(filter(None, [image.info.get("gleansr"), *notes_of_picture])), details)

        return Prepared((fitted.low,), finish, eight_bits=fitted.alpha is None and not (self.consistent or self.measured))


def decibels(low: Tensor, high: Tensor) -> float | None:
    """Consistency of one result (3, s * h, s * w) with its input (3, h, w), both in [-1, 1]; None where nothing differs, for JSON."""
    value = float(consistency(low[None], high[None])[0])
    return None if value == float("inf") else round(value, 2)
