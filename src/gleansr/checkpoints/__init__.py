"""Reading of checkpoint files. Importing this package imports neither torch nor any model; reading a file does."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gleansr.checkpoints import zoo
from gleansr.checkpoints.zoo import model_path
from gleansr.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

    from gleansr.checkpoints.native import Checkpoint

__all__ = ["load_model", "model_path", "read"]


def load_model(name_or_path: str | os.PathLike[str], *, part: str | None = None) -> "nn.Module":
    """A network in eval mode, float32, on the CPU.

    Args:
        name_or_path: the name of a model, downloaded at its first use, or a file of any supported layout.
        part: "generator" or "discriminator"; by default the generator, or the only network in the file.

    Raises:
        RequestError: no model has that name.
        DownloadError: its download failed.
        CheckpointError: the file is missing, broken, of an unsupported layout, or has no such part.
    """
    path = model_path(name_or_path)
    return read(path).build(part, path)


def read(path: str | os.PathLike[str]) -> "Checkpoint":
    """The networks in a file of any supported layout, identified by its contents. Nothing in the file is executed.

    Category, licence and credit of a named model are added if its file does not hold them.

    Raises:
        CheckpointError: the file is missing, broken, hostile or of an unsupported layout.
    """
    from gleansr.ambient import plain_torch
    from gleansr.checkpoints import native

    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
        with plain_torch():
            checkpoint = _read(path, head)
        named = zoo.model_of_file(path)
        if named and not checkpoint.about.licence:  # foreign layouts have no place for it
            about = native.About(named.name, named.category, named.licence, named.credit)
            return dataclasses.replace(checkpoint, about=about)
        return checkpoint
    except CheckpointError as error:  # it may quote names from the file
        raise CheckpointError(_one_line(str(error))) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (MemoryError, RecursionError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        # Any error that a file causes in the readers is a fault of the file.
        reason = _one_line(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"{path}: cannot be read ({reason})") from error


def _one_line(text: str) -> str:
    """The text without line breaks and control characters, shortened."""
    return "".join(c if c.isprintable() else " " for c in text[:2000])


def _read(path: Path, head: bytes) -> "Checkpoint":
    from gleansr.checkpoints import file_types, foreign, native, nvidia, pickles, shared

    size = path.stat().st_size
    if not head:
        raise CheckpointError(f"{path}: an empty file")
    if head[4:9] == b"\0\0\0\0{":  # safetensors: the length of a JSON header, below 4 GiB, and the header
        kind = "a safetensors file with no format in its metadata: "
        own = native.try_read(path)
        return shared.attach_bank(own, path) if own else foreign.read(native.read_tensors(path), path, size, kind)
    if head.startswith(b"PK\x03\x04") or pickles.is_legacy(head):
        return foreign.read(pickles.load_torch(path), path, size)
    if head.startswith(b"\x80"):
        contents = pickles.load_persistent(path)
        if nvidia.is_pickle(contents):
            return nvidia.read_pickle(contents, path, size)
        return foreign.read(contents, path, size, "a pickle, but not one of NVIDIA's with networks G_ema, G or D: ")
    problem = file_types.explain(head, path.name) or "not a file of weights"
    raise CheckpointError(f"{path}: {problem}; known are {foreign.KNOWN}")
