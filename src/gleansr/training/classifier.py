"""Training of the classifier of `gleansr.classify`: images by category in, weights out.

Each image gives several views: framed anew, of 8 to 64 pixels, 60 % of them with the "real" degradation. Their features are computed once
by the frozen EfficientNet-Lite0, so that fitting the head takes a minute.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.checkpoints import native
from gleansr.checkpoints.bundled import efficientnet
from gleansr.checkpoints.native import About
from gleansr.data.negatives import generate
from gleansr.data.sources import Source, open_source
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import decode, to_image
from gleansr.inference.categories import network_input, small_image
from gleansr.models.categories import NAMES, CategoryHead, choose, grid_features
from gleansr.models.layers import to_channels_last
from gleansr.training.classifier_config import ClassifierConfig
from gleansr.training.classifier_views import Random, view_of

Progress = Callable[[int, int], object]

_OTHER = len(NAMES) - 1
_BATCH = 256
SHARES = torch.tensor([0.15] * _OTHER + [0.25])
"""Weights of the categories: one image in four is "other"."""
_VALIDATION_SHARE = 10  # one image in so many is for calibration, of a category without images of its own for that


@dataclass(frozen=True)
class Images:
    """The images of one category: files, and seeds of generated images."""

    category: str
    files: Sequence[tuple[Source, int]] = ()
    """Sources, and an index in each."""
    seeds: Sequence[int] = ()
    """Seeds of `generate`."""
    detail: bool = False
    """Whether only details of the images are seen, which count as "other"."""
    views: int = 1

    def __len__(self) -> int:
        return len(self.files) + len(self.seeds)

    def read(self, index: int) -> Image.Image:
        """An RGB image. Raises ImageError for an unreadable file."""
        if index >= len(self.files):
            return generate(self.seeds[index - len(self.files)])
        source, position = self.files[index]
        image = decode(source.read(position), name=source.label(position))
        return to_image(image.pixels if image.alpha is None else image.premultiplied() + 1 - image.alpha)


@dataclass(frozen=True)
class ClassifierSummary:
    """The result of a training."""

    path: Path
    images: dict[str, int]
    """Training images by category, "other" with generated ones and details."""
    views: int
    accuracy: dict[str, float]
    """Share of the views for calibration that are recognised, by category."""
    calibration_error: float
    """Expected calibration error on these views."""
    threshold: float
    unreadable: list[str] = field(default_factory=list)
    """One line for each image that could not be read."""


@plain_torch(grad=True)
def train_classifier(
    output: Path,
    data: Mapping[str, Sequence[str]],
    validation: Mapping[str, Sequence[str]],
    config: ClassifierConfig,
    about: About,
    progress: Progress | None = None,
) -> ClassifierSummary:
    """Trains a classifier and writes it to `output`.

    Args:
        output: the safetensors file.
        data: folders, archives or LMDBs of images by category; all of the five are required.
        validation: the same for calibration. Of categories that are not named, a tenth of the images serves for it.
        config: the settings.
        about: facts for the file; its training facts are completed.
        progress: called with the number of views that are done, and of all views.

    Raises RequestError if a category is missing or unknown, or a source cannot be opened.
    """
    check_data(data, validation)
    training, held_out = _select(data, validation, config)
    total = sum(len(images) * images.views for images in (*training, *held_out))
    unreadable: list[str] = []
    done = 0

    def count(views: int) -> None:
        nonlocal done
        done += views
        if progress:
            progress(done, total)

    features, labels = features_of(training, config.seed, count, unreadable)
    held_out_features, held_out_labels = features_of(held_out, config.seed + 1, count, unreadable)
    present = set(labels.tolist())
    if missing := [name for i, name in enumerate(NAMES) if i not in present]:
        raise RequestError(f"no image of {', '.join(missing)} could be read; the first: {unreadable[0] if unreadable else 'none'}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = fit(features, labels, config)
    held_out_logits = _logits(head, held_out_features)
    temperature = calibrate(head, held_out_logits, held_out_labels, config.passing)
    counts = {name: sum(len(images) for images in training if images.category == name) for name in NAMES}
    facts = {"images": counts, "views": len(labels), "config": vars(config)}
    native.save(output, {"classifier": head}, _with_facts(about, facts), dtype=torch.float16)
    probabilities = (held_out_logits / temperature).softmax(1)
    return ClassifierSummary(
        output,
        counts,
        len(labels),
        accuracies(probabilities, held_out_labels, float(head.threshold)),
        calibration_error(probabilities, held_out_labels),
        float(head.threshold),
        unreadable,
    )


def check_data(data: Mapping[str, Sequence[str]], validation: Mapping[str, Sequence[str]]) -> None:
    """Raises RequestError unless all of the five categories have images and no other name than theirs and "other" occurs."""
    if unknown := [name for name in (*data, *validation) if name not in NAMES]:
        raise RequestError(f"there is no category {unknown[0]!r}; the categories are {', '.join(NAMES)}")
    if missing := [name for name in NAMES[:_OTHER] if not data.get(name)]:
        raise RequestError(f"no images of {', '.join(missing)}; give them as --data {missing[0]}=IMAGES")


def _with_facts(about: About, facts: dict[str, object]) -> About:
    return About(**{**vars(about), "training": {**about.training, **facts}})


# ----------------------------------------------------------------------------------------------------------------- images


def _select(
    data: Mapping[str, Sequence[str]], validation: Mapping[str, Sequence[str]], config: ClassifierConfig
) -> tuple[list[Images], list[Images]]:
    """The images for training and for calibration."""
    training, held_out = [], []
    for name in NAMES:
        files, apart = _files(data.get(name, ())), _files(validation.get(name, ()))
        if not apart:
            apart = [file for file in files if _falls(file, _VALIDATION_SHARE)]
            files = [file for file in files if not _falls(file, _VALIDATION_SHARE)]
        rng = np.random.default_rng([config.seed, NAMES.index(name)])
        if name == "other":
            seeds = rng.integers(0, 2**63, config.generated + config.generated // _VALIDATION_SHARE).tolist()
            training.append(Images(name, files, seeds[: config.generated], views=config.views))
            held_out.append(Images(name, apart, seeds[config.generated :], views=2))
            continue
        chosen = _sample(rng, files, config.images)
        views = config.views * min(4, max(1, config.images // max(1, len(chosen))))
        training += [
            Images(name, chosen, views=views),
            Images("other", _sample(rng, chosen, config.details), detail=True, views=1),
        ]
        held_out.append(Images(name, _sample(rng, apart, config.images), views=2))
    return training, held_out


def _files(specs: Sequence[str]) -> list[tuple[Source, int]]:
    return [(source, index) for source in map(open_source, specs) for index in range(len(source))]


def _falls(file: tuple[Source, int], share: int) -> bool:
    """Whether a file belongs to the one of `share` parts that its name decides."""
    source, index = file
    return int.from_bytes(hashlib.sha256(source.names[index].encode()).digest()[:4]) % share == 0


def _sample(rng: Random, files: Sequence[tuple[Source, int]], count: int) -> list[tuple[Source, int]]:
    return [files[i] for i in sorted(rng.permutation(len(files))[:count])]


# ------------------------------------------------------------------------------------------------------------------ views


def features_of(sets: Sequence[Images], seed: int, count: Callable[[int], object], unreadable: list[str]) -> tuple[Tensor, Tensor]:
    """Features (N, 472, 3, 3), float16, and categories (N) of all views; `count` receives the numbers of views as they are done."""
    network = to_channels_last(efficientnet(), torch.device("cpu"))
    features, labels = [], []
    with torch.no_grad():
        stream = _views(sets, seed, unreadable)
        while views := list(itertools.islice(stream, _BATCH)):
            features.append(grid_features(network, torch.cat([network_input(small[None]) for small, _ in views])).half())
            labels.append(torch.tensor([category for _, category in views]))
            count(len(views))
    return torch.cat(features), torch.cat(labels)


def _views(sets: Sequence[Images], seed: int, unreadable: list[str]) -> Iterator[tuple[Tensor, int]]:
    """The views of all images as the network takes them, before they are enlarged, and their categories."""

    def views_of(job: tuple[int, Images, int]) -> list[tuple[Tensor, int]] | ImageError:
        number, images, index = job
        try:
            image = images.read(index)
        except ImageError as error:
            return error
        generators = [np.random.default_rng([seed, number, index, view]) for view in range(images.views)]
        category = NAMES.index(images.category)
        return [(small_image(decode(to_image(view_of(image, rng, detail=images.detail)))), category) for rng in generators]

    jobs = [(number, images, index) for number, images in enumerate(sets) for index in range(len(images))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(jobs), _BATCH):  # portions, so that views do not pile up
            for result in pool.map(views_of, jobs[start : start + _BATCH]):
                if isinstance(result, ImageError):
                    unreadable.append(str(result))
                else:
                    yield from result


# ---------------------------------------------------------------------------------------------------------------- fitting


def fit(features: Tensor, labels: Tensor, config: ClassifierConfig) -> CategoryHead:
    """A head fitted to features (N, 472, 3, 3) of categories (N), by torch's random state."""
    head = CategoryHead()
    head.mean.copy_(torch.stack([part.float().mean((0, 2, 3)) for part in features.split(1024)]).mean(0)[:, None, None])
    squares = [(part.float() - head.mean).square().mean((0, 2, 3)) for part in features.split(1024)]
    head.deviation.copy_(torch.stack(squares).mean(0).sqrt().clamp(min=1e-3)[:, None, None])
    counts = torch.bincount(labels, minlength=len(NAMES))
    weights = len(labels) * SHARES / counts.clamp(min=1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(labels) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(config.epochs):
        for chosen in torch.randperm(len(labels)).split(_BATCH):
            logits = head(features[chosen].float(), config.dropout)
            loss = (F.cross_entropy(logits, labels[chosen], reduction="none") * weights[labels[chosen]]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval().requires_grad_(False)


def _logits(head: CategoryHead, features: Tensor) -> Tensor:
    return torch.cat([head(part.float()) for part in features.split(1024)])


def calibrate(head: CategoryHead, logits: Tensor, labels: Tensor, passing: float) -> float:
    """Sets the head's temperature, the one of the highest likelihood, which it returns, and the threshold that `passing` of "other" pass.

    `logits` (N, 6) are the head's before, `labels` (N) the true categories.
    """
    counts = torch.bincount(labels, minlength=len(NAMES)).clamp(min=1)
    weights = (SHARES / counts)[labels]
    temperatures = torch.logspace(-1, 1, 201)
    losses = [float((F.cross_entropy(logits / t, labels, reduction="none") * weights).sum()) for t in temperatures]
    temperature = float(temperatures[int(np.argmin(losses))])
    head.output.weight.div_(temperature)
    head.output.bias.div_(temperature)
    best = (logits / temperature).softmax(1)[labels == _OTHER, :_OTHER].amax(1)
    head.threshold.fill_(max(0.5, float(best.quantile(1 - passing))) if len(best) else 0.5)
    return temperature


def accuracies(probabilities: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
    """Share recognised of the images whose `probabilities` (N, 6) these are, by category; categories without images are left out."""
    chosen = choose(probabilities, threshold)
    return {name: float((chosen[labels == i] == i).float().mean()) for i, name in enumerate(NAMES) if bool((labels == i).any())}


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the most probable categories: the mean of |confidence - accuracy| over bins of confidence."""
    confidence, chosen = probabilities.max(1)
    right = (chosen == labels).float()
    places = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [(right[places == i].sum() - confidence[places == i].sum()).abs() for i in range(bins)]
    return float(torch.stack(gaps).sum() / len(labels))
