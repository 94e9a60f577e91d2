"""Which model an image or an object in it gets."""

import hashlib
import math
import threading
from typing import Any

from gleansr.checkpoints.zoo import NamedModel, asset, find, installed, named_models
from gleansr.files import sha256_of
from gleansr.inference.categories import WEIGHTS
from gleansr.inference.precision import Precision
from gleansr.inference.upscaler import Upscaler, load

AUTO = "auto"
"""Instead of a model's name: each image gets the models that it needs."""
GENERAL = "general-4x"
"""The model of what belongs to no category that has models. It takes images of any size."""

NOUNS = {"faces": "face", "cats": "cat", "cars": "car", "bedrooms": "bedroom", "towers": "tower"}
"""Categories with models, and the name of one object."""

_BIAS = 1 / 3
"""Octaves by which larger inputs are preferred, up to `_UNBIASED` px: an image of 40 px is better shrunk to 32 than enlarged to 64."""
_UNBIASED = 32

LARGEST = 2
"""An image is a thumbnail, enlarged as a whole, up to so many times a model's input size."""


def models_of(category: str) -> tuple[NamedModel, ...]:
    """The GLEANs of a category on this machine, largest input first; of models with one input size, the first of `named_models`."""
    by_size: dict[int, NamedModel] = {}
    for model in named_models():
        if model.kind == "glean" and model.category == category and model.in_size and installed(model):
            by_size.setdefault(model.in_size, model)
    return tuple(by_size[size] for size in sorted(by_size, reverse=True))


def best_model(category: str, pixels: float) -> NamedModel | None:
    """The model whose input size is nearest to that of an object, as a ratio, larger ones preferred. None: the category has no model.

    A model for a larger input sees all of the object, a little blurred; one for a smaller input sees less. docs/upscaling.md has
    measurements.

    Args:
        category: such as "faces".
        pixels: width of the object in the image; of the square around it for models of squares.
    """

    def distance(model: NamedModel) -> float:
        size = model.in_size or 1
        return abs(math.log2(pixels / size) + (_BIAS if size <= _UNBIASED else 0))

    return min(models_of(category), key=distance, default=None)


def bundled_models() -> tuple[NamedModel, ...]:
    """The bundled GLEANs of the categories, as `named_models` lists them, of each category and input size the first."""
    chosen = [model for category in NOUNS for model in models_of(category)]
    return tuple(model for model in named_models() if model.asset and model in chosen)


def thumbnail_size() -> int:
    """Longer side in pixels up to which an image is taken for a thumbnail: `LARGEST` times the largest input of the bundled models."""
    return LARGEST * max(model.in_size or 0 for model in bundled_models())


def fingerprint() -> str:
    """Identifies the models of which images get one, as a SHA-256: it changes with any of them."""
    models = [model for category in NOUNS for model in models_of(category)]
    files = [f"{model.name} {model.sha256_prefix}" for model in (*models, find(GENERAL))]
    return hashlib.sha256("\n".join([*files, sha256_of(asset(WEIGHTS))]).encode()).hexdigest()


class Models:
    """Named models, loaded at their first use. Thread-safe; pickled without the loaded ones."""

    def __init__(self, *, device: str = "auto", precision: Precision = "auto", self_ensemble: bool | None = None):
        """As for `gleansr.load`."""
        self.device = device
        self.precision: Precision = precision
        self.self_ensemble = self_ensemble
        self._loaded: dict[str, Upscaler] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Upscaler:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load(find(name).name, device=self.device, precision=self.precision, self_ensemble=self.self_ensemble)
            return self._loaded[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"device": self.device, "precision": self.precision, "self_ensemble": self.self_ensemble}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)
