"""Training of a network that enlarges: GLEAN around a frozen bank, or a baseline. One flat function in the order in which things happen."""

import collections
import copy
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gleansr import checkpoints
from gleansr.checkpoints import native
from gleansr.checkpoints.bundled import squeezenet
from gleansr.errors import CheckpointError, GleansrError
from gleansr.evaluation.metrics import psnr, ssim
from gleansr.images.resize import resize
from gleansr.inference.runner import enlarge
from gleansr.models.features import SqueezeNet, feature_distance
from gleansr.models.layers import placed
from gleansr.signals import stoppable
from gleansr.training import losses as L
from gleansr.training.config import NetworkRecipe
from gleansr.training.data import HeldOut, Share, TrainingBatches, in_range, load_held_out, open_images, warn_left_out
from gleansr.training.devices import Fabric
from gleansr.training.networks import GLEANNetworkConfig
from gleansr.training.parts import TrainableNetwork, bank_of, build, learning, load_teacher, perceptual, shown_to, start_from
from gleansr.training.resume import compare_inputs, inputs_of
from gleansr.training.state import (
    Log,
    Meter,
    States,
    TrainingStoppedError,
    average,
    facts,
    make_folder,
    passed,
    restoring,
    save_grid,
    set_rate,
)
from gleansr.training.streams import stream_seed

TrainingProgress = Callable[[int, dict[str, Any]], None]

logger = logging.getLogger(__name__)


class Trainable(nn.Module):
    """What several processes keep equal: the layers of a network that learn. A frozen bank is none of its modules."""

    model: TrainableNetwork

    def __init__(self, model: TrainableNetwork):
        super().__init__()
        self.learning = nn.ParameterList(learning(model))
        object.__setattr__(self, "model", model)  # past nn.Module, which would count the bank in

    def forward(self, lr: Tensor) -> Tensor:
        """low (N, 3, in, in) in [-1, 1] -> (N, 3, out, out)."""
        return enlarge(self.model, lr)


def train_network(
    recipe: NetworkRecipe, output: Path, fabric: Fabric, progress: TrainingProgress | None = None, resume: str = "auto"
) -> Path:
    """Trains the network of a recipe and returns its file.

    `output` receives states/ (the run resumes from them, see `States.load` for `resume`), log.jsonl, samples/ (low | bicubic | result |
    truth) and the model. `progress(images, log line)` is called after each line of the log, in the first process.

    Raises:
        RequestError: the recipe, the bank and the images do not fit together.
        GleansrError: a loss was not finite, a file could not be written, or the bank has changed.
        StoppedError: SIGTERM or SIGINT came; the state was saved.
    """
    run, device, first = recipe.run, fabric.device, fabric.global_rank == 0
    in_size, out_size = recipe.network.in_size, recipe.network.out_size
    scale = out_size // in_size
    states, resolved = States(output / "states", run.keep, "model"), dataclasses.asdict(recipe)
    state = states.load(resolved, device, resume)
    content_height = recipe.network.content_height if isinstance(recipe.network, GLEANNetworkConfig) else None
    dataset = open_images(recipe.data, out_size, in_size, content_height)
    held_out = load_held_out(recipe.data, out_size, in_size, content_height) if recipe.data.validation else None
    torch.manual_seed(stream_seed(run.seed, "weights"))
    model, discriminator = build(recipe)
    new_layers = start_from(recipe.start, model) if recipe.start and not state else []
    frozen = {name: tensor.clone() for name, tensor in bank_of(model).items()}
    model = placed(model, device)
    averaged = copy.deepcopy(model) if recipe.ema_half_life else model
    perceptual_network, perceptual_name = perceptual(recipe)
    if perceptual_network is not None:
        perceptual_network = perceptual_network.to(device)
    teacher = load_teacher(recipe, device)
    teacher_file = checkpoints.model_path(recipe.teacher) if recipe.teacher else None
    inputs = inputs_of(dataset, teacher=teacher_file, perceptual_file=recipe.perceptual_file)
    if state:
        compare_inputs(states.last or output, state.get("inputs", {}), inputs, resolved)
    judge = perceptual_network if isinstance(perceptual_network, SqueezeNet) else squeezenet().to(device)

    learner, optimizer = fabric.setup(
        compiled(Trainable(model), run.compile),
        torch.optim.Adam(learning(model), recipe.lr, recipe.betas),
        move_to_device=False,
    )
    if discriminator is not None:
        discriminator = placed(discriminator, device)
        # Equation (5) goes through `critic`, which shares gradients between processes; (3) through the bare network, which has none then.
        critic, d_optimizer = fabric.setup(
            compiled(discriminator, run.compile),
            torch.optim.Adam(discriminator.parameters(), recipe.lr, recipe.betas),
            move_to_device=False,
        )

    make_folder(output / "samples")
    images = 0
    figures: dict[str, Any] = {}
    if state:
        with restoring(states.last):
            images, figures = state["images"], dict(state["figures"])
            model.load_state_dict(state["model"])
            averaged.load_state_dict(state["averaged"] or state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if discriminator is not None:
                discriminator.load_state_dict(state["discriminator"])
                d_optimizer.load_state_dict(state["d_optimizer"])
        if changed := changed_bank(model, frozen):
            raise CheckpointError(f"{states.last}: the run has another bank than {recipe.bank_file} ({changed} differs)")
        state.clear()  # as large as all networks and optimisers

    batches = TrainingBatches(
        dataset,
        in_size=in_size,
        start=images,
        end=run.images,
        batch_size=run.batch_size,
        seed=run.seed,
        device=device,
        share=Share(fabric.global_rank, fabric.world_size),
    )
    log = Log(output / "log.jsonl", images, tensorboard=run.tensorboard) if first else None
    if log:
        if "run.iterations" in states.changed and recipe.schedule == "cosine":
            was, now = states.changed["run.iterations"]
            logger.warning("run.iterations was %s and is %s: from here on the learning rate falls to 0 there", f"{was:,}", f"{now:,}")
        log.write(
            images,
            dataset=len(dataset),
            in_memory=dataset.in_memory,
            processes=fabric.world_size,
            device=str(device),
            perceptual_network=perceptual_name,
            new_layers=new_layers,
            parameters={"trainable": sum(p.numel() for p in learning(model)), "bank": sum(t.numel() for t in frozen.values())},
            **states.resumed(images),
        )

    meter = Meter(log, run.batch_size, fabric)
    halve_at = [iteration * run.batch_size for iteration in recipe.halve_at]
    relativistic = recipe.adversarial == "relativistic"
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16")
    fetched = time.perf_counter()
    with stoppable() as stop:
        for gt, lr in batches:
            waited = time.perf_counter() - fetched
            # Noise within the network, if any, follows from the seed and the images seen, too, and differs between processes.
            torch.manual_seed(stream_seed(run.seed, "step", images, fabric.global_rank))
            rate = recipe.lr * schedule(images, run.images, recipe.warm_up, halve_at)
            set_rate(optimizer, rate)
            judged = images >= recipe.adversarial_from

            # Equation (4).
            taught = teacher(lr) if teacher else None
            with autocast:
                result = learner(lr)
                pixel = functools.partial(L.l1_error if recipe.pixel == "l1" else L.equation1_mse, result)
                losses = {recipe.pixel: L.between(pixel, gt, taught, recipe.teacher_share)}
                if perceptual_network is not None:
                    equation2 = functools.partial(L.equation2_perceptual, perceptual_network, result)
                    losses["perceptual"] = L.between(equation2, gt, taught, recipe.teacher_share)
                if discriminator is not None and judged:
                    discriminator.requires_grad_(False)
                    fake_logits = discriminator(shown_to(discriminator, result))
                    if relativistic:
                        with torch.no_grad():
                            real_logits = discriminator(shown_to(discriminator, gt))
                        losses["adversarial"] = L.relativistic_adversarial(fake_logits, real_logits)
                    else:
                        losses["adversarial"] = L.equation3_adversarial(fake_logits, recipe.adversarial)
                loss = L.equation4_objective(
                    recipe.pixel_weight * losses[recipe.pixel],
                    losses.get("perceptual"),
                    losses.get("adversarial"),
                    recipe.perceptual_weight,
                    recipe.adversarial_weight,
                )
                if recipe.lattice_weight:
                    losses["lattice"] = L.lattice_loss(result, gt, scale)
                    loss = loss + recipe.lattice_weight * losses["lattice"]
                if recipe.spectrum_weight:
                    of = recipe.spectrum_images
                    losses["spectrum"] = L.spectrum_loss(result[:of], gt[:of])
                    loss = loss + recipe.spectrum_weight * losses["spectrum"]
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()

            # Equation (5), on the same results.
            if discriminator is not None and judged:
                discriminator.requires_grad_(True)
                set_rate(d_optimizer, rate)
                with autocast:
                    fake_logits = critic(shown_to(discriminator, result.detach()))
                    real_logits = critic(shown_to(discriminator, gt))
                    equation5 = L.relativistic_discriminator if relativistic else L.equation5_discriminator
                    losses["discriminator"] = equation5(fake_logits, real_logits)
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
                if held_out is not None and not stopping:
                    sheet = output / "samples" / f"{images:09d}.png"
                    figures = validate(averaged.eval(), judge, held_out, sheet, run.batch_size, fabric)
                    model.train()
                    if log:
                        log.add_image("samples", sheet, images)
                if first:
                    state = {
                        "recipe": resolved,
                        "images": images,
                        "inputs": inputs,
                        "figures": figures,
                        "model": model.state_dict(),
                        "averaged": averaged.state_dict() if recipe.ema_half_life else None,
                        "optimizer": optimizer.state_dict(),
                        "discriminator": None if discriminator is None else discriminator.state_dict(),
                        "d_optimizer": None if discriminator is None else d_optimizer.state_dict(),
                    }
                    states.save(state, None if stopping else figures.get("feature_distance"))
                    del state
                states.last = states.path(images)
                fabric.barrier()
            if end or stopping or passed(images, run.batch_size, run.log_every):
                warn_left_out(batches.left_out)
                batches.left_out.clear()
                line = meter.write(images, states, rate=rate, **figures)
                if progress and line:
                    progress(images, line)
            if stopping and not end:
                raise TrainingStoppedError(stopping, states.last_good())
            fetched = time.perf_counter()

    finished = output / f"{recipe.about.name}.safetensors"
    if first:
        if changed := changed_bank(averaged, frozen):
            raise GleansrError(f"the bank has changed during training ({changed}); this is a defect, and the model was not saved")
        about = facts(recipe, images, figures=figures)
        if isinstance(recipe.network, GLEANNetworkConfig):
            border = recipe.data.border if content_height else None
            about = dataclasses.replace(about, content_height=content_height, border=border)
        native.save(finished, {"generator": averaged}, about)
    fabric.barrier()
    return finished


def changed_bank(model: TrainableNetwork, frozen: dict[str, Tensor]) -> str | None:
    """The name of the first tensor of the bank that is not, bit for bit, what it was; None if there is none."""
    return next((name for name, tensor in bank_of(model).items() if not torch.equal(tensor.cpu(), frozen[name])), None)


@torch.no_grad()
def validate(
    model: TrainableNetwork, network: SqueezeNet, held_out: HeldOut, sheet: Path, batch_size: int, fabric: Fabric
) -> dict[str, float]:
    """PSNR and SSIM (RGB, mean over images, results clamped and not rounded) and SqueezeNet feature distance of the held-out images, for
    the model and for bicubic enlargement; each process takes its share. The first one saves eight images as rows of
    low | bicubic | result | truth."""
    size, content = held_out.gt.shape[-1], held_out.content
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = collections.defaultdict(lambda: torch.zeros((), device=device))
    mine = slice(fabric.global_rank, None, fabric.world_size)

    for kind, lrs in held_out.lrs.items():
        batches = zip(held_out.gt[mine].split(batch_size), lrs[mine].split(batch_size), strict=True)
        for number, (gt, lr) in enumerate(batches):
            gt, lr = in_range(gt.to(device)), in_range(lr.to(device))
            bicubic = resize(lr, size=size).clamp(-1, 1)
            result = enlarge(model, lr.to(memory_format=torch.channels_last)).clamp(-1, 1)
            wanted = network(content.of(gt))
            for name, image in (("", result), ("bicubic_", bicubic)):
                prefix, shown = f"{kind}{name}", content.of(image)
                sums[f"{prefix}psnr"] += psnr(shown, content.of(gt), rounding="none").sum()
                sums[f"{prefix}ssim"] += ssim(shown, content.of(gt), rounding="none").sum()
                sums[f"{prefix}feature_distance"] += feature_distance(network(shown), wanted).sum()
            if kind == "" and number == 0 and fabric.global_rank == 0:
                nearest = nn.functional.interpolate(lr, size=size)
                save_grid(
                    sheet,
                    [torch.cat(row) for row in zip(*(p[:8].split(1) for p in (nearest, bicubic, result, gt)), strict=True)],
                )
    names = [
        f"{kind}{prefix}{name}" for kind in held_out.lrs for prefix in ("", "bicubic_") for name in ("psnr", "ssim", "feature_distance")
    ]
    totals = fabric.all_reduce(torch.stack([sums[name] for name in names]), reduce_op="sum")
    return {name: round(float(total) / len(held_out.gt), 4) for name, total in zip(names, totals, strict=True)}


def compiled(network: nn.Module, wanted: bool) -> nn.Module:
    """`network`, compiled by torch.compile if wanted; its parameters stay the same objects."""
    return cast("nn.Module", torch.compile(network)) if wanted else network


def schedule(images: int, total: int, warm_up: int, halve_at: Sequence[int] = ()) -> float:
    """The share of the learning rate: cosine annealing from 1 to 0 over the run, or halves at so many images where `halve_at` has any;
    behind a linear rise over the first `warm_up` images."""
    share = 0.5 ** sum(images >= at for at in halve_at) if halve_at else 0.5 * (1 + math.cos(math.pi * min(1.0, images / total)))
    return min(1.0, (images + 1) / (warm_up + 1)) * share
