"""Whole photographs: their objects are found, enlarged by the model and pasted back."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import ImageError, NoObjectError, RequestError
from gleansr.images.back_projection import back_project
from gleansr.images.codec import DecodedImage, Source, decode, neutral
from gleansr.inference.tasks import PreparedImage, TaskResult
from gleansr.inference.upscaler import Upscaler, load
from gleansr.photos.align import Frame, around, cut
from gleansr.photos.background import BackgroundModel, bicubic_bands
from gleansr.photos.config import MOST_MEGAPIXELS, PhotoConfig
from gleansr.photos.detect import Finder, Found, finder, nouns
from gleansr.photos.paste import Piece, paste
from gleansr.photos.sampling import decibels
from gleansr.photos.sharpness import octaves, resolved

_MOST_PIXELS = 500_000_000
"""Of a result, which needs 3 or 4 bytes each, and as much again while it is encoded."""
_LARGEST_FRAME = 4
"""How many times longer than the photo a frame may be."""


class Photo:
    """Enlarges photos, and the objects of the model's category in them by the model. A `tasks.Task`.

    `prepare` and `finish` may be called by several threads at once; the background network runs within `finish`, for one photo's tile at a
    time.
    """

    @plain_torch()
    def __init__(
        self,
        upscaler: Upscaler,
        config: PhotoConfig | None = None,
        *,
        background: Upscaler | None = None,
        known: Mapping[str, Sequence[Found]] | None = None,
    ):
        """
        Args:
            upscaler: the model, one with an input size.
            config: where the objects are and how they are pasted back.
            background: a network of any size for what is around them; by default bicubic.
            known: the objects of images by their names, the surest first; others have none. Nothing is searched then.

        Raises:
            RequestError: these do not fit together, there is no detector for the model's category, or it is not installed.
        """
        if upscaler.input_size is None or upscaler.content_height is None:
            raise RequestError(
                f"--photo takes a model of objects, with an input size, a GLEAN; {upscaler.about.name or upscaler.method.name} takes "
                "images of any size: leave --photo out, or give it as --background"
            )
        self.upscaler = upscaler
        self.config = config or PhotoConfig()
        self.background = background
        self._size, self._rows = upscaler.input_size, upscaler.content_height // upscaler.scale
        self._network = background and BackgroundModel(background, overlap=self.config.overlap)
        self._known = known
        given = self.config.boxes or self.config.aligned or known is not None
        self._finder: Finder | None = None if given else finder(upscaler.category, upscaler.about.name or "the model")

    @property
    def factor(self) -> int:
        """The factor asked for, or the model's scale; large photos get less, see `PhotoConfig.factor`."""
        return self.config.factor or self.upscaler.scale

    @property
    def options(self) -> Mapping[str, Any]:
        options = dataclasses.asdict(self.config) | {"boxes": [list(box) for box in self.config.boxes]}
        for unseen in ("measured", "require_object"):  # not to be seen in the result
            del options[unseen]
        network = self.background and {"name": self.background.about.name, "scale": self.background.scale}
        options |= {"background": network}
        if self._known is not None:
            frames = [[one.frame for one in found] for found in self._known.values()]
            options["known"] = hashlib.sha256(repr(frames).encode()).hexdigest()
        return options

    @plain_torch()
    def prepare(self, decoded: DecodedImage) -> PreparedImage:
        """Finds the objects. Its `lrs` are one per object, in the order of the details.

        Raises:
            RequestError: a box lies outside of the photo.
            NoObjectError: none is found, and one is required.
            ImageError: the result would be too large.
        """
        height, width = decoded.size
        factor, notes = self._factor(decoded)
        planes = decoded.premultiplied()
        found, said = self._find(decoded.name, planes)
        lrs = tuple(self._lr(planes, one.frame) for one in found)
        notes = [said, *notes, *self._warnings(found, factor)]
        size, rows, bar = self._size, self._rows, (self._size - self._rows) // 2
        given = self.config.keep
        own = [octaves(planes, one.frame, rows, size) if given is None else () for one in found]

        @plain_torch()
        def finish(srs: Sequence[Tensor], model_notes: Sequence[str]) -> TaskResult:
            config = self.config
            if config.consistent:
                srs = [back_project(lr, sr, strength=config.consistent) for lr, sr in zip(lrs, srs, strict=True)]
            scale = self.upscaler.scale
            shown = [
                resolved(parts, sr[:, bar * scale : (bar + rows) * scale], one.frame)
                for one, parts, sr in zip(found, own, srs, strict=True)
            ]
            details, pieces = [], []
            for one, lr, sr, columns in zip(found, lrs, srs, shown, strict=True):
                details.append(_details(one, decibels(lr, sr) if config.measured else None, columns, size))
                pieces.append(Piece(one.frame, lr, sr, bar, float(columns is not None) if given is None else given, columns))
            sharp = sum(columns is not None for columns in shown)
            kept = f"{sharp} of {len(found)} keep detail of the photo that the model does not see" if sharp else ""
            whole = planes if decoded.alpha is None else torch.cat([planes, decoded.alpha])
            bands = self._network.bands(whole, factor) if self._network else bicubic_bands(whole, factor)
            image = paste(bands, (height, width), factor, pieces, feather=config.feather)
            image = neutral(image) if decoded.grey else image
            several = dict.fromkeys([*notes, kept, *model_notes, *decoded.notes])
            return TaskResult(image, tuple(filter(None, several)), {"factor": factor, "objects": details})

        return PreparedImage(lrs, finish)

    def _factor(self, photo: DecodedImage) -> tuple[int, list[str]]:
        """How many times larger the result is, and what to say of it."""
        height, width = photo.size
        factor, notes = self.factor, []
        if self.config.factor is None:
            while factor > 1 and height * width * factor**2 > MOST_MEGAPIXELS * 1e6:
                factor //= 2
            if factor != self.factor:
                notes = [f"enlarged {factor} instead of {self.factor} times, to at most {MOST_MEGAPIXELS} megapixels (--factor chooses)"]
        elif height * width * factor**2 > _MOST_PIXELS and factor > 1:
            most = max(1, math.isqrt(_MOST_PIXELS // (height * width)))
            raise ImageError(
                f"{photo.name}: {width}x{height} pixels enlarged {factor} times are more than {_MOST_PIXELS / 1e6:g} megapixels; "
                f"give --factor {most} or less"
            )
        return factor, notes

    def _find(self, name: str, planes: Tensor) -> tuple[list[Found], str]:
        """The objects, and how many they are in words."""
        height, width = planes.shape[-2:]
        aspect = self._rows / self._size
        if self.config.aligned:
            return [Found((0, 0, width, height), around((0, 0, width, height), aspect))], ""
        if self._known is not None:
            return list(self._known.get(name, ()))[: self.config.most], ""
        if self._finder is None:
            found = [Found(box, around(box, aspect)) for box in self.config.boxes]
            for one in found:
                left, top, right, bottom = one.frame.bounds
                x, y, w, h = one.box
                if min(x + w, right, width - x, width - left) <= 0 or min(y + h, bottom, height - y, height - top) <= 0:
                    raise RequestError(f"{name}: the box {_text(one.box)} lies outside of the photo's {width}x{height} pixels")
                if one.frame.width > _LARGEST_FRAME * max(height, width):
                    raise RequestError(f"{name}: the box {_text(one.box)} is much larger than the photo's {width}x{height} pixels")
            count, (noun, several) = len(found), ("box", "boxes")
            return found[: self.config.most], f"{count} {noun if count == 1 else several} given" + self._left_out(count)
        found = self._finder.search(planes, least_score=self.config.least_score, turned=self.config.turned)
        count, (noun, several) = len(found), nouns(self.upscaler.category)
        said = f"{count} {noun if count == 1 else several} found"
        if not found and self.config.require_object:
            raise NoObjectError(
                f"{name}: {said}; give --box x,y,w,h, or --aligned if the whole image is {'an' if noun[0] in 'aeiou' else 'a'} {noun}"
            )
        return found[: self.config.most], said + self._left_out(count)

    def _left_out(self, count: int) -> str:
        return f", of which {self.config.most} are enlarged by the model" if count > self.config.most else ""

    def _lr(self, planes: Tensor, frame: Frame) -> Tensor:
        """What the model gets of a frame, (3, in_size, in_size) in [-1, 1], between black bars where the model takes them."""
        lr = cut(planes, frame, self._rows, self._size)
        bar = (self._size - self._rows) // 2
        return torch.nn.functional.pad(lr, (0, 0, bar, self._size - self._rows - bar)) * 2 - 1

    def _warnings(self, found: Sequence[Found], factor: int) -> list[str]:
        """What to say of objects that are too large or too small for the model."""
        out, size, count = self._size * self.upscaler.scale, self._size, len(found)
        large = sum(one.frame.width * factor > 1.05 * out for one in found)
        small = sum(one.frame.width < size / 4 for one in found)
        notes = []
        if large:
            notes.append(f"{large} of {count} are larger in the result than the model's {out} pixels and get soft detail")
        if small:
            notes.append(f"{small} of {count} have less than a quarter of the model's {size} pixels: most of them is guessed")
        return notes


def run(task: Photo, photo: DecodedImage) -> TaskResult:
    """What becomes of a photo, its forward passes in batches."""
    prepared, upscaler = task.prepare(photo), task.upscaler
    srs: list[Tensor] = []
    notes: list[str] = []
    size = upscaler.default_batch_size()
    for first in range(0, len(prepared.lrs), size):
        batch = prepared.lrs[first : first + size]
        enlarged = upscaler.runner(batch)
        srs += enlarged.images
        notes += enlarged.notes or [""] * len(batch)
    return prepared.finish(srs, notes)


@plain_torch()
def upscale_photo(
    photo: Source | DecodedImage,
    model: str | os.PathLike[str] | Upscaler = "cats-8x",
    *,
    background: str | os.PathLike[str] | Upscaler | None = None,
    **options: Any,
) -> Image.Image:
    """Enlarges a photo, and the objects of the model's category in it by the model.

    Args:
        photo: a path, the bytes of a file, a PIL image, an array or a tensor, as an `Upscaler` takes them.
        model: name or file of a GLEAN, or an Upscaler.
        background: name or file of a network that takes any size, or an Upscaler, for what is around the objects; by default bicubic.
        options: see `PhotoConfig`.

    Returns:
        The whole photo, RGB or RGBA. Its `info["gleansr"]` says what was done, and its `info["objects"]` what `run` tells of each object.

    Raises:
        RequestError: these do not fit together.
        ImageError: the photo cannot be read, or has no object and `require_object` is given.
    """
    upscaler = model if isinstance(model, Upscaler) else load(model)
    around_ = background if isinstance(background, Upscaler) or background is None else load(background)
    task = Photo(upscaler, PhotoConfig(**options), background=around_)
    result = run(task, photo if isinstance(photo, DecodedImage) else decode(photo))
    result.image.info.update(gleansr="; ".join(result.notes), objects=result.details["objects"])
    return result.image


def _details(one: Found, consistency: float | None, shown: int | None, size: int) -> dict[str, Any]:
    """An object as plain JSON values; see docs/photos.md."""

    def rounded(values: Sequence[float], digits: int = 2) -> list[float]:
        return [round(float(value), digits) for value in values]

    return {
        "box": rounded(one.box),
        "landmarks": None if one.landmarks is None else [rounded(point) for point in one.landmarks],
        "frame": [rounded(corner) for corner in one.frame.corners],
        "angle": round(one.frame.angle, 2),
        "scale": round(one.frame.width / size, 4),
        "score": None if one.score is None else round(one.score, 3),
        "consistency_db": consistency,
        "resolved": shown,
    }


def _text(box: tuple[float, float, float, float]) -> str:
    return ",".join(f"{value:g}" for value in box)
