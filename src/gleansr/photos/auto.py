"""The task that decides by itself what an image shows, and which models enlarge it."""

import copy
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import NoObjectError, RequestError
from gleansr.images.codec import DecodedImage, Source, decode
from gleansr.inference.categories import OTHER, Category, classify
from gleansr.inference.method import StepReport
from gleansr.inference.precision import Precision
from gleansr.inference.router import GENERAL, LARGEST, NOUNS, Models, best_model, thumbnail_size
from gleansr.inference.tasks import Enlarge, PreparedImage, TaskResult
from gleansr.inference.upscaler import Upscaler
from gleansr.photos.align import crop, frame_around
from gleansr.photos.background import BackgroundModel
from gleansr.photos.config import Box, PhotoConfig
from gleansr.photos.detect import Detection, Detector, nouns
from gleansr.photos.search import CROP, DETECTED, detect_all, has_face_inside, installed_detectors, large_objects
from gleansr.photos.task import PhotoObject, choose_scale, load_detector, prepare_objects, size_warnings, whole_object

_MISSING = " are not looked for: pip install 'gleansr[photos]' adds that"
"""Ends the note on detectors that are not installed."""
_MIN_THUMBNAIL = 4
"""Longer side in pixels from which an image is recognised."""
_MAX_SHRINKAGE = 1.5
"""Up to so many pixels per pixel of the model's input, a thumbnail is simply shrunk for the model. Beyond, its own detail is kept. By the
measurements in docs/upscaling.md."""
_CLEAN_QUALITY = 90
"""JPEG quality from which a thumbnail's own detail is kept as it is; below, cleaning is nearer to the ground truth (docs/upscaling.md)."""
_WHOLE = 448**2
"""Pixels of an image that the general model enlarges in one pass."""
_MIN_SEARCHED = 24
"""Longer side in pixels from which heads are sought in a thumbnail."""
_UPRIGHT = 64
"""Longer side in pixels up to which they are sought upright only."""
_FILLS = 0.75
"""Smallest frame of a head that fills a thumbnail, as a share of the shorter side. Frames in 155 thumbnails of held-out faces have 0.78 to
1.09, in 40 of portraits with shoulders 0.24 to 0.97, on average 0.64."""


@dataclass(frozen=True)
class Plan:
    """What is done with an image."""

    scale: int
    objects: Sequence[PhotoObject]
    summary: str
    """What was recognised, for the user."""
    notes: Sequence[str] = ()
    category: Category | None = None
    """Of a thumbnail."""


class _LargeError(Exception):
    """An image is larger than a thumbnail; its argument is the scale."""


class AutoTask:
    """Recognises each image, and enlarges it by the models that fit. A `tasks.ImageTask`.

    A thumbnail that one object fills is enlarged as a whole by the model of its category. In other images faces and cats are detected;
    those up to twice the input size of a model are enlarged by it, and all else by the general model. A result is exactly `scale` times as
    large as its image.
    """

    def __init__(
        self,
        config: PhotoConfig | None = None,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        self_ensemble: bool | None = None,
        models: Models | None = None,
        model: Upscaler | None = None,
        background: Upscaler | None = None,
        photo: bool = False,
        objects: Mapping[str, Sequence[PhotoObject]] | None = None,
    ):
        """
        Args:
            config: settings of detection and pasting. The default scale is that of the model for thumbnails, otherwise 4, halved for
                large photos (see `choose_scale`).
            device: for the models, as `precision` and `self_ensemble`; see `gleansr.load`.
            precision: of the models.
            self_ensemble: of the models.
            models: those to choose from, already on a device; by default all on this machine.
            model: enlarges all objects, instead of a choice. If it takes images of any size, it enlarges whole images.
            background: enlarges what surrounds the objects, and images without any; by default the general model.
            photo: search objects in thumbnails too.
            objects: those of each image, by its name; disables detection. Other images have none.

        Raises:
            RequestError: `model` takes images of any size, and there are boxes or a background.
        """
        self.config = config or PhotoConfig()
        self.report: StepReport | None = None
        """Receives the number of finished tiles of an image, and of all its tiles."""
        self.models = models or Models(device=device, precision=precision, self_ensemble=self_ensemble)
        self._whole_images = model is not None and model.input_size is None
        if model and self._whole_images:
            if self.config.boxes or self.config.aligned or background:
                raise RequestError(f"{model.about.name or 'the model'} takes images of any size: it needs no box and no background")
            model, background = None, model
        self._model, self._background = model, background
        self._photo, self._objects = photo, objects
        self._lock, self._told = threading.Lock(), False

    @property
    def upscaler(self) -> Upscaler:
        """The model that enlarges all images as a whole; if there is none, that of all but the objects."""
        return self._model if self._model and (self.config.aligned or not self._detects) else self._rest

    @property
    def _rest(self) -> Upscaler:
        """Enlarges what surrounds objects: the general model, or what replaces it."""
        return self._background or self.models[GENERAL]

    @property
    def factor(self) -> int:
        """The requested scale, or that of larger images."""
        return self.config.scale or self.upscaler.scale

    @property
    def common_scale(self) -> int | None:
        """The scale of all results, unless one would be too large; None if it depends on what the image shows."""
        if self.config.scale or self._whole_images:
            return self.factor
        return self._model.scale if self._model and (self.config.aligned or not self._detects) else None

    @property
    def options(self) -> Mapping[str, Any]:
        names = {"model": self._model, "background": self._background}
        options = {**self.config.record(), "photo": self._photo, "auto": {key: one and one.about.name for key, one in names.items()}}
        if self._objects is not None:
            known = [[(one.detection.frame, one.upscaler.about.name) for one in objects] for objects in self._objects.values()]
            options["known"] = hashlib.sha256(repr(known).encode()).hexdigest()
        return options

    def tracks(self, height: int, width: int) -> bool:
        """Whether objects are detected in images of this size, so that those of a video can be tracked."""
        given = self._whole_images or self._objects is not None or self.config.boxes
        return not given and not self.is_thumbnail(height, width)

    def moved(self, device: str, move: Callable[[Upscaler], Upscaler]) -> "AutoTask":
        """As `ImageTask.moved`."""
        model, background = (one and move(one) for one in (self._model, self._background))
        if self._whole_images:
            model, background = background, None
        models = Models(device=device, precision=self.models.precision, self_ensemble=self.models.self_ensemble)
        return AutoTask(self.config, models=models, model=model, background=background, photo=self._photo, objects=self._objects)

    def with_objects(self, objects: Mapping[str, Sequence[PhotoObject]]) -> "AutoTask":
        """The same task with known objects, by the name of their image."""
        task = copy.copy(self)
        task._objects = objects
        return task

    def scale_of(self, source: Source) -> int:
        """The scale of an image's result. Reads the pixels of thumbnails only.

        Raises:
            ImageError: the image cannot be read, or its result would be too large.
        """

        def stop_if_large(width: int, height: int) -> None:
            if not self.is_thumbnail(height, width):
                raise _LargeError(self.scale_by_size((height, width), str(source)))

        try:
            decoded = decode(source, on_open=stop_if_large)
        except _LargeError as large:
            return large.args[0]
        return self._plan(decoded, decoded.premultiplied()).scale

    def scale_by_size(self, size: tuple[int, int], name: str) -> int:
        """The scale of an image's result, from its height and width alone. For a thumbnail whose model depends on what it shows, that of
        the general model.

        Raises:
            ImageError: the result would be too large.
        """
        upscaler = self._model if self._model and self.is_thumbnail(*size) else self._rest
        return choose_scale(size, name, self.config.scale, upscaler.scale, self.config.max_megapixels)[0]

    @plain_torch()
    def prepare(self, decoded: DecodedImage, *, scale: int | None = None, report: StepReport | None = None) -> PreparedImage:
        """Recognises the image, or detects its objects. Returns one `lrs` per object that a model enlarges.

        Args:
            decoded: the image.
            scale: instead of the config's.
            report: instead of the attribute. An exception that it raises ends `finish`.

        Raises:
            RequestError: a box lies outside of the image, or the model's category has no detector.
            NoObjectError: no object is found, and the config requires one.
            ImageError: the result would be too large.
        """
        planes = decoded.premultiplied()
        plan = self._plan(decoded, planes, scale)
        fills = len(plan.objects) == 1 and plan.category is not None
        if whole := self._as_a_whole(plan, decoded.size, fills=fills):
            prepared = whole.prepare(decoded)
        else:
            background = None if fills else self._background_model
            notes = plan.notes if fills else [*plan.notes, *size_warnings(plan.objects, plan.scale)]
            if fills and (decoded.jpeg_quality or 100) < _CLEAN_QUALITY and not self.config.back_project:
                planes, notes = self._cleaned(planes), [*notes, "compression removed first, by the general model"]
            report = report or self.report
            prepared = prepare_objects(decoded, planes, plan.objects, plan.scale, self.config, background, notes, report)
        models = [one.upscaler for one in plan.objects] + ([] if fills else [self._rest])
        names = tuple(dict.fromkeys(one.name for one in models))

        def finish(srs: Sequence[Tensor], notes: Sequence[str]) -> TaskResult:
            result = prepared.finish(srs, notes)
            category = plan.category and {"name": plan.category.name, "confidence": round(plan.category.confidence, 4)}
            summary = ", ".join(filter(None, [plan.summary, *names]))
            details = {"objects": [], **result.details, "factor": plan.scale, "category": category}
            result_notes = self._once(list(dict.fromkeys([*plan.notes, *result.notes])))
            return replace(result, notes=tuple(result_notes), details=details, models=names, summary=summary)

        return replace(prepared, finish=finish, upscalers=(whole.upscaler,) if whole else prepared.upscalers)

    @cached_property
    def _background_model(self) -> BackgroundModel:
        return BackgroundModel(self._rest, overlap=self.config.overlap)

    def _cleaned(self, planes: Tensor) -> Tensor:
        """A compressed image (3, H, W) in [0, 1] as the general model sees it: without blocks and noise, at its own size."""
        return torch.cat([band.compute() for band in self._background_model.bands(planes, 1)], 1)

    def _as_a_whole(self, plan: Plan, size: tuple[int, int], *, fills: bool) -> Enlarge | None:
        """The task for an image that one model enlarges in one pass, so that nothing is to be pasted; None for others."""
        upscaler = plan.objects[0].upscaler if fills else self._rest
        if fills:
            possible = upscaler.shrinkage(size) <= _MAX_SHRINKAGE
        else:
            in_one_pass = bool(self.config.back_project) or size[0] * size[1] <= _WHOLE
            possible = not plan.objects and plan.scale == upscaler.scale and in_one_pass
        if not possible:
            return None
        return Enlarge(upscaler, "pad", self.config.back_project, measured=self.config.measure_consistency, scale=plan.scale)

    def is_thumbnail(self, height: int, width: int) -> bool:
        """Whether the whole image is taken for one object."""
        if self.config.aligned or self._photo or self._whole_images:
            return self.config.aligned
        if not self._detects:
            return True
        size = self._model.input_size if self._model else None
        return max(height, width) <= (LARGEST * size if size else thumbnail_size())

    @property
    def _detects(self) -> bool:
        """Whether there is a detector for what the model enlarges."""
        return self._model is None or nouns(self._model.category)[1] in DETECTED

    def default_batch_size(self) -> int:
        """The batch size for thumbnails."""
        return self._model.default_batch_size() if self._model else (8 if self._rest.device.type == "cpu" else 128)

    def _plan(self, decoded: DecodedImage, planes: Tensor, scale: int | None = None) -> Plan:
        height, width = decoded.size
        category, notes = None, list[str]()
        if self._whole_images:
            objects, summary = [], ""
        elif self._objects is not None:
            objects, summary = list(self._objects.get(decoded.name, ()))[: self.config.max_objects], ""
        elif self.config.boxes:
            objects = [one for box in self.config.boxes if (one := self._in_box(box, planes, decoded.name))]
            given = len(self.config.boxes)
            summary = f"{given} {'box' if given == 1 else 'boxes'} given"
        elif self.is_thumbnail(height, width) and not self._exceeds(category := self._recognise(decoded), max(height, width)):
            if found := self._heads_in_thumbnail(planes, category):
                category, (objects, summary, notes) = None, self._objects_of(found)
            else:
                # The detectors come last: a recognised face or cat needs none of those that are not loaded yet.
                unsure = not self._model and category.name not in (*DETECTED, OTHER)
                if unsure and "faces" not in self.detectors and has_face_inside(planes):
                    category = Category(OTHER, 0.0)
                upscaler = self.choose(category.name, max(height, width))
                objects = [whole_object((0, 0, width, height), upscaler, (height, width), decoded.name)] if upscaler else []
                summary = "" if self._model else describe(category)
                notes = self.missing_extras() if category.name == OTHER else []
        else:
            category, found = None, detect_all(self.detectors, planes, self.config)
            if not found and self.config.require_object:
                advice = "give --box x,y,w,h, or use --aligned if the whole image is one object"
                raise NoObjectError(f"{decoded.name}: {self.nothing_found}; {advice}")
            objects, summary, notes = self._objects_of(found)
            notes += self.missing_extras()
        default = objects[0].upscaler.scale if category and objects else self._rest.scale
        scale, more = choose_scale((height, width), decoded.name, scale or self.config.scale, default, self.config.max_megapixels)
        return Plan(scale, objects, summary, [*notes, *more], category)

    def _in_box(self, box: Box, planes: Tensor, name: str) -> PhotoObject | None:
        """The object in a box; None if it has no model of its own."""
        content = crop(planes, frame_around(box), CROP, CROP)
        upscaler = self.choose(self._recognise(content).name, max(box[2:]))
        return upscaler and whole_object(box, upscaler, (planes.shape[-2], planes.shape[-1]), name)

    def _recognise(self, image: DecodedImage | Tensor) -> Category:
        if self._model:
            return Category(self._model.category or OTHER, 1.0)
        size = image.size if isinstance(image, DecodedImage) else image.shape[-2:]
        return classify(image) if max(size) >= _MIN_THUMBNAIL else Category(OTHER, 1.0)

    def choose(self, category: str, pixels: float) -> Upscaler | None:
        """The model for an object of a category and so many pixels, see `best_model`."""
        if self._model:
            return self._model
        model = best_model(category, pixels) if category in NOUNS else None
        return self.models[model.name] if model else None

    def _exceeds(self, category: Category, pixels: int) -> bool:
        """Whether a thumbnail of so many pixels has more than the models of its category take."""
        model = None if self._model or self.config.aligned else best_model(category.name, pixels)
        return model is not None and pixels > LARGEST * (model.in_size or 0)

    def _heads_in_thumbnail(self, planes: Tensor, category: Category) -> dict[str, list[Detection]]:
        """Heads that do not fill a thumbnail, such as those of portraits with shoulders, by category.

        The classifier takes some such portraits for something else. It takes hardly any loosely framed cat for a cat. In the smallest,
        heads are sought upright only, which takes a sixth of the time.
        """
        height, width = planes.shape[-2:]
        if self._model or self.config.aligned or category.name == "cats" or max(height, width) < _MIN_SEARCHED:
            return {}
        sought = {name: one for name, one in self.detectors.items() if category.name not in DETECTED or name == category.name}
        rotated = self.config.rotated and max(height, width) > _UPRIGHT
        found = detect_all(sought, planes, replace(self.config, rotated=rotated))
        heads = [one for detections in found.values() for one in detections]
        fills = category.name in found and len(heads) == 1 and heads[0].frame.width >= _FILLS * min(height, width)
        return {} if fills else found

    def _objects_of(self, found: Mapping[str, Sequence[Detection]]) -> tuple[list[PhotoObject], str, list[str]]:
        """The detected objects that models enlarge, how many were found, and notes."""
        counts = [f"{len(detections)} {nouns(category)[len(detections) > 1]}" for category, detections in found.items()]
        models = [(one, self.choose_for_frame(category, one.frame.width)) for category, detections in found.items() for one in detections]
        objects = [PhotoObject(one, upscaler) for one, upscaler in models if upscaler]
        return objects, ", ".join(counts) or self.nothing_found, large_objects(len(models) - len(objects), len(models))

    def choose_for_frame(self, category: str, width: float) -> Upscaler | None:
        """The model for a detected object; None if it has more pixels than the models take."""
        upscaler = self.choose(category, width)
        return upscaler if upscaler and width <= LARGEST * (upscaler.input_size or 0) else None

    @property
    def nothing_found(self) -> str:
        """The note on an image without objects; "" if none were sought."""
        sought = " or ".join(nouns(category)[0] for category in self.detectors)
        return f"no {sought} found" if sought else ""

    @cached_property
    def detectors(self) -> Mapping[str, Detector]:
        """By category: of the model, or all that are installed."""
        if self._model:
            return {nouns(self._model.category)[1]: load_detector(self._model.category, self._model.about.name or "the model")}
        return installed_detectors()

    def missing_extras(self) -> list[str]:
        """A note, if a detector is not installed."""
        missing = [] if self._model else [category for category in DETECTED if category not in self.detectors]
        return [f"{' and '.join(missing)}{_MISSING}"] if missing else []

    def _once(self, notes: list[str]) -> list[str]:
        """The notes of a result, with that on missing extras only for the first one: plans are also made for the names of results."""
        extras = {note for note in notes if note.endswith(_MISSING)}
        with self._lock:
            told, self._told = self._told, self._told or bool(extras)
        return [note for note in notes if not (told and note in extras)]

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "detectors", "_background_model", "report")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), report=None)


def describe(category: Category) -> str:
    """What was recognised, for the user."""
    if category.name in NOUNS:
        return f"{NOUNS[category.name]} ({category.percent})"
    return f"unsure, perhaps a {NOUNS[category.guess]}" if category.guess else "nothing recognised"
