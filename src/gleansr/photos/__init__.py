"""Images of any kind, and whole photographs: detects objects, enlarges them with their models and pastes them into the enlarged photo."""

from gleansr.photos.auto import AutoTask
from gleansr.photos.config import PhotoConfig
from gleansr.photos.functions import run, upscale, upscale_photo
from gleansr.photos.task import Photo

__all__ = ["AutoTask", "Photo", "PhotoConfig", "run", "upscale", "upscale_photo"]
