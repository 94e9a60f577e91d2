"""Images of any kind, and whole photographs: detects objects, enlarges them with their models and pastes them into the enlarged photo."""

from gleansr.photos.auto import AutoTask, upscale
from gleansr.photos.config import PhotoConfig
from gleansr.photos.task import Photo, run, upscale_photo

__all__ = ["AutoTask", "Photo", "PhotoConfig", "run", "upscale", "upscale_photo"]
