"""Training of GLEAN around a frozen bank. One flat function in the order in which things happen."""

import collections
import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gleansr import checkpoints
from gleansr.checkpoints import native
from gleansr.errors import CheckpointError, GleansrError, RequestError
from gleansr.models.features import SqueezeNet, feature_distance
from gleansr.models.glean import GLEAN, GLEANConfig
from gleansr.models.layers import placed
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Discriminator
from gleansr.resize import degrade, resize
from gleansr.training.config import GLEANRecipe
from gleansr.training.data import load_pictures, training_batch
from gleansr.training.losses import discriminator_loss, generator_loss, lattice_loss, mse_loss, perceptual_loss, spectrum_loss, squeezenet
from gleansr.training.state import Log, average, facts, load_state, make_folder, passed, save_grid, save_state, step

Progress = Callable[[int, dict[str, Any]], None]


def train_glean(recipe: GLEANRecipe, output: Path, device: torch.device, progress: Progress | None = None) -> Path:
    """Trains a GLEAN and returns its file.

    `output` receives state.pt (the run goes on from it), log.jsonl, samples/ (low | bicubic | GLEAN | truth) and the model.
    `progress(images, log line)` is called after each line of the log.
    """
    run = recipe.run
    torch.manual_seed(run.seed)
    bank, discriminator = _bank(recipe)
    config = GLEANConfig(bank=bank.config, **dataclasses.asdict(recipe.network))
    scale = config.out_size // config.in_size
    model = GLEAN(config)
    # The dead RGB path included, strictly: a bank that is not wholly there must never be trained on.
    model.bank.load_state_dict({name: t for name, t in bank.state_dict().items() if name != "mean_code"})
    model.fusion_skip.requires_grad_(False)
    frozen = {name: tensor.clone() for name, tensor in model.bank.state_dict().items()}
    model = placed(model, device)
    averaged = copy.deepcopy(model).eval() if recipe.ema_half_life else model
    network = squeezenet().to(device)
    optimizer = torch.optim.Adam(model.trainable_parameters(), recipe.lr, recipe.betas)
    if recipe.adversarial_weight:
        discriminator = placed(discriminator, device)
        d_optimizer = torch.optim.Adam(discriminator.parameters(), recipe.lr, recipe.betas)

    pictures = load_pictures(recipe.data.train, config.out_size)
    if device.type == "cuda":
        pictures = pictures.to(device)
    held_back = None
    if recipe.data.validation:
        held_back = load_pictures(recipe.data.validation, config.out_size, recipe.data.n_validation)

    make_folder(output / "samples")
    images = 0
    resolved = dataclasses.asdict(recipe)
    if state := load_state(output / "state.pt", resolved, device):
        images = state["images"]
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        if recipe.adversarial_weight:
            discriminator.load_state_dict(state["discriminator"])
            d_optimizer.load_state_dict(state["d_optimizer"])

    log = Log(output / "log.jsonl", images)
    figures: dict[str, Any] = {}
    while images < run.images:
        torch.manual_seed(run.seed * 1_000_003 + images)
        adversarial = recipe.adversarial_weight > 0 and images >= recipe.adversarial_from
        rate = recipe.lr * schedule(images, run.images, recipe.warm_up)
        truth = training_batch(pictures, images, run.batch_size, run.seed, flip=recipe.data.flip, device=device)
        truth = truth.to(memory_format=torch.channels_last)
        low = degrade(truth, scale)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16")

        # Equation (4).
        with autocast:
            result = model(low)
            mse = mse_loss(result, truth)
            perceptual = perceptual_loss(network, result, truth)
            loss = mse + recipe.perceptual_weight * perceptual
            losses = {"mse": mse, "perceptual": perceptual}
            if recipe.lattice_weight:
                losses["lattice"] = lattice_loss(result, truth, scale)
                loss = loss + recipe.lattice_weight * losses["lattice"]
            if recipe.spectrum_weight:
                losses["spectrum"] = spectrum_loss(result, truth)
                loss = loss + recipe.spectrum_weight * losses["spectrum"]
            if adversarial:
                discriminator.requires_grad_(False)
                losses["adversarial"] = generator_loss(discriminator(result), recipe.adversarial)
                loss = loss + recipe.adversarial_weight * losses["adversarial"]
        step(optimizer, loss, rate)

        # Equation (5), on the same results.
        if adversarial:
            discriminator.requires_grad_(True)
            with autocast:
                fake_logits, real_logits = discriminator(result.detach()), discriminator(truth)
                losses["discriminator"] = discriminator_loss(fake_logits, real_logits)
            losses["fake_logit"], losses["real_logit"] = fake_logits.mean(), real_logits.mean()
            step(d_optimizer, losses["discriminator"], rate)

        images += run.batch_size
        if recipe.ema_half_life:
            half_life = min(recipe.ema_half_life, images * 0.05)
            average(averaged, model, 0.5 ** (run.batch_size / half_life))
        log.add(losses)
        end = images >= run.images
        if end or passed(images, run.batch_size, run.checkpoint_every):
            log.check(images)
            if held_back is not None:
                figures = validate(averaged, network, held_back, output / "samples" / f"{images:09d}.png", run.batch_size)
            save_state(
                output / "state.pt",
                {
                    "recipe": resolved,
                    "images": images,
                    "model": model.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "discriminator": discriminator.state_dict() if recipe.adversarial_weight else None,
                    "d_optimizer": d_optimizer.state_dict() if recipe.adversarial_weight else None,
                },
            )
        if end or passed(images, run.batch_size, run.log_every):
            line = log.write(images, rate=rate, **figures)
            if progress:
                progress(images, line)

    for name, tensor in averaged.bank.state_dict().items():
        if not torch.equal(tensor.cpu(), frozen[name]):
            raise GleansrError(f"the bank has changed during training ({name}); this is a defect, and the model was not saved")
    finished = output / f"{recipe.about.name}.safetensors"
    native.save(finished, {"generator": averaged}, facts(recipe, images, figures=figures))
    return finished


@torch.no_grad()
def validate(model: GLEAN, network: SqueezeNet, truths: Tensor, sheet: Path, batch_size: int) -> dict[str, float]:
    """PSNR (RGB, mean over pictures, results clamped and not rounded) and SqueezeNet feature distance of `truths`, bytes (N, 3, H, W),
    for the model and for bicubic enlargement. Saves the first eight as rows of low | bicubic | GLEAN | truth."""
    config = model.config
    device = next(model.parameters()).device
    sums: dict[str, float] = collections.defaultdict(float)
    for start in range(0, len(truths), batch_size):
        truth = truths[start : start + batch_size].to(device).float() / 127.5 - 1
        low = degrade(truth, config.out_size // config.in_size)
        bicubic = resize(low, size=config.out_size).clamp(-1, 1)
        result = model(low.to(memory_format=torch.channels_last)).float().clamp(-1, 1)
        wanted = network(truth)
        for prefix, picture in (("", result), ("bicubic_", bicubic)):
            error = (picture - truth).square().mean((1, 2, 3))
            sums[f"{prefix}psnr"] += float((10 * torch.log10(4 / error)).sum())
            sums[f"{prefix}feature_distance"] += float(feature_distance(network(picture), wanted).sum())
        if start == 0:
            nearest = nn.functional.interpolate(low, size=config.out_size)
            save_grid(
                sheet,
                [torch.cat(row) for row in zip(*(p[:8].split(1) for p in (nearest, bicubic, result, truth)), strict=True)],
            )
    return {name: round(total / len(truths), 4) for name, total in sums.items()}


def schedule(images: int, total: int, warm_up: int) -> float:
    """Cosine annealing from 1 to 0 over the run, behind a linear rise over the first `warm_up` pictures."""
    return min(1.0, (images + 1) / (warm_up + 1)) * 0.5 * (1 + math.cos(math.pi * min(1.0, images / total)))


def _bank(recipe: GLEANRecipe) -> tuple[StyleGAN2, StyleGAN2Discriminator]:
    """The bank and the discriminator of the recipe."""
    if not recipe.bank:
        raise RequestError("GLEAN is trained around a bank: give one with --bank")
    checkpoint = checkpoints.read(recipe.bank)
    bank = checkpoint.build("generator", recipe.bank)
    if not isinstance(bank, StyleGAN2):
        raise CheckpointError(f"{recipe.bank}: holds a {type(bank).__name__}, but a StyleGAN2 is wanted as bank")
    if recipe.discriminator is None and "discriminator" in checkpoint.networks:
        discriminator = checkpoint.build("discriminator", recipe.bank)
    else:
        discriminator = StyleGAN2Discriminator(recipe.discriminator or bank.config)
    if not isinstance(discriminator, StyleGAN2Discriminator) or discriminator.config.size != bank.config.size:
        raise RequestError(f"the discriminator must be a StyleGAN2's of {bank.config.size} px, as the bank is")
    return bank, discriminator
