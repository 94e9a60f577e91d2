"""Realistic retouching (section 2.2 of the paper's supplement): shrinking a retouched image removes the artefacts of manual edits; GLEAN
enlarges it again with new detail, in a single forward pass."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from PIL import Image
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.configs import Range, check_request
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import DecodedImage, Source, decode, neutral, to_image, unpremultiply
from gleansr.images.resize import resize
from gleansr.inference.categories import most_probable
from gleansr.inference.router import NOUNS, Models, best_model, models_of
from gleansr.inference.upscaler import Upscaler, load
from gleansr.retouching.heads import head_of
from gleansr.retouching.mask import TOLERANCE, bounding_box, dilate, feather_mask, find_edits
from gleansr.retouching.region import Region, choose_region, views_of

_USUAL_SCALE = 4
"""Of the model that is chosen, if there is one of that scale: in heads of 170 px, 8x removes the detail around an edit too."""
_SIZE = 256  # of the bundled models' output
_RECOGNISED = 0.15
"""Least probability of a category."""


@dataclass(frozen=True)
class RetouchConfig:
    """How a retouched image is refined."""

    strength: Annotated[float, Range(0, 1)] = 1.0
    """0 shows the retouched image, 1 the refined one."""
    scale: int | None = None
    """Ratio of the model's output to the size at which it sees the image, a power of two: the larger, the more is painted anew. By default
    the model's scale. Below it, the result keeps the retouched image's detail that the model does not see; above it, the result is
    soft, and a model of that scale does better."""
    feather: Annotated[int | None, Range(0, 10_000)] = None
    """Pixels over which the refined image fades into the original; by default a 32nd of the region's width."""
    box: tuple[int, int, int] | None = None
    """Left, top and width of the region that the model sees. By default, if the model is chosen too, the head that was edited, where a
    photo has one; else the whole image, and for an image far from the model's aspect ratio the largest region that contains the edits, as
    close to the centre as possible."""
    tolerance: Annotated[float, Range(0, 1)] = TOLERANCE
    """Difference in [0, 1] between the retouched image and the original that is ignored."""

    def __post_init__(self) -> None:
        check_request(self, (self.box is None or len(self.box) == 3, f"box is left, top and width of the region, not {self.box}"))


@dataclass(frozen=True, eq=False)
class PreparedRetouch:
    """A retouched image before the forward pass, made by `prepare`."""

    edited: Tensor
    """(3 or 4, H, W) in [0, 1]: premultiplied colour, and alpha if either image has transparency."""
    original: Tensor
    """As `edited`, with the same channels."""
    original_image: Image.Image
    """The original with 8 bits, RGB or RGBA."""
    weights: Tensor
    """(H, W) in [0, 1]: opacity of the refined image."""
    region: Region
    lr: Tensor | None
    """(3, in_size, in_size) in [-1, 1]: the model's input. None if there are no edits."""
    size: tuple[int, int]
    """Rows and columns of the image in the model's output."""
    scale: int
    strength: float
    note: str
    upscaler: Upscaler
    """The model."""
    summary: str
    """What was recognised, and the model."""
    grey: bool = False
    """Whether both images are grey, and so is the result."""

    @property
    def box(self) -> tuple[int, int, int]:
        """Left, top and width of the region, which may extend beyond the image."""
        return self.region.left, self.region.top, self.region.width

    @property
    @plain_torch()
    def mask(self) -> Image.Image:
        """The opacity of the refined image, in grey."""
        return Image.fromarray(self.weights.mul(255).round().to(torch.uint8).numpy())

    @plain_torch()
    def finish(self, sr: Tensor | None) -> Image.Image:
        """Builds the whole image from the model's output (3, out, out) in [-1, 1]. Equals the original bit for bit where the weights are 0.

        Its `info["gleansr"]` is the note. Raises ImageError for NaN and infinity.
        """
        result = self.original_image.copy()
        if sr is not None and (box := bounding_box(self.weights > 0)):
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
        """(3, out, out) in [-1, 1] -> the region (3, height, width) in [0, 1], back-projected to the retouched image's coarse structure."""
        if not bool(sr.isfinite().all()):
            raise ImageError("the model made NaN or infinite values; try --precision float32")
        rows = self.size[0]
        bar = (sr.shape[1] - rows) // 2
        image = (sr.detach().to("cpu", torch.float32)[:, bar : bar + rows].clamp(-1, 1) + 1) / 2
        target = resize(self.region.crop(self.edited[:3]), size=self.size)
        coarse = (self.size[0] // self.scale, self.size[1] // self.scale)
        image = image + resize(resize(target - image, size=coarse), size=self.size)
        return resize(image, size=(self.region.height, self.region.width))


@plain_torch()
def prepare(
    edited: Source | DecodedImage,
    original: Source | DecodedImage | None,
    model: Upscaler | Models,
    config: RetouchConfig | None = None,
    *,
    mask: Source | DecodedImage | None = None,
) -> PreparedRetouch:
    """Finds the edits and the model's input.

    Args:
        edited: the retouched image.
        original: the original image, of the same size. Without it, the whole image is refined.
        model: the model, which must have an input size, or those to choose from by what the region shows.
        config: of the refinement.
        mask: upper limit of the opacity of the refined image, white for opaque; replaces the detection of edits.

    Raises:
        RequestError: the arguments do not fit together.
        ImageError: an image cannot be read.
    """
    config = config or RetouchConfig()
    new = edited if isinstance(edited, DecodedImage) else decode(edited)
    old = new if original is None else original if isinstance(original, DecodedImage) else decode(original)
    height, width = new.size
    _check_size(old, new)
    transparent = any(image.alpha is not None for image in (new, old))
    new_planes, old_planes = (_planes(image, transparent) for image in (new, old))
    limit = None
    if mask is not None:
        image = mask if isinstance(mask, DecodedImage) else decode(mask)
        _check_size(image, new)
        limit = image.premultiplied().mean(0)
    # Detected edits are dilated by the feather, so that they are refined completely; a given mask is not.
    if limit is not None:
        edits = limit > 0
    elif original is not None:
        edits = find_edits(new_planes, old_planes, config.tolerance)
    else:
        edits = torch.ones(height, width, dtype=torch.bool)
    edited_box = bounding_box(edits)
    local = original is not None or mask is not None
    head = head_of(old_planes[:3], edited_box) if isinstance(model, Models) and config.box is None and edited_box and local else None
    if isinstance(model, Models) and head:
        category, box = head
        config, upscaler = replace(config, box=box), _model_of(category, models=model, scale=config.scale)
        summary = f"{NOUNS[category]} found, {upscaler.about.name}"
    elif isinstance(model, Models):
        square = choose_region(config.box, (height, width), (1, 1), edited_box, new.name)
        views = [view.crop(old_planes[:3]) for view in views_of(square, edited_box)]
        upscaler, summary = _choose(views, model, config.scale, old.name)
    else:
        upscaler, summary = model, model.name
    upscaler = upscaler.one_pass  # a stroke's result is awaited
    size, scale = _geometry(upscaler, config)
    region = choose_region(config.box, (height, width), size, edited_box, new.name)
    _check_large_enough(region, upscaler, new.name)
    feather = max(4, region.width // 32) if config.feather is None else config.feather
    weights = _weights(edits, region, feather, grow=limit is None and original is not None)
    if limit is not None:
        weights = torch.minimum(weights, limit)
    lr = _lr(region.crop(new_planes[:3]), upscaler, size, scale) if bool(weights.any()) else None
    note = _note(new, weights, edits, region, size)
    original_image = to_image(old.pixels, old.alpha)
    grey = new.grey and old.grey
    return PreparedRetouch(
        new_planes, old_planes, original_image, weights, region, lr, size, scale, config.strength, note, upscaler, summary, grey
    )


def _choose(views: Sequence[Tensor], models: Models, scale: int | None, name: str) -> tuple[Upscaler, str]:
    """The model for what views (3, h, w) in [0, 1] show, and a summary for the user. A retouch is of something that a model is for, so that
    the most probable category of any view is taken, also if the classifier is unsure."""
    categories = [category for category in NOUNS if models_of(category)]
    category = max((most_probable(view, categories) for view in views), key=lambda category: category.confidence)
    if category.confidence < _RECOGNISED:
        raise RequestError(
            f"{name}: nothing recognised in the region that the model sees; name a model with --model, or give --box around it"
        )
    upscaler = _model_of(category.name, models, scale)
    unsure = ", unsure: --model names another" if category.confidence < 0.5 else ""
    return upscaler, f"{NOUNS[category.name]} ({category.percent}{unsure}), {upscaler.about.name}"


def _model_of(category: str, models: Models, scale: int | None) -> Upscaler:
    """The model of a category that suits a scale."""
    chosen = best_model(category, _SIZE / (scale or _USUAL_SCALE))
    if chosen is None:
        raise RequestError(f"there is no model of {category}; name a model with --model")
    return models[chosen.name]


@plain_torch()
def retouch(
    edited: Source | DecodedImage,
    original: Source | DecodedImage | None = None,
    *,
    strength: float = 1.0,
    mask: Source | DecodedImage | None = None,
    model: str | os.PathLike[str] | Upscaler | None = None,
    scale: int | None = None,
    feather: int | None = None,
    box: tuple[int, int, int] | None = None,
    tolerance: float = TOLERANCE,
) -> Image.Image:
    """Makes a retouched image realistic in one forward pass.

    Args:
        edited: the retouched image: a path, the bytes of a file, a PIL image, an array or a tensor, as for an `Upscaler`.
        original: the original image, of the same size. Only the differences are refined, and elsewhere the result equals the original
            bit for bit. Without it, the whole image is refined.
        strength: see `RetouchConfig`, as `scale`, `feather`, `box` and `tolerance`.
        mask: see `prepare`.
        model: name or file of a GLEAN, or an Upscaler; by default the region that the model sees is recognised, and the bundled model of
            its category that suits `scale` refines it.

    Returns:
        The whole image, RGB or RGBA. Its `info["gleansr"]` is a note.

    Raises:
        RequestError: the arguments do not fit together.
        ImageError: an image cannot be read.
    """
    config = RetouchConfig(strength, scale, feather, box, tolerance)
    models = model if isinstance(model, Upscaler) else load(model) if model else Models()
    return refine(prepare(edited, original, models, config, mask=mask))


@plain_torch()
def refine(prepared: PreparedRetouch) -> Image.Image:
    """Runs the forward pass, if there are edits; see `PreparedRetouch.finish`."""
    if prepared.lr is None:
        return prepared.finish(None)
    return prepared.finish(prepared.upscaler.runner([prepared.lr]).images[0])


# ---------------------------------------------------------------------------------------------------------------- geometry


def _geometry(upscaler: Upscaler, config: RetouchConfig) -> tuple[tuple[int, int], int]:
    """Rows and columns of the image in the model's output, and the scale."""
    if upscaler.output_size is None or upscaler.content_height is None:
        raise RequestError(f"retouching takes a model with an input size, a GLEAN; {upscaler.method.name} takes images of any size")
    size = (upscaler.content_height, upscaler.output_size)
    scale = upscaler.scale if config.scale is None else config.scale
    largest = min(size) // 4
    if not 2 <= scale <= largest or scale & (scale - 1):
        raise RequestError(f"the scale of a retouch must be a power of two from 2 to {largest} with this model, not {scale}")
    return size, scale


def _weights(edits: Tensor, region: Region, feather: int, *, grow: bool) -> Tensor:
    """The weights (H, W) in [0, 1] for a mask of edits (H, W), within the region."""
    weights = torch.zeros(edits.shape)
    rows, columns = region.inside(*edits.shape)
    if (box := bounding_box(edits[rows, columns])) is None:
        return weights
    margin = feather + 2 + max(edits.shape) // 128  # for the dilation, rounded up to whole cells
    left, top, right, bottom = (
        max(columns.start, columns.start + box[0] - margin),
        max(rows.start, rows.start + box[1] - margin),
        min(columns.stop, columns.start + box[2] + margin),
        min(rows.stop, rows.start + box[3] + margin),
    )
    part = edits[top:bottom, left:right]
    part = dilate(part, feather) if grow else part
    # The region's border fades too, except at the image's border: beyond it there is no refined image.
    x, y = int(left == columns.start > 0), int(top == rows.start > 0)
    padding = (x, int(right == columns.stop < edits.shape[1]), y, int(bottom == rows.stop < edits.shape[0]))
    soft = feather_mask(torch.nn.functional.pad(part, padding), feather)
    weights[top:bottom, left:right] = soft[y : y + bottom - top, x : x + right - left]
    return weights


def _lr(image: Tensor, upscaler: Upscaler, size: tuple[int, int], scale: int) -> Tensor:
    """The region (3, h, w) in [0, 1] -> the model's input, (3, in_size, in_size) in [-1, 1]."""
    if scale > upscaler.scale:
        image = resize(image, size=(size[0] // scale, size[1] // scale)).clamp(0, 1)
    return upscaler.fit(DecodedImage(image), "stretch").lr


# ------------------------------------------------------------------------------------------------------------------ checks


def _planes(image: DecodedImage, transparent: bool) -> Tensor:
    if not transparent:
        return image.pixels
    alpha = torch.ones(1, *image.size) if image.alpha is None else image.alpha
    return torch.cat([image.premultiplied(), alpha])


def _check_size(image: DecodedImage, edited: DecodedImage) -> None:
    if image.size != edited.size:
        (height, width), (height2, width2) = image.size, edited.size
        raise RequestError(f"{image.name}: is {width}x{height}, but the retouched image is {width2}x{height2}; give images of one size")


def _check_large_enough(region: Region, upscaler: Upscaler, name: str) -> None:
    if upscaler.input_size and region.width < upscaler.input_size:
        raise RequestError(
            f"{name}: the region of {region.width}x{region.height} pixels is smaller than the model's input of {upscaler.input_size}; "
            "give a larger image or box, or enlarge it with `gleansr upscale`"
        )


def _note(edited: DecodedImage, weights: Tensor, edits: Tensor, region: Region, size: tuple[int, int]) -> str:
    notes = list(edited.notes)
    share = float((weights > 0).float().mean())
    if not share:
        return "; ".join([*notes, "no edits found"])
    notes.append(f"{share:.1%} of the image refined" if share < 1 else "the whole image refined")
    if bool((edits & (weights == 0)).any()):
        notes.append("edits outside of the model's region are reverted to the original")
    if region.width > size[1]:
        notes.append(f"the model's {size[1]} pixels were enlarged to the region's {region.width}")
    return "; ".join(notes)
