"""What a run is made of, from its recipe: the network that learns, its bank and discriminator, the network of equation (2)."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gleansr import checkpoints
from gleansr.checkpoints import native
from gleansr.checkpoints.bundled import squeezenet
from gleansr.checkpoints.native import bank_within
from gleansr.checkpoints.torchvision import load_vgg16, load_vgg19
from gleansr.errors import CheckpointError, RequestError
from gleansr.inference.runner import FeedForwardModel
from gleansr.models.esrgan_plus import ESRGANDiscriminator, ESRGANDiscriminatorConfig, ESRGANPlus
from gleansr.models.features import VGG16, VGG19, SqueezeNet
from gleansr.models.glean import GLEAN, GLEANConfig, NoBankConfig, lightened
from gleansr.models.residual import ResidualNet
from gleansr.models.rrdb import RRDBNet
from gleansr.models.stylegan import StyleGAN, StyleGANConfig, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator
from gleansr.training.config import NetworkRecipe
from gleansr.training.networks import ESRGANPlusNetworkConfig, GLEANNetworkConfig, PlainNetworkConfig

TrainableNetwork = GLEAN | ResidualNet | ESRGANPlus
Bank = StyleGAN2 | StyleGAN
BankConfig = StyleGAN2Config | StyleGANConfig
Discriminator = StyleGAN2Discriminator | StyleGANDiscriminator | ESRGANDiscriminator
DiscriminatorConfig = StyleGAN2Config | StyleGANConfig | ESRGANDiscriminatorConfig


def build(recipe: NetworkRecipe) -> tuple[TrainableNetwork, Discriminator | None]:
    """The network that the recipe trains, as it is before the first step, and its discriminator, if it is trained against one.

    Raises:
        RequestError: the network has a bank, and there is none or one of another kind or size.
    """
    if not isinstance(recipe.network, GLEANNetworkConfig):
        wanted = recipe.discriminator if recipe.adversarial_weight else None
        return feed_forward(recipe.network), wanted and new_discriminator(wanted)
    bank, discriminator = load_bank(recipe)
    model = GLEAN(glean_config(recipe.network, recipe.bank, bank.config))
    if recipe.bank != "none":
        if model.config.light:
            bank.keep_features(len(model.config.bank_sizes))
        # The dead RGB path included, strictly: a bank that is not wholly there must never be trained on.
        model.bank.load_state_dict({name: t for name, t in bank.state_dict().items() if name != "w_avg"})
        model.bank.requires_grad_(False)
    return model, discriminator if recipe.adversarial_weight else None


def feed_forward(network: PlainNetworkConfig | ESRGANPlusNetworkConfig) -> ResidualNet | ESRGANPlus:
    """A new network without a bank."""
    return ResidualNet(network.architecture) if isinstance(network, PlainNetworkConfig) else ESRGANPlus(network.architecture)


def new_discriminator(config: DiscriminatorConfig) -> Discriminator:
    """A new discriminator."""
    if isinstance(config, ESRGANDiscriminatorConfig):
        return ESRGANDiscriminator(config)
    return StyleGANDiscriminator(config) if isinstance(config, StyleGANConfig) else StyleGAN2Discriminator(config)


def learning(model: TrainableNetwork) -> list[nn.Parameter]:
    """The parameters that training changes: all but those of a bank and what never reaches the result."""
    return model.trainable_parameters() if isinstance(model, GLEAN) else list(model.parameters())


def shown_to(discriminator: Discriminator, image: Tensor) -> Tensor:
    """An image in [-1, 1] as `discriminator` takes it: ESRGAN's takes [0, 1]."""
    return (image + 1) / 2 if isinstance(discriminator, ESRGANDiscriminator) else image


def bank_of(model: TrainableNetwork) -> dict[str, Tensor]:
    """The tensors of a network's bank; none if it has no bank."""
    return model.bank.state_dict() if isinstance(model, GLEAN) else {}


def load_bank(recipe: NetworkRecipe) -> tuple[Bank, Discriminator]:
    """The bank and the discriminator of a GLEAN's recipe; see `build`."""
    if not recipe.bank_file:
        raise RequestError("GLEAN is trained around a bank: give one with --bank")
    path = checkpoints.model_path(recipe.bank_file)
    checkpoint = bank_within(checkpoints.read(path), path)
    config = check_bank(recipe, checkpoint, path)
    bank = checkpoint.build("generator", path)
    if recipe.discriminator is None and "discriminator" in checkpoint.networks:
        discriminator = checkpoint.build("discriminator", path)
    else:
        discriminator = new_discriminator(recipe.discriminator or StyleGAN2Config(config.channels))
    if not isinstance(discriminator, Discriminator) or discriminator.config.size != config.size:
        raise RequestError(f"{path}: the discriminator must be a StyleGAN's of {config.size} px, as the bank is")
    return cast("Bank", bank), discriminator


def check_bank(recipe: NetworkRecipe, checkpoint: native.Checkpoint, path: Path) -> BankConfig:
    """The architecture of the bank in a file, which must be what the recipe wants."""
    network = checkpoint.networks.get("generator")
    kind = network.kind if network else "no generator"
    allowed = ("stylegan2", "stylegan") if recipe.bank == "none" else (str(recipe.bank),)
    if network is None or kind not in allowed:
        raise CheckpointError(f"{path}: holds {kind}, but the recipe takes bank = {' or '.join(allowed)}; --set bank=... changes it")
    if network.config.size != recipe.network.out_size:
        raise RequestError(f"{path}: the bank makes images of {network.config.size} px, but network.out_size is {recipe.network.out_size}")
    return network.config


def glean_config(network: GLEANNetworkConfig, kind: str | None, bank: BankConfig) -> GLEANConfig:
    """The architecture that the table [network], the recipe's kind of bank and the configuration of the bank make."""
    own = dataclasses.asdict(network)
    for key in ("kind", "out_size", "content_height", "light"):
        own.pop(key)
    full = GLEANConfig(bank=NoBankConfig(bank.channels) if kind == "none" else bank, **own)
    return lightened(full) if network.light else full


def perceptual(recipe: NetworkRecipe) -> tuple[SqueezeNet | VGG16 | VGG19 | None, str]:
    """The network of equation (2), if it has any weight, and what to say of it."""
    if not recipe.perceptual_weight:
        return None, "none"
    if recipe.perceptual == "squeezenet":
        return squeezenet(), "SqueezeNet 1.1, bundled"
    if recipe.perceptual == "vgg19":
        return load_vgg19(recipe.perceptual_file).requires_grad_(False), "VGG19 conv5_4 on images as unit"
    network = load_vgg16(recipe.perceptual_file, input_range=recipe.perceptual_input)
    return network.requires_grad_(False), f"VGG16 conv4_3 on images as {recipe.perceptual_input}"


def load_teacher(recipe: NetworkRecipe, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """The network that is to be imitated, if there is one: lr (N, 3, in, in) in [-1, 1] -> (N, 3, out, out), without a gradient."""
    if not recipe.teacher:
        return None
    path = checkpoints.model_path(recipe.teacher)
    method = FeedForwardModel(checkpoints.read(path).build(None, path), device=device, precision=recipe.run.precision)
    sizes = recipe.network.in_size, recipe.network.out_size
    if method.in_size not in (None, sizes[0]) or method.scale * sizes[0] != sizes[1]:
        raise RequestError(f"{path}: the teacher must enlarge {sizes[0]} -> {sizes[1]} as the recipe does, but its scale is {method.scale}")
    return lambda lr: method(lr).images.clone()  # made in inference mode, where losses could not keep it


def start_from(source: str, model: TrainableNetwork) -> list[str]:
    """Copies the layers of a trained network that fit, and returns the names of those that start anew.

    For a GLEAN it is a GLEAN around a bank of the same architecture, of this scale or another, whose bank is left where it is; for an
    ESRGAN+ an ESRGAN+ or, as officially, an ESRGAN; for a plain network a plain one.
    """
    path = checkpoints.model_path(source)
    other = checkpoints.read(path).build(None, path)
    theirs = other.state_dict()
    if isinstance(model, GLEAN):
        if not isinstance(other, GLEAN) or other.config.bank != model.config.bank:
            raise RequestError(f"{path}: start must be a GLEAN around a bank of the same architecture")
        theirs = {name: tensor for name, tensor in at_the_size_of(model, other).items() if not name.startswith("bank.")}
        theirs |= {f"bank.{name}": tensor for name, tensor in bank_of(model).items()}
    elif not isinstance(other, ESRGANPlus | RRDBNet if isinstance(model, ESRGANPlus) else ResidualNet):
        wanted = "an ESRGAN+ or an ESRGAN" if isinstance(model, ESRGANPlus) else "a plain network"
        raise RequestError(f"{path}: start must be {wanted}, but it is a {type(other).__name__}")
    own = model.state_dict()
    anew = [name for name, tensor in own.items() if name not in theirs or theirs[name].shape != tensor.shape]
    if not any(name.endswith("weight") for name in own.keys() - set(anew)):
        raise RequestError(f"{path}: no layer of it fits the network of the recipe; leave out start")
    model.load_state_dict({name: tensor if name in anew else theirs[name] for name, tensor in own.items()})
    return anew


def at_the_size_of(model: GLEAN, other: GLEAN) -> dict[str, Tensor]:
    """The tensors of `other` under the names of the layers of `model` that work at the same number of pixels."""
    shift = int(math.log2(model.config.in_size // 4)) - int(math.log2(other.config.in_size // 4))
    tensors = {}
    for name, tensor in other.state_dict().items():
        parts = name.split(".")
        # Blocks are numbered from the input's size: down from it in the encoder, up from it in the decoder.
        if name.startswith(("encoder.down.", "decoder.up.")):
            parts[2] = str(int(parts[2]) + (shift if name.startswith("encoder") else -shift))
        tensors[".".join(parts)] = tensor
    return tensors
