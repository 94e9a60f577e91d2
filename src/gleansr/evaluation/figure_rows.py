"""Where the images of a figure come from: test images and methods, or the folder that `gleansr compare` has left."""

import dataclasses
import difflib
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gleansr.data.fit import Aspect, SmallError
from gleansr.data.sources import FolderSource, Source, open_source, stem
from gleansr.documents import read_json
from gleansr.errors import ImageError, RequestError
from gleansr.evaluation.figure_sheets import Exhibit, Retouch
from gleansr.evaluation.ground_truth import EvaluationTask, Small, on_grid, usual_aspect, usual_border
from gleansr.images.codec import decode, readable_suffixes, to_image
from gleansr.inference.method import StepReport
from gleansr.inference.upscaler import Upscaler

# -------------------------------------------------------------------------------------------------------------- choosing


def choose(names: Sequence[str], count: int, seed: int, wanted: Sequence[str] = (), source: str = "the data") -> list[str]:
    """The images of a figure.

    Args:
        names: of all images, sorted.
        count: how many to draw; where there are no more, all are taken, in their order.
        seed: of the draw, which depends on it and on the number of `names` alone.
        wanted: names to take instead, in this order, with or without suffix and folders.
        source: what messages call the place.

    Raises:
        RequestError: a wanted name is not there, or stands for several.
    """
    if wanted:
        return [_find(names, name, source) for name in wanted]
    if count >= len(names):
        return list(names)
    return [names[i] for i in random.Random(seed).sample(range(len(names)), count)]  # noqa: S311, no secret


def _find(names: Sequence[str], wanted: str, source: str) -> str:
    if wanted in names:
        return wanted
    found = [name for name in names if stem(name) == stem(wanted)] or [name for name in names if _last(name) in (wanted, stem(wanted))]
    if len(found) == 1:
        return found[0]
    if found:
        raise RequestError(f"--names {wanted}: stands for {', '.join(found[:3])} in {source}; give one of these names")
    near = difflib.get_close_matches(wanted, [*names, *map(stem, names)], n=1)
    raise RequestError(f"--names {wanted}: is not in {source}" + (f"; did you mean {near[0]}?" if near else f", such as {names[0]} is"))


def _last(name: str) -> str:
    return stem(name).rpartition("/")[2]


# --------------------------------------------------------------------------------------------------------- test images


def open_images(spec: str | os.PathLike[str]) -> Source:
    """As `open_source`, or one image's file."""
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix.lower() in readable_suffixes():
        return FolderSource(path.parent, [path.name])
    return open_source(spec)


def exhibits(source: Source, names: Sequence[str], task: EvaluationTask) -> tuple[list[Exhibit], list[Tensor]]:
    """The named images without results, and what methods are given of them: (1, 3, h, w), RGB in [-1, 1]."""
    pairs = [(name, *_fitted(source, name, task)) for name in names]
    return [Exhibit(name, to_bytes(lr[0]), to_bytes(gt[0])) for name, gt, lr in pairs], [lr for *_, lr in pairs]


def retouches(
    retouched: Source, original: Source, names: Sequence[str], task: EvaluationTask, method: Callable[[list[Tensor]], list[np.ndarray]]
) -> list[Retouch]:
    """The named images of `retouched`, their originals by name without suffix (or the only ones that there are), and what `method` makes
    of the retouched ones after they were shrunk; it is called with (1, 3, h, w) in [-1, 1] each.

    Raises RequestError for an image without an original.
    """
    partners = {stem(name): name for name in original.names}
    if len(retouched) == len(original) == 1:
        partners[stem(retouched.names[0])] = original.names[0]
    if missing := [name for name in names if stem(name) not in partners]:
        raise RequestError(f"--original has no image for {', '.join(missing)}; original and retouched images have the same names")
    after = [_fitted(retouched, name, task) for name in names]
    before = [_fitted(original, partners[stem(name)], task) for name in names]
    results = method([lr for _, lr in after])
    rows = zip(names, before, after, results, strict=True)
    return [Retouch(name, to_bytes(old[0]), to_bytes(new[0]), result) for name, (old, _), (new, _), result in rows]


def _fitted(source: Source, name: str, task: EvaluationTask) -> tuple[Tensor, Tensor]:
    """An image of the task's size, (1, 3, size, size) in [-1, 1], and the low-resolution one that is made of it."""
    pixels = _read(source, name)
    try:
        gt, content = task.fitted(pixels)
        return gt, task.shrunk(gt, content, source.names.index(name))
    except SmallError as error:
        raise ImageError(f"{source.label(source.names.index(name))}: {error}; --small enlarge takes it nevertheless") from None


def _read(source: Source, name: str) -> Tensor:
    """(3, H, W) in [0, 1], black behind transparency. Errors name the image."""
    index = source.names.index(name)
    label = source.label(index)
    try:
        return decode(source.read(index), name=label).premultiplied()
    except ImageError as error:
        raise ImageError(f"{label}: {str(error).removeprefix(f'{label}: ')}") from None


# --------------------------------------------------------------------------------------------------------------- methods


def task_of(upscalers: Mapping[str, Upscaler], size: int | None, aspect: Aspect | None, small: Small) -> EvaluationTask:
    """What all these methods can do: images of one size at one scale.

    Args:
        upscalers: the methods by what messages call them.
        size: of the results, for methods that take images of any size.
        aspect: by default "bars" for models of images between black bars, otherwise "crop".
        small: see `EvaluationTask`.

    Raises RequestError where they differ, or nothing decides the size.
    """
    scales = {label: upscaler.scale for label, upscaler in upscalers.items()}
    if len(set(scales.values())) > 1:
        found = ", ".join(f"{label} {scale}x" for label, scale in scales.items())
        raise RequestError(f"the methods of a figure must enlarge alike, not {found}; give models of one scale with --models")
    sizes = {label: upscaler.output_size for label, upscaler in upscalers.items() if upscaler.output_size}
    if size is not None:
        sizes["--size"] = size
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{label} {side}" for label, side in sizes.items())
        raise RequestError(f"the images of a figure must have one size, not {found}; give models of one size with --models")
    if not sizes:
        raise RequestError(f"{', '.join(upscalers)} takes images of any size: give the side of the results with --size")
    every = upscalers.values()
    return EvaluationTask(
        next(iter(sizes.values())), next(iter(scales.values())), aspect or usual_aspect(every), small, usual_border(every)
    )


def enlarge(
    upscaler: Upscaler,
    lrs: Sequence[Tensor],
    report: StepReport | None = None,
    finished: Callable[[int, str], None] = lambda index, note: None,  # noqa: ARG005
) -> list[np.ndarray]:
    """What a method makes of low-resolution images (1, 3, h, w) in [-1, 1]: (H, W, 3) uint8 each. `report` is told of the progress within
    a batch, `finished` of each image by its number, with what the method says of it."""
    size = upscaler.default_batch_size()
    images: list[np.ndarray] = []
    for first in range(0, len(lrs), size):
        batch = torch.cat(list(lrs[first : first + size]))
        if upscaler.input_size and batch.shape[-2:] != (upscaler.input_size, upscaler.input_size):
            name, side = upscaler.method.name, upscaler.input_size
            raise RequestError(
                f"{name} takes images of {side}x{side}, not {batch.shape[-1]}x{batch.shape[-2]}; give another of the --models"
            )
        enlarged = upscaler.runner(list(batch), report)
        for image, note in zip(enlarged.images, enlarged.notes or [""] * len(batch), strict=True):
            images.append(to_bytes(image))
            finished(len(images) - 1, note)
    return images


def to_bytes(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1], clamped, as (H, W, 3) uint8. Raises ImageError for NaN and infinity."""
    return np.array(to_image((image + 1) / 2))


def with_results(shown: Sequence[Exhibit], method: str, images: Sequence[np.ndarray]) -> list[Exhibit]:
    """The exhibits with a method's results added."""
    pairs = zip(shown, images, strict=True)
    return [dataclasses.replace(exhibit, results={**exhibit.results, method: image}) for exhibit, image in pairs]


# ----------------------------------------------------------------------------------------------------------- comparisons


class ComparisonFolder:
    """What `gleansr compare` has written: pictures/truth, pictures/low, and pictures/LABEL for each method."""

    def __init__(self, folder: Path):
        """Raises RequestError for another folder."""
        self.folder = folder / "pictures"
        for name in ("truth", "low"):
            if not (self.folder / name).is_dir():
                raise RequestError(f"{folder}: has no folder pictures/{name}; --comparison takes the output folder of `gleansr compare`")
        self.labels = sorted(path.name for path in self.folder.iterdir() if path.is_dir() and path.name not in ("truth", "low"))
        """The methods of which there are results."""

    @property
    def scale(self) -> int:
        """How many times the methods enlarged. Raises RequestError where that is no whole number."""
        gt, lr = (_read(source := open_source(self.folder / name), source.names[0]).shape[-1] for name in ("truth", "low"))
        if gt % lr:
            raise RequestError(f"{self.folder}: ground truths of {gt} pixels are no whole multiple of inputs of {lr}")
        return gt // lr

    def facts(self, methods: Sequence[str]) -> list[str]:
        """How the results of those methods were made, by comparison.json, a line for each."""
        try:
            report = read_json(self.folder.parent / "comparison.json")
            made = {method["label"]: method for method in report["methods"]}
        except (OSError, ValueError, KeyError, TypeError):  # a comparison that was stopped has none yet
            made = {}
        return [f"{label}: {self._fact(made.get(label, {}))}" for label in methods]

    def _fact(self, made: Mapping[str, Any]) -> str:
        settings = [f"{key} {value}" for key, value in made.get("settings", {}).items()]
        return ", ".join(filter(None, [made.get("model"), made.get("licence"), *settings, f"in {self.folder.parent.name}"]))

    def names(self, methods: Sequence[str]) -> list[str]:
        """The images of which there are results of all these methods; slow ones may have done a part only."""
        every, *others = [open_source(self.folder / label).names for label in ("truth", "low", *methods)]
        common = set(every).intersection(*others)
        if not common:
            raise RequestError(f"{self.folder}: there is no image that {', '.join(methods)} have all done; show others with --methods")
        return [name for name in every if name in common]

    def exhibits(self, names: Sequence[str], methods: Sequence[str]) -> tuple[list[Exhibit], list[Tensor]]:
        """The named images with the results of those methods, and what methods are given, as of `exhibits`."""
        sources = {label: open_source(self.folder / label) for label in ("truth", "low", *methods)}
        shown, lrs = [], []
        for name in names:
            pixels = {label: _read(source, name) for label, source in sources.items()}
            lrs.append(on_grid(pixels["low"].mul(255).round()[None]))
            images = {label: to_bytes(image * 2 - 1) for label, image in pixels.items()}
            shown.append(Exhibit(name, images.pop("low"), images.pop("truth"), images))
        return shown, lrs
