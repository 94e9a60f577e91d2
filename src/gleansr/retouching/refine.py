"""Retouching made realistic (section 2.2 of the paper's supplement): shrunk, a retouched image loses the artefacts of an amateur's hand;
enlarged again by GLEAN it gets its detail back, painted anew, in a single forward pass."""

import os
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import DecodedImage, Source, decode, neutral, to_image, unpremultiply
from gleansr.images.resize import resize
from gleansr.inference.upscaler import Upscaler, load
from gleansr.retouching.mask import TOLERANCE, bounds, faded, grown, touched


@dataclass(frozen=True)
class RetouchConfig:
    """How a retouch is refined."""

    strength: float = 1.0
    """0 leaves the retouched image as it is, 1 shows the refined one alone."""
    factor: int | None = None
    """How many times the model's output is larger than what it gets to see of the image, a power of two: the more, the more is painted
    anew. By default the model's scale. With less, what the model cannot see of the retouched image is added to its result; with more, its
    result is soft, and a model of that scale does better."""
    feather: int | None = None
    """Pixels over which the refined image fades into the original; by default a 32nd of the region's width."""
    box: tuple[int, int, int] | None = None
    """Left, top and width of the region that the model sees. By default the whole image, or of one that is far from the model's aspect
    ratio the largest region that holds what was touched and is nearest to the middle."""
    tolerance: float = TOLERANCE
    """Difference in [0, 1] between the retouched image and the original that counts as none."""

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise RequestError(f"strength must be 0 to 1, not {self.strength}")
        if self.feather is not None and not 0 <= self.feather <= 10_000:
            raise RequestError(f"feather must be 0 to 10000 pixels, not {self.feather}")
        if not 0 <= self.tolerance <= 1:
            raise RequestError(f"tolerance must be 0 to 1, not {self.tolerance}")
        if self.box is not None and len(self.box) != 3:
            raise RequestError(f"box is left, top and width of the region, not {self.box}")


@dataclass(frozen=True)
class Region:
    """What the model sees: a part of the image, or more than the image, whose border is then repeated."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, planes: Tensor) -> Tensor:
        """(C, H, W) -> (C, height, width)."""
        rows = torch.arange(self.top, self.top + self.height).clamp(0, planes.shape[1] - 1)
        columns = torch.arange(self.left, self.left + self.width).clamp(0, planes.shape[2] - 1)
        return planes[:, rows[:, None], columns]

    def inside(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of an image of that size that lie in the region."""
        rows = slice(max(0, self.top), min(height, self.top + self.height))
        return rows, slice(max(0, self.left), min(width, self.left + self.width))


@dataclass(frozen=True, eq=False)
class PreparedRetouch:
    """A retouch before the forward pass, and what to do after it. Made by `prepare`."""

    edited: Tensor
    """(3 or 4, H, W) in [0, 1]: colour times alpha, and alpha where there is transparency."""
    original: Tensor
    """As `edited`, with the same channels."""
    untouched: Image.Image
    """The original with 8 bits, RGB or RGBA."""
    weights: Tensor
    """(H, W) in [0, 1]: how much of the refined image shows."""
    region: Region
    lr: Tensor | None
    """(3, in_size, in_size) in [-1, 1]: what the model gets. None where nothing was touched."""
    size: tuple[int, int]
    """Rows and columns of image in the model's output."""
    factor: int
    strength: float
    note: str
    """What was done, in a line."""
    grey: bool = False
    """Whether both images are grey, so that the result is."""

    @property
    def box(self) -> tuple[int, int, int]:
        """Left, top and width of the region; beyond the image where its border is repeated."""
        return self.region.left, self.region.top, self.region.width

    @property
    @plain_torch()
    def mask(self) -> Image.Image:
        """How much of the refined image shows, in grey."""
        return Image.fromarray(self.weights.mul(255).round().to(torch.uint8).numpy())

    @plain_torch()
    def finish(self, sr: Tensor | None) -> Image.Image:
        """The whole image, of the model's output (3, out, out) in [-1, 1]. Where the weights are 0 it is the original, bit for bit.

        Its `info["gleansr"]` is the note. Raises ImageError for NaN and infinity.
        """
        result = self.untouched.copy()
        if sr is not None and (box := bounds(self.weights > 0)):
            left, top, right, bottom = box
            rows, columns = slice(top, bottom), slice(left, right)
            y, x = top - self.region.top, left - self.region.left
            refined = self._refined(sr)[:, y : y + bottom - top, x : x + right - left]
            edited, original = self.edited[:, rows, columns], self.original[:, rows, columns]
            weights = self.weights[rows, columns]
            mixed = torch.cat([edited[:3].lerp(refined, self.strength), edited[3:]])
            mixed = original + weights * (mixed - original)
            alpha = mixed[3:] if len(mixed) > 3 else None
            colour = mixed[:3].clamp(0, 1) if alpha is None else unpremultiply(mixed[:3], alpha)
            patch = to_image(colour, alpha)
            result.paste(neutral(patch) if self.grey else patch, (left, top), Image.fromarray((weights > 0).numpy()))
        if self.note:
            result.info["gleansr"] = self.note
        return result

    def _refined(self, sr: Tensor) -> Tensor:
        """(3, out, out) in [-1, 1] -> the region (3, height, width) in [0, 1], in colour and coarse form as the retouched image."""
        if not bool(sr.isfinite().all()):
            raise ImageError("the model made NaN or infinite values; try --precision float32")
        rows = self.size[0]
        bar = (sr.shape[1] - rows) // 2
        image = (sr.detach().to("cpu", torch.float32)[:, bar : bar + rows].clamp(-1, 1) + 1) / 2
        wanted = resize(self.region.cut(self.edited[:3]), size=self.size)
        coarse = (self.size[0] // self.factor, self.size[1] // self.factor)
        image = image + resize(resize(wanted - image, size=coarse), size=self.size)
        return resize(image, size=(self.region.height, self.region.width))


@plain_torch()
def prepare(
    edited: Source | DecodedImage,
    original: Source | DecodedImage | None,
    upscaler: Upscaler,
    config: RetouchConfig | None = None,
    *,
    mask: Source | DecodedImage | None = None,
) -> PreparedRetouch:
    """Finds what was touched and what the model is to see of it.

    Args:
        edited: the retouched image.
        original: the image before, of the same size. Without it, everything is refined.
        upscaler: the model, one with an input size.
        config: how to refine.
        mask: how much of the refined image may show at most, white where all of it; instead of what `original` tells.

    Raises:
        RequestError: these do not fit together.
        ImageError: an image cannot be read.
    """
    config = config or RetouchConfig()
    new = edited if isinstance(edited, DecodedImage) else decode(edited)
    old = new if original is None else original if isinstance(original, DecodedImage) else decode(original)
    height, width = new.size
    _check_size(old, new)
    transparent = any(image.alpha is not None for image in (new, old))
    planes = [_planes(image, transparent) for image in (new, old)]
    size, factor = _geometry(upscaler, config)
    given = None
    if mask is not None:
        image = mask if isinstance(mask, DecodedImage) else decode(mask)
        _check_size(image, new)
        given = image.premultiplied().mean(0)
    # Where there is a mask it says what is to be refined; a touched region is grown by what fades, so that all of it is refined.
    if given is not None:
        found = given > 0
    elif original is not None:
        found = touched(planes[0], planes[1], config.tolerance)
    else:
        found = torch.ones(height, width, dtype=torch.bool)
    region = _region(config.box, (height, width), size, bounds(found), new.name)
    _check_large_enough(region, upscaler, new.name)
    feather = max(4, region.width // 32) if config.feather is None else config.feather
    weights = _weights(found, region, feather, grow=given is None and original is not None)
    if given is not None:
        weights = torch.minimum(weights, given)
    lr = _lr(region.cut(planes[0][:3]), upscaler, size, factor) if bool(weights.any()) else None
    note = _note(new, weights, found, region, size)
    grey = new.grey and old.grey
    untouched = to_image(old.pixels, old.alpha)
    return PreparedRetouch(planes[0], planes[1], untouched, weights, region, lr, size, factor, config.strength, note, grey)


@plain_torch()
def retouch(
    edited: Source | DecodedImage,
    original: Source | DecodedImage | None = None,
    *,
    strength: float = 1.0,
    mask: Source | DecodedImage | None = None,
    model: str | os.PathLike[str] | Upscaler | None = None,
    factor: int | None = None,
    feather: int | None = None,
    box: tuple[int, int, int] | None = None,
    tolerance: float = TOLERANCE,
) -> Image.Image:
    """Makes a retouched image realistic in one forward pass.

    Args:
        edited: the retouched image: a path, the bytes of a file, a PIL image, an array or a tensor, as `gleansr.load` takes them.
        original: the image before it was retouched, of the same size. Only what differs from it is refined, and outside of that the
            result is the original bit for bit. Without it, the whole image is refined.
        strength: see `RetouchConfig`, as `factor`, `feather`, `box` and `tolerance`.
        mask: see `prepare`.
        model: name or file of a GLEAN, or an Upscaler; by default the bundled one for cats that suits `factor`.

    Returns:
        The whole image, RGB or RGBA. Its `info["gleansr"]` says what was done.

    Raises:
        RequestError: these do not fit together.
        ImageError: an image cannot be read.
    """
    config = RetouchConfig(strength, factor, feather, box, tolerance)
    upscaler = model if isinstance(model, Upscaler) else load(model or default_model(factor))
    return refine(prepare(edited, original, upscaler, config, mask=mask), upscaler)


@plain_torch()
def refine(prepared: PreparedRetouch, upscaler: Upscaler) -> Image.Image:
    """The whole image, by a forward pass of the model for which it was prepared, if anything was touched; see `PreparedRetouch.finish`."""
    if prepared.lr is None:
        return prepared.finish(None)
    return prepared.finish(upscaler.runner([prepared.lr]).images[0])


def default_model(factor: int | None) -> str:
    """The bundled model that is made for what an image shrunk by `factor` lacks."""
    return "cats-16x" if factor is not None and factor > 8 else "cats-8x"


# ---------------------------------------------------------------------------------------------------------------- geometry


def _geometry(upscaler: Upscaler, config: RetouchConfig) -> tuple[tuple[int, int], int]:
    """Rows and columns of image in the model's output, and the factor."""
    if upscaler.output_size is None or upscaler.content_height is None:
        raise RequestError(f"retouching takes a model with an input size, a GLEAN; {upscaler.method.name} takes images of any size")
    size = (upscaler.content_height, upscaler.output_size)
    factor = upscaler.scale if config.factor is None else config.factor
    largest = min(size) // 4
    if not 2 <= factor <= largest or factor & (factor - 1):
        raise RequestError(f"factor must be a power of two from 2 to {largest} with this model, not {factor}")
    return size, factor


def _region(
    box: tuple[int, int, int] | None, shape: tuple[int, int], size: tuple[int, int], found: tuple[int, int, int, int] | None, name: str
) -> Region:
    """What the model sees, in the aspect ratio of `size` (rows, columns)."""
    height, width = shape
    if box is not None:
        left, top, across = box
        region = Region(left, top, across, round(across * size[0] / size[1]))
        if min(left, top) < 0 or across < 1 or left + across > width or top + region.height > height:
            raise RequestError(f"{name}: the box {left},{top},{across} is not within its {width}x{height} pixels")
        return region

    def centred(across: int) -> Region:
        down = round(across * size[0] / size[1])
        return Region((width - across) // 2, (height - down) // 2, across, down)

    across = round(height * size[1] / size[0])  # of a region as high as the image
    whole, part = centred(max(width, across)), centred(min(width, across))
    left, top, right, bottom = found or (0, 0, width, height)
    if right - left > part.width or bottom - top > part.height or whole.width * whole.height <= 1.2 * width * height:
        return whole
    # As near to the middle as holds all that was touched: there the head is, and it does not jump with every stroke.
    left = min(max(part.left, right - part.width), left)
    top = min(max(part.top, bottom - part.height), top)
    return Region(left, top, part.width, part.height)


def _weights(found: Tensor, region: Region, feather: int, *, grow: bool) -> Tensor:
    """(H, W) in [0, 1] of what was found (H, W), within the region."""
    weights = torch.zeros(found.shape)
    rows, columns = region.inside(*found.shape)
    if (box := bounds(found[rows, columns])) is None:
        return weights
    margin = feather + 2 + max(found.shape) // 128  # of what grows, and of the cells in which it does
    left, top, right, bottom = (
        max(columns.start, columns.start + box[0] - margin),
        max(rows.start, rows.start + box[1] - margin),
        min(columns.stop, columns.start + box[2] + margin),
        min(rows.stop, rows.start + box[3] + margin),
    )
    part = found[top:bottom, left:right]
    part = grown(part, feather) if grow else part
    # Within the image the region's border fades too: there is no refined image beyond it.
    inner = torch.nn.functional.pad(
        part,
        (
            int(left == columns.start > 0),
            int(right == columns.stop < found.shape[1]),
            int(top == rows.start > 0),
            int(bottom == rows.stop < found.shape[0]),
        ),
    )
    soft = faded(inner, feather)
    y, x = int(top == rows.start > 0), int(left == columns.start > 0)
    weights[top:bottom, left:right] = soft[y : y + bottom - top, x : x + right - left]
    return weights


def _lr(image: Tensor, upscaler: Upscaler, size: tuple[int, int], factor: int) -> Tensor:
    """The region (3, h, w) in [0, 1] -> what the model gets of it, (3, in_size, in_size) in [-1, 1]."""
    if factor > upscaler.scale:
        image = resize(image, size=(size[0] // factor, size[1] // factor)).clamp(0, 1)
    return upscaler.fit(DecodedImage(image), "stretch").lr


# ------------------------------------------------------------------------------------------------------------------ checks


def _planes(image: DecodedImage, transparent: bool) -> Tensor:
    if not transparent:
        return image.pixels
    alpha = torch.ones(1, *image.size) if image.alpha is None else image.alpha
    return torch.cat([image.premultiplied(), alpha])


def _check_size(image: DecodedImage, edited: DecodedImage) -> None:
    if image.size != edited.size:
        (height, width), (wanted_height, wanted_width) = image.size, edited.size
        raise RequestError(
            f"{image.name}: is {width}x{height}, but the retouched image is {wanted_width}x{wanted_height}; give images of one size"
        )


def _check_large_enough(region: Region, upscaler: Upscaler, name: str) -> None:
    if upscaler.input_size and region.width < upscaler.input_size:
        raise RequestError(
            f"{name}: the region of {region.width}x{region.height} pixels is smaller than the model's input of {upscaler.input_size}; "
            "give a larger image or box, or enlarge it with `gleansr upscale`"
        )


def _note(edited: DecodedImage, weights: Tensor, found: Tensor, region: Region, size: tuple[int, int]) -> str:
    said = list(edited.notes)
    share = float((weights > 0).float().mean())
    if not share:
        return "; ".join([*said, "nothing was touched"])
    said.append(f"{share:.1%} of the image refined" if share < 1 else "the whole image refined")
    if bool((found & (weights == 0)).any()):
        said.append("what was touched outside of the model's region is the original again")
    if region.width > size[1]:
        said.append(f"the model's {size[1]} pixels were enlarged to the region's {region.width}")
    return "; ".join(said)
