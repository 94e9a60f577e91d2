"""Files of other programs. Networks are identified by the names of their tensors, anywhere in a file."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gleansr.checkpoints import basicsr, biggan, esrgan, genforce, mmagic, nvidia, pulse, rosinality
from gleansr.checkpoints.arrays import ArrayPlaceholder
from gleansr.checkpoints.lazy_tensors import LazyTensor
from gleansr.checkpoints.native import Checkpoint, StoredNetwork
from gleansr.checkpoints.weights import Weights
from gleansr.errors import CheckpointError

READERS: dict[str, tuple[str, str, Callable[[Weights], StoredNetwork]]] = {
    "encoder.0.0.conv_first.weight": ("mmagic", "generator", mmagic.glean),
    "constant_input.input": ("mmagic", "generator", mmagic.generator),
    "convs.0.conv1.input": ("mmagic", "generator", mmagic.stylegan1),
    "convs.0.0.conv.weight_orig": ("mmagic", "discriminator", mmagic.discriminator),
    "input.input": ("rosinality", "generator", rosinality.generator),
    "convs.0.0.weight": ("rosinality", "discriminator", rosinality.discriminator),
    "constant_input.weight": ("basicsr", "generator", basicsr.generator),
    "conv_body.0.0.weight": ("basicsr", "discriminator", basicsr.discriminator),
    "conv_up1.weight": ("basicsr", "generator", basicsr.rrdbnet),
    "body.1.weight": ("basicsr", "generator", basicsr.srvgg),
    "model.1.sub.0.RDB1.conv1x1.weight": ("esrgan", "generator", esrgan.esrgan_plus),
    "model.1.sub.0.RDB1.conv1.0.weight": ("esrgan", "generator", esrgan.older),  # ESRGAN+ has it too, but is matched first
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
"""A tensor that only one kind of network has -> layout, part and reader; of several in one network the first counts."""

KNOWN = (
    "gleansr's own, GLEAN and StyleGAN2 of mmagic (mmediting, mmgen), StyleGAN2 of rosinality, BasicSR and NVIDIA, StyleGAN of GenForce "
    "and PULSE, BigGAN, ESRGAN, ESRGAN+, RRDBNet and SRVGGNetCompact of BasicSR"
)
"""The files that can be read, for messages."""

_RANKS = {signature: rank for rank, signature in enumerate(READERS)}
_MAX_PARTS = max(signature.count(".") for signature in READERS) + 1
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts that torch.compile and other wrappers insert into names."""
_AVERAGED = re.compile(r"(?<![a-z])(ema|avg|averaged?|shadow|smooth|swa)(?![a-z])")
"""Marks an averaged network in the keys that lead to it."""
_MAX_DEPTH, _MAX_VISITS, _MAX_NAME = 8, 100_000, 500


@dataclass(frozen=True)
class _Candidate:
    """A network in a file, not yet read."""

    signature: str
    tensors: Mapping[str, Any]
    """The mapping that contains it."""
    prefix: str
    """Prefix of its names in the mapping."""
    path: str
    """The keys that lead to the mapping, each followed by a dot; for messages."""
    mean: Any
    """The `latent_avg` next to it."""

    @property
    def averaged(self) -> bool:
        return bool(_AVERAGED.search(f"{self.path}{self.prefix}".lower())) or "n_averaged" in self.tensors


def read(contents: Any, source: str | Path, size: int | None = None, kind: str = "") -> Checkpoint:
    """The networks in the contents of a file of torch or of a safetensors file.

    Networks may be under any key and have any prefix. Of several for one part the averaged one is read, otherwise the first. Their tensors
    are read strictly; other contents, such as an optimiser's state, are ignored.

    Args:
        contents: mappings by strings, of tensors or `LazyTensor`s.
        source: the file, for messages.
        size: of the file in bytes; tensors that claim to be more are refused.
        kind: a description of the file, for the message if there is no network in it.
    """
    if not isinstance(contents, Mapping) or not contents:
        raise CheckpointError(f"{source}: {kind}holds {_kind(contents)}, but named tensors are expected")
    selected: dict[str, _Candidate] = {}
    for candidate in _candidates(contents, source):
        part = READERS[candidate.signature][1]
        if part not in selected or (candidate.averaged and not selected[part].averaged):
            selected[part] = candidate
    if not selected:
        raise CheckpointError(f"{source}: {kind}not a network of a known layout: it holds {_names(contents)}, ...; known are {KNOWN}")
    weights = {part: _weights(candidate, source) for part, candidate in selected.items()}
    networks = {part: READERS[candidate.signature][2](weights[part]) for part, candidate in selected.items()}
    claimed = sum(tensor.nbytes for part in weights.values() for tensor in part.tensors.values())
    if size is not None and claimed > size:  # in float32 they take at most twice as much
        raise CheckpointError(f"{source}: its tensors claim {claimed:,} bytes, more than the {size:,} of the file")
    return Checkpoint(READERS[next(iter(selected.values())).signature][0], networks)


def _candidates(contents: Mapping[str, Any], source: str | Path) -> Iterator[_Candidate]:
    """The networks in nested mappings, outer ones first. Every mapping is visited once, however often a file refers to it."""
    level: list[tuple[Mapping[str, Any], str, Any]] = [(contents, "", None)]
    seen = {id(contents)}
    visits = 0
    for _ in range(_MAX_DEPTH):
        children: list[tuple[Mapping[str, Any], str, Any]] = []
        for mapping, path, mean in level:
            visits += len(mapping)
            if visits > _MAX_VISITS:
                raise CheckpointError(f"{source}: holds more than {_MAX_VISITS:,} entries; save the state_dict of the network alone")
            mean = _stored(mapping.get("latent_avg", mean))
            tensors = {_WRAPPERS.sub("", str(name)): _stored(value) for name, value in mapping.items() if not isinstance(value, Mapping)}
            yield from (_Candidate(signature, tensors, prefix, path, mean) for prefix, signature in _signatures(tensors).items())
            for key, value in mapping.items():
                if isinstance(value, Mapping) and id(value) not in seen:
                    seen.add(id(value))
                    children.append((value, f"{path}{key}."[:_MAX_NAME] if key not in ("state_dict", "models") else path, mean))
        level = children


def _signatures(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Prefixes of networks with their signatures, without prefixes inside other networks."""
    signatures: dict[str, str] = {}
    for name, value in tensors.items():
        if len(name) > _MAX_NAME or not isinstance(value, Tensor | LazyTensor):
            continue
        ending = ""
        for piece in reversed(name.rsplit(".", _MAX_PARTS)[-_MAX_PARTS:]):
            ending = f"{piece}.{ending}" if ending else piece
            prefix = name[: len(name) - len(ending)]
            if ending in _RANKS and _RANKS[ending] < _RANKS.get(signatures.get(prefix, ""), len(_RANKS)):
                signatures[prefix] = ending
    return {prefix: signature for prefix, signature in signatures.items() if not any(outer in signatures for outer in _outer(prefix))}


def _outer(prefix: str) -> Iterator[str]:
    """The shorter prefixes of a prefix that end with a dot, and the empty one."""
    while prefix:
        prefix = prefix[: prefix.rfind(".", 0, len(prefix) - 1) + 1]
        yield prefix


def _weights(candidate: _Candidate, source: str | Path) -> Weights:
    """The tensors of a network."""
    weights = Weights(candidate.tensors, candidate.path, source).under(candidate.prefix)
    others = [name for name, value in weights.tensors.items() if not isinstance(value, Tensor | LazyTensor)]
    # All tensors of a network have a dot in their names; names without one, such as an epoch, are other contents.
    if misplaced := [name[:100] for name in others if "." in name and not name.endswith("_extra_state")]:
        raise CheckpointError(f"{source}: not tensors: {', '.join(misplaced[:10])}")
    tensors = {name: _loaded(value) for name, value in weights.tensors.items() if isinstance(value, Tensor | LazyTensor)}
    if READERS[candidate.signature][1] == "generator" and isinstance(candidate.mean, Tensor | LazyTensor):
        tensors["latent_avg"] = _loaded(candidate.mean)
    return Weights(tensors, weights.prefix, source)


def _stored(value: Any) -> Any:
    return value.stored or value if isinstance(value, ArrayPlaceholder) else value


def _loaded(value: Any) -> Any:
    return value.tensor() if isinstance(value, LazyTensor) else value


def _kind(contents: Any) -> str:
    if isinstance(contents, dict | list | tuple) and not contents:
        return f"an empty {type(contents).__name__}"
    return f"a {'Tensor' if isinstance(contents, LazyTensor) else type(contents).__name__}"


def _names(contents: Mapping[str, Any]) -> str:
    """The first five names, with the keys that lead to them."""
    path = ""
    while len(contents) == 1 or {"state_dict", "params", "params_ema", "model"} & contents.keys():
        key = next((key for key in ("state_dict", "params_ema", "params", "model") if key in contents), next(iter(contents)))
        inner = contents[key]
        if not isinstance(inner, Mapping) or not inner or path.count(".") > _MAX_DEPTH:
            break
        contents, path = inner, f"{path}{str(key)[:100]}."
    return ", ".join(f"{path}{str(name)[:100]}" for name in list(contents)[:5])
