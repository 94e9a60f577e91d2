"""Whole photographs: detects objects, enlarges them with the model and pastes them into the enlarged photo."""

from gleansr.photos.config import PhotoConfig
from gleansr.photos.task import Photo, run, upscale_photo

__all__ = ["Photo", "PhotoConfig", "run", "upscale_photo"]
