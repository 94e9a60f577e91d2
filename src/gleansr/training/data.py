"""Training pictures, held in memory as bytes, in an order that depends on the seed and the number of pictures seen alone."""

import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from gleansr.errors import PictureError, RequestError
from gleansr.pictures import decode, readable_suffixes
from gleansr.resize import resize


def _files(source: str) -> Iterator[tuple[str, Path | zipfile.ZipFile]]:
    path = Path(source)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in readable_suffixes()):
            yield str(file), file
    elif zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        for name in sorted(n for n in archive.namelist() if Path(n).suffix.lower() in readable_suffixes()):
            yield name, archive
    else:
        raise RequestError(f"{source}: neither a folder nor a zip archive of pictures")


def _square(pixels: Tensor, size: int) -> Tensor:
    """The centre square of (3, H, W) in [0, 1], resized to `size`, as bytes (3, size, size)."""
    _, height, width = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[:, top : top + side, left : left + side]
    if side != size:
        pixels = resize(pixels, size=size).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8)


def load_pictures(sources: Sequence[str], size: int, limit: int | None = None) -> Tensor:
    """All pictures of folders and zip archives as bytes (N, 3, size, size), RGB, sorted by name within each source.

    Pictures of another size are cut to their centre square and resized. An unreadable picture is an error that names it.
    """
    entries = [entry for source in sources for entry in _files(source)][:limit]
    if not entries:
        raise RequestError(f"no pictures in {', '.join(sources) or 'no source at all: give --data'}")

    def read(entry: tuple[str, Path | zipfile.ZipFile]) -> Tensor:
        name, place = entry
        try:
            picture = decode(place.read(name) if isinstance(place, zipfile.ZipFile) else place)
        except PictureError as error:
            raise PictureError(f"{name}: {error}") from None
        return _square(picture.pixels, size)

    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(read, entries)))


def batch_order(n: int, start: int, count: int, seed: int) -> Tensor:
    """Indices of the pictures number `start` ... `start + count` of an endless sequence that shuffles all `n` anew in each epoch."""
    positions = range(start, start + count)
    orders = {
        epoch: torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for epoch in {position // n for position in positions}
    }
    return torch.tensor([int(orders[position // n][position % n]) for position in positions])


def training_batch(pictures: Tensor, start: int, count: int, seed: int, *, flip: bool, device: torch.device) -> Tensor:
    """The next pictures (count, 3, size, size) in [-1, 1] on `device`; half of them mirrored with `flip`."""
    batch = pictures[batch_order(len(pictures), start, count, seed).to(pictures.device)]
    if flip:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start + 1)
        mirrored = torch.rand(count, generator=generator) < 0.5
        batch = torch.where(mirrored.to(batch.device)[:, None, None, None], batch.flip(3), batch)
    return batch.to(device).float() / 127.5 - 1
