"""Builds what a recipe trains: the network, its bank and discriminator, the perceptual network and the teacher."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gleansr import checkpoints
from gleansr.checkpoints import native
from gleansr.checkpoints.bundled import efficientnet, squeezenet
from gleansr.checkpoints.native import bank_within
from gleansr.checkpoints.torchvision import load_vgg16, load_vgg19
from gleansr.errors import CheckpointError, RequestError
from gleansr.inference.runner import FeedForwardModel
from gleansr.models.esrgan_plus import ESRGANDiscriminator, ESRGANDiscriminatorConfig, ESRGANPlus
from gleansr.models.features import PerceptualNetwork
from gleansr.models.glean import GLEAN, Encoder, GLEANConfig, NoBankConfig, lighten
from gleansr.models.network import SRNetwork
from gleansr.models.residual import ResidualNet
from gleansr.models.rrdb import RRDBNet
from gleansr.models.stylegan import StyleGAN, StyleGANConfig, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator
from gleansr.training.config import BankRecipe, NetworkRecipe
from gleansr.training.networks import GLEANNetworkConfig
from gleansr.training.widen import widen

Bank = StyleGAN2 | StyleGAN
BankConfig = StyleGAN2Config | StyleGANConfig
Discriminator = StyleGAN2Discriminator | StyleGANDiscriminator | ESRGANDiscriminator
DiscriminatorConfig = StyleGAN2Config | StyleGANConfig | ESRGANDiscriminatorConfig


def build(recipe: NetworkRecipe) -> tuple[SRNetwork, Discriminator | None]:
    """Builds the untrained network of a recipe and, for adversarial training, its discriminator.

    Raises:
        RequestError: the network needs a bank, and the recipe has none or one of another kind or size.
    """
    if not isinstance(recipe.network, GLEANNetworkConfig):
        config = recipe.discriminator if recipe.adversarial_weight else None
        return recipe.network.build(), config and new_discriminator(config)
    bank, discriminator = load_bank(recipe)
    model = GLEAN(glean_config(recipe.network, recipe.bank, bank.config))
    if recipe.bank != "none":
        if recipe.mean_latents:
            start_at_mean(model, bank)
        if model.config.light:
            bank.keep_features(len(model.config.bank_sizes))
        # Strict, with the unused RGB layers: an incomplete bank must never be trained on.
        model.bank.load_state_dict({name: t for name, t in bank.state_dict().items() if name != "w_avg"})
        model.bank.requires_grad_(False)
    return model, discriminator if recipe.adversarial_weight else None


def start_at_mean(model: GLEAN, bank: Bank) -> None:
    """Moves the latents of an untrained GLEAN to the bank's mean latent."""
    code = cast("Encoder", model.encoder).code
    layer = cast("nn.Linear", code[-1] if isinstance(code, nn.Sequential) else code)
    with torch.no_grad():
        mean = bank.estimate_w_avg() if bank.w_avg is None else bank.w_avg
        layer.bias.copy_(mean.repeat(len(layer.bias) // len(mean)))


def new_discriminator(config: DiscriminatorConfig) -> Discriminator:
    """Builds an untrained discriminator."""
    if isinstance(config, ESRGANDiscriminatorConfig):
        return ESRGANDiscriminator(config)
    return StyleGANDiscriminator(config) if isinstance(config, StyleGANConfig) else StyleGAN2Discriminator(config)


def load_bank(recipe: NetworkRecipe) -> tuple[Bank, Discriminator]:
    """Loads the bank of a GLEAN's recipe and its discriminator; see `build`."""
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
    """Returns the architecture of the bank in a file. Raises CheckpointError or RequestError if the recipe needs another."""
    network = checkpoint.networks.get("generator")
    kind = network.kind if network else "no generator"
    allowed = ("stylegan2", "stylegan") if recipe.bank == "none" else (str(recipe.bank),)
    if network is None or kind not in allowed:
        raise CheckpointError(f"{path}: holds {kind}, but the recipe takes bank = {' or '.join(allowed)}; --option bank=... changes it")
    if network.config.size != recipe.network.out_size:
        raise RequestError(f"{path}: the bank generates {network.config.size} px, but network.out_size is {recipe.network.out_size}")
    return network.config


def glean_config(network: GLEANNetworkConfig, kind: str | None, bank: BankConfig) -> GLEANConfig:
    """The architecture of a GLEAN from the table [network], the recipe's kind of bank and the configuration of the bank."""
    options = dataclasses.asdict(network)
    for key in ("kind", "out_size", "content_height", "light"):
        options.pop(key)
    full = GLEANConfig(bank=NoBankConfig(bank.channels) if kind == "none" else bank, **options)
    return lighten(full) if network.light else full


def load_perceptual(recipe: NetworkRecipe) -> tuple[list[PerceptualNetwork], str]:
    """Loads the recipe's `perceptual_networks` and describes them for the log."""
    networks, descriptions = [], []
    for name in recipe.perceptual_networks:
        if name == "vgg16":
            networks.append(load_vgg16(recipe.perceptual_file, input_range=recipe.perceptual_input).requires_grad_(False))
            descriptions.append(f"VGG16 conv4_3 on images as {recipe.perceptual_input}")
        elif name == "vgg19":
            networks.append(load_vgg19(recipe.perceptual_file).requires_grad_(False))
            descriptions.append("VGG19 conv5_4 on images as unit")
        else:
            networks.append(squeezenet() if name == "squeezenet" else efficientnet())
            descriptions.append("SqueezeNet 1.1, bundled" if name == "squeezenet" else "EfficientNet-Lite0, bundled")
    return networks, " or ".join(descriptions) or "none"


def load_teacher(recipe: NetworkRecipe, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Loads the recipe's teacher, if any: lr (N, 3, in, in) in [-1, 1] -> (N, 3, out, out), without a gradient."""
    if not recipe.teacher:
        return None
    path = checkpoints.model_path(recipe.teacher)
    checkpoint, precision = checkpoints.read(path), recipe.run.precision
    teacher = FeedForwardModel(
        checkpoint.build(None, path), device=device, precision=precision, self_ensemble=checkpoint.about.self_ensemble
    )
    in_size, out_size = recipe.network.in_size, recipe.network.out_size
    if teacher.in_size not in (None, in_size) or teacher.scale * in_size != out_size:
        raise RequestError(f"{path}: the teacher must upscale {in_size} -> {out_size} as the recipe does, but its scale is {teacher.scale}")
    return lambda lr: teacher(lr).images.clone()  # losses cannot save tensors of inference mode


def start_from(source: str, model: SRNetwork, exclude: tuple[str, ...] = ()) -> list[str]:
    """Copies the layers of a trained network that fit into `model`, and returns the names of those that start untrained.

    A GLEAN starts from a GLEAN around a bank of the same architecture, of this scale or another, as wide or narrower, and keeps its own
    bank; an ESRGAN+ from an ESRGAN+ or, as officially, an ESRGAN; a residual network from a residual one. Layers whose names begin with
    one of `exclude` are left out.

    Raises:
        RequestError: the file holds no such network, no layer of it fits, or `exclude` names none of the model's.
    """
    path = checkpoints.model_path(source)
    trained = checkpoints.read(path).build(None, path)
    if isinstance(model, GLEAN):
        if not isinstance(trained, GLEAN) or trained.config.bank != model.config.bank:
            raise RequestError(f"{path}: start must be a GLEAN around a bank of the same architecture")
        source_tensors = {name: tensor for name, tensor in align_scales(model, trained).items() if not name.startswith("bank.")}
        source_tensors |= {f"bank.{name}": tensor for name, tensor in model.bank_state().items()}
        if trained.config.in_size == model.config.in_size:
            source_tensors |= widen(source_tensors, model.state_dict(), trained.config, model.config)
    else:
        if not isinstance(trained, ESRGANPlus | RRDBNet if isinstance(model, ESRGANPlus) else ResidualNet):
            expected = "an ESRGAN+ or an ESRGAN" if isinstance(model, ESRGANPlus) else "a residual network"
            raise RequestError(f"{path}: start must be {expected}, but it is {type(trained).__name__}")
        source_tensors = trained.state_dict()
    tensors = model.state_dict()
    for beginning in exclude:
        if not any(name.startswith(beginning) for name in tensors):
            raise RequestError(f"start_exclude: no layer's name begins with {beginning!r}; the first are {', '.join(list(tensors)[:5])}")
    untrained = [
        name
        for name, tensor in tensors.items()
        if name.startswith(exclude) or name not in source_tensors or source_tensors[name].shape != tensor.shape
    ]
    if not any(name.endswith("weight") for name in tensors.keys() - set(untrained)):
        raise RequestError(f"{path}: no layer of it fits the network of the recipe; leave out start")
    model.load_state_dict({name: tensor if name in untrained else source_tensors[name] for name, tensor in tensors.items()})
    return untrained


def align_scales(model: GLEAN, source: GLEAN) -> dict[str, Tensor]:
    """The tensors of `source` under the names of the layers of `model` that work at the same resolution."""
    shift = int(math.log2(model.config.in_size // 4)) - int(math.log2(source.config.in_size // 4))
    tensors = {}
    for name, tensor in source.state_dict().items():
        parts = name.split(".")
        # Blocks are numbered from the input's size: down from it in the encoder, up from it in the decoder.
        if name.startswith(("encoder.down.", "decoder.up.")):
            parts[2] = str(int(parts[2]) + (shift if name.startswith("encoder") else -shift))
        tensors[".".join(parts)] = tensor
    return tensors


def describe_model(recipe: NetworkRecipe | BankRecipe, images: int, **more: Any) -> native.About:
    """The metadata of a trained model: its recipe with file names instead of paths, the images seen, and `more`."""
    resolved = dataclasses.asdict(recipe)
    for key in ("train", "train_low", "validation"):
        resolved["data"].pop(key)
    for key in ("bank_file", "perceptual_file", "start", "teacher"):
        if resolved.get(key):
            resolved[key] = re.split(r"[\\/]", resolved[key])[-1]
    return native.About(**resolved["about"], training={"images": images, **more, "recipe": resolved})


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * model, for every parameter; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
