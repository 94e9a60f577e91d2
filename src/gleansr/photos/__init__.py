"""Whole photographs: their objects are found, enlarged by the model, and pasted back into the enlarged photo."""

from gleansr.photos.config import PhotoConfig
from gleansr.photos.task import Photo, run, upscale_photo

__all__ = ["Photo", "PhotoConfig", "run", "upscale_photo"]
