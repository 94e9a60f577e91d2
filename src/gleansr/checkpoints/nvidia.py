"""StyleGAN2 in NVIDIA's layout: the pickles {"G", "D", "G_ema"} of stylegan2-ada-pytorch, or state dicts from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from gleansr.checkpoints.native import Checkpoint, Network
from gleansr.checkpoints.pickles import PersistentObject
from gleansr.checkpoints.stylegan2_layout import StyleGAN2Layout
from gleansr.checkpoints.weights import Shape, Weights
from gleansr.errors import CheckpointError


def _shape(name: str, shape: Shape) -> Shape:
    """The constant and the noise have no axis for the batch."""
    if name == "synthesis.constant":
        return shape[1:]
    return shape[2:] if name.startswith("synthesis.noise_") else shape


LAYOUT = StyleGAN2Layout(
    generator={
        "mapping.layers.{n}.weight": "mapping.fc{k}.weight",
        "mapping.layers.{n}.bias": "mapping.fc{k}.bias",
        "synthesis.constant": "synthesis.b4.const",
        "synthesis.layers.{i}.conv.weight": "{layer}.weight",
        "synthesis.layers.{i}.conv.affine.weight": "{layer}.affine.weight",
        "synthesis.layers.{i}.conv.affine.bias": "{layer}.affine.bias",
        "synthesis.layers.{i}.noise_strength": "{layer}.noise_strength",
        "synthesis.layers.{i}.bias": "{layer}.bias",
        "synthesis.to_rgb.{j}.conv.weight": "{rgb}.weight",
        "synthesis.to_rgb.{j}.conv.affine.weight": "{rgb}.affine.weight",
        "synthesis.to_rgb.{j}.conv.affine.bias": "{rgb}.affine.bias",
        "synthesis.to_rgb.{j}.bias": "{rgb}.bias",
        "synthesis.noise_{i}": "{layer}.noise_const",
        "mean_code": "mapping.w_avg",
    },
    discriminator={
        "from_rgb.weight": "{top}.fromrgb.weight",
        "from_rgb.bias": "{top}.fromrgb.bias",
        "blocks.{b}.conv1.weight": "{block}.conv0.weight",
        "blocks.{b}.conv1.bias": "{block}.conv0.bias",
        "blocks.{b}.conv2.weight": "{block}.conv1.weight",
        "blocks.{b}.conv2.bias": "{block}.conv1.bias",
        "blocks.{b}.skip.weight": "{block}.skip.weight",
        "conv.weight": "b4.conv.weight",
        "conv.bias": "b4.conv.bias",
        "dense.weight": "b4.fc.weight",
        "dense.bias": "b4.fc.bias",
        "out.weight": "b4.out.weight",
        "out.bias": "b4.out.bias",
    },
    layer=lambda i: f"synthesis.b{2 ** ((i + 5) // 2)}.conv{1 - i % 2}",
    rgb=lambda j: f"synthesis.b{4 * 2**j}.torgb",
    block=lambda b, n: f"b{4 * 2 ** (n - b)}",
    filters={"resample_filter": 1},
    shape=_shape,
)


def generator(weights: Weights) -> Network:
    """A generator from its tensors alone: no limit of activations (`conv_clamp`) is assumed."""
    return LAYOUT.read_generator(weights)


def discriminator(weights: Weights) -> Network:
    """A discriminator from its tensors alone: no limit of activations and groups of 4 pictures are assumed."""
    return LAYOUT.read_discriminator(weights)


def read_pickle(contents: Any, source: str | Path) -> Checkpoint:
    """The averaged generator, or the plain one, and the discriminator of an unpickled file."""
    found = {}
    if isinstance(contents, dict):
        found = {key: contents[key] for key in ("G_ema", "G", "D") if isinstance(contents.get(key), PersistentObject)}
    if not found:
        raise CheckpointError(f"{source}: a pickle, but not one of NVIDIA's with networks G_ema, G or D")
    networks = {}
    for key in ("G_ema", "G"):
        if key in found and "generator" not in networks:
            modules, weights = _flatten(found[key], key, source)
            clamp = _check(modules, "Generator", "skip", weights)
            networks["generator"] = LAYOUT.read_generator(weights, clamp)
    if "D" in found:
        modules, weights = _flatten(found["D"], "D", source)
        clamp = _check(modules, "Discriminator", "resnet", weights)
        group = modules["b4.mbstd"].state.get("group_size") if "b4.mbstd" in modules else 0
        if not (group is None or (isinstance(group, int) and group > 0)):
            raise weights.error(f"D has a minibatch standard deviation over {group!r} pictures; only 1 or more are supported")
        networks["discriminator"] = LAYOUT.read_discriminator(weights, clamp, group)
    return Checkpoint("nvidia", networks)


def _flatten(root: PersistentObject, key: str, source: str | Path) -> tuple[dict[str, PersistentObject], Weights]:
    """All modules of a network by their dotted names, "" for itself, and its tensors as in its state dict."""
    modules: dict[str, PersistentObject] = {}
    tensors: dict[str, Tensor] = {}
    for name, module in _walk(root, "", depth=8):
        if len(modules) >= 1000:  # shared modules could unfold to any number
            raise CheckpointError(f"{source}: {key} has more than 1000 modules")
        modules[name] = module
        for group in ("_parameters", "_buffers"):
            for leaf, tensor in module.state.get(group, {}).items():
                if isinstance(tensor, Tensor):
                    tensors[f"{name}.{leaf}" if name else leaf] = tensor
    return modules, Weights(tensors, f"{key}.", source)


def _walk(module: PersistentObject, name: str, depth: int) -> Iterator[tuple[str, PersistentObject]]:
    yield name, module
    for leaf, child in module.state.get("_modules", {}).items():
        if isinstance(child, PersistentObject) and depth:
            yield from _walk(child, f"{name}.{leaf}" if name else leaf, depth - 1)


def _check(modules: dict[str, PersistentObject], class_name: str, architecture: str, weights: Weights) -> float | None:
    """Refuses what the tensors do not tell apart from a plain StyleGAN2; returns the limit of activations."""
    root = modules[""]
    if root.class_name != class_name:
        raise weights.error(f"{weights.prefix[:-1]} is a {root.class_name}, but a StyleGAN2 {class_name} is expected")
    if "synthesis.input" in modules:
        raise weights.error("a StyleGAN3; only StyleGAN2 is supported")
    if root.state.get("c_dim"):
        raise weights.error(f"a network conditioned on {root.state['c_dim']} classes; only unconditional ones are supported")
    clamps = set()
    for name, module in modules.items():
        for attribute, expected in _expected(name, architecture).items():
            found = module.state.get(attribute, expected)
            if found != expected:
                raise weights.error(f"{weights.prefix}{name} has {attribute} {found!r}; only {expected!r} is supported")
        if "conv_clamp" in module.state and not name.endswith(".skip"):  # NVIDIA's skips have no limit
            clamps.add(module.state["conv_clamp"])
    if len(clamps) > 1:
        raise weights.error(f"{weights.prefix[:-1]} has layers of different conv_clamp: {', '.join(map(str, clamps))}")
    clamp = clamps.pop() if clamps else None
    if not isinstance(clamp, int | float | None):
        raise weights.error(f"conv_clamp is {clamp!r}, not a number")
    return clamp


def _expected(name: str, architecture: str) -> dict[str, Any]:
    """The attributes of a module that change what it computes, as far as they are the same in every StyleGAN2."""
    linear = name.endswith((".affine", ".out", ".skip"))
    return {
        "architecture": architecture,
        "activation": "linear" if linear else "lrelu",
        "bias_gain": 0.01 if name.startswith("mapping.fc") else 1,
        "use_noise": True,
        "num_channels": 1,
        "img_channels": 3,
    }
