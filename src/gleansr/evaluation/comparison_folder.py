"""Reads the images and settings that `gleansr compare` has written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gleansr.data.sources import open_source
from gleansr.documents import read_json
from gleansr.errors import RequestError
from gleansr.evaluation.figure_sheets import ComparedImage, to_pixels
from gleansr.evaluation.ground_truth import read_image
from gleansr.images.pixels import from_bytes


class ComparisonFolder:
    """The output folder of `gleansr compare`: pictures/truth, pictures/low, and pictures/LABEL for each method."""

    def __init__(self, folder: Path):
        """Raises RequestError for another folder."""
        self.folder = folder / "pictures"
        for name in ("truth", "low"):
            if not (self.folder / name).is_dir():
                raise RequestError(f"{folder}: has no folder pictures/{name}; --comparison takes the output folder of `gleansr compare`")
        self.labels = sorted(path.name for path in self.folder.iterdir() if path.is_dir() and path.name not in ("truth", "low"))
        """Labels of the methods with results."""

    @property
    def scale(self) -> int:
        """The comparison's scale. Raises RequestError if it is not a whole number."""
        gt, lr = (read_image(open_source(self.folder / name), 0)[0].shape[-1] for name in ("truth", "low"))
        if gt % lr:
            raise RequestError(f"{self.folder}: ground truths of {gt} pixels are no whole multiple of inputs of {lr}")
        return gt // lr

    def facts(self, methods: Sequence[str]) -> list[str]:
        """A line for each method: model, licence and settings as in comparison.json."""
        try:
            report = read_json(self.folder.parent / "comparison.json")
            entries = {method["label"]: method for method in report["methods"]}
        except (OSError, ValueError, KeyError, TypeError):  # an interrupted comparison has no report
            entries = {}
        return [f"{label}: {self._fact(entries.get(label, {}))}" for label in methods]

    def _fact(self, entry: Mapping[str, Any]) -> str:
        settings = [f"{key} {value}" for key, value in entry.get("settings", {}).items()]
        return ", ".join(filter(None, [entry.get("model"), entry.get("licence"), *settings, f"in {self.folder.parent.name}"]))

    def names(self, methods: Sequence[str]) -> list[str]:
        """The images for which all these methods have results."""
        names, *others = [open_source(self.folder / label).names for label in ("truth", "low", *methods)]
        common = set(names).intersection(*others)
        if not common:
            raise RequestError(f"{self.folder}: no image has results of all of {', '.join(methods)}; choose others with --methods")
        return [name for name in names if name in common]

    def read(self, names: Sequence[str], methods: Sequence[str]) -> tuple[list[ComparedImage], list[Tensor]]:
        """The named images with the results of these methods, and the methods' inputs, see `read_images`."""
        sources = {label: open_source(self.folder / label) for label in ("truth", "low", *methods)}
        images, lrs = [], []
        for name in names:
            pixels = {label: read_image(source, source.names.index(name))[0] for label, source in sources.items()}
            lrs.append(from_bytes(pixels["low"].mul(255).round()[None]))
            arrays = {label: to_pixels(image * 2 - 1) for label, image in pixels.items()}
            images.append(ComparedImage(name, arrays.pop("low"), arrays.pop("truth"), arrays))
        return images, lrs
