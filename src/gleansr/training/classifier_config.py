"""The settings of `gleansr train-classifier`. Imports no torch, so that the help can show them."""

from dataclasses import dataclass
from typing import Annotated

from gleansr.configs import Range, check


@dataclass(frozen=True)
class ClassifierConfig:
    """How the classifier is trained."""

    views: Annotated[int, Range(1)] = 4
    """Views of each image; of a category with fewer images more, up to four times as many."""
    images: Annotated[int, Range(2)] = 2500
    """Images of each of the five categories, at most."""
    generated: Annotated[int, Range(0)] = 2500
    """Generated images of "other": text, screenshots, drawings, patterns, noise."""
    details: Annotated[int, Range(0)] = 400
    """Details of each category's images that count as "other", such as fur, stone or a wheel."""
    epochs: Annotated[int, Range(1)] = 24
    """Passes over the features."""
    weight_decay: Annotated[float, Range(0)] = 0.1
    """Of AdamW."""
    dropout: Annotated[float, Range(0, 1, exclusive=True)] = 0.25
    """Share of the channels, and of the reduced features, that a step leaves out."""
    passing: Annotated[float, Range(0, 1)] = 0.12
    """Share of the "other" views for calibration that may pass for one of the five; it sets the threshold."""
    seed: Annotated[int, Range(0)] = 0
    """Of everything random."""

    def __post_init__(self):
        check(self)
