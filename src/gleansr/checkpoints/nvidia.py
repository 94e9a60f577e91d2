"""StyleGAN2 in NVIDIA's layout: the pickles {"G", "D", "G_ema"} of stylegan2-ada-pytorch, or state dicts from them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gleansr.checkpoints.lazy_tensors import LazyTensor
from gleansr.checkpoints.native import Checkpoint, StoredNetwork
from gleansr.checkpoints.pickles import PersistentObject
from gleansr.checkpoints.stylegan2_layout import StyleGAN2Layout
from gleansr.checkpoints.weights import Shape, Weights
from gleansr.errors import CheckpointError

MAX_ENTRIES = 2000
"""Limit of modules and tensors of one network; one of 1024 px has 500."""


def _shape(name: str, shape: Shape) -> Shape:
    """The constant and the noise have no batch axis."""
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
        "w_avg": "mapping.w_avg",
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


def generator(weights: Weights) -> StoredNetwork:
    """A generator from its tensors alone, without limit of activations (`conv_clamp`)."""
    return LAYOUT.read_generator(weights)


def discriminator(weights: Weights) -> StoredNetwork:
    """A discriminator from its tensors alone, without limit of activations and with groups of 4 images."""
    return LAYOUT.read_discriminator(weights)


def read_pickle(contents: Mapping[str, Any], source: str | Path, size: int) -> Checkpoint:
    """The generator, averaged if available, and the discriminator of an unpickled file of `size` bytes."""
    networks = {}
    for part, keys, class_name, architecture in (
        ("generator", ("G_ema", "G"), "Generator", "skip"),
        ("discriminator", ("D",), "Discriminator", "resnet"),
    ):
        key = next((key for key in keys if isinstance(contents.get(key), PersistentObject)), None)
        if key is None:
            continue
        modules, weights = _flatten(contents[key], key, source)
        if (claimed := sum(tensor.nbytes for tensor in weights.tensors.values())) > size:
            raise weights.error(f"the tensors of {key} claim {claimed:,} bytes, more than the {size:,} of the file")
        clamp = _check(modules, class_name, architecture, weights)
        if part == "generator":
            networks[part] = LAYOUT.read_generator(weights, clamp)
        else:
            group = _plain(modules["b4.mbstd"].state.get("group_size"), "group_size", weights) if "b4.mbstd" in modules else 0
            if not (group is None or (isinstance(group, int) and group > 0)):
                raise weights.error(f"D has a minibatch standard deviation over {group!r} images; only 1 or more are supported")
            networks[part] = LAYOUT.read_discriminator(weights, clamp, group)
    return Checkpoint("nvidia", networks)


def is_pickle(contents: Any) -> bool:
    """Whether an unpickled file is one of NVIDIA's."""
    return isinstance(contents, Mapping) and any(isinstance(contents.get(key), PersistentObject) for key in ("G_ema", "G", "D"))


def _flatten(root: PersistentObject, key: str, source: str | Path) -> tuple[dict[str, PersistentObject], Weights]:
    """All modules of a network by dotted name, "" for itself, and its tensors as in a state dict."""
    modules: dict[str, PersistentObject] = {}
    tensors: dict[str, Tensor] = {}
    visits = 0  # shared modules and their contents could unfold without limit

    def entries(module: PersistentObject, group: str) -> Iterator[tuple[str, Any]]:
        nonlocal visits
        members = module.state.get(group)
        for leaf, value in members.items() if isinstance(members, Mapping) else ():
            visits += 1
            if visits > MAX_ENTRIES or len(leaf) > 100:
                raise CheckpointError(f"{source}: {key} has more than {MAX_ENTRIES:,} modules and tensors, or one of an endless name")
            yield leaf, value

    def walk(module: PersistentObject, prefix: str, depth: int) -> None:
        modules[prefix.removesuffix(".")] = module
        for group in ("_parameters", "_buffers"):
            tensors.update((f"{prefix}{leaf}", value.tensor()) for leaf, value in entries(module, group) if isinstance(value, LazyTensor))
        for leaf, child in entries(module, "_modules"):
            if isinstance(child, PersistentObject) and depth:
                walk(child, f"{prefix}{leaf}.", depth - 1)

    walk(root, "", depth=8)
    return modules, Weights(tensors, f"{key}.", source)


def _plain(value: Any, name: str, weights: Weights) -> Any:
    """`value`, which must be a number, a word or None: other values may take unlimited time to compare or print."""
    if not isinstance(value, str | int | float | None) or (isinstance(value, str) and len(value) > 100):
        raise weights.error(f"{name} is a {type(value).__name__}, not a number or a word")
    return value


def _check(modules: dict[str, PersistentObject], class_name: str, architecture: str, weights: Weights) -> float | None:
    """Rejects variants that have the tensors of a plain StyleGAN2; returns the limit of activations."""
    root = modules[""]
    if root.class_name != class_name:
        raise weights.error(f"{weights.prefix[:-1]} is a {root.class_name}, but a StyleGAN2 {class_name} is expected")
    if "synthesis.input" in modules:
        raise weights.error("a StyleGAN3; only StyleGAN2 is supported")
    if c_dim := _plain(root.state.get("c_dim"), "c_dim", weights):
        raise weights.error(f"a network conditioned on {c_dim} classes; only unconditional ones are supported")
    clamps = set()
    for name, module in modules.items():
        for attribute, expected in _expected(name, architecture).items():
            value = _plain(module.state.get(attribute, expected), attribute, weights)
            if value != expected:
                raise weights.error(f"{weights.prefix}{name} has {attribute} {value!r}; only {expected!r} is supported")
        if "conv_clamp" in module.state and not name.endswith(".skip"):  # NVIDIA's skips have no limit
            clamps.add(_plain(module.state["conv_clamp"], "conv_clamp", weights))
    if len(clamps) > 1:
        raise weights.error(f"{weights.prefix[:-1]} has layers of different conv_clamp: {', '.join(map(str, list(clamps)[:10]))}")
    clamp = clamps.pop() if clamps else None
    if not isinstance(clamp, int | float | None):
        raise weights.error(f"conv_clamp is {clamp!r}, not a number")
    return clamp


def _expected(name: str, architecture: str) -> dict[str, Any]:
    """Attributes of a module that change its computation and are equal in every StyleGAN2."""
    linear = name.endswith((".affine", ".out", ".skip"))
    return {
        "architecture": architecture,
        "activation": "linear" if linear else "lrelu",
        "bias_gain": 0.01 if name.startswith("mapping.fc") else 1,
        "use_noise": True,
        "num_channels": 1,
        "img_channels": 3,
    }
