"""Banks that several bundled models share: one file holds the bank, and each GLEAN around it only what it adds.

The bank is most of a light GLEAN: 71 % of the numbers of cats-8x-light.
"""

import dataclasses
from pathlib import Path

from torch import Tensor

from gleansr.checkpoints import native, zoo
from gleansr.checkpoints.native import Checkpoint, SharedBank, StoredNetwork
from gleansr.checkpoints.zoo import NamedModel
from gleansr.errors import CheckpointError, RequestError

_PREFIX = "bank."


def with_bank(checkpoint: Checkpoint, source: str | Path) -> Checkpoint:
    """The checkpoint with the tensors of the bank that it refers to; one that refers to none as it is.

    Raises:
        CheckpointError: there is no such bundled bank, it is another version, or it does not fit.
    """
    if checkpoint.bank is None:
        return checkpoint
    generator = checkpoint.networks.get("generator")
    if generator is None or generator.kind != "glean" or any(name.startswith(_PREFIX) for name in generator.tensors):
        raise CheckpointError(f"{source}: refers to a shared bank, but holds no GLEAN that lacks one")
    tensors = generator.tensors | _tensors(checkpoint.bank, generator, source)
    networks = {**checkpoint.networks, "generator": dataclasses.replace(generator, tensors=tensors)}
    return dataclasses.replace(checkpoint, networks=networks, bank=None)


def sharing(checkpoint: Checkpoint, name: str, source: str | Path) -> Checkpoint:
    """The checkpoint as one that refers to the bundled bank `name`; it must hold the same, up to the rounding of that bank's file.

    Raises:
        RequestError: there is no such bundled bank.
        CheckpointError: the checkpoint holds no GLEAN, or one around another bank.
    """
    model = zoo.find(name)
    if not _is_bundled_bank(model):
        raise RequestError(f"{name} is no bank that comes with gleansr")
    generator = checkpoint.networks.get("generator")
    if generator is None or generator.kind != "glean":
        raise CheckpointError(f"{source}: holds no GLEAN")
    shared = SharedBank(name, (model.sha256_prefix or "")[:16])
    for key, tensor in _tensors(shared, generator, source).items():
        if not tensor.equal(generator.tensors[key].to(tensor.dtype)):
            raise CheckpointError(f"{source}: its bank is not {name}: {key} differs")
    return dataclasses.replace(checkpoint, bank=shared)


def _is_bundled_bank(model: NamedModel) -> bool:
    return model.asset is not None and model.kind == "stylegan2"


def _tensors(bank: SharedBank, generator: StoredNetwork, source: str | Path) -> dict[str, Tensor]:
    """The bank's tensors that a GLEAN has, under its names for them. Raises CheckpointError, see `with_bank`."""
    model = next((model for model in zoo.named_models() if model.name == bank.name and _is_bundled_bank(model)), None)
    if model is None:
        raise CheckpointError(f"{source}: needs the bank {bank.name[:50]!r}, which does not come with this version of gleansr")
    if not bank.sha256 or not (model.sha256_prefix or "").startswith(bank.sha256):
        raise CheckpointError(f"{source}: needs another version of {bank.name} than comes with this version of gleansr")
    theirs = native.read(zoo.model_path(bank.name)).networks["generator"]
    if generator.config.bank != theirs.config:
        raise CheckpointError(f"{source}: its bank is {generator.config.bank}, but {bank.name} is {theirs.config}")
    names = native.skeleton(generator.kind, generator.config).state_dict()
    return {name: theirs.tensors[name.removeprefix(_PREFIX)] for name in names if name.startswith(_PREFIX)}
