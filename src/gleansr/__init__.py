"""Large-factor image super-resolution with a generative latent bank.

import gleansr
gleansr.upscale("cat.jpg").save("large.png")
gleansr.upscale_folder("thumbnails", "large")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gleansr.checkpoints import load_model
    from gleansr.images.resize import resize
    from gleansr.inference.categories import Category, classify
    from gleansr.inference.upscaler import Upscaler, load
    from gleansr.jobs.folder import upscale_folder
    from gleansr.photos.functions import upscale
    from gleansr.retouching.refine import retouch

    __version__: str

__all__ = ["Category", "Upscaler", "classify", "load", "load_model", "resize", "retouch", "upscale", "upscale_folder"]

_MODULES = {
    "Category": "gleansr.inference.categories",
    "Upscaler": "gleansr.inference.upscaler",
    "classify": "gleansr.inference.categories",
    "load": "gleansr.inference.upscaler",
    "load_model": "gleansr.checkpoints",
    "resize": "gleansr.images.resize",
    "retouch": "gleansr.retouching.refine",
    "upscale": "gleansr.photos.functions",
    "upscale_folder": "gleansr.jobs.folder",
}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: PyTorch takes a second, and `gleansr --help` does not need it."""
    if name == "__version__":
        from gleansr.version import version

        return version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
