"""The native format: a safetensors file whose metadata holds the whole architecture, licence, credit and training facts.

Metadata, all JSON: `format` "gleansr/1"; `networks` {part: {"kind", "config"}}; `about` {"name", "category", "licence", "credit",
"training"}; for a GLEAN with a bundled bank, `bank` {"name", "sha256"} in place of its tensors, see `shared`. The tensors of a part are
named "part.name". Weights may be stored in half precision or 8 bits (`int8`); models are built in float32. Equal checkpoints are equal
files, byte for byte.
"""

import dataclasses
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gleansr.ambient import plain_torch
from gleansr.checkpoints import int8
from gleansr.configs import from_dict
from gleansr.documents import parse_json
from gleansr.errors import CheckpointError, RequestError
from gleansr.files import replacing
from gleansr.models.biggan import BigGAN, BigGANConfig, BigGANDiscriminator
from gleansr.models.categories import CategoryHead
from gleansr.models.encoder import LatentEncoder
from gleansr.models.esrgan_plus import ESRGANPlus, ESRGANPlusConfig
from gleansr.models.features import EfficientNetLite0, SqueezeNet
from gleansr.models.generator import Generator
from gleansr.models.glean import GLEAN, GLEANConfig, NoBankConfig
from gleansr.models.residual import ResidualNet, ResidualNetConfig
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.srvgg import SRVGGNet, SRVGGNetConfig
from gleansr.models.stylegan import StyleGAN, StyleGANConfig, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator

FORMAT = "gleansr/1"

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Data types from which networks are built, in float32."""

NAMES = {torch.int8: "I8", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
"""Names in safetensors of the data types in which weights are stored."""

# Limits of a file's header; a large model's has 300 kB and 1000 tensors.
MAX_HEADER = 2**24
MAX_TENSORS = 50_000
MAX_NETWORKS_TEXT = 2**15
MAX_ABOUT_TEXT = 2**22
MAX_PARTS = 16


@dataclass(frozen=True)
class NoConfig:
    """The configuration of a network without variants."""


KINDS: dict[str, tuple[type[nn.Module], type]] = {
    "glean": (GLEAN, GLEANConfig),
    "stylegan2": (StyleGAN2, StyleGAN2Config),
    "stylegan2-discriminator": (StyleGAN2Discriminator, StyleGAN2Config),
    "stylegan2-encoder": (LatentEncoder, StyleGAN2Config),
    "stylegan": (StyleGAN, StyleGANConfig),
    "stylegan-discriminator": (StyleGANDiscriminator, StyleGANConfig),
    "biggan": (BigGAN, BigGANConfig),
    "biggan-discriminator": (BigGANDiscriminator, BigGANConfig),
    "rrdbnet": (RRDBNet, RRDBNetConfig),
    "esrgan+": (ESRGANPlus, ESRGANPlusConfig),
    "residual": (ResidualNet, ResidualNetConfig),
    "srvgg": (SRVGGNet, SRVGGNetConfig),
    "squeezenet": (SqueezeNet, NoConfig),
    "efficientnet-lite0": (EfficientNetLite0, NoConfig),
    "categories": (CategoryHead, NoConfig),
}


@dataclass(frozen=True)
class About:
    """Facts of a file for its users."""

    name: str | None = None
    """Name of the model."""
    category: str | None = None
    """Subject of its images: faces, cats, ..."""
    licence: str | None = None
    """SPDX identifier or name of the licence of the weights."""
    credit: str | None = None
    """Attribution."""
    content_height: int | None = None
    """Rows of the image in the middle of a result, between bars (384 of 512 for LSUN's cars); None for all."""
    border: str | None = None
    """Contents of the bars: "repeat" for the outermost rows; None or "black"."""
    self_ensemble: bool = False
    """Whether a result is the mean of the results for the image and for its mirror image."""
    training: dict[str, Any] = field(default_factory=dict)
    """Facts of the training: data, images seen, recipe, figures."""

    def published(self) -> dict[str, Any]:
        """The known facts for a file; absolute paths in the training facts are reduced to file names."""
        return {key: _without_folders(value) if key == "training" else value for key, value in vars(self).items() if value}


_SCALED = (Tensor.normal_, Tensor.div, Tensor.__truediv__, Tensor.mul, Tensor.__mul__)


class _Uninitialised(TorchFunctionMode):
    """Skips filling and scaling of weights on the meta device, for which PyTorch would import its compiler, or SymPy: seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.empty if func is torch.randn else func
        scaled = func in _SCALED and isinstance(args[0], Tensor) and not any(isinstance(value, Tensor) for value in args[1:])
        return args[0] if scaled and args[0].is_meta else func(*args, **(kwargs or {}))  # filters are not on the meta device


def skeleton(kind: str, config: Any) -> nn.Module:
    """A network of one of `KINDS` on the meta device: its tensors have shapes, but no values."""
    model_type, _ = KINDS[kind]
    with torch.device("meta"), _Uninitialised():
        return model_type() if isinstance(config, NoConfig) else model_type(config)


@dataclass(frozen=True)
class StoredNetwork:
    """One network of a checkpoint: kind, architecture, and tensors by native names."""

    kind: str
    config: Any
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> "StoredNetwork":
        """The network of a model; tensors are shared."""
        for kind, (model_type, config_type) in KINDS.items():
            if type(model) is model_type:
                config = getattr(model, "config", None) or config_type()
                return cls(kind, config, dict(model.state_dict()))
        raise TypeError(f"a {type(model).__name__} has no native format")

    def build(self, source: str | Path) -> nn.Module:
        """The model in eval mode, float32, on the CPU.

        Raises CheckpointError for tensors that are missing, unexpected, misshapen or not plain floating-point, and for NaN and infinity.
        """
        model = skeleton(self.kind, self.config)
        if isinstance(model, Generator) and "w_avg" in self.tensors:
            model.register_buffer("w_avg", torch.empty(model.config.code_dim, device="meta"))
        check_tensors(self.tensors, {name: tuple(t.shape) for name, t in model.state_dict().items()}, source)
        for name, tensor in self.tensors.items():
            check_values(name, tensor, source)
        model.load_state_dict({name: t.to(torch.float32) for name, t in self.tensors.items()}, assign=True)
        model.eval()
        if isinstance(model, GLEAN):
            model.bank.requires_grad_(False)
        return model


@dataclass(frozen=True)
class SharedBank:
    """The bundled bank that a GLEAN's file refers to instead of holding it."""

    name: str
    """A model of `zoo`."""
    sha256: str
    """First 16 hexadecimal digits of the SHA-256 of that bank's file."""


@dataclass(frozen=True)
class Checkpoint:
    """The networks of one file by part ("generator", "discriminator"), and facts about them."""

    layout: str
    networks: dict[str, StoredNetwork]
    about: About = About()
    bank: SharedBank | None = None
    """The bundled bank of the generator, if its tensors are not in the file; `checkpoints.read` adds them."""

    @plain_torch()
    def build(self, part: str | None, source: str | Path) -> nn.Module:
        """The network of `part`; by default the generator, or the first one."""
        if part is None:
            part = "generator" if "generator" in self.networks else next(iter(self.networks))
        if part not in self.networks:
            raise CheckpointError(f"{source}: there is no {part} in this file, only {' and '.join(self.networks)}")
        return self.networks[part].build(source)


def bank_within(checkpoint: Checkpoint, source: str | Path) -> Checkpoint:
    """The bank of a GLEAN as a checkpoint; others unchanged. Raises CheckpointError for a light GLEAN, which has only a part of one."""
    network = checkpoint.networks.get("generator")
    if network is None or network.kind != "glean" or isinstance(network.config.bank, NoBankConfig):
        return checkpoint
    if network.config.light:
        raise CheckpointError(f"{source}: a light GLEAN holds only a part of its bank; give the full model's file instead")
    kind = "stylegan2" if isinstance(network.config.bank, StyleGAN2Config) else "stylegan"
    tensors = {name.removeprefix("bank."): tensor for name, tensor in network.tensors.items() if name.startswith("bank.")}
    networks = {**checkpoint.networks, "generator": StoredNetwork(kind, network.config.bank, tensors)}
    return dataclasses.replace(checkpoint, networks=networks)


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str | Path) -> None:
    """Raises a CheckpointError that lists the first ten missing, unexpected or misshapen tensors."""
    missing = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    excess = [f"unexpected {name} {list(t.shape)}" for name, t in tensors.items() if name not in expected]
    shapes = [
        f"{name} is {list(t.shape)}, not {list(expected[name])}"
        for name, t in tensors.items()
        if name in expected and tuple(t.shape) != expected[name]
    ]
    if problems := missing + excess + shapes:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(f"{source}: the weights do not fit the architecture: {'; '.join(problems[:10])}{more}")


def check_values(name: str, tensor: Tensor, source: str | Path) -> None:
    """Raises a CheckpointError unless a tensor holds plain finite floating-point numbers."""
    if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(f"{source}: the tensor {name} is {tensor.dtype}, {tensor.layout}, not plain floating-point")
    # With strides of 0 a few numbers can pose as a huge tensor, which the conversion to float32 would allocate.
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise CheckpointError(f"{source}: the tensor {name} claims more numbers than the file holds")
    # The sum is a quick test: it is finite unless a number is not, or it overflows.
    if not tensor.sum().isfinite() and not tensor.isfinite().all():
        raise CheckpointError(f"{source}: the tensor {name} holds NaN or infinity")


def save(path: str | Path, models: Mapping[str, nn.Module], about: About, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes `models` by part to `path`, stored as `dtype`: floating-point, or int8 as described in `int8`."""
    networks = {part: StoredNetwork.of(model) for part, model in models.items()}
    write(path, Checkpoint("gleansr", networks, about), dtype=dtype)


def write(path: str | Path, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes a checkpoint in the native format, atomically."""
    tensors = {f"{part}.{name}": tensor for part, network in checkpoint.networks.items() for name, tensor in network.tensors.items()}
    networks = {p: {"kind": n.kind, "config": dataclasses.asdict(n.config)} for p, n in checkpoint.networks.items()}
    about = json.dumps(checkpoint.about.published(), sort_keys=True)
    metadata = {"about": about, "format": FORMAT, "networks": json.dumps(networks, sort_keys=True)}
    if checkpoint.bank:
        metadata["bank"] = json.dumps(dataclasses.asdict(checkpoint.bank), sort_keys=True)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("generator.bank.")}
    if dtype == torch.int8:
        tensors = int8.quantise(tensors)
    dtypes = {name: tensor.dtype if dtype == torch.int8 else dtype for name, tensor in tensors.items()}
    # Not written by safetensors, whose order of metadata differs from process to process.
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in sorted(tensors):
        begin, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        header[name] = {"dtype": NAMES[dtypes[name]], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    encoded = json.JSONEncoder(separators=(",", ":")).encode(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in sorted(tensors):
            plain = tensors[name].detach().to("cpu", dtypes[name]).contiguous().reshape(-1)
            file.write(plain.view(torch.uint8).numpy().data)


def _without_folders(value: Any) -> Any:
    """Plain data with file names in place of absolute paths, for privacy."""
    if isinstance(value, Mapping):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(entry) for entry in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name
    return value


def read(path: str | Path) -> Checkpoint:
    """Reads a file of the native format; see `Checkpoint.build` for the models in it."""
    if (checkpoint := try_read(path)) is None:
        raise CheckpointError(f"{path}: a safetensors file with no format in its metadata, but {FORMAT!r} is expected")
    return checkpoint


def try_read(path: str | Path) -> Checkpoint | None:
    """As `read`; None for a safetensors file of another program."""
    metadata, tensors = _contents(path)
    file_format = metadata.get("format", "")
    if not file_format.startswith("gleansr"):
        return None
    if file_format != FORMAT:
        raise CheckpointError(f"{path}: a safetensors file with format {file_format!r} in its metadata, but {FORMAT!r} is expected")
    tensors = int8.dequantise(tensors, path)
    try:
        if len(metadata["networks"]) > MAX_NETWORKS_TEXT or len(metadata["about"]) > MAX_ABOUT_TEXT:
            raise ValueError(f"it is longer than {MAX_NETWORKS_TEXT:,} characters of networks or {MAX_ABOUT_TEXT:,} about them")
        description = {key: parse_json(metadata[key], key) for key in ("networks", "about")}
        if len(description["networks"]) > MAX_PARTS or len(description["about"]) > MAX_PARTS:
            raise ValueError(f"more than {MAX_PARTS} networks, or facts about them")
        networks = {}
        for part, entry in sorted(description["networks"].items(), key=lambda item: (item[0] != "generator", item[0])):
            if not isinstance(kind := entry["kind"], str) or kind not in KINDS:
                raise ValueError(f"a network of the kind {str(kind)[:50]!r}")
            config = from_dict(KINDS[kind][1], entry["config"], f"configuration of the {part}")
            prefix = f"{part}."
            own = {_current_name(name.removeprefix(prefix)): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
            networks[part] = StoredNetwork(kind, config, own)
        if tensors or not networks:
            raise CheckpointError(f"{path}: tensors of no network: {', '.join(name[:100] for name in list(tensors)[:10])}")
        bank = from_dict(SharedBank, parse_json(metadata["bank"], "bank"), "bank") if "bank" in metadata else None
        return Checkpoint("gleansr", networks, from_dict(About, description["about"], "about"), bank)
    except (KeyError, TypeError, AttributeError, ValueError, RequestError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: its metadata is not that of a gleansr model ({error})") from None


def _current_name(name: str) -> str:
    """The current name of a tensor: early files have `mean_code` for `w_avg`."""
    return f"{name.removesuffix('mean_code')}w_avg" if name == "mean_code" or name.endswith(".mean_code") else name


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of any safetensors file, by name."""
    return _contents(path)[1]


def _contents(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file."""
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER and length + 8 <= Path(path).stat().st_size:
        raise CheckpointError(f"{path}: a safetensors file with a header of {length:,} bytes; at most {MAX_HEADER:,} are read")
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise CheckpointError(f"{path}: a safetensors file of {len(names):,} tensors; at most {MAX_TENSORS:,} are read")
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None
