"""Large-factor image super-resolution with a generative latent bank.

import gleansr
upscaler = gleansr.load("cats-8x")
upscaler("cat.jpg").save("large.png")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gleansr.checkpoints import load_model
    from gleansr.images.resize import resize
    from gleansr.inference.upscaler import Upscaler, load
    from gleansr.retouching.refine import retouch

__all__ = ["Upscaler", "load", "load_model", "resize", "retouch"]

_MODULES = {
    "Upscaler": "gleansr.inference.upscaler",
    "load": "gleansr.inference.upscaler",
    "load_model": "gleansr.checkpoints",
    "resize": "gleansr.images.resize",
    "retouch": "gleansr.retouching.refine",
}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: PyTorch takes a second, and `gleansr --help` does not need it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
