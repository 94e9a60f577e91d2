"""Training and validation images, from their sources to tensors of one size."""

import bisect
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gleansr.data.degradation import degrade_blind, degrade_real, fixed_seed
from gleansr.data.fit import Content, SmallError, content_of, fit
from gleansr.data.sources import Source, open_source, pairs_of
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import decode
from gleansr.images.pixels import from_bytes, to_bytes
from gleansr.images.resize import degrade
from gleansr.inference.devices import cores
from gleansr.training.config import SMALLEST_PERCEPTUAL, DataConfig

MAX_SKIPPED = 1000
"""Consecutive skipped images that end the run: the source is broken."""

logger = logging.getLogger(__name__)


class SkippedImageError(ImageError):
    """The recipe's options skip an image."""


@dataclass
class Sample:
    """An image or a batch of images."""

    gt: Tensor
    """(3, size, size) or (N, 3, size, size), uint8."""
    lr: Tensor | None
    """(3, in, in) or (N, 3, in, in), uint8; None if the device makes it."""
    contents: list[Content]
    """For each image the part within its border."""
    skipped: list[str] = field(default_factory=list)
    """Images skipped before it, each with the reason."""


def fit_image(pixels: Tensor, size: int, config: DataConfig, grid: int = 1) -> Tensor:
    """Fits an image (3, H, W) in [0, 1] to (3, size, size), uint8, by the options of `config`.

    Raises:
        SkippedImageError: the options skip it.
        ImageError: the options refuse it.
    """
    height, width = pixels.shape[-2:]
    if (height, width) != (size, size) and config.other_size != "fit":
        _refuse(config.other_size, f"{width}x{height}, not {size}x{size}", "data.other_size=fit or skip")
    small = "enlarge" if config.small == "enlarge" else "skip"
    try:
        return fit(pixels, size, config.aspect, small, border=config.border, grid=grid)
    except SmallError as error:
        return _refuse(config.small, str(error), "data.small=skip or enlarge")


def random_crop(image: Tensor, size: int, config: DataConfig, seed: int) -> Tensor:
    """Resizes a random square of `image` (3, H, W) to (3, size, size), both uint8; see `DataConfig.random_crop`. A square of that size
    keeps its values."""
    height, width = image.shape[-2:]
    shorter, rng = min(height, width), np.random.Generator(np.random.PCG64(seed))
    side = shorter * rng.uniform(config.random_crop, 1)
    if config.small != "enlarge":
        side = max(side, size)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    if side == size:  # whole pixels need no resampling
        left, top = round(left), round(top)
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    crop = pixels.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()


def _refuse(policy: str, problem: str, remedy: str) -> NoReturn:
    if policy == "skip":
        raise SkippedImageError(problem)
    raise ImageError(f"{problem}; --option {remedy}")


class TrainingImages(Dataset[Sample]):
    """The images of one or more sources, by index."""

    def __init__(
        self,
        sources: Sequence[str],
        size: int,
        config: DataConfig,
        lr_sources: Sequence[str] = (),
        lr_size: int | None = None,
        limit: int | None = None,
        content_height: int | None = None,
    ):
        """`lr_size`: side of the low-resolution images. `content_height`: rows of content of images that contain a border."""
        if not sources:
            raise RequestError("no source of images: give --data")
        self.size, self.lr_size, self.config, self.content_height = size, lr_size, config, content_height
        self.scale = size // lr_size if lr_size else 1
        self.sources = [open_source(spec) for spec in sources]
        self.lr_sources = [open_source(spec) for spec in lr_sources]
        source_pairs = zip(self.sources, self.lr_sources, sources, lr_sources, strict=True) if lr_sources else ()
        self.pairs = [pairs_of(*pair) for pair in source_pairs]
        counts = [len(pairs) for pairs in self.pairs] or [len(source) for source in self.sources]
        self.ends = list(itertools.accumulate(counts))
        self.n = min(self.ends[-1], limit or self.ends[-1])
        self.gt: Tensor | None = None
        """All images (N, 3, size, size), uint8, once `load` has read them."""
        self.lr: Tensor | None = None
        """Their prepared low-resolution images (N, 3, in, in), uint8, if any."""
        self.contents: list[Content] = []
        """The parts of `gt` within the borders."""
        self.originals: list[Tensor] = []
        """All images (3, H, W), uint8, for random crops, once `load_originals` has read them."""

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        """The image of that index, or the next one if the options skip it."""
        if self.gt is not None:
            return Sample(self.gt[index], None if self.lr is None else self.lr[index], [self.contents[index]])
        return self._next_usable(index, self._read)

    def random_crop(self, index: int, seed: int) -> Sample:
        """A random square of the image of that index, or of the next one if the options skip it."""

        def crop(image: Tensor) -> Sample:
            return Sample(random_crop(image, self.size, self.config, seed), None, [Content(self.size, 0, 0, self.size, self.size)])

        if self.originals:
            return crop(self.originals[index])
        return self._next_usable(index, lambda other: crop(self._read_original(other)))

    def _next_usable(self, index: int, read: Callable[[int], Sample]) -> Sample:
        skipped: list[str] = []
        for other in range(index, index + min(self.n, MAX_SKIPPED)):
            try:
                sample = read(other % self.n)
            except SkippedImageError as error:
                skipped.append(str(error))
            else:
                return dataclasses.replace(sample, skipped=skipped)
        raise ImageError(f"{len(skipped)} images in a row were skipped, such as {skipped[0]}")

    def load_originals(self) -> None:
        """Reads all images for random crops into memory, unless they exceed `config.memory`."""
        images: list[Tensor | None] = []
        skipped: set[str] = set()
        n_bytes = 0
        for index in range(self.n):
            try:
                image = self._read_original(index)
            except SkippedImageError as error:
                skipped.add(str(error))
                image = None
            images.append(image)
            n_bytes += 0 if image is None else image.numel()
            if n_bytes > self.config.memory * 1e9:
                return
        if all(image is None for image in images):
            raise ImageError(f"all {self.n} images were skipped, such as {min(skipped)}")
        # The next image replaces a skipped one, as in `_next_usable`.
        replacement = next(image for image in images if image is not None)
        for image in reversed(images):
            replacement = replacement if image is None else image
            self.originals.append(replacement)
        self.originals.reverse()
        warn_skipped(skipped)

    @property
    def in_memory(self) -> bool:
        """Whether all images are in memory."""
        return self.gt is not None or bool(self.originals)

    def load(self, workers: int) -> Tensor:
        """Reads all images into memory, warns of skipped ones, and returns `gt`."""
        # For few images, processes cost more than they save.
        loader = DataLoader(self, batch_size=16, num_workers=min(workers, cores()) if self.n > 512 else 0, collate_fn=collate)
        gt = torch.empty(self.n, 3, self.size, self.size, dtype=torch.uint8)
        lr = torch.empty(self.n, 3, self.lr_size or 0, self.lr_size or 0, dtype=torch.uint8) if self.pairs else None
        skipped: set[str] = set()
        for start, sample in zip(range(0, self.n, 16), loader, strict=True):
            gt[start : start + 16] = sample.gt
            self.contents.extend(sample.contents)
            if lr is not None and sample.lr is not None:
                lr[start : start + 16] = sample.lr
            skipped.update(sample.skipped)
        self.gt, self.lr = gt, lr
        warn_skipped(skipped)
        return gt

    def _read(self, index: int) -> Sample:
        number, index = self._locate(index)
        gt_index, lr_index = self.pairs[number][index] if self.pairs else (index, None)
        gt, content = self._read_gt(self.sources[number], gt_index)
        return Sample(gt, None if lr_index is None else self._read_lr(self.lr_sources[number], lr_index), [content])

    def _locate(self, index: int) -> tuple[int, int]:
        """The number of the source, and the index of the image in it."""
        number = bisect.bisect_right(self.ends, index)
        return number, index - (self.ends[number - 1] if number else 0)

    def _read_original(self, index: int) -> Tensor:
        number, index = self._locate(index)
        source = self.sources[number]
        pixels = _decode(source, index, self.config)
        height, width = pixels.shape[-2:]
        if min(height, width) < self.size and self.config.small != "enlarge":
            problem = f"{source.label(index)}: {width}x{height} is too small for {self.size}x{self.size}"
            _refuse(self.config.small, problem, "data.small=skip or enlarge")
        return (pixels * 255).round().to(torch.uint8)

    def _read_gt(self, source: Source, index: int) -> tuple[Tensor, Content]:
        pixels = _decode(source, index, self.config)
        try:
            gt = fit_image(pixels, self.size, self.config, self.scale)
        except ImageError as error:
            raise type(error)(f"{source.label(index)}: {error}") from None
        height, width = pixels.shape[-2:]
        content = content_of(height, width, self.size, self.config.aspect, self.scale)
        if content.whole and self.content_height is not None:  # the file contains the border
            content = Content(self.size, (self.size - self.content_height) // 2, 0, self.content_height, self.size)
            gt = content.framed(content.of(gt), self.config.border)
        return gt, content

    def _read_lr(self, source: Source, index: int) -> Tensor:
        pixels = _decode(source, index, self.config)
        _, height, width = pixels.shape
        if (height, width) != (self.lr_size, self.lr_size):
            size = f"{self.lr_size}x{self.lr_size}"
            raise ImageError(f"{source.label(index)}: is {width}x{height}, but low-resolution images must be {size}")
        return (pixels * 255).round().to(torch.uint8)


def _decode(source: Source, index: int, config: DataConfig) -> Tensor:
    """Returns the image (3, H, W) in [0, 1], black behind transparency."""
    label = source.label(index)
    try:
        return decode(source.read(index), name=label).premultiplied()
    except ImageError as error:
        problem = f"{label}: {str(error).removeprefix(f'{label}: ')}"
        if config.corrupt == "skip":
            raise SkippedImageError(problem) from None
        raise ImageError(f"{problem}; --option data.corrupt=skip skips such images") from None


@dataclass
class HeldOut:
    """Validation images."""

    gt: Tensor
    """(N, 3, size, size), uint8."""
    lrs: dict[str, Tensor]
    """Low-resolution images (N, 3, in, in), uint8, by the prefix of the metrics: "" degraded as in training, "clean_" by MATLAB's bicubic
    where training degrades otherwise."""
    content: Content
    """The part that is evaluated: what lies within the border, if it is the same in all images and large enough; otherwise all."""


def load_held_out(config: DataConfig, size: int, in_size: int, content_height: int | None = None) -> HeldOut:
    """Loads the first `n_validation` validation images. Their low-resolution images do not depend on the run's seed."""
    images = TrainingImages(config.validation, size, config, lr_size=in_size, limit=config.n_validation, content_height=content_height)
    gt = images.load(workers=0)
    degradations = {"": config.degradation} | ({"clean_": "bicubic"} if config.degradation != "bicubic" else {})
    lrs = {
        prefix: torch.stack(
            [
                degraded(image, content, in_size, dataclasses.replace(config, degradation=degradation), fixed_seed(i))
                for i, (image, content) in enumerate(zip(gt, images.contents, strict=True))
            ]
        )
        for prefix, degradation in degradations.items()
    }
    first = images.contents[0]
    same = all(content == first for content in images.contents)
    evaluated = first if same and min(first.rows, first.columns) >= SMALLEST_PERCEPTUAL else Content(size, 0, 0, size, size)
    return HeldOut(gt, lrs, evaluated)


def degraded(gt: Tensor, content: Content, in_size: int, config: DataConfig, seed: int) -> Tensor:
    """gt (3, size, size) -> lr (3, in, in), both uint8. The border is added after downscaling, as at inference."""
    if config.degradation == "blind":
        return degrade_blind(gt, in_size, torch.Generator().manual_seed(seed))
    scale = content.size // in_size
    gt_content = content.of(gt)
    if config.degradation == "real":
        lr = degrade_real(gt_content, scale, seed, config.real)
    else:
        lr = to_bytes(degrade(from_bytes(gt_content)[None], scale)[0])
    return content.shrunk(scale).framed(lr, config.border)


def open_images(config: DataConfig, size: int, lr_size: int | None = None, content_height: int | None = None) -> TrainingImages:
    """Opens the training images, in memory if they fit into `config.memory`. `lr_size`: side of the low-resolution images."""
    images = TrainingImages(config.train, size, config, config.train_low, lr_size, content_height=content_height)
    if len(images) * 3 * size * size <= config.memory * 1e9:
        if config.random_crop < 1:
            images.load_originals()
        else:
            images.load(config.workers)
    return images


def warn_skipped(skipped: Iterable[str]) -> None:
    """Logs how many images were skipped, with the first five reasons."""
    if problems := sorted(skipped):
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        logger.warning("skipped %d images: %s%s", len(problems), "; ".join(problems[:5]), more)


def collate(samples: Sequence[Sample]) -> Sample:
    """Stacks samples to a batch."""
    lrs = [sample.lr for sample in samples if sample.lr is not None]
    skipped = [problem for sample in samples for problem in sample.skipped]
    contents = [content for sample in samples for content in sample.contents]
    return Sample(torch.stack([sample.gt for sample in samples]), torch.stack(lrs) if lrs else None, contents, skipped)
