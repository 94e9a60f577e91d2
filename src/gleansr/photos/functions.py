"""Functions that enlarge one image with a task."""

import os
from typing import Any

from PIL import Image
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.images.codec import DecodedImage, Source, decode
from gleansr.inference.precision import Precision
from gleansr.inference.tasks import ImageTask, TaskResult
from gleansr.inference.upscaler import Upscaler, load
from gleansr.photos.auto import AutoTask
from gleansr.photos.config import PhotoConfig
from gleansr.photos.task import Photo


def run(task: ImageTask, photo: DecodedImage) -> TaskResult:
    """Processes a photo, with its forward passes in batches of equal models."""
    prepared = task.prepare(photo)
    srs: list[Tensor | None] = [None] * len(prepared.lrs)
    notes = [""] * len(prepared.lrs)
    groups: dict[Upscaler, list[int]] = {}
    for number, upscaler in enumerate(prepared.upscalers or [task.upscaler] * len(prepared.lrs)):
        groups.setdefault(upscaler, []).append(number)
    for upscaler, numbers in groups.items():
        size = upscaler.default_batch_size()
        for first in range(0, len(numbers), size):
            batch = numbers[first : first + size]
            output = upscaler.runner([prepared.lrs[number] for number in batch])
            for number, sr, note in zip(batch, output.images, output.notes or [""] * len(batch), strict=True):
                srs[number], notes[number] = sr, note
    return prepared.finish([sr for sr in srs if sr is not None], notes)


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


def upscale(
    image: Source | DecodedImage,
    *,
    scale: int | None = None,
    model: str | os.PathLike[str] | Upscaler = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    self_ensemble: bool | None = None,
) -> Image.Image:
    """Enlarges any image. The result is exactly `scale` times as large.

    A thumbnail that a face, a cat, a car, a bedroom or a tower fills is enlarged by the model of its category. In a larger image, small
    faces and cats are detected (`pip install 'gleansr[photos]'`) and enlarged by their models, and all else by a general model.

    Args:
        image: a path, the bytes of a file, a PIL image, an HWC uint8 array or a CHW float tensor in [0, 1], RGB.
        scale: 1 to 64; by default that of the model for a thumbnail, otherwise 4, or 2 if the result would exceed 50 megapixels.
        model: name or file of the model instead of a choice, or an Upscaler.
        device: as `precision` and `self_ensemble`, see `gleansr.load`.
        precision: of the models.
        self_ensemble: of the models; False halves the time.

    Returns:
        An RGB or RGBA image. Its `info["gleansr"]` says what was recognised and which models enlarged it.

    Raises:
        ImageError: the image cannot be read, or the result would be too large.
        RequestError: an option is out of range, or the model does not exist.
    """
    upscaler = None if model == "auto" else model
    if upscaler is not None and not isinstance(upscaler, Upscaler):
        upscaler = load(upscaler, device=device, precision=precision, self_ensemble=self_ensemble)
    config = PhotoConfig(scale=scale, measure_consistency=False)
    task = AutoTask(config, device=device, precision=precision, self_ensemble=self_ensemble, model=upscaler)
    result = run(task, image if isinstance(image, DecodedImage) else decode(image))
    result.image.info["gleansr"] = "; ".join([result.summary, *result.notes])
    return result.image
