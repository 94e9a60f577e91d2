"""Pickled files, read without running anything that they bring along.

Files of torch go through its own reader of weights. Those of NVIDIA are pickles of objects that carry their source code
to be executed; the reader here takes the objects' state and leaves the code alone.
"""

import argparse
import io
import mmap
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2

from gleansr.errors import CheckpointError

LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first object, a number, in files of torch older than 1.6, and in the storages that NVIDIA's pickles hold."""


def is_legacy(head: bytes) -> bool:
    """Whether these are the first bytes of a file of torch that is no zip archive."""
    return head[2 : 2 + len(LEGACY_MAGIC)] == LEGACY_MAGIC


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote: tensors, numbers, strings and containers of them only."""
    with path.open("rb") as file:
        in_zip = not is_legacy(file.read(64))
    if in_zip:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path}: an incomplete zip archive; it may have been cut off on its way")
        # torch never compresses. A compressed entry could grow without limit, and mapped it would pass for plain numbers.
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path}: a compressed zip archive, not what torch.save writes")
    try:
        # rosinality's training files hold the command line, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip)
    except Exception as error:
        raise _broken(path, "file of torch", error) from error


@dataclass(frozen=True)
class PersistentObject:
    """An object of NVIDIA's `persistence.persistent_class`: its class's name and its attributes, no code."""

    class_name: str
    state: dict[str, Any]


def load_persistent(path: Path) -> Any:
    """What NVIDIA's programs pickled, with `PersistentObject`s in place of their modules.

    Only the functions and classes of `_allowed` can be called, each of which is harmless with any arguments.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            _check_memo(stream)
            stream.seek(0)
            return _Unpickler(path, stream).load()
    except CheckpointError:
        raise
    except Exception as error:
        raise _broken(path, "pickle", error) from error


class _Unpickler(pickle.Unpickler):
    # A memory map reads what there is, however much the file claims: lengths in it cannot ask for memory.
    def __init__(self, path: Path, stream: mmap.mmap):
        super().__init__(stream)
        self._path = path
        self._allowed = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("dnnlib.tflib.network", "Network"):
            raise CheckpointError(f"{self._path}: a TensorFlow pickle; convert it with legacy.py of NVlabs/stylegan2-ada-pytorch")
        if (module, name) not in self._allowed:
            raise _refused(self._path, f"{module}.{name}")
        return self._allowed[module, name]


class _Call:
    """A function that a pickle may call, but not change: pickle's BUILD could set a plain one's attributes for good."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


class _Table(dict):
    """Stands in for dnnlib.EasyDict, a dictionary."""

    def __setstate__(self, state: Any) -> None:
        """Its items are all there is to it."""


class _Nothing:
    """Stands in for NumPy's scalars and types: only gains that follow from the shapes are stored so."""

    def __setstate__(self, state: Any) -> None:
        """A type's details are of no use."""


def _allowed() -> dict[tuple[str, str], Any]:
    nothing = _Call(lambda *_: _Nothing())
    return {
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("dnnlib.util", "EasyDict"): _Table,
        ("numpy", "dtype"): nothing,
        ("numpy.core.multiarray", "scalar"): nothing,
        ("numpy._core.multiarray", "scalar"): nothing,
        ("torch._utils", "_rebuild_parameter"): _Call(lambda data, _requires_grad, _hooks: data),
        ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
        ("torch.storage", "_load_from_bytes"): _Call(_storage),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Call(_persistent_object),
    }


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> torch.Tensor:
    return _rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def _storage(data: bytes) -> Any:
    if not is_legacy(data):  # another kind of file in there could be compressed
        raise pickle.UnpicklingError("a tensor's storage is not in torch's format")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _persistent_object(meta: dict[str, Any]) -> PersistentObject:
    return PersistentObject(str(meta["class_name"]), dict(meta["state"]))


def _check_memo(stream: Any) -> None:
    """The memo is a table as long as its largest index: a few bytes could ask for gigabytes. Honest indices count up."""
    for n, (op, argument, _) in enumerate(pickletools.genops(stream)):
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > n:
            raise pickle.UnpicklingError(f"memo index {argument} in operation {n}")


def _refused(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: refused: asks for {name}, which weights have no need of (nothing was executed); "
        "if the file is yours, save its state_dict alone"
    )


def _broken(path: Path, kind: str, error: Exception) -> CheckpointError:
    """What to say of an error that torch or pickle raised; torch surrounds the reason with advice to trust the file."""
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        return _refused(path, refused[1])
    advice = re.compile(r"Weights only load failed|Please file|Check the documentation|\(\d\)")
    lines = [line for line in map(str.strip, str(error).splitlines()) if line and not advice.match(line)]
    reason = lines[0].removeprefix("WeightsUnpickler error: ")[:200] if lines else type(error).__name__
    return CheckpointError(f"{path}: not a whole {kind} ({reason})")
