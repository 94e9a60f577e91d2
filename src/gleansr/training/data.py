"""Training pictures: from their sources to batches, in an order that depends on the seed and the number of pictures seen alone."""

import bisect
import functools
import itertools
import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gleansr.data.fit import SmallError, fit
from gleansr.data.sources import Source, open_pairs, open_source
from gleansr.devices import cores
from gleansr.errors import PictureError, RequestError
from gleansr.pictures import decode
from gleansr.resize import degrade
from gleansr.training.blind import degrade_blind
from gleansr.training.config import DataConfig

SPOILT = 1000
"""So many pictures in a row that must be left out end the run: the source is broken."""

logger = logging.getLogger(__name__)


class LeftOutError(PictureError):
    """A picture that the options of the recipe leave out."""


@dataclass
class Sample:
    """One picture or a batch of them, as bytes."""

    truth: Tensor
    """(3, size, size) or (N, 3, size, size), uint8."""
    low: Tensor | None
    """The low-resolution picture where it is not made on the device, (3, in, in) or (N, 3, in, in), uint8."""
    left_out: list[str]
    """What was left out on the way to it, and why."""


def fitted(pixels: Tensor, size: int, config: DataConfig) -> Tensor:
    """A picture (3, H, W) in [0, 1] as bytes (3, size, size), brought to that size as the options say.

    Raises:
        LeftOutError: it is to be left out.
        PictureError: it is refused.
    """
    height, width = pixels.shape[-2:]
    if (height, width) != (size, size) and config.other_size != "fit":
        _refuse(config.other_size, f"{width}x{height}, not {size}x{size}", "data.other_size=fit or skip")
    try:
        return fit(pixels, size, config.aspect, "enlarge" if config.small == "enlarge" else "skip")
    except SmallError as error:
        return _refuse(config.small, str(error), "data.small=skip or enlarge")


def _refuse(policy: str, problem: str, mend: str) -> NoReturn:
    if policy == "skip":
        raise LeftOutError(problem)
    raise PictureError(f"{problem}; --set {mend}")


class Pictures(Dataset[Sample]):
    """The pictures of one or more sources by index."""

    def __init__(
        self,
        sources: Sequence[str],
        size: int,
        config: DataConfig,
        low_sources: Sequence[str] = (),
        low_size: int | None = None,
        limit: int | None = None,
    ):
        if not sources:
            raise RequestError("no pictures in no source at all: give --data")
        self.size, self.low_size, self.config = size, low_size, config
        self.sources = [open_source(spec) for spec in sources]
        self.low_sources = [open_source(spec) for spec in low_sources]
        self.pairs = [open_pairs(high, low) for high, low in zip(sources, low_sources, strict=True)] if low_sources else []
        counts = [len(pairs) for pairs in self.pairs] or [len(source) for source in self.sources]
        self.ends = list(itertools.accumulate(counts))
        self.n = min(self.ends[-1], limit or self.ends[-1])
        self.held: Tensor | None = None
        self.held_low: Tensor | None = None

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        """The picture of that index, or where that is to be left out the next one that is not."""
        if self.held is not None:
            return Sample(self.held[index], None if self.held_low is None else self.held_low[index], [])
        left_out: list[str] = []
        for other in range(index, index + min(self.n, SPOILT)):
            try:
                return Sample(*self._read(other % self.n), left_out)
            except LeftOutError as error:
                left_out.append(str(error))
        raise PictureError(f"{len(left_out)} pictures in a row had to be left out, such as {left_out[0]}")

    def hold(self, workers: int) -> Tensor:
        """Reads all pictures into memory, says what was left out, and returns them (N, 3, size, size)."""
        # Processes cost more than they save where there is little to do.
        loader = DataLoader(self, batch_size=16, num_workers=min(workers, cores()) if self.n > 512 else 0, collate_fn=collate)
        held = torch.empty(self.n, 3, self.size, self.size, dtype=torch.uint8)
        held_low = torch.empty(self.n, 3, self.low_size or 0, self.low_size or 0, dtype=torch.uint8) if self.pairs else None
        left_out: set[str] = set()
        for start, sample in zip(range(0, self.n, 16), loader, strict=True):
            held[start : start + 16] = sample.truth
            if held_low is not None and sample.low is not None:
                held_low[start : start + 16] = sample.low
            left_out.update(sample.left_out)
        self.held, self.held_low = held, held_low
        warn_left_out(left_out)
        return held

    def _read(self, index: int) -> tuple[Tensor, Tensor | None]:
        place = bisect.bisect_right(self.ends, index)
        index -= self.ends[place - 1] if place else 0
        if not self.pairs:
            return self._picture(self.sources[place], index), None
        high, low = self.pairs[place][index]
        return self._picture(self.sources[place], high), self._low(self.low_sources[place], low)

    def _picture(self, source: Source, index: int) -> Tensor:
        pixels = _decode(source, index, self.config)
        try:
            return fitted(pixels, self.size, self.config)
        except PictureError as error:
            raise type(error)(f"{source.label(index)}: {error}") from None

    def _low(self, source: Source, index: int) -> Tensor:
        pixels = _decode(source, index, self.config)
        _, height, width = pixels.shape
        if (height, width) != (self.low_size, self.low_size):
            size = f"{self.low_size}x{self.low_size}"
            raise PictureError(f"{source.label(index)}: is {width}x{height}, but low-resolution pictures must be {size}")
        return (pixels * 255).round().to(torch.uint8)


def _decode(source: Source, index: int, config: DataConfig) -> Tensor:
    """The picture (3, H, W) in [0, 1]. Errors name it."""
    label = source.label(index)
    try:
        return decode(source.read(index), name=label).premultiplied()  # black behind transparency
    except PictureError as error:
        problem = f"{label}: {str(error).removeprefix(f'{label}: ')}"
        if config.corrupt == "skip":
            raise LeftOutError(problem) from None
        raise PictureError(f"{problem}; --set data.corrupt=skip leaves such pictures out") from None


def load_pictures(sources: Sequence[str], size: int, config: DataConfig, limit: int | None = None) -> Tensor:
    """The first `limit` pictures of the sources as bytes (N, 3, size, size), RGB."""
    return Pictures(sources, size, config, limit=limit).hold(workers=0)


def open_pictures(config: DataConfig, size: int, low_size: int | None = None) -> Pictures:
    """The training pictures, held in memory where they fit into `config.memory`. `low_size` is that of the prepared low ones, if any."""
    pictures = Pictures(config.train, size, config, config.train_low, low_size)
    if len(pictures) * 3 * size * size <= config.memory * 1e9:
        pictures.hold(config.workers)
    return pictures


def warn_left_out(left_out: Iterable[str]) -> None:
    """Says how many pictures were left out, and names the first."""
    if problems := sorted(left_out):
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        logger.warning("left out %d pictures: %s%s", len(problems), "; ".join(problems[:5]), more)


def collate(samples: Sequence[Sample]) -> Sample:
    """A batch of samples."""
    lows = [sample.low for sample in samples if sample.low is not None]
    left_out = [problem for sample in samples for problem in sample.left_out]
    return Sample(torch.stack([sample.truth for sample in samples]), torch.stack(lows) if lows else None, left_out)


@functools.lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def batch_order(n: int, positions: Sequence[int], seed: int) -> Tensor:
    """Indices of the pictures at these positions of an endless sequence that shuffles all `n` anew in each epoch."""
    return torch.tensor([int(_order(n, seed, position // n)[position % n]) for position in positions])


class _Positions(Dataset[Sample]):
    """The pictures by their position in the order of training, and their low-resolution ones where these need the CPU."""

    def __init__(self, pictures: Pictures, seed: int, in_size: int):
        self.pictures, self.seed, self.in_size = pictures, seed, in_size

    def __getitem__(self, position: int) -> Sample:
        sample = self.pictures[int(batch_order(len(self.pictures), [position], self.seed))]
        if self.pictures.config.degradation == "blind":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + position)
            sample.low = degrade_blind(sample.truth, self.in_size, generator)
        return sample


@dataclass(frozen=True)
class Share:
    """The part of each batch that this process trains on: positions rank, rank + world, ... of it.

    Strided, because the discriminator's minibatch standard deviation groups pictures so: several processes then see the very groups that
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


class Batches:
    """Iterates over (truth (n, 3, size, size), low (n, 3, in, in)), both in [-1, 1] on `device`, from picture `start` on. Without `in_size`
    truth and low are the same. With `data.patch` both are squares cut out of the pictures, of that size and of that size / scale.

    Whoever iterates from picture k on gets what an uninterrupted iteration would have given after k pictures.
    """

    def __init__(
        self,
        pictures: Pictures,
        *,
        in_size: int | None = None,
        start: int,
        end: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        share: Share = Share(),
    ):
        self.pictures, self.in_size, self.batch_size, self.seed = pictures, in_size or pictures.size, batch_size, seed
        self.start, self.end, self.device, self.share = start, end, device, share
        self.left_out: set[str] = set()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        scale = self.pictures.size // self.in_size
        config, mine = self.pictures.config, slice(self.share.rank, None, self.share.world)
        starts = range(self.start, self.end, self.batch_size)
        for start, sample in zip(starts, self._samples(starts), strict=True):
            self.left_out.update(sample.left_out)
            truth = sample.truth.to(self.device, non_blocking=True).float() / 127.5 - 1
            if sample.low is not None:
                low = sample.low.to(self.device, non_blocking=True).float()
                low = (low - 127.5) / torch.full_like(low, 127.5)  # as `degrade` does it, to the bit
            else:
                low = truth if scale == 1 else degrade(truth, scale)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + start + 1)
            if config.flip:
                mirrored = torch.rand(self.batch_size, generator=generator)[mine] < 0.5
                chosen = mirrored.to(self.device)[:, None, None, None]
                truth, low = torch.where(chosen, truth.flip(3), truth), torch.where(chosen, low.flip(3), low)
            if config.rotate:
                quarters = torch.randint(4, (self.batch_size,), generator=generator)[mine].tolist()
                truth, low = (torch.stack([p.rot90(k, (1, 2)) for p, k in zip(batch, quarters, strict=True)]) for batch in (truth, low))
            if config.patch is not None:
                corners = torch.randint(self.in_size - config.patch // scale + 1, (self.batch_size, 2), generator=generator)[mine].tolist()
                truth, low = _cut(truth, corners, scale, config.patch), _cut(low, corners, 1, config.patch // scale)
            yield truth.contiguous(memory_format=torch.channels_last), low

    def _samples(self, starts: range) -> Iterator[Sample]:
        pinned = self.device.type == "cuda"
        if self.pictures.held is not None and self.pictures.config.degradation == "bicubic":
            for start in starts:
                order = batch_order(len(self.pictures), self.share.of(start, self.batch_size), self.seed)
                low = None if self.pictures.held_low is None else self.pictures.held_low[order]
                yield _pinned(Sample(self.pictures.held[order], low, []), pinned)
            return
        workers = min(self.pictures.config.workers, cores())
        loader: DataLoader[Any] = DataLoader(
            _Positions(self.pictures, self.seed, self.in_size),
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


def _cut(pictures: Tensor, corners: Sequence[tuple[int, int]], scale: int, size: int) -> Tensor:
    """Squares of `size` px of pictures (N, 3, H, W), `corners` being top and left of each in units of `scale` px."""
    places = ((picture, top * scale, left * scale) for picture, (top, left) in zip(pictures, corners, strict=True))
    return torch.stack([picture[:, top : top + size, left : left + size] for picture, top, left in places])


def _let_the_run_decide(_: int) -> None:
    """Ignores signals to the whole group of processes, Ctrl-C or torchrun's SIGTERM: the run ends its step first, and needs pictures."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)


def _pinned(sample: Sample, wanted: bool) -> Sample:
    """In memory from which a GPU copies without making the CPU wait."""
    if not wanted:
        return sample
    return Sample(sample.truth.pin_memory(), None if sample.low is None else sample.low.pin_memory(), sample.left_out)
