"""Reads files of torch and NVIDIA's pickles, with tensors as `LazyTensor`s. Nothing in them is executed; see `unpickle`."""

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gleansr.checkpoints import archive, arrays
from gleansr.checkpoints.lazy_tensors import LazyTensor, MalformedError, Storage
from gleansr.checkpoints.unpickle import Budget, Global, Opaque, RefusedError, load, new_dict
from gleansr.errors import CheckpointError

LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first object, a number, in files of torch before 1.6 and in the storages in NVIDIA's pickles."""

_MAX_DESCRIPTION = 2**26  # bytes of data.pkl in an archive, which has no tensor values

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_DTYPES = {f"torch.{name}": dtype for name in dir(torch) if isinstance(dtype := getattr(torch, name), torch.dtype)}
_STORAGE_TYPES = {f"torch.{name}": dtype for name, dtype in _STORAGES.items()} | {
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.UntypedStorage": torch.uint8,
}

_DICTS = {
    "builtins.dict", "collections.OrderedDict", "collections.defaultdict", "collections.Counter", "dnnlib.util.EasyDict",
    "easydict.EasyDict", "addict.addict.Dict", "mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict",
}  # fmt: skip
"""Names of dictionary types."""

_IGNORED = {
    "argparse.Namespace", "types.SimpleNamespace", "collections.deque", "uuid.UUID", "decimal.Decimal", "fractions.Fraction",
    "copyreg._reconstructor", "copyreg.__newobj__", "torch.Tensor", "torch.device", "torch.Generator",
    "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.serialization._get_layout", "torch.version.__version__",
    "torch.torch_version.TorchVersion", "torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_qtensor", "torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_nested_tensor",
    "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
    "functools.partial", "re._compile", "types.GenericAlias", "types.UnionType", "_operator.getitem", "_operator.or_",
    *(f"builtins.{name}" for name in ("bool", "bytes", "complex", "float", "frozenset", "int", "list", "object", "range", "set", "slice",
                                      "str", "tuple", "type", "unicode", "long", "xrange")),  # the last as Python 2 called them
    *_DTYPES,
    *_STORAGE_TYPES,
}  # fmt: skip
_IGNORED_PACKAGES = ("numpy.", "pathlib.", "datetime.", "omegaconf.", "torch.optim.", "pytorch_lightning.utilities.",
                             "pytorch_lightning.callbacks.", "lightning.pytorch.callbacks.", "typing.", "yacs.config.")  # fmt: skip
"""Contents of training files other than weights: options, dates, counters, the state of an optimiser. They are not kept."""


@dataclass(frozen=True)
class PersistentObject:
    """An object of NVIDIA's `persistence.persistent_class`: the class name and the attributes, no code."""

    class_name: str
    state: dict[str, Any]


def is_legacy(head: bytes) -> bool:
    """Whether a file starts like one of torch before 1.6, which is not a zip archive."""
    start = 11 if head[2:3] == b"\x95" else 2  # after the protocol and, since version 4, the length of a frame
    return head[start : start + len(LEGACY_MAGIC)] == LEGACY_MAGIC


def load_torch(path: Path) -> Any:
    """The contents of a `torch.save` file: dictionaries by strings, lists, tuples, numbers, strings, `LazyTensor`s, `Opaque`s."""
    with path.open("rb") as file:
        legacy = is_legacy(file.read(64))
    return _read(path, "file of torch", _legacy if legacy else _archive)


def load_persistent(path: Path) -> Any:
    """As `load_torch` for a plain pickle, with `PersistentObject`s in place of NVIDIA's modules."""

    def read(data: memoryview, budget: Budget) -> Any:
        return load(data, 0, budget, partial(_resolve, _calls(budget) | _calls_of_pickles(budget)))[0]

    return _read(path, "pickle", read)


def tensors(contents: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict read from `path`. Raises CheckpointError for other contents."""
    if others := [name[:100] for name, value in contents.items() if not isinstance(value, LazyTensor)]:
        raise CheckpointError(f"{path}: not tensors: {', '.join(others[:10])}")
    return {name: value.tensor() for name, value in contents.items()}


def _read(path: Path, kind: str, read: Callable[[memoryview, Budget], Any]) -> Any:
    try:
        with path.open("rb") as file:
            # Copy on write: changes of tensors that share the memory do not reach the file.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        return read(data, Budget())
    except RefusedError as error:
        raise _refusal(path, str(error)) from None
    except MalformedError as error:
        raise CheckpointError(f"{path}: not a whole {kind} ({error})") from None
    except (ValueError, TypeError, UnicodeError, struct.error, RecursionError) as error:
        raise CheckpointError(f"{path}: not a whole {kind} ({type(error).__name__})") from error


def _refusal(path: Path, name: str) -> CheckpointError:
    if name == "dnnlib.tflib.network.Network":
        return CheckpointError(f"{path}: a TensorFlow pickle; convert it with legacy.py of NVlabs/stylegan2-ada-pytorch")
    return CheckpointError(
        f"{path}: refused: asks for {name}, which weights do not need (nothing was executed); "
        "if the file is yours, save its state_dict alone"
    )


# --------------------------------------------------------------------------------------------------------------------- names


def _resolve(calls: Mapping[str, Callable[..., Any]], name: str) -> Global:
    if name in calls:
        return Global(name, calls[name])
    if name in _IGNORED or name.startswith(_IGNORED_PACKAGES):
        return Global(name, _opaque)
    raise RefusedError(name)


def _opaque(*_: Any) -> Opaque:
    return Opaque()


def _calls(budget: Budget) -> dict[str, Callable[..., Any]]:
    """Replacements of the functions that files of torch name."""
    return dict.fromkeys(_DICTS, partial(new_dict, budget)) | {
        **arrays.calls(budget),
        "torch.Size": lambda shape=(): shape,
        "torch._utils._rebuild_tensor": lambda storage, offset, shape, stride: LazyTensor.checked(storage, offset, shape, stride),
        "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, stride, *_: LazyTensor.checked(storage, offset, shape, stride),
        "torch._utils._rebuild_tensor_v3": _tensor_of_type,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch._tensor._rebuild_from_type_v2": _of_subclass,
    }


def _calls_of_pickles(budget: Budget) -> dict[str, Callable[..., Any]]:
    return {
        "torch.storage._load_from_bytes": lambda data: _storage_of_bytes(data, budget),
        "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    }


def _tensor_of_type(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> LazyTensor:
    if not isinstance(dtype, Global) or dtype.name not in _DTYPES:
        raise MalformedError("a tensor of an unknown type")
    return LazyTensor.checked(storage, offset, shape, stride, _DTYPES[dtype.name])


def _of_subclass(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    rebuilt = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter")
    if not isinstance(function, Global) or type(arguments) is not tuple or function.name not in rebuilt:
        raise MalformedError("a tensor of an unknown type")
    return function.call(*arguments)


def _persistent_object(meta: Any) -> PersistentObject:
    class_name, state = (meta.get("class_name"), meta.get("state")) if type(meta) is dict else (None, None)
    if not isinstance(class_name, str) or len(class_name) > 100 or type(state) is not dict:
        raise MalformedError("a module without the name of its class and its state")
    return PersistentObject(class_name, state)


def _storage_of_bytes(data: Any, budget: Budget) -> Storage:
    if not isinstance(data, memoryview) or not is_legacy(bytes(data[:64])):  # a zip archive could be compressed
        raise MalformedError("a tensor's storage is not in torch's format")
    storage = _legacy(data, budget)
    if not isinstance(storage, Storage):
        raise MalformedError("a tensor's storage is not in torch's format")
    return storage


# --------------------------------------------------------------------------------------------------------------------- files


def _archive(data: memoryview, budget: Budget) -> Any:
    directory = archive.directory(data)
    names = [entry.name.decode("utf-8", "replace") for entry in directory]
    descriptions = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if not descriptions:
        raise MalformedError(
            f"a ZIP archive of {', '.join(name[:60] for name in names[:3]) or 'nothing'}; unpack it and give the file of weights"
        )
    root = min(descriptions, key=len).removesuffix("data.pkl")
    if f"{root}constants.pkl" in names or any(name.startswith(f"{root}code/") for name in names):
        raise MalformedError(
            "a TorchScript program, not weights; save those: "
            "torch.save(torch.jit.load('IN.pt', map_location='cpu').state_dict(), 'OUT.pth')"
        )
    entries = archive.contents(data, directory)
    if bytes(entries.get(f"{root}byteorder", b"little")[:9]) != b"little":
        raise MalformedError("numbers in the order of a big-endian machine; save it again on a little-endian one")
    description = entries[f"{root}data.pkl"]
    if len(description) > _MAX_DESCRIPTION:
        raise MalformedError(f"a description of {len(description):,} bytes, more than any file of weights needs")

    def persistent(key: Any) -> Storage:
        dtype, name, _ = _storage_key(key, 5)
        return Storage(dtype, entries.get(f"{root}data/{name}", memoryview(b"")))

    return load(description, 0, budget, partial(_resolve, _calls(budget)), persistent)[0]


def _legacy(data: memoryview, budget: Budget) -> Any:
    """Five pickles (magic number, format version, machine sizes, contents, names of storages), then the values of the storages."""
    resolve = partial(_resolve, _calls(budget))
    storages: dict[str, tuple[Storage, int]] = {}

    def persistent(key: Any) -> Storage:
        dtype, name, numbers = _storage_key(key, 6)
        storage, of_file = storages.setdefault(name, (Storage(dtype, memoryview(b"")), numbers))
        if (storage.dtype, of_file) != (dtype, numbers):
            raise MalformedError(f"two storages of the name {name[:50]!r}")
        return storage

    _magic, position = load(data, 0, budget, resolve)
    _protocol, position = load(data, position, budget, resolve)
    machine, position = load(data, position, budget, resolve)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise MalformedError("numbers in the order of a big-endian machine; save it again on a little-endian one")
    # Values come last, but tensors are checked against them: a first pass, without tensors, finds the storages.
    contents_position = position
    _contents, position = load(data, position, budget, partial(_resolve, _calls_without_tensors(budget)), persistent)
    names, position = load(data, position, budget, resolve)
    if type(names) is not list or not all(isinstance(name, str) for name in names):
        raise MalformedError("no list of storages")
    for name in names:
        if name not in storages or position + 8 > len(data):
            raise MalformedError("it ends too early; it may have been cut off on its way")
        storage, numbers = storages[name]
        end = position + 8 + numbers * storage.dtype.itemsize
        if struct.unpack_from("<q", data, position)[0] != numbers or end > len(data):
            raise MalformedError("it ends too early; it may have been cut off on its way")
        storage.data, position = data[position + 8 : end], end
    return load(data, contents_position, budget, resolve, persistent)[0]


def _calls_without_tensors(budget: Budget) -> dict[str, Callable[..., Any]]:
    """As `_calls`, with `Opaque`s in place of tensors."""
    return {name: call if name in _DICTS else _opaque for name, call in _calls(budget).items()}


def _storage_key(key: Any, length: int) -> tuple[torch.dtype, str, int]:
    """Type, name and size of a storage from a persistent id of torch: ("storage", class, name, device, size)."""
    if type(key) is not tuple or len(key) != length or not isinstance(key[0], str):
        raise MalformedError("a persistent id that names no storage")
    if key[0] == "module":
        raise MalformedError("a whole module, which is a program; save its state_dict alone")
    kind, name, _, numbers = key[1:5]
    if not isinstance(kind, Global) or kind.name not in _STORAGE_TYPES or not isinstance(name, str):
        raise MalformedError("a persistent id that names no storage")
    if type(numbers) is not int or not 0 <= numbers < 2**48 or (length == 6 and key[5] is not None):
        raise MalformedError("a storage of an unknown size")
    return _STORAGE_TYPES[kind.name], name, numbers
