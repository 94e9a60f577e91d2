"""Test pictures: the truths, all of one size, and the low-resolution pictures that a method gets to see of them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from gleansr.data.degradation import degrade_real, fixed_seed
from gleansr.data.fit import Aspect, Border, Content, SmallError, content_of, fit
from gleansr.data.prepare import file_names
from gleansr.data.sources import Source, open_source, stem
from gleansr.errors import PictureError, RequestError
from gleansr.images.codec import decode, to_bytes
from gleansr.images.resize import degrade
from gleansr.inference.upscaler import Upscaler

Small = Literal["refuse", "enlarge"]
"""What to do with test pictures that would have to be enlarged, see `Task`."""

Degradation = Literal["bicubic", "real"]


@dataclass(frozen=True)
class Task:
    """What is asked of the methods: pictures of `size` / `scale` enlarged to `size`."""

    size: int
    """Side of the truths and of the results."""
    scale: int
    """How many times smaller a method's input is."""
    aspect: Aspect = "crop"
    """What is done with truths that are not square, see `gleansr.data.fit.fit`."""
    small: Small = "refuse"
    """Truths that would have to be enlarged: an error, or enlarged, after which they are no true pictures of that size."""
    border: Border = "repeat"
    """What fills the border that "pad" and "bars" add. It is not judged."""
    degradation: Degradation = "bicubic"
    """How the low-resolution pictures are made: MATLAB's bicubic and 8 bits, or what happens to thumbnails with the seed of each picture's
    number, see `gleansr.data.degradation`."""

    def __post_init__(self):
        if self.aspect not in get_args(Aspect) or self.small not in get_args(Small):
            raise RequestError(
                f"aspect must be of {get_args(Aspect)} and small of {get_args(Small)}, not {self.aspect!r} and {self.small!r}"
            )
        if self.degradation not in get_args(Degradation):
            raise RequestError(f"--degradation must be of {get_args(Degradation)}, not {self.degradation!r}")
        if not 1 <= self.size <= 16384:
            raise RequestError(f"the size of the pictures must be 1 to 16384, not {self.size}")
        if self.scale < 2 or self.size % self.scale:
            raise RequestError(f"--scale must be a divisor of the size {self.size} from 2 up, not {self.scale}")

    def fitted(self, pixels: Tensor) -> tuple[Tensor, Content]:
        """The truth (1, 3, size, size), RGB, on the grid of 8 bits, that is made of `pixels` (3, H, W) in [0, 1], and what of it is no
        border. Raises SmallError."""
        height, width = pixels.shape[-2:]
        small = "skip" if self.small == "refuse" else "enlarge"
        truth = fit(pixels, self.size, self.aspect, small, border=self.border, grid=self.scale)
        return on_grid(truth[None]), content_of(height, width, self.size, self.aspect, self.scale)

    def shrunk(self, truth: Tensor, content: Content, number: int) -> Tensor:
        """The low-resolution picture (1, 3, size / scale, size / scale) of a truth, which is that of this number in its source. Its border
        is made after the shrinking, as in use, where it is the low-resolution picture that is too small."""
        inside = content.of(truth)
        if self.degradation == "real":
            low = on_grid(degrade_real(to_bytes(inside[0]), self.scale, fixed_seed(number))[None])
        else:
            low = degrade(inside, self.scale)
        return low if content.whole else content.shrunk(self.scale).framed(low[0], self.border, black=-1)[None]


def usual_aspect(upscalers: Iterable[Upscaler]) -> Aspect:
    """What is done with pictures that are not square where nothing is said: "bars" for models of such pictures, else "crop"."""
    return "bars" if any(upscaler.content_height != upscaler.output_size for upscaler in upscalers) else "crop"


def usual_border(upscalers: Iterable[Upscaler]) -> Border:
    """What fills borders: black for models that were shown black ones, else the outermost pixels."""
    return "black" if any(upscaler.border == "black" for upscaler in upscalers) else "repeat"


@dataclass(frozen=True, eq=False)
class Example:
    """One test picture."""

    name: str
    """In its source, see `Source.names`."""
    sha256: str
    """Of the truth's file as it is in the source."""
    low_sha256: str | None
    """Of the low-resolution picture's file; None where it was made of the truth."""
    truth: Tensor
    """(1, 3, size, size), RGB, exactly (k - 127.5) / 127.5 for whole k from 0 to 255."""
    low: Tensor
    """(1, 3, size / scale, size / scale), as `truth`."""
    content: Content
    """What of the truth is no border."""

    def inside(self, image: Tensor) -> Tensor:
        """The part of `image`, of the size of the truth or of the low-resolution picture, that is judged."""
        return self.content.shrunk(self.content.size // image.shape[-1]).of(image)


class Truths:
    """Test pictures in the order of their names, read as they are needed."""

    def __init__(self, data: str, task: Task, *, low: str | None = None, limit: int | None = None):
        """
        Args:
            data: a folder, archive or whatever else `open_source` takes.
            task: what is made of them.
            low: prepared low-resolution pictures, as `data`, matched by name without suffix; those that no truth needs are left alone. By
                default they are made as the task says.
            limit: only the first so many.

        Raises:
            RequestError: nothing to read there, or low-resolution pictures are missing.
            DownloadError: a remote archive could not be fetched.
        """
        if limit is not None and limit < 1:
            raise RequestError(f"--limit must be at least 1, not {limit}")
        if low and task.degradation != "bicubic":
            raise RequestError(f"--low gives the low-resolution pictures, so leave out --degradation {task.degradation}")
        self.task = task
        self._source = open_source(data)
        n = len(self._source) if limit is None else min(limit, len(self._source))
        self.names: Sequence[str] = self._source.names[:n]
        """The pictures' names in the source, sorted."""
        self.files: Sequence[str] = list(file_names(self._source.names))[:n]
        """For each picture a file's name without suffix, with / between folders; it does not depend on `limit`."""
        self.index = {name: i for i, name in enumerate(self.names)}
        """The number of each name."""
        self._low_source = open_source(low) if low else None
        self._low_index = _partners(self.names, self._low_source, data, low) if low and self._low_source else []

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Example:
        """The example of that number. Raises PictureError, which names the picture, if it cannot be used."""
        pixels, sha256 = _read(self._source, index)
        try:
            truth, content = self.task.fitted(pixels)
        except SmallError as error:
            raise PictureError(f"{self._source.label(index)}: {error}; --small enlarge takes it nevertheless") from None
        if self._low_source is None:
            return Example(self.names[index], sha256, None, truth, self.task.shrunk(truth, content, index), content)
        pixels, low_sha256 = _read(self._low_source, self._low_index[index])
        side = self.task.size // self.task.scale
        if pixels.shape[-2:] != (side, side):
            height, width = pixels.shape[-2:]
            label = self._low_source.label(self._low_index[index])
            raise PictureError(f"{label}: is {width}x{height}, but the pictures of --low must be {side}x{side}")
        return Example(self.names[index], sha256, low_sha256, truth, on_grid(pixels.mul(255).round()[None]), content)


def on_grid(steps: Tensor) -> Tensor:
    """Values 0..255 as (k - 127.5) / 127.5 in float32, the values that `degrade` and `rounded` make."""
    return ((steps.double() - 127.5) / 127.5).float()


def _read(source: Source, index: int) -> tuple[Tensor, str]:
    """Pixels (3, H, W) in [0, 1], black behind transparency, and the sha256 of the file. Errors name the picture."""
    label = source.label(index)
    try:
        data = source.read(index)
        return decode(data, name=label).premultiplied(), hashlib.sha256(data).hexdigest()
    except PictureError as error:
        raise PictureError(f"{label}: {str(error).removeprefix(f'{label}: ')}; take it out of the test pictures") from None


def _partners(names: Sequence[str], low: Source, data_spec: str, low_spec: str) -> list[int]:
    """For each truth the number of its low-resolution picture. Raises RequestError that names those without."""
    found: dict[str, int] = {}
    for i, name in enumerate(low.names):
        if found.setdefault(stem(name), i) != i:
            other = low.names[found[stem(name)]]
            raise RequestError(f"--low {low_spec}: {other} and {name} differ in their suffix only, so that they cannot be matched by name")
    if missing := [name for name in names if stem(name) not in found]:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise RequestError(
            f"--low {low_spec} has no picture for {', '.join(missing[:3])}{more} of {data_spec}: "
            f"name low-resolution pictures as the truths, such as {stem(missing[0])}.png, or leave --low out"
        )
    return [found[stem(name)] for name in names]
