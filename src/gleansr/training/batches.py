"""Batches of training images, in an order that depends only on the seed and the number of images seen."""

import dataclasses
import functools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gleansr.data.choices import Border
from gleansr.data.fit import Content
from gleansr.images.pixels import from_bytes
from gleansr.images.resize import degrade
from gleansr.inference.devices import cores
from gleansr.training.data import Sample, TrainingImages, collate, degraded
from gleansr.training.streams import stream_seed


@functools.lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(stream_seed(seed, "order", epoch)))


def batch_order(n: int, positions: Sequence[int], seed: int) -> Tensor:
    """Indices of the images at `positions` of an endless sequence that shuffles all `n` in each epoch."""
    return torch.tensor([int(_order(n, seed, position // n)[position % n]) for position in positions])


class _OrderedImages(Dataset[Sample]):
    """The images by their position in the order of training, with low-resolution images where these are made on the CPU."""

    def __init__(self, images: TrainingImages, seed: int, in_size: int):
        self.images, self.seed, self.in_size = images, seed, in_size

    def __getitem__(self, position: int) -> Sample:
        images, config = self.images, self.images.config
        index = int(batch_order(len(images), [position], self.seed))
        crop = config.random_crop < 1
        sample = images.random_crop(index, stream_seed(self.seed, "crop", position)) if crop else images[index]
        if self.in_size < images.size and config.degradation != "bicubic":
            seed = stream_seed(self.seed, "degradation", position)
            sample.lr = degraded(sample.gt, sample.contents[0], self.in_size, config, seed)
        return sample


@dataclass(frozen=True)
class Share:
    """The part of each batch that a process trains on: positions rank, rank + world, ...

    It is strided as the groups of the discriminator's minibatch standard deviation are, so that several processes see the same groups as
    one process with the whole batch.
    """

    rank: int = 0
    world: int = 1

    def of(self, start: int, batch_size: int) -> range:
        """Positions in the batch that begins at `start`."""
        return range(start + self.rank, start + batch_size, self.world)


class _BatchSampler:
    """The positions of each batch, generated lazily: there are hundreds of thousands of batches."""

    def __init__(self, starts: range, batch_size: int, share: Share):
        self.starts, self.batch_size, self.share = starts, batch_size, share

    def __iter__(self) -> Iterator[list[int]]:
        for start in self.starts:
            yield list(self.share.of(start, self.batch_size))


class TrainingBatches:
    """Iterates over gt (n, 3, size, size) and lr (n, 3, in, in), both in [-1, 1] on `device`, from image `start` to `end`.

    Without `in_size` both are the same. With `data.patch` they are crops of that size and of that size / scale. A batch depends only on the
    seed and its position, so that iteration from image k equals uninterrupted iteration after k images.
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
        self.skipped: set[str] = set()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        scale = self.images.size // self.in_size
        config, share = self.images.config, slice(self.share.rank, None, self.share.world)
        starts = range(self.start, self.end, self.batch_size)
        for start, sample in zip(starts, self._samples(starts), strict=True):
            self.skipped.update(sample.skipped)
            gt = sample.gt.to(self.device, non_blocking=True).float() / 127.5 - 1  # not `from_bytes`, whose last bit differs
            if sample.lr is not None:
                lr = from_bytes(sample.lr.to(self.device, non_blocking=True))
            else:
                lr = _bicubic_lr(gt, sample.contents, scale, config.border)
            generator = torch.Generator().manual_seed(stream_seed(self.seed, "mirror", start))
            if config.flip:
                mirrored = torch.rand(self.batch_size, generator=generator)[share] < 0.5
                chosen = mirrored.to(self.device)[:, None, None, None]
                gt, lr = torch.where(chosen, gt.flip(3), gt), torch.where(chosen, lr.flip(3), lr)
            if config.rotate:
                quarters = torch.randint(4, (self.batch_size,), generator=generator)[share].tolist()
                gt, lr = (torch.stack([image.rot90(k, (1, 2)) for image, k in zip(batch, quarters, strict=True)]) for batch in (gt, lr))
            if config.patch is not None:
                corners = torch.randint(self.in_size - config.patch // scale + 1, (self.batch_size, 2), generator=generator)[share].tolist()
                gt, lr = _crop(gt, corners, scale, config.patch), _crop(lr, corners, 1, config.patch // scale)
            yield gt.contiguous(memory_format=torch.channels_last), lr

    def _samples(self, starts: range) -> Iterator[Sample]:
        pin = self.device.type == "cuda"
        clean = self.in_size == self.images.size or self.images.config.degradation == "bicubic"
        if self.images.gt is not None and clean:
            for start in starts:
                order = batch_order(len(self.images), self.share.of(start, self.batch_size), self.seed)
                lr = None if self.images.lr is None else self.images.lr[order]
                contents = [self.images.contents[i] for i in order.tolist()]
                yield _pinned(Sample(self.images.gt[order], lr, contents)) if pin else Sample(self.images.gt[order], lr, contents)
            return
        workers = min(self.images.config.workers, cores())
        loader: DataLoader[Any] = DataLoader(
            _OrderedImages(self.images, self.seed, self.in_size),
            batch_sampler=_BatchSampler(starts, self.batch_size, self.share),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            collate_fn=collate,
            worker_init_fn=_ignore_signals,
            # The loader draws a seed for its workers, which do not use it; it must not advance the run's generator.
            generator=torch.Generator(),
        )
        for sample in loader:
            yield _pinned(sample) if pin else sample


def _crop(images: Tensor, corners: Sequence[tuple[int, int]], scale: int, size: int) -> Tensor:
    """Squares of `size` px of images (N, 3, H, W); `corners` are top and left in units of `scale` px."""
    crops = ((image, top * scale, left * scale) for image, (top, left) in zip(images, corners, strict=True))
    return torch.stack([image[:, top : top + size, left : left + size] for image, top, left in crops])


def _ignore_signals(_: int) -> None:
    """Keeps a worker alive when Ctrl-C or torchrun's SIGTERM reaches the process group: the run finishes its step and needs images."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _pinned(sample: Sample) -> Sample:
    """`sample` in page-locked memory, from which a GPU copies asynchronously."""
    lr = None if sample.lr is None else sample.lr.pin_memory()
    return dataclasses.replace(sample, gt=sample.gt.pin_memory(), lr=lr)


def _bicubic_lr(gt: Tensor, contents: Sequence[Content], scale: int, border: Border) -> Tensor:
    """gt (N, 3, size, size) -> lr (N, 3, in, in) by MATLAB's bicubic, both in [-1, 1]."""
    if scale == 1:
        return gt
    if all(content.whole for content in contents):
        return degrade(gt, scale)
    pairs = zip(gt, contents, strict=True)
    return torch.stack([c.shrunk(scale).framed(degrade(c.of(image)[None], scale)[0], border, black=-1) for image, c in pairs])
