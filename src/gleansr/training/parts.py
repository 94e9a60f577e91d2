"""What a run is made of, from its recipe: bank, discriminator, the architecture around them, the network of equation (2)."""

import dataclasses
import math
from pathlib import Path
from typing import cast

from gleansr import checkpoints
from gleansr.checkpoints import native
from gleansr.checkpoints.torchvision import load_vgg16
from gleansr.errors import CheckpointError, RequestError
from gleansr.models.features import VGG16, SqueezeNet
from gleansr.models.glean import GLEAN, GLEANConfig, NoBankConfig
from gleansr.models.stylegan import StyleGAN, StyleGANConfig, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator
from gleansr.training.config import GLEANRecipe
from gleansr.training.losses import squeezenet

Bank = StyleGAN2 | StyleGAN
BankConfig = StyleGAN2Config | StyleGANConfig
Discriminator = StyleGAN2Discriminator | StyleGANDiscriminator


def load_bank(recipe: GLEANRecipe) -> tuple[Bank, Discriminator]:
    """The bank and the discriminator of the recipe.

    Raises:
        RequestError: there is none, or it is of another kind or size than the recipe's.
    """
    if not recipe.bank_file:
        raise RequestError("GLEAN is trained around a bank: give one with --bank")
    path = checkpoints.model_path(recipe.bank_file)
    checkpoint = bank_within(checkpoints.read(path))
    config = check_bank(recipe, checkpoint, path)
    bank = checkpoint.build("generator", path)
    if recipe.discriminator is None and "discriminator" in checkpoint.networks:
        discriminator = checkpoint.build("discriminator", path)
    else:
        discriminator = StyleGAN2Discriminator(recipe.discriminator or StyleGAN2Config(config.channels))
    if not isinstance(discriminator, StyleGAN2Discriminator | StyleGANDiscriminator) or discriminator.config.size != config.size:
        raise RequestError(f"{path}: the discriminator must be a StyleGAN's of {config.size} px, as the bank is")
    return cast("Bank", bank), discriminator


def bank_within(checkpoint: native.Checkpoint) -> native.Checkpoint:
    """The bank in the file of a GLEAN; any other file's contents as they are."""
    network = checkpoint.networks.get("generator")
    if network is None or network.kind != "glean" or isinstance(network.config.bank, NoBankConfig):
        return checkpoint
    kind = "stylegan2" if isinstance(network.config.bank, StyleGAN2Config) else "stylegan"
    tensors = {name.removeprefix("bank."): tensor for name, tensor in network.tensors.items() if name.startswith("bank.")}
    networks = {**checkpoint.networks, "generator": native.Network(kind, network.config.bank, tensors)}
    return dataclasses.replace(checkpoint, networks=networks)


def check_bank(recipe: GLEANRecipe, checkpoint: native.Checkpoint, path: Path) -> BankConfig:
    """The architecture of the bank in a file, which must be what the recipe wants."""
    network = checkpoint.networks.get("generator")
    kind = network.kind if network else "no generator"
    allowed = ("stylegan2", "stylegan") if recipe.bank == "none" else (recipe.bank,)
    if network is None or kind not in allowed:
        raise CheckpointError(f"{path}: holds {kind}, but the recipe takes bank = {' or '.join(allowed)}; --set bank=... changes it")
    if network.config.size != recipe.network.out_size:
        raise RequestError(
            f"{path}: the bank makes pictures of {network.config.size} px, but network.out_size is {recipe.network.out_size}"
        )
    return network.config


def glean_config(recipe: GLEANRecipe, bank: BankConfig) -> GLEANConfig:
    """The architecture that a recipe and the configuration of its bank make."""
    own = dataclasses.asdict(recipe.network)
    for key in ("out_size", "content_height"):
        own.pop(key)
    return GLEANConfig(bank=NoBankConfig(bank.channels) if recipe.bank == "none" else bank, **own)


def perceptual(recipe: GLEANRecipe) -> tuple[SqueezeNet | VGG16, str]:
    """The network of equation (2), and what to say of it."""
    if recipe.perceptual == "squeezenet":
        return squeezenet(), "SqueezeNet 1.1, bundled"
    network = load_vgg16(recipe.perceptual_file, input_range=recipe.perceptual_input)
    return network.requires_grad_(False), f"VGG16 conv4_3 on pictures as {recipe.perceptual_input}"


def start_from(source: str, model: GLEAN) -> list[str]:
    """Copies the layers of a trained GLEAN around the same bank that fit, and returns the names of those that start anew.

    Of another scale, layers correspond that work at the same number of pixels.
    """
    path = checkpoints.model_path(source)
    other = checkpoints.read(path).build(None, path)
    if not isinstance(other, GLEAN) or other.config.bank != model.config.bank:
        raise RequestError(f"{path}: start must be a GLEAN around the same bank")
    shift = int(math.log2(other.config.in_size // 4)) - int(math.log2(model.config.in_size // 4))
    theirs = other.state_dict()
    anew: list[str] = []
    tensors = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        # Blocks are numbered from the input's size: down from it in the encoder, up from it in the decoder.
        if name.startswith(("encoder.down.", "decoder.up.")):
            parts[2] = str(int(parts[2]) + (shift if name.startswith("encoder") else -shift))
        match = theirs.get(".".join(parts))
        fits = match is not None and match.shape == tensor.shape
        tensors[name] = match if fits else tensor
        if not fits:
            anew.append(name)
    model.load_state_dict(tensors)
    return anew
