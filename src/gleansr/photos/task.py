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
from gleansr.errors import NoObjectError, PictureError, RequestError
from gleansr.images.back_projection import back_project
from gleansr.images.codec import Picture, Source, decode, neutral
from gleansr.inference.tasks import Prepared, Result
from gleansr.inference.upscaler import Upscaler, load
from gleansr.photos.align import Frame, around, cut
from gleansr.photos.background import Network, bicubic_bands
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
            known: the objects of pictures by their names, the surest first; others have none. Nothing is searched then.

        Raises:
            RequestError: these do not fit together, there is no detector for the model's category, or it is not installed.
        """
        if upscaler.input_size is None or upscaler.content_height is None:
            raise RequestError(
                f"--photo takes a model of objects, with an input size, a GLEAN; {upscaler.about.name or upscaler.method.name} takes "
                "pictures of any size: leave --photo out, or give it as --background"
            )
        self.upscaler = upscaler
        self.config = config or PhotoConfig()
        self.background = background
        self._size, self._rows = upscaler.input_size, upscaler.content_height // upscaler.scale
        self._network = background and Network(background, overlap=self.config.overlap)
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
    def prepare(self, picture: Picture) -> Prepared:
        """Finds the objects. Its `lows` are one per object, in the order of the details.

        Raises:
            RequestError: a box lies outside of the photo.
            NoObjectError: none is found, and one is required.
            PictureError: the result would be too large.
        """
        height, width = picture.size
        factor, notes = self._factor(picture)
        planes = picture.premultiplied()
        found, said = self._find(picture.name, planes)
        lows = tuple(self._low(planes, one.frame) for one in found)
        notes = [said, *notes, *self._warnings(found, factor)]
        size, rows, bar = self._size, self._rows, (self._size - self._rows) // 2
        given = self.config.keep
        own = [octaves(planes, one.frame, rows, size) if given is None else () for one in found]

        @plain_torch()
        def finish(highs: Sequence[Tensor], model_notes: Sequence[str]) -> Result:
            config = self.config
            if config.consistent:
                highs = [back_project(low, high, strength=config.consistent) for low, high in zip(lows, highs, strict=True)]
            scale = self.upscaler.scale
            shown = [
                resolved(parts, high[:, bar * scale : (bar + rows) * scale], one.frame)
                for one, parts, high in zip(found, own, highs, strict=True)
            ]
            details, pieces = [], []
            for one, low, high, columns in zip(found, lows, highs, shown, strict=True):
                details.append(_details(one, decibels(low, high) if config.measured else None, columns, size))
                pieces.append(Piece(one.frame, low, high, bar, float(columns is not None) if given is None else given, columns))
            sharp = sum(columns is not None for columns in shown)
            kept = f"{sharp} of {len(found)} keep detail of the photo that the model does not see" if sharp else ""
            whole = planes if picture.alpha is None else torch.cat([planes, picture.alpha])
            bands = self._network.bands(whole, factor) if self._network else bicubic_bands(whole, factor)
            image = paste(bands, (height, width), factor, pieces, feather=config.feather)
            image = neutral(image) if picture.grey else image
            several = dict.fromkeys([*notes, kept, *model_notes, *picture.notes])
            return Result(image, tuple(filter(None, several)), {"factor": factor, "objects": details})

        return Prepared(lows, finish)

    def _factor(self, picture: Picture) -> tuple[int, list[str]]:
        """How many times larger the result is, and what to say of it."""
        height, width = picture.size
        factor, notes = self.factor, []
        if self.config.factor is None:
            while factor > 1 and height * width * factor**2 > MOST_MEGAPIXELS * 1e6:
                factor //= 2
            if factor != self.factor:
                notes = [f"enlarged {factor} instead of {self.factor} times, to at most {MOST_MEGAPIXELS} megapixels (--factor chooses)"]
        elif height * width * factor**2 > _MOST_PIXELS and factor > 1:
            most = max(1, math.isqrt(_MOST_PIXELS // (height * width)))
            raise PictureError(
                f"{picture.name}: {width}x{height} pixels enlarged {factor} times are more than {_MOST_PIXELS / 1e6:g} megapixels; "
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
                f"{name}: {said}; give --box x,y,w,h, or --aligned if the whole picture is {'an' if noun[0] in 'aeiou' else 'a'} {noun}"
            )
        return found[: self.config.most], said + self._left_out(count)

    def _left_out(self, count: int) -> str:
        return f", of which {self.config.most} are enlarged by the model" if count > self.config.most else ""

    def _low(self, planes: Tensor, frame: Frame) -> Tensor:
        """What the model gets of a frame, (3, in_size, in_size) in [-1, 1], between black bars where the model takes them."""
        low = cut(planes, frame, self._rows, self._size)
        bar = (self._size - self._rows) // 2
        return torch.nn.functional.pad(low, (0, 0, bar, self._size - self._rows - bar)) * 2 - 1

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


def run(task: Photo, picture: Picture) -> Result:
    """What becomes of a photo, its forward passes in batches."""
    prepared, upscaler = task.prepare(picture), task.upscaler
    highs: list[Tensor] = []
    notes: list[str] = []
    size = upscaler.default_batch_size()
    for first in range(0, len(prepared.lows), size):
        batch = prepared.lows[first : first + size]
        enlarged = upscaler.passes(batch)
        highs += enlarged.pictures
        notes += enlarged.notes or [""] * len(batch)
    return prepared.finish(highs, notes)


@plain_torch()
def upscale_photo(
    photo: Source | Picture,
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
        PictureError: the photo cannot be read, or has no object and `require_object` is given.
    """
    upscaler = model if isinstance(model, Upscaler) else load(model)
    around_ = background if isinstance(background, Upscaler) or background is None else load(background)
    task = Photo(upscaler, PhotoConfig(**options), background=around_)
    result = run(task, photo if isinstance(photo, Picture) else decode(photo))
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
