"""Test images: the ground truth, all of one size, and the low-resolution images that a method gets to see of them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from gleansr.data.degradation import degrade_real, fixed_seed
from gleansr.data.fit import Aspect, Border, Content, SmallError, content_of, fit
from gleansr.data.prepare import file_names
from gleansr.data.sources import Source, open_source, stem
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import decode
from gleansr.images.pixels import from_bytes, to_bytes
from gleansr.images.resize import degrade
from gleansr.inference.upscaler import Upscaler

Small = Literal["refuse", "enlarge"]
"""What to do with test images that would have to be enlarged, see `EvaluationTask`."""

Degradation = Literal["bicubic", "real"]


@dataclass(frozen=True)
class EvaluationTask:
    """What is asked of the methods: images of `size` / `scale` enlarged to `size`."""

    size: int
    """Side of the ground truth and of the results."""
    scale: int
    """How many times smaller a method's input is."""
    aspect: Aspect = "crop"
    """What is done with ground truths that are not square, see `gleansr.data.fit.fit`."""
    small: Small = "refuse"
    """GroundTruth that would have to be enlarged: an error, or enlarged, after which they are no ground-truth images of that size."""
    border: Border = "repeat"
    """What fills the border that "pad" and "bars" add. It is not judged."""
    degradation: Degradation = "bicubic"
    """How the low-resolution images are made: MATLAB's bicubic and 8 bits, or what happens to thumbnails with the seed of each image's
    number, see `gleansr.data.degradation`."""

    def __post_init__(self):
        if self.aspect not in get_args(Aspect) or self.small not in get_args(Small):
            raise RequestError(
                f"aspect must be of {get_args(Aspect)} and small of {get_args(Small)}, not {self.aspect!r} and {self.small!r}"
            )
        if self.degradation not in get_args(Degradation):
            raise RequestError(f"--degradation must be of {get_args(Degradation)}, not {self.degradation!r}")
        if not 1 <= self.size <= 16384:
            raise RequestError(f"the size of the images must be 1 to 16384, not {self.size}")
        if self.scale < 2 or self.size % self.scale:
            raise RequestError(f"--scale must be a divisor of the size {self.size} from 2 up, not {self.scale}")

    def fitted(self, pixels: Tensor) -> tuple[Tensor, Content]:
        """The truth (1, 3, size, size), RGB, on the grid of 8 bits, that is made of `pixels` (3, H, W) in [0, 1], and what of it is no
        border. Raises SmallError."""
        height, width = pixels.shape[-2:]
        small = "skip" if self.small == "refuse" else "enlarge"
        gt = fit(pixels, self.size, self.aspect, small, border=self.border, grid=self.scale)
        return from_bytes(gt[None]), content_of(height, width, self.size, self.aspect, self.scale)

    def shrunk(self, gt: Tensor, content: Content, number: int) -> Tensor:
        """The low-resolution image (1, 3, size / scale, size / scale) of a truth, which is that of this number in its source. Its border
        is made after the shrinking, as in use, where it is the low-resolution image that is too small."""
        inside = content.of(gt)
        if self.degradation == "real":
            lr = from_bytes(degrade_real(to_bytes(inside[0]), self.scale, fixed_seed(number))[None])
        else:
            lr = degrade(inside, self.scale)
        return lr if content.whole else content.shrunk(self.scale).framed(lr[0], self.border, black=-1)[None]


def usual_aspect(upscalers: Iterable[Upscaler]) -> Aspect:
    """What is done with images that are not square where nothing is said: "bars" for models of such images, else "crop"."""
    return "bars" if any(upscaler.content_height != upscaler.output_size for upscaler in upscalers) else "crop"


def usual_border(upscalers: Iterable[Upscaler]) -> Border:
    """What fills borders: black for models that were shown black ones, else the outermost pixels."""
    return "black" if any(upscaler.border == "black" for upscaler in upscalers) else "repeat"


@dataclass(frozen=True, eq=False)
class Example:
    """One test image."""

    name: str
    """In its source, see `Source.names`."""
    sha256: str
    """Of the truth's file as it is in the source."""
    low_sha256: str | None
    """Of the low-resolution image's file; None where it was made of the ground truth."""
    gt: Tensor
    """(1, 3, size, size), RGB, exactly (k - 127.5) / 127.5 for whole k from 0 to 255."""
    lr: Tensor
    """(1, 3, size / scale, size / scale), as `gt`."""
    content: Content
    """What of the ground truth is no border."""

    def inside(self, image: Tensor) -> Tensor:
        """The part of `image`, of the size of the ground truth or of the low-resolution image, that is judged."""
        return self.content.shrunk(self.content.size // image.shape[-1]).of(image)


class GroundTruth:
    """Test images in the order of their names, read as they are needed."""

    def __init__(self, data: str, task: EvaluationTask, *, lr: str | None = None, limit: int | None = None):
        """
        Args:
            data: a folder, archive or whatever else `open_source` takes.
            task: what is made of them.
            lr: prepared low-resolution images, as `data`, matched by name without suffix; those that no truth needs are left alone. By
                default they are made as the task says.
            limit: only the first so many.

        Raises:
            RequestError: nothing to read there, or low-resolution images are missing.
            DownloadError: a remote archive could not be fetched.
        """
        if limit is not None and limit < 1:
            raise RequestError(f"--limit must be at least 1, not {limit}")
        if lr and task.degradation != "bicubic":
            raise RequestError(f"--low gives the low-resolution images, so leave out --degradation {task.degradation}")
        self.task = task
        self._source = open_source(data)
        n = len(self._source) if limit is None else min(limit, len(self._source))
        self.names: Sequence[str] = self._source.names[:n]
        """The images' names in the source, sorted."""
        self.files: Sequence[str] = list(file_names(self._source.names))[:n]
        """For each image a file's name without suffix, with / between folders; it does not depend on `limit`."""
        self.index = {name: i for i, name in enumerate(self.names)}
        """The number of each name."""
        self._lr_source = open_source(lr) if lr else None
        self._lr_index = _partners(self.names, self._lr_source, data, lr) if lr and self._lr_source else []

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Example:
        """The example of that number. Raises ImageError, which names the image, if it cannot be used."""
        pixels, sha256 = _read(self._source, index)
        try:
            gt, content = self.task.fitted(pixels)
        except SmallError as error:
            raise ImageError(f"{self._source.label(index)}: {error}; --small enlarge takes it nevertheless") from None
        if self._lr_source is None:
            return Example(self.names[index], sha256, None, gt, self.task.shrunk(gt, content, index), content)
        pixels, low_sha256 = _read(self._lr_source, self._lr_index[index])
        side = self.task.size // self.task.scale
        if pixels.shape[-2:] != (side, side):
            height, width = pixels.shape[-2:]
            label = self._lr_source.label(self._lr_index[index])
            raise ImageError(f"{label}: is {width}x{height}, but the images of --low must be {side}x{side}")
        return Example(self.names[index], sha256, low_sha256, gt, from_bytes(pixels.mul(255).round()[None]), content)


def _read(source: Source, index: int) -> tuple[Tensor, str]:
    """Pixels (3, H, W) in [0, 1], black behind transparency, and the sha256 of the file. Errors name the image."""
    label = source.label(index)
    try:
        data = source.read(index)
        return decode(data, name=label).premultiplied(), hashlib.sha256(data).hexdigest()
    except ImageError as error:
        raise ImageError(f"{label}: {str(error).removeprefix(f'{label}: ')}; take it out of the test images") from None


def _partners(names: Sequence[str], lr: Source, data_spec: str, lr_spec: str) -> list[int]:
    """For each truth the number of its low-resolution image. Raises RequestError that names those without."""
    found: dict[str, int] = {}
    for i, name in enumerate(lr.names):
        if found.setdefault(stem(name), i) != i:
            other = lr.names[found[stem(name)]]
            raise RequestError(f"--low {lr_spec}: {other} and {name} differ in their suffix only, so that they cannot be matched by name")
    if missing := [name for name in names if stem(name) not in found]:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise RequestError(
            f"--low {lr_spec} has no image for {', '.join(missing[:3])}{more} of {data_spec}: "
            f"name low-resolution images as the ground truth, such as {stem(missing[0])}.png, or leave --low out"
        )
    return [found[stem(name)] for name in names]
