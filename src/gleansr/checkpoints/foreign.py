"""Files of other programs: which networks are in them is told by the names of their tensors."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gleansr.checkpoints import basicsr, biggan, esrgan, genforce, mmagic, nvidia, pulse, rosinality
from gleansr.checkpoints.native import Checkpoint, Network
from gleansr.checkpoints.weights import Weights
from gleansr.errors import CheckpointError

READERS: dict[str, tuple[str, str, Callable[[Weights], Network]]] = {
    "encoder.0.0.conv_first.weight": ("mmagic", "generator", mmagic.glean),
    "constant_input.input": ("mmagic", "generator", mmagic.generator),
    "convs.0.conv1.input": ("mmagic", "generator", mmagic.stylegan1),
    "convs.0.0.conv.weight_orig": ("mmagic", "discriminator", mmagic.discriminator),
    "input.input": ("rosinality", "generator", rosinality.generator),
    "convs.0.0.weight": ("rosinality", "discriminator", rosinality.discriminator),
    "constant_input.weight": ("basicsr", "generator", basicsr.generator),
    "conv_body.0.0.weight": ("basicsr", "discriminator", basicsr.discriminator),
    "conv_up1.weight": ("basicsr", "generator", basicsr.rrdbnet),
    "model.1.sub.0.RDB1.conv1x1.weight": ("esrgan", "generator", esrgan.esrgan_plus),
    "model.1.sub.0.RDB1.conv1.0.weight": ("esrgan", "generator", esrgan.older),  # ESRGAN+ has it too, but has been recognised by then
    "RRDB_trunk.0.RDB1.conv1.weight": ("esrgan", "generator", esrgan.newer),
    "synthesis.b4.const": ("nvidia", "generator", nvidia.generator),
    "b4.fc.weight": ("nvidia", "discriminator", nvidia.discriminator),
    "synthesis.layer0.const": ("genforce", "generator", genforce.generator),
    "layer1.blur.kernel": ("genforce", "discriminator", genforce.discriminator),
    "blocks.0.0.bn1.gain.weight": ("biggan", "generator", biggan.generator),
    "embed.u0": ("biggan", "discriminator", biggan.discriminator),
    pulse.SIGNATURES["synthesis"]: ("pulse", "generator", pulse.synthesis),
    pulse.SIGNATURES["mapping"]: ("pulse", "generator", pulse.mapping),
}
"""A tensor that only one kind of network has -> its layout, its part and its reader."""

CONTAINERS = ("g_ema", "g", "d", "params_ema", "params", "G_ema", "G", "D", "generator_smooth", "generator", "discriminator")
"""The keys under which one file holds several networks; of two generators the one listed first, an average, is read."""

KNOWN = (
    "gleansr's own, GLEAN and StyleGAN2 of mmagic (mmediting, mmgen), StyleGAN2 of rosinality, BasicSR and NVIDIA, StyleGAN of GenForce "
    "and PULSE, BigGAN, ESRGAN, ESRGAN+, RRDBNet of BasicSR"
)
"""The files that can be read, for messages."""


def read(contents: Any, source: str | Path) -> Checkpoint:
    """The networks in what `torch.load` returned."""
    layout = ""
    networks: dict[str, Network] = {}
    for weights in _state_dicts(contents, source):
        signature = next((name for name in READERS if name in weights.tensors), None)
        if signature is None:
            raise _unknown(weights)
        layout, part, reader = READERS[signature]
        if part in networks:
            continue
        if others := [name for name, value in weights.tensors.items() if not isinstance(value, Tensor)]:
            raise CheckpointError(f"{source}: not tensors: {', '.join(others[:10])}")
        if part == "generator" and isinstance(mean := contents.get("latent_avg"), Tensor):
            weights = Weights({**weights.tensors, "latent_avg": mean}, weights.prefix, source)
        networks[part] = reader(weights)
    return Checkpoint(layout, networks)


def _state_dicts(contents: Any, source: str | Path) -> Iterator[Weights]:
    """The state dicts of single networks in a file's contents, the preferred ones first."""
    for outer in ("state_dict", "models"):
        if isinstance(contents, Mapping) and isinstance(contents.get(outer), Mapping):
            contents = contents[outer]
    if not isinstance(contents, Mapping) or not contents:
        held = f"an empty {type(contents).__name__}" if contents in ({}, [], ()) else f"a {type(contents).__name__}"
        raise CheckpointError(f"{source}: holds {held}, but named tensors are expected")
    nested = [key for key in CONTAINERS if isinstance(contents.get(key), Mapping)]
    for key in nested:
        yield _bare(contents[key], f"{key}.", source)
    if not nested:
        yield from _split(_bare(contents, "", source))


def _bare(state_dict: Mapping[Any, Any], prefix: str, source: str | Path) -> Weights:
    """A state dict without the "module." that parallel training puts before every name."""
    weights = Weights({str(name): value for name, value in state_dict.items()}, prefix, source)
    return weights.under("module.") if all(name.startswith("module.") for name in weights.tensors) else weights


def _split(weights: Weights) -> Iterator[Weights]:
    """The networks of a file that tells them apart by the beginnings of names, as mmagic's do."""
    if not any(name in READERS for name in weights.tensors):
        parts = [part for prefix in mmagic.PARTS if (part := weights.under(prefix)).tensors]
        rest = [name for name in weights.tensors if not name.startswith(mmagic.PARTS + mmagic.TRAINING_ONLY)]
        if parts and rest:
            raise CheckpointError(f"{weights.source}: unexpected {', '.join(rest[:10])}")
        if parts:
            yield from parts
            return
    yield weights


def _unknown(weights: Weights) -> CheckpointError:
    found = ", ".join(f"{weights.prefix}{name}" for name in list(weights.tensors)[:5])
    return CheckpointError(f"{weights.source}: not a network of a known layout: it holds {found}, ...; known are {KNOWN}")
