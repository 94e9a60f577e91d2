"""What a recipe would do, without doing it: parameters, memory and the order of a step (`--dry-run`)."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from gleansr import checkpoints
from gleansr.checkpoints import zoo
from gleansr.models.features import VGG16, SqueezeNet
from gleansr.models.glean import GLEAN
from gleansr.models.stylegan import StyleGANConfig, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator, stylegan2_channels
from gleansr.training import losses as L
from gleansr.training.config import BankRecipe, GLEANRecipe
from gleansr.training.parts import BankConfig, bank_within, check_bank, glean_config

MIB = 2**20


def glean_plan(recipe: GLEANRecipe, devices: int | None = None) -> dict[str, Any]:
    """The resolved recipe, its parameters, an estimate of the memory per device in MiB, and what happens in a step.

    Where the bank's file is not here the published architecture of the recipe's kind and size is assumed.
    """
    run = recipe.run
    share = run.batch_size // (devices or run.devices)
    bank, own = _published_or_given(recipe)
    with torch.device("meta"):
        model = GLEAN(glean_config(recipe, bank))
        network = VGG16() if recipe.perceptual == "vgg16" else SqueezeNet()
        discriminator = None
        if recipe.adversarial_weight:
            config = recipe.discriminator or own or StyleGAN2Config(bank.channels)
            discriminator = StyleGANDiscriminator(config) if isinstance(config, StyleGANConfig) else StyleGAN2Discriminator(config)
    for part in (model, network, discriminator):
        if part:
            part.to("meta")  # constants are always made on the CPU
    learning = sum(p.numel() for p in model.trainable_parameters())
    parameters = {
        "trainable": learning,
        "bank and other frozen": _count(model) - learning,
        "discriminator": _count(discriminator),
        "perceptual network": _count(network),
    }
    # Adam keeps a weight, a gradient and two moments of each parameter that learns.
    learnt = parameters["trainable"] + parameters["discriminator"]
    fixed = parameters["bank and other frozen"] + parameters["perceptual network"]
    copies = learning if recipe.ema_half_life else 0
    activations = _activations(model, network, discriminator, recipe, share)
    memory = {
        "weights, gradients and optimiser": round((16 * learnt + 4 * (fixed + copies)) / MIB),
        "activations": round(activations / MIB),
    }
    return {
        "recipe": dataclasses.asdict(recipe),
        "images": run.images,
        "batch per device": share,
        "bank": dataclasses.asdict(bank) | {"file": recipe.bank_file or "none given: the published architecture is assumed"},
        "parameters": parameters,
        "memory per device, MiB (estimate)": memory | {"sum": sum(memory.values())},
        "step": _steps(recipe),
    }


def bank_plan(recipe: BankRecipe) -> dict[str, Any]:
    """The resolved recipe, its parameters and the memory of weights and optimisers in MiB."""
    with torch.device("meta"):
        generator = _count(StyleGAN2(recipe.network))
        discriminator = _count(StyleGAN2Discriminator(recipe.network)) if recipe.discriminator == "stylegan2" else 0
    return {
        "recipe": dataclasses.asdict(recipe),
        "images": recipe.run.images,
        "parameters": {"generator": generator, "discriminator": discriminator},
        "memory, MiB": {"weights, gradients and optimiser": round((20 * generator + 16 * discriminator) / MIB)},
        "step": [
            "read real pictures, mirror half of them",
            "discriminator: logistic loss on generated and real pictures"
            + (f", R1 every {recipe.r1_every} steps" if recipe.discriminator == "stylegan2" else "")
            + "; Adam",
            "generator: non-saturating logistic loss"
            + (f", path length penalty every {recipe.path_length_every} steps" if recipe.path_length_weight else "")
            + "; Adam",
            f"average the generator, half-life {recipe.ema_half_life:g} pictures",
        ],
    }


def _published_or_given(recipe: GLEANRecipe) -> tuple[BankConfig, BankConfig | None]:
    """The architectures of the bank and of the discriminator in its file, if there is one; published files have both."""
    named = {model.name: model for model in zoo.named_models()}
    if recipe.bank_file and (recipe.bank_file not in named or zoo.installed(named[recipe.bank_file])):
        path = checkpoints.model_path(recipe.bank_file)
        checkpoint = bank_within(checkpoints.read(path))
        own = checkpoint.networks.get("discriminator")
        return check_bank(recipe, checkpoint, path), own and own.config
    size = recipe.network.out_size
    v1 = recipe.bank == "stylegan"
    bank = StyleGANConfig(stylegan2_channels(size, multiplier=1)) if v1 else StyleGAN2Config(stylegan2_channels(size))
    return bank, bank


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _count(module: nn.Module | None) -> int:
    return sum(t.numel() for t in module.state_dict().values()) if module else 0


def _activations(model: GLEAN, network: SqueezeNet | VGG16, discriminator: nn.Module | None, recipe: GLEANRecipe, batch_size: int) -> float:
    """Bytes that the generator's step keeps for its backward pass: the step is run on tensors without contents, and counted.

    Half of them with bfloat16, which is a little less than the truth.
    """
    seen: dict[int, int] = {}
    constant = {t.untyped_storage()._cdata for part in (model, network, discriminator) if part for t in _tensors(part)}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in constant:
            seen[storage._cdata] = storage.nbytes()
        return tensor

    size = recipe.network
    low = torch.empty(batch_size, 3, size.in_size, size.in_size, device="meta")
    truth = torch.empty(batch_size, 3, size.out_size, size.out_size, device="meta")
    for part in (network, discriminator):
        if part:
            part.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(low)
        losses = [L.equation1_mse(result, truth), L.equation2_perceptual(network, result, truth)]
        if discriminator:
            losses.append(discriminator(result).mean())
        loss = torch.stack(losses).sum()
        kept = sum(seen.values())
        del loss
    return kept * (0.5 if recipe.run.precision == "bfloat16" else 1)


def _steps(recipe: GLEANRecipe) -> list[str]:
    """What happens in a step, in order."""
    low = "prepared low-resolution pictures" if recipe.data.train_low else f"low-resolution pictures ({recipe.data.degradation})"
    objective = f"(1) + {recipe.perceptual_weight:g} * (2)"
    if recipe.adversarial_weight:
        begins = f" after {recipe.adversarial_from} pictures" if recipe.adversarial_from else ""
        objective += f" + {recipe.adversarial_weight:g} * (3){begins}, {recipe.adversarial}"
    for name in ("lattice", "spectrum"):
        if weight := getattr(recipe, f"{name}_weight"):
            objective += f" + {weight:g} * {name} loss"
    steps = [
        f"read {recipe.run.batch_size} pictures{', mirror half of them' if recipe.data.flip else ''}, {low}",
        f"generator forward; equation (4) = {objective}; discriminator frozen; Adam",
    ]
    if recipe.adversarial_weight:
        steps.append("discriminator: equation (5) on the same results and the truths; Adam")
    if recipe.ema_half_life:
        steps.append(f"average the weights, half-life {recipe.ema_half_life:g} pictures")
    steps.append(
        f"every {recipe.run.checkpoint_every} pictures: validate and save the state; every {recipe.run.log_every}: a line of the log"
    )
    steps.append("at the end: compare the bank bit for bit with its file, write the model")
    return steps
