"""Test images: ground truths of one size and the low-resolution images that methods receive."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from gleansr.data import fit as fitting
from gleansr.data.choices import Aspect, Border
from gleansr.data.degradation import degrade_real, fixed_seed
from gleansr.data.fit import Content, SmallError, content_of
from gleansr.data.prepare import file_names
from gleansr.data.sources import Source, open_source, stem
from gleansr.errors import ImageError, RequestError
from gleansr.evaluation.config import Degradation, Small
from gleansr.images import resize
from gleansr.images.codec import decode
from gleansr.images.pixels import from_bytes, to_bytes
from gleansr.inference.upscaler import Upscaler


@dataclass(frozen=True)
class EvaluationTask:
    """The task of all methods: images of side `size` / `scale`, upscaled to `size`."""

    size: int
    """Side of ground truths and results."""
    scale: int
    aspect: Aspect = "crop"
    """How images that are not square become ground truths, see `gleansr.data.fit.fit`."""
    small: Small = "refuse"
    """Smaller images: an error, or enlarged, which makes them poor ground truths."""
    border: Border = "repeat"
    """Content of the border that "pad" and "bars" add. Metrics leave it out."""
    degradation: Degradation = "bicubic"
    """How low-resolution images are made: MATLAB's bicubic and 8 bits, or the realistic degradations of `gleansr.data.degradation` with
    each image's index as seed."""

    def __post_init__(self):
        if self.aspect not in get_args(Aspect) or self.small not in get_args(Small):
            raise RequestError(
                f"aspect must be one of {get_args(Aspect)} and small one of {get_args(Small)}, not {self.aspect!r} and {self.small!r}"
            )
        if self.degradation not in get_args(Degradation):
            raise RequestError(f"--degradation must be one of {get_args(Degradation)}, not {self.degradation!r}")
        if not 1 <= self.size <= 16384:
            raise RequestError(f"the size of the images must be 1 to 16384, not {self.size}")
        if self.scale < 2 or self.size % self.scale:
            raise RequestError(f"--scale must divide the size {self.size} and be at least 2, not {self.scale}")

    def fit(self, pixels: Tensor) -> tuple[Tensor, Content]:
        """The ground truth (1, 3, size, size), RGB, on the 8-bit grid, of an image (3, H, W) in [0, 1], and its part without the border.

        Raises SmallError.
        """
        height, width = pixels.shape[-2:]
        small = "skip" if self.small == "refuse" else "enlarge"
        gt = fitting.fit(pixels, self.size, self.aspect, small, border=self.border, grid=self.scale)
        return from_bytes(gt[None]), content_of(height, width, self.size, self.aspect, self.scale)

    def degrade(self, gt: Tensor, content: Content, index: int) -> Tensor:
        """The low-resolution image (1, 3, size / scale, size / scale) of a ground truth; `index` is its index in the source.

        The border is added after downsampling, as in use, where the low-resolution image is padded.
        """
        inside = content.of(gt)
        if self.degradation == "real":
            lr = from_bytes(degrade_real(to_bytes(inside[0]), self.scale, fixed_seed(index))[None])
        else:
            lr = resize.degrade(inside, self.scale)
        return lr if content.whole else content.shrunk(self.scale).framed(lr[0], self.border, black=-1)[None]


def default_aspect(upscalers: Iterable[Upscaler]) -> Aspect:
    """The default of `EvaluationTask.aspect`: "bars" for models of images between black bars, otherwise "crop"."""
    return "bars" if any(upscaler.content_height != upscaler.output_size for upscaler in upscalers) else "crop"


def default_border(upscalers: Iterable[Upscaler]) -> Border:
    """The border that models were trained with: black if one of them was, otherwise repeated outermost pixels."""
    return "black" if any(upscaler.border == "black" for upscaler in upscalers) else "repeat"


@dataclass(frozen=True, eq=False)
class Example:
    """A test image."""

    name: str
    """Name in the source, see `Source.names`."""
    sha256: str
    """SHA-256 of the ground truth's file."""
    low_sha256: str | None
    """SHA-256 of the low-resolution image's file; None if it is made from the ground truth."""
    gt: Tensor
    """(1, 3, size, size), RGB; each value is exactly (k - 127.5) / 127.5 for a whole k from 0 to 255."""
    lr: Tensor
    """(1, 3, size / scale, size / scale), as `gt`."""
    content: Content
    """The part of the ground truth without the border."""

    def inside(self, image: Tensor) -> Tensor:
        """`image` without the border; it has the size of the ground truth or of the low-resolution image."""
        return self.content.shrunk(self.content.size // image.shape[-1]).of(image)


class GroundTruth:
    """Test images in the order of their names, read on access."""

    def __init__(self, data: str, task: EvaluationTask, *, lr: str | None = None, limit: int | None = None):
        """
        Args:
            data: the images, as for `open_source`.
            task: size, scale and preparation of the images.
            lr: prepared low-resolution images, as for `open_source`, matched by name without suffix; others are ignored. By default they
                are made as the task says.
            limit: number of images, from the first.

        Raises:
            RequestError: there are no images, or low-resolution images are missing.
            DownloadError: a remote archive cannot be fetched.
        """
        if limit is not None and limit < 1:
            raise RequestError(f"--limit must be at least 1, not {limit}")
        if lr and task.degradation != "bicubic":
            raise RequestError(f"--lr gives the low-resolution images: leave out --degradation {task.degradation}")
        self.task = task
        self._source = open_source(data)
        n = len(self._source) if limit is None else min(limit, len(self._source))
        self.names: Sequence[str] = self._source.names[:n]
        """Names of the images in the source, sorted."""
        self.files: Sequence[str] = list(file_names(self._source.names))[:n]
        """A file name for each image, without suffix and with / between folders, whatever the `limit`."""
        self.index = {name: i for i, name in enumerate(self.names)}
        """Index of each name."""
        self._lr_source = open_source(lr) if lr else None
        self._lr_index = _match_by_name(self.names, self._lr_source, data, lr) if lr and self._lr_source else []

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Example:
        """The example of an index. Raises ImageError, which names the image."""
        pixels, sha256 = read_image(self._source, index)
        try:
            gt, content = self.task.fit(pixels)
        except SmallError as error:
            raise ImageError(f"{self._source.label(index)}: {error}; --small enlarge accepts it") from None
        if self._lr_source is None:
            return Example(self.names[index], sha256, None, gt, self.task.degrade(gt, content, index), content)
        pixels, low_sha256 = read_image(self._lr_source, self._lr_index[index])
        side = self.task.size // self.task.scale
        if pixels.shape[-2:] != (side, side):
            height, width = pixels.shape[-2:]
            label = self._lr_source.label(self._lr_index[index])
            raise ImageError(f"{label}: is {width}x{height}, but the images of --lr must be {side}x{side}")
        return Example(self.names[index], sha256, low_sha256, gt, from_bytes(pixels.mul(255).round()[None]), content)


def read_image(source: Source, index: int) -> tuple[Tensor, str]:
    """An image (3, H, W) in [0, 1], black behind transparency, and the SHA-256 of its file. Raises ImageError, which names the image."""
    label = source.label(index)
    try:
        data = source.read(index)
        return decode(data, name=label).premultiplied(), hashlib.sha256(data).hexdigest()
    except ImageError as error:
        raise ImageError(f"{label}: {str(error).removeprefix(f'{label}: ')}; remove it from the test images") from None


def _match_by_name(names: Sequence[str], lr: Source, data_spec: str, lr_spec: str) -> list[int]:
    """The index of the low-resolution image of each name. Raises RequestError, which lists names without one."""
    indices: dict[str, int] = {}
    for i, name in enumerate(lr.names):
        if indices.setdefault(stem(name), i) != i:
            other = lr.names[indices[stem(name)]]
            raise RequestError(f"--lr {lr_spec}: {other} and {name} differ only in their suffix and cannot be matched by name")
    if missing := [name for name in names if stem(name) not in indices]:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise RequestError(
            f"--lr {lr_spec} has no image for {', '.join(missing[:3])}{more} of {data_spec}: "
            f"name low-resolution images like the ground truths, such as {stem(missing[0])}.png, or leave --lr out"
        )
    return [indices[stem(name)] for name in names]
