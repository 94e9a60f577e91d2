"""Settings for whole photographs."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from gleansr.configs import Range, check_request
from gleansr.errors import RequestError

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels of the upright photo."""

MAX_MEGAPIXELS = 50
"""Largest result at the default scale."""


@dataclass(frozen=True)
class PhotoConfig:
    """Where the objects of a photo are, and how the model's results are pasted back."""

    boxes: tuple[Box, ...] = ()
    """Left, top, width and height of each object, in pixels of the upright photo; disables detection. The model sees the smallest square
    around a box (for cars, the smallest rectangle of the model's aspect ratio), so a box must contain the whole head."""
    aligned: bool = False
    """The whole image is the object; disables detection."""
    scale: Annotated[int | None, Range(1, 64)] = None
    """Ratio of the result's sides to the photo's, 1 to 64. By default the model's scale, halved down to 2 until the result has at
    most `max_megapixels`."""
    feather: Annotated[float | None, Range(0, 0.5)] = None
    """Width of the fade at the border of an object, as a share of its side, 0 to 0.5; by default 0.12."""
    back_project: Annotated[float, Range(0, 1)] = 0.0
    """Strength of back-projection for each object, 0 to 1; see `gleansr.images.back_projection`."""
    keep_detail: Annotated[float | None, Range(0, 1)] = None
    """Share of the photo's own detail within an object, beyond the model's input, that is kept, 0 to 1. At 0 the model's detail replaces
    it; at 1 the model only adds detail finer than the photo's pixels. By default the photo keeps what it resolves: most detail of a
    sharp photo, none of a blurred one; see `gleansr.photos.sharpness`."""
    require_object: bool = False
    """Whether a photo without an object is an error."""
    max_objects: Annotated[int, Range(1, 10_000)] = 200
    """Maximum number of objects, those with the highest scores first."""
    min_score: float | None = None
    """Minimum score of an object, in the detector's own unit; by default a measured threshold."""
    rotated: bool = True
    """Whether to detect heads that lie on their side or upside down, which takes several times as long."""
    max_megapixels: float = MAX_MEGAPIXELS
    """Largest result at the default scale, unless twice the photo's size is larger."""
    overlap: Annotated[int, Range(8, 256)] = 32
    """Overlap of the background network's tiles in pixels of the photo, 8 to 256."""
    measure_consistency: bool = True
    """Whether to measure the consistency of each object."""

    def __post_init__(self) -> None:
        for box in self.boxes:
            if len(box) != 4 or not all(math.isfinite(value) and abs(value) <= 1e6 for value in box) or min(box[2:]) <= 0:
                raise RequestError(
                    f"a box is left, top, width and height in pixels of the photo, such as 100,50,200,200, its sides above 0, not {box}"
                )
        if self.boxes and self.aligned:
            raise RequestError("--aligned means that the whole image is the object; use either --aligned or --box")
        check_request(
            self,
            (self.max_megapixels > 0, f"max_megapixels must be above 0, not {self.max_megapixels}"),
            (self.min_score is None or math.isfinite(self.min_score), f"min_score must be a finite number, not {self.min_score}"),
        )

    def record(self) -> dict[str, Any]:
        """What determines a result, as manifests record it; they compare these keys and values."""
        return {
            "boxes": [list(box) for box in self.boxes],
            "aligned": self.aligned,
            "factor": self.scale,
            "feather": self.feather,
            "consistent": self.back_project,
            "keep": self.keep_detail,
            "most": self.max_objects,
            "least_score": self.min_score,
            "turned": self.rotated,
            "overlap": self.overlap,
        }
