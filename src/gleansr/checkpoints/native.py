"""The native format: a safetensors file whose metadata holds the whole architecture, licence, credit and training facts.

Metadata, all JSON: `format` "gleansr/1"; `networks` {part: {"kind", "config"}}; `about` {"name", "category", "licence", "credit",
"training"}. The tensors of a part are named "part.name". Weights may be stored in half precision; models are built in float32.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gleansr.configs import from_dict
from gleansr.errors import CheckpointError, RequestError
from gleansr.files import replacing
from gleansr.models.biggan import BigGAN, BigGANConfig, BigGANDiscriminator
from gleansr.models.encoder import CodeEncoder
from gleansr.models.esrgan_plus import ESRGANPlus, ESRGANPlusConfig
from gleansr.models.features import SqueezeNet
from gleansr.models.generator import Generator
from gleansr.models.glean import GLEAN, GLEANConfig, NoBankConfig
from gleansr.models.residual import ResidualNet, ResidualNetConfig
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.stylegan import StyleGAN, StyleGANConfig, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator

FORMAT = "gleansr/1"


@dataclass(frozen=True)
class NoConfig:
    """The configuration of a network that comes in one form only."""


KINDS: dict[str, tuple[type[nn.Module], type]] = {
    "glean": (GLEAN, GLEANConfig),
    "stylegan2": (StyleGAN2, StyleGAN2Config),
    "stylegan2-discriminator": (StyleGAN2Discriminator, StyleGAN2Config),
    "stylegan2-encoder": (CodeEncoder, StyleGAN2Config),
    "stylegan": (StyleGAN, StyleGANConfig),
    "stylegan-discriminator": (StyleGANDiscriminator, StyleGANConfig),
    "biggan": (BigGAN, BigGANConfig),
    "biggan-discriminator": (BigGANDiscriminator, BigGANConfig),
    "rrdbnet": (RRDBNet, RRDBNetConfig),
    "esrgan+": (ESRGANPlus, ESRGANPlusConfig),
    "residual": (ResidualNet, ResidualNetConfig),
    "squeezenet": (SqueezeNet, NoConfig),
}


@dataclass(frozen=True)
class About:
    """What a user must know of a file beside its numbers."""

    name: str | None = None
    """What to call the model."""
    category: str | None = None
    """What its pictures show: faces, cats, ..."""
    licence: str | None = None
    """SPDX identifier or name of the licence of the weights."""
    credit: str | None = None
    """Who must be named."""
    content_height: int | None = None
    """Rows in the middle of a result that are picture, between bars (384 of 512 for LSUN's cars); None: all."""
    border: str | None = None
    """What the bars are in the model's eyes: "repeat", the outermost rows again; None or "black"."""
    training: dict[str, Any] = field(default_factory=dict)
    """Facts of the training: data, pictures seen, recipe, figures."""

    def published(self) -> dict[str, Any]:
        """What is written into a model's file: what is known, and of absolute paths in the facts of the training only the last part."""
        return {key: _without_folders(value) if key == "training" else value for key, value in vars(self).items() if value}


@dataclass(frozen=True)
class Network:
    """One network of a checkpoint: its kind, its architecture and its tensors under gleansr's names."""

    kind: str
    config: Any
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> "Network":
        """The network that `model` is, its tensors shared."""
        for kind, (model_type, config_type) in KINDS.items():
            if type(model) is model_type:
                config = getattr(model, "config", None) or config_type()
                return cls(kind, config, dict(model.state_dict()))
        raise TypeError(f"a {type(model).__name__} has no native format")

    def build(self, source: str | Path) -> nn.Module:
        """The model in eval mode, float32, on the CPU. A tensor that is missing, unexpected or of another shape is an error."""
        model_type, _ = KINDS[self.kind]
        with torch.device("meta"):
            model = model_type() if isinstance(self.config, NoConfig) else model_type(self.config)
        if isinstance(model, Generator) and "mean_code" in self.tensors:
            model.register_buffer("mean_code", torch.empty(model.config.code_dim, device="meta"))
        check_tensors(self.tensors, {name: tuple(t.shape) for name, t in model.state_dict().items()}, source)
        model.load_state_dict({name: t.to(torch.float32) for name, t in self.tensors.items()}, assign=True)
        model.eval()
        if isinstance(model, GLEAN):
            model.bank.requires_grad_(False)
        return model


@dataclass(frozen=True)
class Checkpoint:
    """The networks of one file by part ("generator", "discriminator") and what is known of them."""

    layout: str
    networks: dict[str, Network]
    about: About = About()

    def build(self, part: str | None, source: str | Path) -> nn.Module:
        """The network of `part`; without a part, the only one there is or the generator."""
        if part is None:
            part = "generator" if "generator" in self.networks else next(iter(self.networks))
        if part not in self.networks:
            raise CheckpointError(f"{source}: there is no {part} in this file, only {' and '.join(self.networks)}")
        return self.networks[part].build(source)


def bank_within(checkpoint: Checkpoint, source: str | Path) -> Checkpoint:
    """The bank in the file of a GLEAN; any other file's contents as they are. A light GLEAN, which holds a part of one, is an error."""
    network = checkpoint.networks.get("generator")
    if network is None or network.kind != "glean" or isinstance(network.config.bank, NoBankConfig):
        return checkpoint
    if network.config.light:
        raise CheckpointError(f"{source}: a light GLEAN holds no whole bank, only what it reads of one; give the full model's file instead")
    kind = "stylegan2" if isinstance(network.config.bank, StyleGAN2Config) else "stylegan"
    tensors = {name.removeprefix("bank."): tensor for name, tensor in network.tensors.items() if name.startswith("bank.")}
    networks = {**checkpoint.networks, "generator": Network(kind, network.config.bank, tensors)}
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


def save(path: str | Path, models: Mapping[str, nn.Module], about: About, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes `models` by part to `path`, floating-point tensors stored as `dtype`."""
    networks = {part: Network.of(model) for part, model in models.items()}
    write(path, Checkpoint("gleansr", networks, about), dtype=dtype)


def write(path: str | Path, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes a checkpoint in the native format, atomically."""
    tensors = {
        f"{part}.{name}": tensor.detach().to("cpu", dtype).contiguous().clone()
        for part, network in checkpoint.networks.items()
        for name, tensor in network.tensors.items()
    }
    networks = {p: {"kind": n.kind, "config": dataclasses.asdict(n.config)} for p, n in checkpoint.networks.items()}
    metadata = {"format": FORMAT, "networks": json.dumps(networks), "about": json.dumps(checkpoint.about.published())}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def _without_folders(value: Any) -> Any:
    """Plain data, with the name in place of each absolute path: other people's files are nobody's business."""
    if isinstance(value, Mapping):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(entry) for entry in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name
    return value


def read(path: str | Path) -> Checkpoint:
    """Reads a file of the native format; see `Checkpoint.build` for the models in it."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = f"format {metadata.get('format')!r}" if "format" in metadata else "no format"
                raise CheckpointError(f"{path}: a safetensors file with {found} in its metadata, but {FORMAT!r} is expected")
            description = {key: json.loads(metadata[key]) for key in ("networks", "about")}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        networks = {}
        for part, entry in description["networks"].items():
            _, config_type = KINDS[entry["kind"]]
            config = from_dict(config_type, entry["config"], f"configuration of the {part}")
            prefix = f"{part}."
            own = {name.removeprefix(prefix): tensors.pop(name) for name in names if name.startswith(prefix)}
            networks[part] = Network(entry["kind"], config, own)
        if tensors or not networks:
            raise CheckpointError(f"{path}: tensors of no network: {', '.join(list(tensors)[:10])}")
        return Checkpoint("gleansr", networks, from_dict(About, description["about"], "about"))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, RequestError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: its metadata is not that of a gleansr model ({error})") from None
