"""The task for whole photographs: detection, forward passes of the objects, and pasting."""

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
from gleansr.images.back_projection import back_project, consistency_db
from gleansr.images.codec import DecodedImage, Source, decode, neutral
from gleansr.inference.tasks import PreparedImage, TaskResult
from gleansr.inference.upscaler import Upscaler, load
from gleansr.photos.align import Frame, crop, frame_around
from gleansr.photos.background import BackgroundModel, bicubic_bands
from gleansr.photos.config import MAX_MEGAPIXELS, Box, PhotoConfig
from gleansr.photos.detect import Detection, Detector, nouns
from gleansr.photos.paste import Patch, paste
from gleansr.photos.sampling import shrink_stored
from gleansr.photos.sharpness import measure_octaves, resolved_columns

_MAX_PIXELS = 500_000_000
"""Of a result, which takes 3 or 4 bytes per pixel, and as much again while it is encoded."""
_MAX_FRAME = 4
"""Largest ratio of a frame's width to the photo's longer side."""


def load_detector(category: str | None, model: str) -> Detector:
    """The detector for a model's category.

    Args:
        category: of the model.
        model: name of the model, for the error.

    Raises:
        RequestError: the category has no detector, or the extra `photos` is not installed.
    """
    plural = nouns(category)[1]
    if plural == "faces":
        from gleansr.photos.faces import Faces

        return Faces()
    if plural == "cats":
        from gleansr.photos.cats import Cats

        return Cats()
    raise RequestError(
        f"{model} is a model of {category or 'an unnamed category'}, for which there is no detector (only for faces and cats): give the "
        "objects' positions with --box x,y,w,h, or use --aligned if the whole image is one object"
    )


class Photo:
    """Enlarges photos, with the model for the objects of its category. A `tasks.ImageTask`.

    `prepare` and `finish` are thread-safe. The background network runs within `finish`, one tile at a time.
    """

    @plain_torch()
    def __init__(
        self,
        upscaler: Upscaler,
        config: PhotoConfig | None = None,
        *,
        background: Upscaler | None = None,
        detections: Mapping[str, Sequence[Detection]] | None = None,
    ):
        """
        Args:
            upscaler: the model, which must have an input size.
            config: settings of detection and pasting.
            background: a network of any size for the area around the objects; by default bicubic.
            detections: objects per image name, by descending score; disables detection. Other images have no objects.

        Raises:
            RequestError: the arguments do not fit together, or the model's category has no detector, or it is not installed.
        """
        if upscaler.input_size is None or upscaler.content_height is None:
            raise RequestError(
                f"--photo takes a model of objects, with an input size, a GLEAN; {upscaler.about.name or upscaler.method.name} takes "
                "images of any size: omit --photo, or use it as --background"
            )
        self.upscaler = upscaler
        self.config = config or PhotoConfig()
        self.background = background
        self._size, self._rows = upscaler.input_size, upscaler.content_height // upscaler.scale
        self._network = background and BackgroundModel(background, overlap=self.config.overlap)
        self._detections = detections
        fixed = self.config.boxes or self.config.aligned or detections is not None
        self._detector: Detector | None = None if fixed else load_detector(upscaler.category, upscaler.about.name or "the model")

    @property
    def factor(self) -> int:
        """The scale in the config, or the model's; the default is lower for large photos, see `PhotoConfig.scale`."""
        return self.config.scale or self.upscaler.scale

    @property
    def options(self) -> Mapping[str, Any]:
        config = self.config
        options = {  # manifests compare these keys and values
            "boxes": [list(box) for box in config.boxes],
            "aligned": config.aligned,
            "factor": config.scale,
            "feather": config.feather,
            "consistent": config.back_project,
            "keep": config.keep_detail,
            "most": config.max_objects,
            "least_score": config.min_score,
            "turned": config.rotated,
            "overlap": config.overlap,
            "background": self.background and {"name": self.background.about.name, "scale": self.background.scale},
        }
        if self._detections is not None:
            frames = [[detection.frame for detection in detections] for detections in self._detections.values()]
            options["known"] = hashlib.sha256(repr(frames).encode()).hexdigest()
        return options

    @plain_torch()
    def prepare(self, decoded: DecodedImage) -> PreparedImage:
        """Detects the objects. Returns one `lrs` per object, in the order of the details.

        Raises:
            RequestError: a box lies outside of the photo.
            NoObjectError: no object is found, and the config requires one.
            ImageError: the result would be too large.
        """
        height, width = decoded.size
        scale, notes = self._scale(decoded)
        planes = decoded.premultiplied()
        detections, summary = self._detect(decoded.name, planes)
        lrs = tuple(self._lr(planes, detection.frame) for detection in detections)
        notes = [summary, *notes, *self._warnings(detections, scale)]
        size, rows, bar = self._size, self._rows, (self._size - self._rows) // 2
        keep = self.config.keep_detail
        octaves = [measure_octaves(planes, detection.frame, rows, size) if keep is None else () for detection in detections]

        @plain_torch()
        def finish(srs: Sequence[Tensor], model_notes: Sequence[str]) -> TaskResult:
            config, model_scale = self.config, self.upscaler.scale
            if config.back_project:
                srs = [back_project(lr, sr, strength=config.back_project) for lr, sr in zip(lrs, srs, strict=True)]
            details, patches = [], []
            for detection, own, lr, sr in zip(detections, octaves, lrs, srs, strict=True):
                columns = resolved_columns(own, sr[:, bar * model_scale : (bar + rows) * model_scale], detection.frame)
                consistency = consistency_db(lr, shrink_stored(sr, model_scale)) if config.measure_consistency else None
                details.append(_details(detection, consistency, columns, size))
                patches.append(Patch(detection.frame, lr, sr, bar, float(columns is not None) if keep is None else keep, columns))
            sharp = sum(patch.resolved is not None for patch in patches)
            kept = f"{sharp} of {len(patches)} keep detail of the photo that the model does not see" if sharp else ""
            photo = planes if decoded.alpha is None else torch.cat([planes, decoded.alpha])
            bands = self._network.bands(photo, scale) if self._network else bicubic_bands(photo, scale)
            image = paste(bands, (height, width), scale, patches, feather=config.feather)
            image = neutral(image) if decoded.grey else image
            unique_notes = dict.fromkeys([*notes, kept, *model_notes, *decoded.notes])
            return TaskResult(image, tuple(filter(None, unique_notes)), {"factor": scale, "objects": details})

        return PreparedImage(lrs, finish)

    def _scale(self, photo: DecodedImage) -> tuple[int, list[str]]:
        """The scale of the result, and notes about it."""
        height, width = photo.size
        scale, notes = self.factor, []
        if self.config.scale is None:
            while scale > 1 and height * width * scale**2 > MAX_MEGAPIXELS * 1e6:
                scale //= 2
            if scale != self.factor:
                notes = [f"enlarged {scale}x instead of {self.factor}x, to at most {MAX_MEGAPIXELS} megapixels (--scale overrides)"]
        elif height * width * scale**2 > _MAX_PIXELS and scale > 1:
            largest = max(1, math.isqrt(_MAX_PIXELS // (height * width)))
            raise ImageError(
                f"{photo.name}: {width}x{height} pixels enlarged {scale}x exceed {_MAX_PIXELS / 1e6:g} megapixels; "
                f"use --scale {largest} or less"
            )
        return scale, notes

    def _detect(self, name: str, planes: Tensor) -> tuple[list[Detection], str]:
        """The objects, and a summary of their number."""
        height, width = planes.shape[-2:]
        aspect = self._rows / self._size
        if self.config.aligned:
            return [Detection((0, 0, width, height), frame_around((0, 0, width, height), aspect))], ""
        if self._detections is not None:
            return list(self._detections.get(name, ()))[: self.config.max_objects], ""
        if self._detector is None:
            detections = [Detection(box, frame_around(box, aspect)) for box in self.config.boxes]
            for detection in detections:
                left, top, right, bottom = detection.frame.bounds
                x, y, w, h = detection.box
                if min(x + w, right, width - x, width - left) <= 0 or min(y + h, bottom, height - y, height - top) <= 0:
                    raise RequestError(f"{name}: the box {_text(detection.box)} lies outside of the photo's {width}x{height} pixels")
                if detection.frame.width > _MAX_FRAME * max(height, width):
                    raise RequestError(f"{name}: the box {_text(detection.box)} is much larger than the photo's {width}x{height} pixels")
            (noun, plural), verb = ("box", "boxes"), "given"
        else:
            detections = self._detector.detect(planes, min_score=self.config.min_score, rotated=self.config.rotated)
            (noun, plural), verb = nouns(self.upscaler.category), "found"
        count, most = len(detections), self.config.max_objects
        summary = f"{count} {noun if count == 1 else plural} {verb}"
        if not detections and self.config.require_object:
            article = "an" if noun[0] in "aeiou" else "a"
            raise NoObjectError(f"{name}: {summary}; give --box x,y,w,h, or use --aligned if the whole image is {article} {noun}")
        return detections[:most], summary + (f", {most} of them enlarged by the model" if count > most else "")

    def _lr(self, planes: Tensor, frame: Frame) -> Tensor:
        """The model's input for a frame, (3, in_size, in_size) in [-1, 1], between black bars if the model uses them."""
        lr = crop(planes, frame, self._rows, self._size)
        bar = (self._size - self._rows) // 2
        return torch.nn.functional.pad(lr, (0, 0, bar, self._size - self._rows - bar)) * 2 - 1

    def _warnings(self, detections: Sequence[Detection], scale: int) -> list[str]:
        """Notes about objects that are too large or too small for the model."""
        output, size, count = self._size * self.upscaler.scale, self._size, len(detections)
        large = sum(detection.frame.width * scale > 1.05 * output for detection in detections)
        small = sum(detection.frame.width < size / 4 for detection in detections)
        notes = []
        if large:
            notes.append(f"{large} of {count} are larger in the result than the model's {output} pixels and get soft detail")
        if small:
            notes.append(f"{small} of {count} have less than a quarter of the model's {size} pixels: most of their detail is guessed")
        return notes


def run(task: Photo, photo: DecodedImage) -> TaskResult:
    """Processes a photo, with its forward passes in batches."""
    prepared, upscaler = task.prepare(photo), task.upscaler
    srs: list[Tensor] = []
    notes: list[str] = []
    size = upscaler.default_batch_size()
    for first in range(0, len(prepared.lrs), size):
        batch = prepared.lrs[first : first + size]
        output = upscaler.runner(batch)
        srs += output.images
        notes += output.notes or [""] * len(batch)
    return prepared.finish(srs, notes)


@plain_torch()
def upscale_photo(
    photo: Source | DecodedImage,
    model: str | os.PathLike[str] | Upscaler = "cats-8x",
    *,
    background: str | os.PathLike[str] | Upscaler | None = None,
    **options: Any,
) -> Image.Image:
    """Enlarges a photo, with the model for the objects of its category.

    Args:
        photo: a path, the bytes of a file, a PIL image, an array or a tensor, as for an `Upscaler`.
        model: name or file of a GLEAN, or an Upscaler.
        background: name or file of a network of any size, or an Upscaler, for the area around the objects; by default bicubic.
        options: fields of `PhotoConfig`.

    Returns:
        The whole photo, RGB or RGBA. Its `info["gleansr"]` holds the notes, its `info["objects"]` the details of each object.

    Raises:
        RequestError: the arguments do not fit together.
        ImageError: the photo cannot be read, or has no object and `require_object` is set.
    """
    upscaler = model if isinstance(model, Upscaler) else load(model)
    network = background if isinstance(background, Upscaler) or background is None else load(background)
    task = Photo(upscaler, PhotoConfig(**options), background=network)
    result = run(task, photo if isinstance(photo, DecodedImage) else decode(photo))
    result.image.info.update(gleansr="; ".join(result.notes), objects=result.details["objects"])
    return result.image


def _details(detection: Detection, consistency: float | None, resolved: int | None, size: int) -> dict[str, Any]:
    """An object as plain JSON values; see docs/photos.md."""

    def rounded(values: Sequence[float]) -> list[float]:
        return [round(float(value), 2) for value in values]

    return {
        "box": rounded(detection.box),
        "landmarks": None if detection.landmarks is None else [rounded(point) for point in detection.landmarks],
        "frame": [rounded(corner) for corner in detection.frame.corners],
        "angle": round(detection.frame.angle, 2),
        "scale": round(detection.frame.width / size, 4),
        "score": None if detection.score is None else round(detection.score, 3),
        "consistency_db": consistency,
        "resolved": resolved,
    }


def _text(box: Box) -> str:
    return ",".join(f"{value:g}" for value in box)
