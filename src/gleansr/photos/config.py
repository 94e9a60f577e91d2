"""How whole photographs are treated."""

import math
from dataclasses import dataclass

from gleansr.errors import RequestError

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels of the upright photo."""

MOST_MEGAPIXELS = 50
"""Of a result whose factor was not chosen."""


@dataclass(frozen=True)
class PhotoConfig:
    """Where the objects of a photo are, and how what the model makes of them is pasted back."""

    boxes: tuple[Box, ...] = ()
    """Left, top, width and height, in pixels of the upright photo, of each object; the model sees the smallest square around it (of models
    of cars the smallest rectangle of their shape), so let it hold the whole head. Nothing is searched then."""
    aligned: bool = False
    """The whole image is the object; nothing is searched."""
    factor: int | None = None
    """How many times larger than the photo the result is, 1 to 64. By default the model's scale, halved until the result has at most 50
    megapixels."""
    feather: float | None = None
    """Width of the fade at the border of an object, as a share of its side, 0 to 0.5; by default 0.12."""
    consistent: float = 0.0
    """0 to 1: how far each object is changed so that it shrinks to what the model got, see `gleansr.images.back_projection`."""
    keep: float | None = None
    """0 to 1: how much of the detail that the photo has within an object, and that the model does not see, is kept. With 0 the model's
    replaces it, with 1 the model only adds what is finer than the photo's pixels. By default, what the photo resolves is kept: much of a
    sharp one, nothing of a blurred one; see `gleansr.photos.sharpness`."""
    require_object: bool = False
    """A photo without an object is an error."""
    most: int = 200
    """The largest number of objects, the surest first."""
    least_score: float | None = None
    """The least score of what is taken for an object, in the detector's own unit; by default what was measured to be good."""
    turned: bool = True
    """Whether heads are searched that are turned to the side or upside down, which takes several times as long."""
    overlap: int = 32
    """Pixels of the photo by which the tiles of a background network reach over each other, 8 to 256."""
    measured: bool = True
    """Whether the consistency of each object is measured."""

    def __post_init__(self) -> None:
        for box in self.boxes:
            if len(box) != 4 or not all(math.isfinite(value) and abs(value) <= 1e6 for value in box) or min(box[2:]) <= 0:
                raise RequestError(
                    f"a box is left, top, width and height in pixels of the photo, such as 100,50,200,200, its sides above 0, not {box}"
                )
        if self.boxes and self.aligned:
            raise RequestError("--aligned says that the whole image is the object; leave it or --box out")
        if self.factor is not None and not 1 <= self.factor <= 64:
            raise RequestError(f"factor must be 1 to 64, not {self.factor}")
        shares = {"consistent": (self.consistent, 1), "keep": (self.keep or 0, 1), "feather": (self.feather or 0, 0.5)}
        for name, (value, highest) in shares.items():
            if not 0 <= value <= highest:
                raise RequestError(f"{name} must be 0 to {highest}, not {value}")
        if not 1 <= self.most <= 10_000:
            raise RequestError(f"the largest number of objects must be 1 to 10000, not {self.most}")
        if self.least_score is not None and not math.isfinite(self.least_score):
            raise RequestError(f"the least score must be a number, not {self.least_score}")
        if not 8 <= self.overlap <= 256:
            raise RequestError(f"the overlap of tiles must be 8 to 256 pixels, not {self.overlap}")
