"""Training images: from their sources to batches, in an order that depends on the seed and the number of images seen alone."""

import bisect
import dataclasses
import functools
import itertools
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gleansr.data.degradation import degrade_real, fixed_seed
from gleansr.data.fit import Border, Content, SmallError, content_of, fit
from gleansr.data.sources import Source, open_source, pairs_of
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import decode
from gleansr.images.pixels import from_bytes, to_bytes
from gleansr.images.resize import degrade
from gleansr.inference.devices import cores
from gleansr.training.blind import degrade_blind
from gleansr.training.config import SMALLEST_SEEN, DataConfig
from gleansr.training.streams import stream_seed

SPOILT = 1000
"""So many images in a row that must be left out end the run: the source is broken."""

logger = logging.getLogger(__name__)


class LeftOutError(ImageError):
    """An image that the options of the recipe leave out."""


@dataclass
class Sample:
    """One image or a batch of them, as bytes."""

    gt: Tensor
    """(3, size, size) or (N, 3, size, size), uint8."""
    lr: Tensor | None
    """The low-resolution image where it is not made on the device, (3, in, in) or (N, 3, in, in), uint8."""
    contents: list[Content]
    """For each the part of it that is no border."""
    left_out: list[str] = field(default_factory=list)
    """What was left out on the way to it, and why."""


def fitted(pixels: Tensor, size: int, config: DataConfig, grid: int = 1) -> Tensor:
    """An image (3, H, W) in [0, 1] as bytes (3, size, size), brought to that size as the options say.

    Raises:
        LeftOutError: it is to be left out.
        ImageError: it is refused.
    """
    height, width = pixels.shape[-2:]
    if (height, width) != (size, size) and config.other_size != "fit":
        _refuse(config.other_size, f"{width}x{height}, not {size}x{size}", "data.other_size=fit or skip")
    small = "enlarge" if config.small == "enlarge" else "skip"
    try:
        return fit(pixels, size, config.aspect, small, border=config.border, grid=grid)
    except SmallError as error:
        return _refuse(config.small, str(error), "data.small=skip or enlarge")


def cut_out(image: Tensor, size: int, config: DataConfig, seed: int) -> Tensor:
    """A random square of `image` (3, H, W), uint8, as bytes (3, size, size): see `DataConfig.random_crop`. Whole images of that size keep
    their values."""
    height, width = image.shape[-2:]
    shorter, rng = min(height, width), np.random.Generator(np.random.PCG64(seed))
    side = shorter * rng.uniform(config.random_crop, 1)
    if config.small != "enlarge":
        side = max(side, size)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    if side == size:  # whole pixels are cut out as they are
        left, top = round(left), round(top)
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    cut = pixels.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous()


def _refuse(policy: str, problem: str, mend: str) -> NoReturn:
    if policy == "skip":
        raise LeftOutError(problem)
    raise ImageError(f"{problem}; --set {mend}")


class TrainingImages(Dataset[Sample]):
    """The images of one or more sources by index."""

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
        """`low_size` is the side of the low-resolution images that are made of them, and `content_height` the number of rows that are no
        border where the images come with one."""
        if not sources:
            raise RequestError("no images in no source at all: give --data")
        self.size, self.lr_size, self.config, self.content_height = size, lr_size, config, content_height
        self.scale = size // lr_size if lr_size else 1
        self.sources = [open_source(spec) for spec in sources]
        self.lr_sources = [open_source(spec) for spec in lr_sources]
        opened = zip(self.sources, self.lr_sources, sources, lr_sources, strict=True) if lr_sources else ()
        self.pairs = [pairs_of(*pair) for pair in opened]
        counts = [len(pairs) for pairs in self.pairs] or [len(source) for source in self.sources]
        self.ends = list(itertools.accumulate(counts))
        self.n = min(self.ends[-1], limit or self.ends[-1])
        self.held: Tensor | None = None
        self.held_lr: Tensor | None = None
        self.contents: list[Content] = []
        """Of those that are held."""
        self.uncut: list[Tensor] = []
        """All images (3, H, W), uint8, of which squares are cut out, where they are held."""

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        """The image of that index, or where that is to be left out the next one that is not."""
        if self.held is not None:
            return Sample(self.held[index], None if self.held_lr is None else self.held_lr[index], [self.contents[index]])
        return self._next_usable(index, self._read)

    def cut_out(self, index: int, seed: int) -> Sample:
        """A random square of the image of that index, or where that is to be left out of the next one that is not."""

        def cut(image: Tensor) -> Sample:
            return Sample(cut_out(image, self.size, self.config, seed), None, [self._whole])

        return cut(self.uncut[index]) if self.uncut else self._next_usable(index, lambda other: cut(self._uncut(other)))

    @property
    def _whole(self) -> Content:
        return Content(self.size, 0, 0, self.size, self.size)

    def _next_usable(self, index: int, read: Callable[[int], Sample]) -> Sample:
        left_out: list[str] = []
        for other in range(index, index + min(self.n, SPOILT)):
            try:
                sample = read(other % self.n)
            except LeftOutError as error:
                left_out.append(str(error))
            else:
                return dataclasses.replace(sample, left_out=left_out)
        raise ImageError(f"{len(left_out)} images in a row had to be left out, such as {left_out[0]}")

    def hold_uncut(self) -> None:
        """Reads all images, of which squares are cut out, into memory, unless they take more than the recipe allows."""
        found: list[Tensor | None] = []
        left_out: set[str] = set()
        n_bytes = 0
        for index in range(self.n):
            try:
                image = self._uncut(index)
            except LeftOutError as error:
                left_out.add(str(error))
                image = None
            found.append(image)
            n_bytes += 0 if image is None else image.numel()
            if n_bytes > self.config.memory * 1e9:
                return
        if all(image is None for image in found):
            raise ImageError(f"all {self.n} images had to be left out, such as {min(left_out)}")
        # What is left out is replaced by the next one, as where images are read as they are needed.
        following = next(image for image in found if image is not None)
        for image in reversed(found):
            following = following if image is None else image
            self.uncut.append(following)
        self.uncut.reverse()
        warn_left_out(left_out)

    @property
    def in_memory(self) -> bool:
        """Whether all images are held."""
        return self.held is not None or bool(self.uncut)

    def hold(self, workers: int) -> Tensor:
        """Reads all images into memory, says what was left out, and returns them (N, 3, size, size)."""
        # Processes cost more than they save where there is little to do.
        loader = DataLoader(self, batch_size=16, num_workers=min(workers, cores()) if self.n > 512 else 0, collate_fn=collate)
        held = torch.empty(self.n, 3, self.size, self.size, dtype=torch.uint8)
        held_lr = torch.empty(self.n, 3, self.lr_size or 0, self.lr_size or 0, dtype=torch.uint8) if self.pairs else None
        left_out: set[str] = set()
        for start, sample in zip(range(0, self.n, 16), loader, strict=True):
            held[start : start + 16] = sample.gt
            self.contents.extend(sample.contents)
            if held_lr is not None and sample.lr is not None:
                held_lr[start : start + 16] = sample.lr
            left_out.update(sample.left_out)
        self.held, self.held_lr = held, held_lr
        warn_left_out(left_out)
        return held

    def _read(self, index: int) -> Sample:
        place, index = self._place(index)
        if not self.pairs:
            gt, content = self._image(self.sources[place], index)
            return Sample(gt, None, [content])
        sr, lr = self.pairs[place][index]
        gt, content = self._image(self.sources[place], sr)
        return Sample(gt, self._lr(self.lr_sources[place], lr), [content])

    def _place(self, index: int) -> tuple[int, int]:
        """The number of the source, and of the image in it."""
        place = bisect.bisect_right(self.ends, index)
        return place, index - (self.ends[place - 1] if place else 0)

    def _uncut(self, index: int) -> Tensor:
        place, index = self._place(index)
        source = self.sources[place]
        pixels = _decode(source, index, self.config)
        height, width = pixels.shape[-2:]
        if min(height, width) < self.size and self.config.small != "enlarge":
            problem = f"{source.label(index)}: {width}x{height} is too small for {self.size}x{self.size}"
            _refuse(self.config.small, problem, "data.small=skip or enlarge")
        return (pixels * 255).round().to(torch.uint8)

    def _image(self, source: Source, index: int) -> tuple[Tensor, Content]:
        pixels = _decode(source, index, self.config)
        try:
            gt = fitted(pixels, self.size, self.config, self.scale)
        except ImageError as error:
            raise type(error)(f"{source.label(index)}: {error}") from None
        height, width = pixels.shape[-2:]
        content = content_of(height, width, self.size, self.config.aspect, self.scale)
        if content.whole and self.content_height is not None:  # the border is in the file
            content = Content(self.size, (self.size - self.content_height) // 2, 0, self.content_height, self.size)
            gt = content.framed(content.of(gt), self.config.border)
        return gt, content

    def _lr(self, source: Source, index: int) -> Tensor:
        pixels = _decode(source, index, self.config)
        _, height, width = pixels.shape
        if (height, width) != (self.lr_size, self.lr_size):
            size = f"{self.lr_size}x{self.lr_size}"
            raise ImageError(f"{source.label(index)}: is {width}x{height}, but low-resolution images must be {size}")
        return (pixels * 255).round().to(torch.uint8)


def _decode(source: Source, index: int, config: DataConfig) -> Tensor:
    """The image (3, H, W) in [0, 1]. Errors name it."""
    label = source.label(index)
    try:
        return decode(source.read(index), name=label).premultiplied()  # black behind transparency
    except ImageError as error:
        problem = f"{label}: {str(error).removeprefix(f'{label}: ')}"
        if config.corrupt == "skip":
            raise LeftOutError(problem) from None
        raise ImageError(f"{problem}; --set data.corrupt=skip leaves such images out") from None


@dataclass
class HeldOut:
    """Images that are reported on, as bytes."""

    gt: Tensor
    """(N, 3, size, size), uint8."""
    lrs: dict[str, Tensor]
    """Their low-resolution images (N, 3, in, in), uint8, by the prefix of the figures: "" for those made as in training, "clean_" for those
    made by MATLAB's bicubic, where these are others."""
    content: Content
    """The part that is looked at: what is no border, where that is the same in all of them and large enough; otherwise all."""


def load_held_out(config: DataConfig, size: int, in_size: int, content_height: int | None = None) -> HeldOut:
    """The first `n_validation` of the validation images. Their low-resolution images are always the same, whatever the run's seed."""
    images = TrainingImages(config.validation, size, config, lr_size=in_size, limit=config.n_validation, content_height=content_height)
    gt = images.hold(workers=0)
    ways = {"": config.degradation} | ({"clean_": "bicubic"} if config.degradation != "bicubic" else {})
    lrs = {
        prefix: torch.stack(
            [
                _degraded(image, content, in_size, dataclasses.replace(config, degradation=way), fixed_seed(i))
                for i, (image, content) in enumerate(zip(gt, images.contents, strict=True))
            ]
        )
        for prefix, way in ways.items()
    }
    first = images.contents[0]
    same = all(content == first for content in images.contents)
    looked_at = first if same and min(first.rows, first.columns) >= SMALLEST_SEEN else Content(size, 0, 0, size, size)
    return HeldOut(gt, lrs, looked_at)


def _degraded(gt: Tensor, content: Content, in_size: int, config: DataConfig, seed: int) -> Tensor:
    """The low-resolution image (3, in, in) of `gt` (3, size, size), both uint8. The border is made after the shrinking, as in use, where
    it is the low-resolution image that is too small."""
    if config.degradation == "blind":
        return degrade_blind(gt, in_size, torch.Generator().manual_seed(seed))
    scale = content.size // in_size
    inside = content.of(gt)
    if config.degradation == "real":
        lr = degrade_real(inside, scale, seed, config.real)
    else:
        lr = to_bytes(degrade(from_bytes(inside)[None], scale)[0])
    return content.shrunk(scale).framed(lr, config.border)


def _shrunk(gt: Tensor, contents: Sequence[Content], scale: int, border: Border) -> Tensor:
    """The low-resolution images (N, 3, in, in) by MATLAB's bicubic of `gt` (N, 3, size, size), both in [-1, 1]."""
    if all(content.whole for content in contents):
        return gt if scale == 1 else degrade(gt, scale)
    if scale == 1:
        return gt
    each = zip(gt, contents, strict=True)
    return torch.stack([c.shrunk(scale).framed(degrade(c.of(image)[None], scale)[0], border, black=-1) for image, c in each])


def open_images(config: DataConfig, size: int, lr_size: int | None = None, content_height: int | None = None) -> TrainingImages:
    """The training images, held in memory where they fit into `config.memory`. `low_size` is the side of the low-resolution ones."""
    images = TrainingImages(config.train, size, config, config.train_low, lr_size, content_height=content_height)
    if len(images) * 3 * size * size <= config.memory * 1e9:
        if config.random_crop < 1:
            images.hold_uncut()
        else:
            images.hold(config.workers)
    return images


def warn_left_out(left_out: Iterable[str]) -> None:
    """Says how many images were left out, and names the first."""
    if problems := sorted(left_out):
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        logger.warning("left out %d images: %s%s", len(problems), "; ".join(problems[:5]), more)


def collate(samples: Sequence[Sample]) -> Sample:
    """A batch of samples."""
    lrs = [sample.lr for sample in samples if sample.lr is not None]
    left_out = [problem for sample in samples for problem in sample.left_out]
    contents = [content for sample in samples for content in sample.contents]
    return Sample(torch.stack([sample.gt for sample in samples]), torch.stack(lrs) if lrs else None, contents, left_out)


@functools.lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(stream_seed(seed, "order", epoch)))


def batch_order(n: int, positions: Sequence[int], seed: int) -> Tensor:
    """Indices of the images at these positions of an endless sequence that shuffles all `n` anew in each epoch."""
    return torch.tensor([int(_order(n, seed, position // n)[position % n]) for position in positions])


class _Positions(Dataset[Sample]):
    """The images by their position in the order of training, and their low-resolution ones where these need the CPU."""

    def __init__(self, images: TrainingImages, seed: int, in_size: int):
        self.images, self.seed, self.in_size = images, seed, in_size

    def __getitem__(self, position: int) -> Sample:
        images, config = self.images, self.images.config
        index = int(batch_order(len(images), [position], self.seed))
        crop = config.random_crop < 1
        sample = images.cut_out(index, stream_seed(self.seed, "crop", position)) if crop else images[index]
        if self.in_size < images.size and config.degradation != "bicubic":
            seed = stream_seed(self.seed, "degradation", position)
            sample.lr = _degraded(sample.gt, sample.contents[0], self.in_size, config, seed)
        return sample


@dataclass(frozen=True)
class Share:
    """The part of each batch that this process trains on: positions rank, rank + world, ... of it.

    Strided, because the discriminator's minibatch standard deviation groups images so: several processes then see the very groups that
    one process with the whole batch does.
    """

    rank: int = 0
    world: int = 1

    def of(self, start: int, batch_size: int) -> range:
        """Positions of this process in the batch that begins at `start`."""
        return range(start + self.rank, start + batch_size, self.world)


class _Starts:
    """The positions of each batch, made as they are needed: there are hundreds of thousands of batches."""

    def __init__(self, starts: range, batch_size: int, share: Share):
        self.starts, self.batch_size, self.share = starts, batch_size, share

    def __iter__(self) -> Iterator[list[int]]:
        for start in self.starts:
            yield list(self.share.of(start, self.batch_size))


class TrainingBatches:
    """Iterates over (truth (n, 3, size, size), lr (n, 3, in, in)), both in [-1, 1] on `device`, from image `start` on. Without `in_size`
    truth and low are the same. With `data.patch` both are squares cut out of the images, of that size and of that size / scale.

    Whoever iterates from image k on gets what an uninterrupted iteration would have given after k images.
    """

    def __init__(
        self,
        images: TrainingImages,
        *,
        in_size: int | None = None,
        start: int,
        end: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        share: Share = Share(),
    ):
        self.images, self.in_size, self.batch_size, self.seed = images, in_size or images.size, batch_size, seed
        self.start, self.end, self.device, self.share = start, end, device, share
        self.left_out: set[str] = set()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        scale = self.images.size // self.in_size
        config, mine = self.images.config, slice(self.share.rank, None, self.share.world)
        starts = range(self.start, self.end, self.batch_size)
        for start, sample in zip(starts, self._samples(starts), strict=True):
            self.left_out.update(sample.left_out)
            gt = sample.gt.to(self.device, non_blocking=True).float() / 127.5 - 1  # not `from_bytes`, whose last bit differs
            if sample.lr is not None:
                lr = from_bytes(sample.lr.to(self.device, non_blocking=True))
            else:
                lr = _shrunk(gt, sample.contents, scale, config.border)
            generator = torch.Generator().manual_seed(stream_seed(self.seed, "mirror", start))
            if config.flip:
                mirrored = torch.rand(self.batch_size, generator=generator)[mine] < 0.5
                chosen = mirrored.to(self.device)[:, None, None, None]
                gt, lr = torch.where(chosen, gt.flip(3), gt), torch.where(chosen, lr.flip(3), lr)
            if config.rotate:
                quarters = torch.randint(4, (self.batch_size,), generator=generator)[mine].tolist()
                gt, lr = (torch.stack([p.rot90(k, (1, 2)) for p, k in zip(batch, quarters, strict=True)]) for batch in (gt, lr))
            if config.patch is not None:
                corners = torch.randint(self.in_size - config.patch // scale + 1, (self.batch_size, 2), generator=generator)[mine].tolist()
                gt, lr = _cut(gt, corners, scale, config.patch), _cut(lr, corners, 1, config.patch // scale)
            yield gt.contiguous(memory_format=torch.channels_last), lr

    def _samples(self, starts: range) -> Iterator[Sample]:
        pinned = self.device.type == "cuda"
        clean = self.in_size == self.images.size or self.images.config.degradation == "bicubic"
        if self.images.held is not None and clean:
            for start in starts:
                order = batch_order(len(self.images), self.share.of(start, self.batch_size), self.seed)
                lr = None if self.images.held_lr is None else self.images.held_lr[order]
                contents = [self.images.contents[i] for i in order.tolist()]
                yield _pinned(Sample(self.images.held[order], lr, contents), pinned)
            return
        workers = min(self.images.config.workers, cores())
        loader: DataLoader[Any] = DataLoader(
            _Positions(self.images, self.seed, self.in_size),
            batch_sampler=_Starts(starts, self.batch_size, self.share),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            collate_fn=collate,
            worker_init_fn=_let_the_run_decide,
            # The loader draws a seed for its workers, who draw nothing: it must not advance the run's own generator.
            generator=torch.Generator(),
        )
        for sample in loader:
            yield _pinned(sample, pinned)


def _cut(images: Tensor, corners: Sequence[tuple[int, int]], scale: int, size: int) -> Tensor:
    """Squares of `size` px of images (N, 3, H, W), `corners` being top and left of each in units of `scale` px."""
    places = ((image, top * scale, left * scale) for image, (top, left) in zip(images, corners, strict=True))
    return torch.stack([image[:, top : top + size, left : left + size] for image, top, left in places])


def _let_the_run_decide(_: int) -> None:
    """Ignores signals to the whole group of processes, Ctrl-C or torchrun's SIGTERM: the run ends its step first, and needs images."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)


def _pinned(sample: Sample, wanted: bool) -> Sample:
    """In memory from which a GPU copies without making the CPU wait."""
    if not wanted:
        return sample
    lr = None if sample.lr is None else sample.lr.pin_memory()
    return dataclasses.replace(sample, gt=sample.gt.pin_memory(), lr=lr)
