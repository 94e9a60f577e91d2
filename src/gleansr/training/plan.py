"""Plans of runs for `--dry-run`: parameters, memory and the order of a step."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from gleansr import checkpoints
from gleansr.checkpoints import zoo
from gleansr.checkpoints.native import bank_within
from gleansr.inference.runner import enlarge
from gleansr.models.encoder import LatentEncoder
from gleansr.models.features import VGG16, VGG19, EfficientNetLite0, PerceptualNetwork, SqueezeNet
from gleansr.models.glean import GLEAN
from gleansr.models.network import SRNetwork, to_range
from gleansr.models.stylegan import StyleGANConfig
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator, stylegan2_channels
from gleansr.training import losses as L
from gleansr.training.config import BankRecipe, NetworkRecipe
from gleansr.training.networks import GLEANNetworkConfig
from gleansr.training.parts import (
    BankConfig,
    Discriminator,
    check_bank,
    glean_config,
    new_discriminator,
)

MIB = 2**20
PERCEPTUAL = {"vgg16": VGG16, "vgg19": VGG19, "squeezenet": SqueezeNet, "efficientnet": EfficientNetLite0}


def network_plan(recipe: NetworkRecipe, devices: int | None = None) -> dict[str, Any]:
    """The resolved recipe, its parameters, an estimate of the memory per device in MiB, and the order of a step.

    Without the file of GLEAN's bank, the published architecture of the recipe's kind and size is assumed.
    """
    run = recipe.run
    share = run.batch_size // (devices or run.devices)
    d_config, bank_facts = recipe.discriminator, {}
    with torch.device("meta"):
        if isinstance(recipe.network, GLEANNetworkConfig):
            bank, bank_d_config = _bank_configs(recipe, recipe.network)
            d_config = d_config or bank_d_config or StyleGAN2Config(bank.channels)
            bank_facts = {
                "bank": dataclasses.asdict(bank) | {"file": recipe.bank_file or "none given: the published architecture is assumed"}
            }
            model = GLEAN(glean_config(recipe.network, recipe.bank, bank))
        else:
            model = recipe.network.build()
        perceptual = [PERCEPTUAL[name]() for name in recipe.perceptual_networks]
        discriminator = new_discriminator(d_config) if d_config and recipe.adversarial_weight else None
    for part in (model, *perceptual, discriminator):
        if part:
            part.to("meta")  # constants are created on the CPU
    trainable = sum(p.numel() for p in model.trainable_parameters())
    parameters = {
        "trainable": trainable,
        "bank and other frozen": _count(model) - trainable,
        "discriminator": _count(discriminator),
        "perceptual networks": sum(map(_count, perceptual)),
    }
    # Adam stores a weight, a gradient and two moments of each trained parameter.
    trained = parameters["trainable"] + parameters["discriminator"]
    frozen = parameters["bank and other frozen"] + parameters["perceptual networks"]
    copies = trainable if recipe.ema_half_life else 0
    # Each iteration takes one of the perceptual networks.
    activations = max(_activations(model, network, discriminator, recipe, share) for network in perceptual or [None])
    memory = {
        "weights, gradients and optimiser": round((16 * trained + 4 * (frozen + copies)) / MIB),
        "activations": round(activations / MIB),
    }
    return {
        "recipe": dataclasses.asdict(recipe),
        "images": run.images,
        "batch per device": share,
        **bank_facts,
        "parameters": parameters,
        "memory per device, MiB (estimate)": memory | {"sum": sum(memory.values())},
        "step": _steps(recipe),
    }


def bank_plan(recipe: BankRecipe) -> dict[str, Any]:
    """The resolved recipe, its parameters and the memory of weights and optimisers in MiB."""
    with torch.device("meta"):
        generator = _count(StyleGAN2(recipe.network))
        discriminator = _count(StyleGAN2Discriminator(recipe.network)) if recipe.discriminator == "stylegan2" else 0
        encoder = _count(LatentEncoder(recipe.network)) if recipe.reconstruction_weight else 0
    return {
        "recipe": dataclasses.asdict(recipe),
        "images": recipe.run.images,
        "parameters": {"generator": generator, "discriminator": discriminator, "encoder": encoder},
        "memory, MiB": {"weights, gradients and optimiser": round((20 * generator + 16 * (discriminator + encoder)) / MIB)},
        "step": [
            "read real images, mirror half of them",
            "discriminator: logistic loss on generated and real images"
            + "; Adam"
            + (
                f"; every {recipe.r1_every} steps a second step, for R1"
                if recipe.discriminator == "stylegan2" and recipe.r1_gamma != 0
                else ""
            ),
            ("generator and encoder: reconstruction, " if encoder else "generator: ")
            + "non-saturating logistic loss"
            + "; Adam"
            + (f"; every {recipe.path_length_every} steps a second step, for the path length" if recipe.path_length_weight else ""),
            *(["mapping network: distribution of the encoder's latents; Adam"] if encoder else []),
            f"average the generator, half-life {recipe.ema_half_life:g} images",
        ],
    }


def _bank_configs(recipe: NetworkRecipe, network: GLEANNetworkConfig) -> tuple[BankConfig, BankConfig | None]:
    """The architectures of the bank and of its file's discriminator, if any; published files have both."""
    named = {model.name: model for model in zoo.named_models()}
    if recipe.bank_file and (recipe.bank_file not in named or zoo.installed(named[recipe.bank_file])):
        path = checkpoints.model_path(recipe.bank_file)
        checkpoint = bank_within(checkpoints.read(path), path)
        discriminator = checkpoint.networks.get("discriminator")
        return check_bank(recipe, checkpoint, path), discriminator and discriminator.config
    size = network.out_size
    bank = (
        StyleGANConfig(stylegan2_channels(size, multiplier=1)) if recipe.bank == "stylegan" else StyleGAN2Config(stylegan2_channels(size))
    )
    return bank, bank


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _count(module: nn.Module | None) -> int:
    return sum(t.numel() for t in module.state_dict().values()) if module else 0


def _activations(
    model: SRNetwork,
    perceptual: PerceptualNetwork | None,
    discriminator: Discriminator | None,
    recipe: NetworkRecipe,
    batch_size: int,
) -> float:
    """Bytes that the generator's step saves for its backward pass, measured on tensors without storage.

    With bfloat16 half of that, a slight underestimate.
    """
    saved: dict[int, int] = {}
    constant = {t.untyped_storage()._cdata for part in (model, perceptual, discriminator) if part for t in _tensors(part)}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in constant:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    sizes = recipe.network
    size = recipe.data.patch or sizes.out_size
    lr = torch.empty(batch_size, 3, *2 * [size * sizes.in_size // sizes.out_size], device="meta")
    gt = torch.empty(batch_size, 3, size, size, device="meta")
    for part in (perceptual, discriminator):
        if part:
            part.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        sr = enlarge(model, lr)
        losses = [L.equation1_mse(sr, gt)]
        if perceptual:
            losses.append(L.equation2_perceptual(perceptual, sr, gt))
        if discriminator:
            losses.append(discriminator(to_range(sr, discriminator.input_range)).mean())
        loss = torch.stack(losses).sum()
        total = sum(saved.values())
        del loss
    return total * (0.5 if recipe.run.precision == "bfloat16" else 1)


def _steps(recipe: NetworkRecipe) -> list[str]:
    """The order of a step."""
    data = recipe.data
    changes = (", mirror half of them" if data.flip else "") + (", rotate them by quarter turns" if data.rotate else "")
    steps = [
        f"read {recipe.run.batch_size} images{changes}, "
        + ("prepared low-resolution images" if data.train_low else f"low-resolution images ({data.degradation})")
        + (f", cropped to {data.patch}x{data.patch} px at random" if data.patch else ""),
        *([f"{recipe.teacher} upscales them: {recipe.teacher_share:.0%} of (1) and (2) is against its results"] if recipe.teacher else []),
        f"generator forward; equation (4) = {_objective(recipe)}; discriminator frozen; Adam",
    ]
    if recipe.adversarial_weight:
        name = "its relativistic form" if recipe.adversarial == "relativistic" else "equation (5)"
        steps.append(f"discriminator: {name} on the same results and the ground truth; Adam")
    if recipe.ema_half_life:
        steps.append(f"average the weights, half-life {recipe.ema_half_life:g} images")
    steps.append(f"every {recipe.run.checkpoint_every} images: validate, save a checkpoint and the model so far")
    steps.append(f"every {recipe.run.log_every} images: a line of the log")
    compare = "compare the bank bit for bit with its file, " if isinstance(recipe.network, GLEANNetworkConfig) else ""
    steps.append(f"at the end: {compare}write the model")
    return steps


def _objective(recipe: NetworkRecipe) -> str:
    """Equation (4) with the weights of the recipe."""
    begins = f" after {recipe.adversarial_from} images" if recipe.adversarial_from else ""
    some = f" (of {recipe.spectrum_images} of a batch)" if recipe.spectrum_images else ""
    features = " or ".join(recipe.perceptual_networks) + (" of random views" if recipe.perceptual_views else "")
    terms = [
        (recipe.pixel_weight, "(1)" if recipe.pixel == "mse" else "L1 error"),
        (recipe.perceptual_weight, f"(2) on {features}"),
        (recipe.adversarial_weight, f"(3){begins}, {recipe.adversarial}"),
        (recipe.lattice_weight, "lattice loss"),
        (recipe.checkerboard_weight, "checkerboard loss"),
        (recipe.spectrum_weight, "spectrum loss" + some),
    ]
    return " + ".join(loss if weight == 1 else f"{weight:g} * {loss}" for weight, loss in terms if weight)
