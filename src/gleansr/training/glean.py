"""Training of GLEAN around a frozen bank. One flat function in the order in which things happen."""

import collections
import copy
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gleansr.checkpoints import native
from gleansr.errors import CheckpointError, GleansrError
from gleansr.evaluation.metrics import psnr, ssim
from gleansr.models.features import SqueezeNet, feature_distance
from gleansr.models.glean import GLEAN
from gleansr.models.layers import placed
from gleansr.resize import degrade, resize
from gleansr.training import losses as L
from gleansr.training.config import GLEANRecipe
from gleansr.training.data import Batches, Share, load_pictures, open_pictures, warn_left_out
from gleansr.training.devices import Fabric
from gleansr.training.parts import glean_config, load_bank, perceptual, start_from
from gleansr.training.state import (
    Log,
    Meter,
    States,
    StoppedError,
    average,
    facts,
    make_folder,
    passed,
    save_grid,
    set_rate,
    stoppable,
)

Progress = Callable[[int, dict[str, Any]], None]


class Trainable(nn.Module):
    """What several processes keep equal: the layers of a GLEAN that learn. The frozen bank is none of its modules."""

    model: GLEAN

    def __init__(self, model: GLEAN):
        super().__init__()
        self.learning = nn.ParameterList(model.trainable_parameters())
        object.__setattr__(self, "model", model)  # past nn.Module, which would count the bank in

    def forward(self, low: Tensor) -> Tensor:
        """low (N, 3, in, in) in [-1, 1] -> (N, 3, out, out)."""
        return self.model(low)


def train_glean(recipe: GLEANRecipe, output: Path, fabric: Fabric, progress: Progress | None = None, resume: str = "auto") -> Path:
    """Trains a GLEAN and returns its file.

    `output` receives states/ (the run goes on from them, see `States.load` for `resume`), log.jsonl, samples/ (low | bicubic | GLEAN |
    truth) and the model. `progress(images, log line)` is called after each line of the log, in the first process.

    Raises:
        RequestError: the recipe, the bank and the pictures do not fit together.
        GleansrError: a loss was not finite, a file could not be written, or the bank has changed.
        StoppedError: SIGTERM or SIGINT came; the state was saved.
    """
    run, device, first = recipe.run, fabric.device, fabric.global_rank == 0
    pictures = open_pictures(recipe.data, recipe.network.out_size, recipe.network.in_size)
    held_back = None
    if recipe.data.validation:
        held_back = load_pictures(recipe.data.validation, recipe.network.out_size, recipe.data, recipe.data.n_validation)
    torch.manual_seed(run.seed)
    bank, discriminator = load_bank(recipe)
    model = GLEAN(glean_config(recipe, bank.config))
    if recipe.bank != "none":
        # The dead RGB path included, strictly: a bank that is not wholly there must never be trained on.
        model.bank.load_state_dict({name: t for name, t in bank.state_dict().items() if name != "mean_code"})
        model.bank.requires_grad_(False)
    new_layers = start_from(recipe.start, model) if recipe.start else []
    frozen = {name: tensor.clone() for name, tensor in model.bank.state_dict().items()}
    scale = recipe.network.out_size // recipe.network.in_size
    model = placed(model, device)
    averaged = copy.deepcopy(model).eval() if recipe.ema_half_life else model
    perceptual_network, perceptual_name = perceptual(recipe)
    perceptual_network = perceptual_network.to(device)
    judge = perceptual_network if isinstance(perceptual_network, SqueezeNet) else L.squeezenet().to(device)

    learner, optimizer = fabric.setup(
        compiled(Trainable(model), run.compile),
        torch.optim.Adam(model.trainable_parameters(), recipe.lr, recipe.betas),
        move_to_device=False,
    )
    if recipe.adversarial_weight:
        discriminator = placed(discriminator, device)
        # Equation (5) goes through `critic`, which shares gradients between processes; (3) through the bare network, which has none then.
        critic, d_optimizer = fabric.setup(
            compiled(discriminator, run.compile),
            torch.optim.Adam(discriminator.parameters(), recipe.lr, recipe.betas),
            move_to_device=False,
        )

    make_folder(output / "samples")
    states = States(output / "states", run.keep)
    images = 0
    figures: dict[str, Any] = {}
    resolved = dataclasses.asdict(recipe)
    if state := states.load(resolved, device, resume):
        images, figures = state["images"], state["figures"]
        model.load_state_dict(state["model"])
        if changed := changed_bank(model, frozen):
            raise CheckpointError(f"{states.folder}: the run has another bank than {recipe.bank_file} ({changed} differs)")
        averaged.load_state_dict(state["averaged"] or state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if recipe.adversarial_weight:
            discriminator.load_state_dict(state["discriminator"])
            d_optimizer.load_state_dict(state["d_optimizer"])
        del state  # as large as all networks and optimisers

    batches = Batches(
        pictures,
        in_size=recipe.network.in_size,
        start=images,
        end=run.images,
        batch_size=run.batch_size,
        seed=run.seed,
        device=device,
        share=Share(fabric.global_rank, fabric.world_size),
    )
    log = Log(output / "log.jsonl", images, tensorboard=run.tensorboard) if first else None
    if log:
        log.write(
            images,
            pictures=len(pictures),
            in_memory=pictures.held is not None,
            processes=fabric.world_size,
            device=str(device),
            perceptual_network=perceptual_name,
            new_layers=new_layers,
            parameters={"trainable": sum(p.numel() for p in model.trainable_parameters()), "bank": sum(t.numel() for t in frozen.values())},
        )

    meter = Meter(log, run.batch_size, fabric)
    fetched = time.perf_counter()
    with stoppable() as stop:
        for truth, low in batches:
            waited = time.perf_counter() - fetched
            rate = recipe.lr * schedule(images, run.images, recipe.warm_up)
            set_rate(optimizer, rate)
            adversarial = recipe.adversarial_weight > 0 and images >= recipe.adversarial_from

            # Equation (4).
            with fabric.autocast():
                result = learner(low)
                losses = {
                    "mse": L.equation1_mse(result, truth),
                    "perceptual": L.equation2_perceptual(perceptual_network, result, truth),
                }
                if adversarial:
                    discriminator.requires_grad_(False)
                    losses["adversarial"] = L.equation3_adversarial(discriminator(result), recipe.adversarial)
                loss = L.equation4_objective(
                    losses["mse"],
                    losses["perceptual"],
                    losses.get("adversarial"),
                    recipe.perceptual_weight,
                    recipe.adversarial_weight,
                )
                if recipe.lattice_weight:
                    losses["lattice"] = L.lattice_loss(result, truth, scale)
                    loss = loss + recipe.lattice_weight * losses["lattice"]
                if recipe.spectrum_weight:
                    losses["spectrum"] = L.spectrum_loss(result, truth)
                    loss = loss + recipe.spectrum_weight * losses["spectrum"]
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()

            # Equation (5), on the same results.
            if adversarial:
                discriminator.requires_grad_(True)
                set_rate(d_optimizer, rate)
                with fabric.autocast():
                    fake_logits, real_logits = critic(result.detach()), critic(truth)
                    losses["discriminator"] = L.equation5_discriminator(fake_logits, real_logits)
                losses["fake_logit"], losses["real_logit"] = fake_logits.mean(), real_logits.mean()
                d_optimizer.zero_grad()
                fabric.backward(losses["discriminator"])
                d_optimizer.step()

            images += run.batch_size
            if recipe.ema_half_life:
                half_life = min(recipe.ema_half_life, images * 0.05)
                average(averaged, model, 0.5 ** (run.batch_size / half_life))
            meter.add(images, losses, waited)

            end = images >= run.images
            stopping = meter.agreed(stop.name)
            if end or stopping or passed(images, run.batch_size, run.checkpoint_every):
                meter.check(states)
                if held_back is not None and not stopping:
                    sheet = output / "samples" / f"{images:09d}.png"
                    figures = validate(averaged, judge, held_back, sheet, run.batch_size, fabric)
                    if log:
                        log.picture("samples", sheet, images)
                if first:
                    state = {
                        "recipe": resolved,
                        "images": images,
                        "figures": figures,
                        "model": model.state_dict(),
                        "averaged": averaged.state_dict() if recipe.ema_half_life else None,
                        "optimizer": optimizer.state_dict(),
                        "discriminator": discriminator.state_dict() if recipe.adversarial_weight else None,
                        "d_optimizer": d_optimizer.state_dict() if recipe.adversarial_weight else None,
                    }
                    states.save(state, None if stopping else figures.get("feature_distance"))
                    del state
                fabric.barrier()
            if end or stopping or passed(images, run.batch_size, run.log_every):
                warn_left_out(batches.left_out)
                batches.left_out.clear()
                line = meter.write(images, states, rate=rate, **figures)
                if progress and line:
                    progress(images, line)
            if stopping and not end:
                raise StoppedError(stopping, states.last_good())
            fetched = time.perf_counter()

    finished = output / f"{recipe.about.name}.safetensors"
    if first:
        if changed := changed_bank(averaged, frozen):
            raise GleansrError(f"the bank has changed during training ({changed}); this is a defect, and the model was not saved")
        about = facts(recipe, images, figures=figures)
        native.save(finished, {"generator": averaged}, dataclasses.replace(about, content_height=recipe.network.content_height))
    fabric.barrier()
    return finished


def changed_bank(model: GLEAN, frozen: dict[str, Tensor]) -> str | None:
    """The name of the first tensor of the bank that is not, bit for bit, what it was; None if there is none."""
    return next((name for name, tensor in model.bank.state_dict().items() if not torch.equal(tensor.cpu(), frozen[name])), None)


@torch.no_grad()
def validate(model: GLEAN, network: SqueezeNet, truths: Tensor, sheet: Path, batch_size: int, fabric: Fabric) -> dict[str, float]:
    """PSNR and SSIM (RGB, mean over pictures, results clamped and not rounded) and SqueezeNet feature distance of `truths`, bytes
    (N, 3, H, W), for the model and for bicubic enlargement; each process takes its share. The first one saves eight pictures as rows of
    low | bicubic | GLEAN | truth."""
    config = model.config
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = collections.defaultdict(lambda: torch.zeros((), device=device))
    mine = truths[fabric.global_rank :: fabric.world_size]
    for start in range(0, len(mine), batch_size):
        truth = mine[start : start + batch_size].to(device).float() / 127.5 - 1
        low = degrade(truth, config.out_size // config.in_size)
        bicubic = resize(low, size=config.out_size).clamp(-1, 1)
        result = model(low.to(memory_format=torch.channels_last)).float().clamp(-1, 1)
        wanted = network(truth)
        for prefix, picture in (("", result), ("bicubic_", bicubic)):
            sums[f"{prefix}psnr"] += psnr(picture, truth, rounding="none").sum()
            sums[f"{prefix}ssim"] += ssim(picture, truth, rounding="none").sum()
            sums[f"{prefix}feature_distance"] += feature_distance(network(picture), wanted).sum()
        if start == 0 and fabric.global_rank == 0:
            nearest = nn.functional.interpolate(low, size=config.out_size)
            save_grid(
                sheet,
                [torch.cat(row) for row in zip(*(p[:8].split(1) for p in (nearest, bicubic, result, truth)), strict=True)],
            )
    names = [f"{prefix}{name}" for prefix in ("", "bicubic_") for name in ("psnr", "ssim", "feature_distance")]
    totals = fabric.all_reduce(torch.stack([sums[name] for name in names]), reduce_op="sum")
    return {name: round(float(total) / len(truths), 4) for name, total in zip(names, totals, strict=True)}


def compiled(network: nn.Module, wanted: bool) -> nn.Module:
    """`network`, compiled by torch.compile if wanted; its parameters stay the same objects."""
    return cast("nn.Module", torch.compile(network)) if wanted else network


def schedule(images: int, total: int, warm_up: int) -> float:
    """Cosine annealing from 1 to 0 over the run, behind a linear rise over the first `warm_up` pictures."""
    return min(1.0, (images + 1) / (warm_up + 1)) * 0.5 * (1 + math.cos(math.pi * min(1.0, images / total)))
