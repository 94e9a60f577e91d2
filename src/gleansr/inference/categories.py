"""What an image shows: faces, cats, cars, bedrooms, towers, or something else."""

import functools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.checkpoints import native
from gleansr.checkpoints.bundled import efficientnet
from gleansr.checkpoints.zoo import asset
from gleansr.images.codec import DecodedImage, Source, decode
from gleansr.images.resize import resize
from gleansr.models.categories import NAMES, CategoryHead, choose, grid_features
from gleansr.models.features import EfficientNetLite0
from gleansr.models.layers import to_channels_last

WEIGHTS = "categories.safetensors"
"""Name of the head's file in the package's assets."""
OTHER = NAMES[-1]
SMALL = 32
"""Images are reduced to about this side, so that a photo and its thumbnail are classified alike."""
ENLARGED = 128
"""Side of what EfficientNet sees."""
_GUESSED = 0.25
_MAX_ASPECT = 2.0
_PREREDUCED = 256  # larger images are averaged to at least this side first, which is faster


@dataclass(frozen=True)
class Category:
    """The category of an image."""

    name: str
    """faces, cats, cars, bedrooms, towers or other."""
    confidence: float
    """Probability of the category in [0, 1]; low for an "other" that may be one of the five."""
    guess: str = ""
    """Which of the five an "other" may be, if that has a probability of a quarter and more."""

    @property
    def percent(self) -> str:
        """The confidence as text, such as "98%". Never "100%", since no classifier is certain."""
        return ">99%" if self.confidence >= 0.995 else f"{self.confidence:.0%}"


@plain_torch()
def classify(image: Source | DecodedImage) -> Category:
    """Recognises what an image shows.

    Args:
        image: a path, the bytes of a file, a PIL image, an HWC uint8 array or a CHW float tensor in [0, 1], of any size and aspect ratio.

    Returns:
        The category. An image without a sufficiently probable category is "other".

    Raises ImageError if the image cannot be read.
    """
    _, head = classifier()
    return category_of(_probabilities(image), float(head.threshold))


@plain_torch()
def most_probable(image: Source | DecodedImage, names: Collection[str]) -> Category:
    """The most probable of some categories, however improbable it is. The image as for `classify`."""
    probabilities: dict[str, float] = dict(zip(NAMES, _probabilities(image).tolist(), strict=True))
    name = max(names, key=probabilities.__getitem__)
    return Category(name, probabilities[name])


def category_of(probabilities: Tensor, threshold: float) -> Category:
    """The category by `probabilities` (6), see `choose`."""
    chosen = int(choose(probabilities[None], threshold))
    best = int(probabilities[:-1].argmax())
    guess = NAMES[best] if NAMES[chosen] == OTHER and float(probabilities[best]) >= _GUESSED else ""
    return Category(NAMES[chosen], float(probabilities[chosen]), guess)


def _probabilities(image: Source | DecodedImage) -> Tensor:
    """Of the six `NAMES`: the mean of those of the image and of its mirror image."""
    small = small_image(image if isinstance(image, DecodedImage) else decode(image))
    network, head = classifier()
    logits = head(grid_features(network, network_input(torch.stack([small, small.flip(2)]))))
    return logits.double().softmax(1).mean(0)


def small_image(image: DecodedImage) -> Tensor:
    """(3, h, w) in [-1, 1], on white where transparent, reduced to an area of at most 32x32; the middle of an image longer than 2:1."""
    height, width = image.size
    rows, columns = (_middle(side, other) for side, other in ((height, width), (width, height)))
    step = min(rows.stop - rows.start, columns.stop - columns.start) // _PREREDUCED
    pixels = image.premultiplied(rows, columns)
    if image.stored_alpha is not None:
        pixels = pixels + 1 - image.alpha_region(rows, columns)
    if step > 1:
        pixels = F.avg_pool2d(pixels[None], step, ceil_mode=True)[0]
    return _reduced(pixels * 2 - 1)


def network_input(images: Tensor) -> Tensor:
    """Small images (N, 3, h, w), enlarged to 128x128 whatever their aspect ratio, by which the training sets could be told."""
    return cast("Tensor", resize(images, size=(ENLARGED, ENLARGED)))


def _reduced(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    if height * width <= SMALL**2:
        return pixels
    return cast("Tensor", resize(pixels, size=_sides(height, width))).clamp(-1, 1)


def _middle(side: int, other: int) -> slice:
    kept = min(side, max(1, round(other * _MAX_ASPECT)))
    start = (side - kept) // 2
    return slice(start, start + kept)


def _sides(height: int, width: int) -> tuple[int, int]:
    """Height and width of about 32x32 pixels with the same aspect ratio."""
    stretch = math.sqrt(height / width)
    return max(1, round(SMALL * stretch)), max(1, round(SMALL / stretch))


@functools.cache
def classifier() -> tuple[EfficientNetLite0, CategoryHead]:
    """The features and the head that reads them, see `grid_features`."""
    path = asset(WEIGHTS)
    head = native.read(path).build("classifier", path).requires_grad_(False)
    return to_channels_last(efficientnet(), torch.device("cpu")), cast("CategoryHead", head)
