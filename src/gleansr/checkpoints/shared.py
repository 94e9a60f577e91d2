"""Bundled banks that several GLEANs share: one file holds the bank, the files of the GLEANs the other tensors.

The bank has 71 % of the parameters of cats-8x-light.
"""

import dataclasses
from pathlib import Path

from torch import Tensor

from gleansr.checkpoints import native, zoo
from gleansr.checkpoints.native import Checkpoint, SharedBank, StoredNetwork
from gleansr.checkpoints.zoo import NamedModel
from gleansr.errors import CheckpointError, RequestError

_PREFIX = "bank."


def attach_bank(checkpoint: Checkpoint, source: str | Path) -> Checkpoint:
    """The checkpoint with the tensors of the bank that it refers to; unchanged if it refers to none.

    Raises:
        CheckpointError: the bank is not bundled, another version, or does not fit.
    """
    if checkpoint.bank is None:
        return checkpoint
    generator = checkpoint.networks.get("generator")
    if generator is None or generator.kind != "glean" or any(name.startswith(_PREFIX) for name in generator.tensors):
        raise CheckpointError(f"{source}: refers to a shared bank, but holds no GLEAN that lacks one")
    tensors = generator.tensors | _tensors(checkpoint.bank, generator, source)
    networks = {**checkpoint.networks, "generator": dataclasses.replace(generator, tensors=tensors)}
    return dataclasses.replace(checkpoint, networks=networks, bank=None)


def detach_bank(checkpoint: Checkpoint, name: str, source: str | Path) -> Checkpoint:
    """The checkpoint with a reference to the bundled bank `name`. It must hold the same bank, up to the rounding of the bank's file.

    Raises:
        RequestError: the bank is not bundled.
        CheckpointError: the checkpoint has no GLEAN, or one with another bank.
    """
    model = zoo.find(name)
    if not _is_bundled_bank(model):
        raise RequestError(f"{name} is not a bundled bank")
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
    """The bank's tensors that a GLEAN has, by the names of the GLEAN. Raises CheckpointError, see `attach_bank`."""
    model = next((model for model in zoo.named_models() if model.name == bank.name and _is_bundled_bank(model)), None)
    if model is None:
        raise CheckpointError(f"{source}: needs the bank {bank.name[:50]!r}, which does not come with this version of gleansr")
    if not bank.sha256 or not (model.sha256_prefix or "").startswith(bank.sha256):
        raise CheckpointError(f"{source}: needs another version of {bank.name} than comes with this version of gleansr")
    bank_network = native.read(zoo.model_path(bank.name)).networks["generator"]
    if generator.config.bank != bank_network.config:
        raise CheckpointError(f"{source}: its bank is {generator.config.bank}, but {bank.name} is {bank_network.config}")
    names = native.skeleton(generator.kind, generator.config).state_dict()
    return {name: bank_network.tensors[name.removeprefix(_PREFIX)] for name in names if name.startswith(_PREFIX)}
