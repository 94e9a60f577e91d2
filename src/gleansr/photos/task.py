"""The task for whole photographs: detection, forward passes of the objects, and pasting."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import ImageError, NoObjectError, RequestError
from gleansr.images.back_projection import back_project, consistency_db
from gleansr.images.codec import DecodedImage, neutral
from gleansr.inference.method import StepReport
from gleansr.inference.tasks import PreparedImage, TaskResult
from gleansr.inference.upscaler import Upscaler
from gleansr.photos.align import crop, frame_around
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


def load_detector(category: str | None, model: str, *, all_angles: bool = True) -> Detector:
    """The detector for a model's category.

    Args:
        category: of the model.
        model: name of the model, for the error.
        all_angles: see `Cats`.

    Raises:
        RequestError: the category has no detector, or the extra `photos` is not installed.
    """
    plural = nouns(category)[1]
    if plural == "faces":
        from gleansr.photos.faces import Faces

        return Faces()
    if plural == "cats":
        from gleansr.photos.cats import Cats

        return Cats(all_angles=all_angles)
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
                f"--photo takes a model of objects, with an input size, a GLEAN; {upscaler.name} takes "
                "images of any size: omit --photo, or use it as --background"
            )
        self.upscaler = upscaler
        self.config = config or PhotoConfig()
        self.background = background
        self._network = background and BackgroundModel(background, overlap=self.config.overlap)
        self._detections = detections
        fixed = self.config.boxes or self.config.aligned or detections is not None
        self._detector: Detector | None = None if fixed else load_detector(upscaler.category, upscaler.about.name or "the model")

    def tracks(self, _height: int, _width: int) -> bool:
        """Whether objects are detected in images of this size, so that those of a video can be tracked."""
        return self._detector is not None

    @property
    def detectors(self) -> Mapping[str, Detector]:
        """By category: that of the model, if objects are detected."""
        return {nouns(self.upscaler.category)[1]: self._detector} if self._detector else {}

    def choose_for_frame(self, _category: str, _width: float) -> Upscaler | None:
        """The model for a detected object: the only one."""
        return self.upscaler

    def with_objects(self, objects: Mapping[str, Sequence["PhotoObject"]]) -> "Photo":
        """The same task with known objects, by the name of their image."""
        detections = {name: [one.detection for one in known] for name, known in objects.items()}
        return Photo(self.upscaler, self.config, background=self.background, detections=detections)

    def moved(self, device: str, move: Callable[[Upscaler], Upscaler]) -> "Photo":  # noqa: ARG002, no model is still to be loaded
        """As `ImageTask.moved`."""
        background = self.background and move(self.background)
        return Photo(move(self.upscaler), self.config, background=background, detections=self._detections)

    @property
    def factor(self) -> int:
        """The scale in the config, or the model's; the default is lower for large photos, see `PhotoConfig.scale`."""
        return self.config.scale or self.upscaler.scale

    @property
    def options(self) -> Mapping[str, Any]:
        options = {
            **self.config.record(),
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
        config = self.config
        scale, notes = choose_scale(decoded.size, decoded.name, config.scale, self.upscaler.scale, config.max_megapixels)
        planes = decoded.premultiplied()
        detections, summary = self._detect(decoded.name, planes)
        objects = [PhotoObject(detection, self.upscaler) for detection in detections]
        return prepare_objects(decoded, planes, objects, scale, config, self._network, [summary, *notes, *size_warnings(objects, scale)])

    def _detect(self, name: str, planes: Tensor) -> tuple[list[Detection], str]:
        """The objects, and a summary of their number."""
        height, width = planes.shape[-2:]
        if self.config.aligned:
            return [whole_object((0, 0, width, height), self.upscaler, (height, width), name).detection], ""
        if self._detections is not None:
            return list(self._detections.get(name, ()))[: self.config.max_objects], ""
        if self._detector is None:
            detections = [whole_object(box, self.upscaler, (height, width), name).detection for box in self.config.boxes]
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


def choose_scale(
    size: tuple[int, int], name: str, scale: int | None, default: int, max_megapixels: float = MAX_MEGAPIXELS
) -> tuple[int, list[str]]:
    """The scale of a photo's result, and notes about it.

    Args:
        size: height and width of the photo.
        name: for the error.
        scale: the requested scale.
        default: the scale without a request, which is halved until the result has at most `max_megapixels`, but remains 2 if possible.
        max_megapixels: see `PhotoConfig`.

    Raises:
        ImageError: the result would be too large.
    """
    height, width = size
    if scale is None:
        scale, least = default, 2 if height * width * 2**2 <= _MAX_PIXELS else 1
        while scale > least and height * width * scale**2 > max_megapixels * 1e6:
            scale //= 2
        if scale != default:
            return scale, [f"enlarged {scale}x, as {default}x would exceed {max_megapixels:g} megapixels (--scale overrides)"]
    elif height * width * scale**2 > _MAX_PIXELS and scale > 1:
        largest = max(1, math.isqrt(_MAX_PIXELS // (height * width)))
        raise ImageError(
            f"{name}: {width}x{height} pixels enlarged {scale}x exceed {_MAX_PIXELS / 1e6:g} megapixels; use --scale {largest} or less"
        )
    return scale, []


@dataclass(frozen=True, eq=False)
class PhotoObject:
    """An object of a photo, and the model that enlarges it."""

    detection: Detection
    upscaler: Upscaler

    @property
    def columns(self) -> int:
        """Width of the model's input."""
        return self.upscaler.input_size or 0

    @property
    def rows(self) -> int:
        """Height of the model's input without its bars."""
        return (self.upscaler.content_height or 0) // self.upscaler.scale

    @property
    def bar(self) -> int:
        """Rows of each bar, above and below."""
        return (self.columns - self.rows) // 2

    def lr(self, planes: Tensor) -> Tensor:
        """The model's input (3, in_size, in_size) in [-1, 1] from a photo (3, H, W) in [0, 1], between bars if the model has them."""
        content = crop(planes, self.detection.frame, self.rows, self.columns)
        padding = (0, 0, self.bar, self.columns - self.rows - self.bar)
        if self.upscaler.border == "repeat":
            return torch.nn.functional.pad(content[None], padding, mode="replicate")[0] * 2 - 1
        return torch.nn.functional.pad(content, padding) * 2 - 1


def whole_object(box: Box, upscaler: Upscaler, size: tuple[int, int], name: str) -> PhotoObject:
    """The object in a box of a photo of that size (height, width), in the smallest frame of the model's aspect ratio.

    Raises:
        RequestError: the box lies outside of the photo.
    """
    height, width = size
    frame = frame_around(box, (upscaler.content_height or 1) / (upscaler.output_size or 1))
    left, top, right, bottom = frame.bounds
    x, y, w, h = box
    if min(x + w, right, width - x, width - left) <= 0 or min(y + h, bottom, height - y, height - top) <= 0:
        raise RequestError(f"{name}: the box {_text(box)} lies outside of the photo's {width}x{height} pixels")
    if frame.width > _MAX_FRAME * max(height, width):
        raise RequestError(f"{name}: the box {_text(box)} is much larger than the photo's {width}x{height} pixels")
    return PhotoObject(Detection(box, frame), upscaler)


def prepare_objects(
    decoded: DecodedImage,
    planes: Tensor,
    objects: Sequence[PhotoObject],
    scale: int,
    config: PhotoConfig,
    background: BackgroundModel | None,
    notes: Sequence[str],
    report: StepReport | None = None,
) -> PreparedImage:
    """A photo whose objects wait for their models. Returns one `lrs` per object.

    Args:
        decoded: the photo.
        planes: its pixels (3, H, W) in [0, 1], colour premultiplied.
        objects: what the models enlarge.
        scale: of the result.
        config: settings of pasting.
        background: the model for the area around the objects; None: bicubic.
        notes: for the user.
        report: receives the number of finished tiles of the background, and of all.
    """
    height, width = decoded.size
    lrs = tuple(one.lr(planes) for one in objects)
    keep = config.keep_detail
    octaves = [measure_octaves(planes, one.detection.frame, one.rows, one.columns) if keep is None else () for one in objects]

    @plain_torch()
    def finish(srs: Sequence[Tensor], model_notes: Sequence[str]) -> TaskResult:
        if config.back_project:
            srs = [back_project(lr, sr, strength=config.back_project) for lr, sr in zip(lrs, srs, strict=True)]
        details, patches = [], []
        for one, own, lr, sr in zip(objects, octaves, lrs, srs, strict=True):
            frame, bar, model_scale = one.detection.frame, one.bar, one.upscaler.scale
            columns = resolved_columns(own, sr[:, bar * model_scale : (bar + one.rows) * model_scale], frame)
            consistency = consistency_db(lr, shrink_stored(sr, model_scale)) if config.measure_consistency else None
            details.append(_details(one, consistency, columns))
            patches.append(Patch(frame, lr, sr, bar, float(columns is not None) if keep is None else keep, columns))
        sharp = sum(patch.resolved is not None for patch in patches)
        kept = f"{sharp} of {len(patches)} keep detail of the photo that the model does not see" if sharp else ""
        photo = planes if decoded.alpha is None else torch.cat([planes, decoded.alpha])
        bands = background.bands(photo, scale, report) if background else bicubic_bands(photo, scale)
        image = paste(bands, (height, width), scale, patches, feather=config.feather)
        image = neutral(image) if decoded.grey else image
        unique_notes = dict.fromkeys([*notes, kept, *model_notes, *decoded.notes])
        return TaskResult(image, tuple(filter(None, unique_notes)), {"factor": scale, "objects": details})

    return PreparedImage(lrs, finish, upscalers=tuple(one.upscaler for one in objects))


def size_warnings(objects: Sequence[PhotoObject], scale: int) -> list[str]:
    """Notes about objects that are too large or too small for their models."""
    count = len(objects)
    large = [one for one in objects if one.detection.frame.width * scale > 1.05 * (one.upscaler.output_size or 0)]
    small = [one for one in objects if one.detection.frame.width < one.columns / 4]
    notes = []
    if large:
        pixels = max(one.upscaler.output_size or 0 for one in large)
        notes.append(f"{len(large)} of {count} are larger in the result than the model's {pixels} pixels and get soft detail")
    if small:
        pixels = min(one.columns for one in small)
        notes.append(f"{len(small)} of {count} have less than a quarter of the model's {pixels} pixels: most of their detail is guessed")
    return notes


def _details(one: PhotoObject, consistency: float | None, resolved: int | None) -> dict[str, Any]:
    """An object as plain JSON values; see docs/photos.md."""
    detection = one.detection

    def rounded(values: Sequence[float]) -> list[float]:
        return [round(float(value), 2) for value in values]

    return {
        "box": rounded(detection.box),
        "landmarks": None if detection.landmarks is None else [rounded(point) for point in detection.landmarks],
        "frame": [rounded(corner) for corner in detection.frame.corners],
        "angle": round(detection.frame.angle, 2),
        "scale": round(detection.frame.width / one.columns, 4),
        "score": None if detection.score is None else round(detection.score, 3),
        "consistency_db": consistency,
        "resolved": resolved,
    }


def _text(box: Box) -> str:
    return ",".join(f"{value:g}" for value in box)
