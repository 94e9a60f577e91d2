"""Training of a super-resolution network, GLEAN around a frozen bank or a baseline, as one flat function in the order of events."""

import collections
import copy
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gleansr import checkpoints as model_files
from gleansr.checkpoints import native
from gleansr.checkpoints.bundled import squeezenet
from gleansr.errors import CheckpointError, GleansrError
from gleansr.evaluation.metrics import psnr, ssim
from gleansr.images.pixels import from_bytes
from gleansr.images.resize import resize
from gleansr.inference.runner import enlarge
from gleansr.models.features import SqueezeNet, feature_distance
from gleansr.models.layers import to_channels_last
from gleansr.models.network import SRNetwork, to_range
from gleansr.signals import stop_on_signal
from gleansr.training import losses as L
from gleansr.training.batches import Share, TrainingBatches
from gleansr.training.checkpoint import (
    Checkpoints,
    TrainingStoppedError,
    compare_inputs,
    fingerprint_inputs,
    load_errors,
    lock_run,
    make_folder,
)
from gleansr.training.config import NetworkRecipe
from gleansr.training.data import HeldOut, load_held_out, open_images, warn_skipped
from gleansr.training.devices import Fabric
from gleansr.training.log import Log, Meter, is_due, save_grid
from gleansr.training.networks import GLEANNetworkConfig
from gleansr.training.parts import (
    build,
    describe_model,
    load_perceptual,
    load_teacher,
    set_lr,
    start_from,
    update_average,
)
from gleansr.training.streams import stream_seed

TrainingProgress = Callable[[int, dict[str, Any]], None]
"""Called after each line of the log, in the first process, with the images seen and the line."""

logger = logging.getLogger(__name__)


class Learner(nn.Module):
    """The trainable parameters of a network, which processes synchronise. The frozen bank is not among its modules."""

    model: SRNetwork

    def __init__(self, model: SRNetwork):
        super().__init__()
        self.trainable = nn.ParameterList(model.trainable_parameters())
        object.__setattr__(self, "model", model)  # bypasses nn.Module, which would register the bank

    def forward(self, lr: Tensor) -> Tensor:
        """lr (N, 3, in, in) in [-1, 1] -> (N, 3, out, out)."""
        return enlarge(self.model, lr)


def train_network(
    recipe: NetworkRecipe, output: Path, fabric: Fabric, progress: TrainingProgress | None = None, resume: str = "auto"
) -> Path:
    """Trains the network of a recipe and returns its file.

    `output` receives states/ (checkpoints; see `Checkpoints.load` for `resume`), log.jsonl, samples/ (lr | bicubic | sr | gt) and, at each
    checkpoint, the model so far, NAME.safetensors; that of the best checkpoint by validation is NAME-best.safetensors.

    Raises:
        RequestError: the recipe, the bank and the images do not fit together.
        GleansrError: a loss was not finite, a file could not be written, or the bank has changed.
        TrainingStoppedError: SIGTERM or SIGINT stopped the run after it saved a checkpoint.
    """
    with lock_run(output) if fabric.global_rank == 0 else nullcontext():
        fabric.barrier()  # all processes resume from the same checkpoint
        return _train(recipe, output, fabric, progress, resume)


def _train(recipe: NetworkRecipe, output: Path, fabric: Fabric, progress: TrainingProgress | None, resume: str) -> Path:
    run, device, first = recipe.run, fabric.device, fabric.global_rank == 0
    in_size, out_size = recipe.network.in_size, recipe.network.out_size
    scale = out_size // in_size
    checkpoints, resolved = Checkpoints(output / "states", run.keep, "model"), dataclasses.asdict(recipe)
    checkpoint = checkpoints.load(resolved, device, resume)
    content_height = recipe.network.content_height if isinstance(recipe.network, GLEANNetworkConfig) else None
    dataset = open_images(recipe.data, out_size, in_size, content_height)
    held_out = load_held_out(recipe.data, out_size, in_size, content_height) if recipe.data.validation else None
    torch.manual_seed(stream_seed(run.seed, "weights"))
    model, discriminator = build(recipe)
    new_layers = start_from(recipe.start, model, recipe.start_exclude) if recipe.start and not checkpoint else []
    frozen = {name: tensor.clone() for name, tensor in model.bank_state().items()}
    model = to_channels_last(model, device)
    averaged = copy.deepcopy(model) if recipe.ema_half_life else model
    perceptual_networks, perceptual_name = load_perceptual(recipe)
    perceptual_networks = [network.to(device) for network in perceptual_networks]
    teacher = load_teacher(recipe, device)
    teacher_file = model_files.model_path(recipe.teacher) if recipe.teacher else None
    inputs = fingerprint_inputs(dataset, teacher=teacher_file, perceptual_file=recipe.perceptual_file)
    if checkpoint:
        compare_inputs(checkpoints.last or output, checkpoint.get("inputs", {}), inputs, resolved)
    metric_network = next((network for network in perceptual_networks if isinstance(network, SqueezeNet)), None) or squeezenet().to(device)

    learner, optimizer = fabric.setup(
        compiled(Learner(model), enabled=run.compile),
        torch.optim.Adam(model.trainable_parameters(), recipe.lr, recipe.betas),
        move_to_device=False,
    )
    if discriminator is not None:
        discriminator = to_channels_last(discriminator, device)
        # Equation (5) uses `critic`, which synchronises gradients between processes; (3) the bare network, whose gradients are off.
        critic, d_optimizer = fabric.setup(
            compiled(discriminator, enabled=run.compile),
            torch.optim.Adam(discriminator.parameters(), recipe.lr, recipe.betas),
            move_to_device=False,
        )

    make_folder(output / "samples")
    path = output / f"{recipe.about.name}.safetensors"
    best_path = path.with_stem(f"{path.stem}-best")
    images = 0
    figures: dict[str, Any] = {}
    if checkpoint:
        with load_errors(checkpoints.last):
            images, figures = checkpoint["images"], dict(checkpoint["figures"])
            model.load_state_dict(checkpoint["model"])
            averaged.load_state_dict(checkpoint["averaged"] or checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            if discriminator is not None:
                discriminator.load_state_dict(checkpoint["discriminator"])
                d_optimizer.load_state_dict(checkpoint["d_optimizer"])
        if changed := changed_bank(model, frozen):
            raise CheckpointError(f"{checkpoints.last}: the run has another bank than {recipe.bank_file} ({changed} differs)")
        checkpoint.clear()  # as large as all networks and optimisers
    resumed = images
    if first and resumed and checkpoints.is_best(resumed):  # a run that was killed after it has an older best model, or none
        _save_model(best_path, averaged, frozen, recipe, images, figures)

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
    with stop_on_signal() as stop:
        log = Log(output / "log.jsonl", images, tensorboard=run.tensorboard) if first else None
        if log:
            if "run.iterations" in checkpoints.changed and recipe.schedule == "cosine":
                before, now = checkpoints.changed["run.iterations"]
                logger.warning("run.iterations was %s and is %s: the learning rate now falls to 0 there", f"{before:,}", f"{now:,}")
            log.write(
                images,
                pictures=len(dataset),
                in_memory=dataset.in_memory,
                processes=fabric.world_size,
                device=str(device),
                perceptual_network=perceptual_name,
                new_layers=new_layers,
                parameters={
                    "trainable": sum(p.numel() for p in model.trainable_parameters()),
                    "bank": sum(t.numel() for t in frozen.values()),
                },
                **checkpoints.resume_facts(images),
            )

        meter = Meter(log, run.batch_size, fabric)
        halve_at = [iteration * run.batch_size for iteration in recipe.halve_at]
        relativistic = recipe.adversarial == "relativistic"
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16")
        step_ended = time.perf_counter()
        for gt, lr in batches:
            waited = time.perf_counter() - step_ended
            # The network's own noise, if any, depends on seed, images seen and process alone.
            torch.manual_seed(stream_seed(run.seed, "step", images, fabric.global_rank))
            rate = recipe.lr * schedule(images, run.images, recipe.warm_up, halve_at)
            set_lr(optimizer, rate)
            adversarial = images >= recipe.adversarial_from

            # Equation (4).
            teacher_sr = teacher(lr) if teacher else None
            with autocast:
                sr = learner(lr)
                pixel = functools.partial(L.l1_error if recipe.pixel == "l1" else L.equation1_mse, sr)
                losses = {recipe.pixel: L.blend_targets(pixel, gt, teacher_sr, recipe.teacher_share)}
                if perceptual_networks:
                    perceptual_network = L.one_of(perceptual_networks)
                    equation2 = functools.partial(L.equation2_perceptual, perceptual_network, sr, views=recipe.perceptual_views)
                    losses["perceptual"] = L.blend_targets(equation2, gt, teacher_sr, recipe.teacher_share)
                if discriminator is not None and adversarial:
                    discriminator.requires_grad_(False)
                    fake_logits = discriminator(to_range(sr, discriminator.input_range))
                    if relativistic:
                        with torch.no_grad():
                            real_logits = discriminator(to_range(gt, discriminator.input_range))
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
                    losses["lattice"] = L.lattice_loss(sr, gt, scale)
                    loss = loss + recipe.lattice_weight * losses["lattice"]
                if recipe.checkerboard_weight:
                    losses["checkerboard"] = L.checkerboard_loss(sr, min(scale, 8))
                    loss = loss + recipe.checkerboard_weight * losses["checkerboard"]
                if recipe.spectrum_weight:
                    count = recipe.spectrum_images
                    losses["spectrum"] = L.spectrum_loss(sr[:count], gt[:count])
                    loss = loss + recipe.spectrum_weight * losses["spectrum"]
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()

            # Equation (5), on the same results.
            if discriminator is not None and adversarial:
                discriminator.requires_grad_(True)
                set_lr(d_optimizer, rate)
                with autocast:
                    fake_logits = critic(to_range(sr.detach(), discriminator.input_range))
                    real_logits = critic(to_range(gt, discriminator.input_range))
                    equation5 = L.relativistic_discriminator if relativistic else L.equation5_discriminator
                    losses["discriminator"] = equation5(fake_logits, real_logits)
                losses["fake_logit"], losses["real_logit"] = fake_logits.mean(), real_logits.mean()
                d_optimizer.zero_grad()
                fabric.backward(losses["discriminator"])
                d_optimizer.step()

            images += run.batch_size
            if recipe.ema_half_life:
                half_life = min(recipe.ema_half_life, images * 0.05)
                update_average(averaged, model, 0.5 ** (run.batch_size / half_life))
            meter.add(images, losses, waited)

            end = images >= run.images
            stopping = meter.agree_on_stop(stop.name)
            due = end or stopping or is_due(images, run.batch_size, run.checkpoint_every)
            if due:
                meter.check(checkpoints)
                if held_out is not None and not stopping:
                    sheet = output / "samples" / f"{images:09d}.png"
                    figures = validate(averaged.eval(), metric_network, held_out, sheet, run.batch_size, fabric)
                    model.train()
                    if log:
                        log.add_image("samples", sheet, images)
            if end or stopping or is_due(images, run.batch_size, run.log_every):
                warn_skipped(batches.skipped)
                batches.skipped.clear()
                line = meter.write(images, checkpoints, rate=rate, **figures)
                if progress and line:
                    progress(images, line)
            if due:  # after its line of the log: a run that is killed between them writes the line again
                if first:
                    checkpoint = {
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
                    best = checkpoints.save(checkpoint, None if stopping else figures.get("feature_distance"))
                    del checkpoint
                    for model_file in (path, best_path) if best else (path,):
                        _save_model(model_file, averaged, frozen, recipe, images, figures)
                checkpoints.last = checkpoints.path(images)
                fabric.barrier()
            if stopping and not end:
                raise TrainingStoppedError(stopping, f"{checkpoints.describe_last()}, the model so far {path}")
            step_ended = time.perf_counter()

    if first and images == resumed:  # a run that was killed after its last checkpoint has an older model, or none
        _save_model(path, averaged, frozen, recipe, images, figures)
    fabric.barrier()
    return path


def _save_model(
    path: Path, model: SRNetwork, frozen: dict[str, Tensor], recipe: NetworkRecipe, images: int, figures: dict[str, Any]
) -> None:
    if changed := changed_bank(model, frozen):
        raise GleansrError(f"the bank changed during training ({changed} differs), which is a defect; the model was not saved")
    about = describe_model(recipe, images, figures=figures)
    if isinstance(recipe.network, GLEANNetworkConfig):
        content_height = recipe.network.content_height
        border = recipe.data.border if content_height else None
        about = dataclasses.replace(about, content_height=content_height, border=border)
    native.save(path, {"generator": model}, about)


def changed_bank(model: SRNetwork, frozen: dict[str, Tensor]) -> str | None:
    """The name of the first tensor of the bank that differs from `frozen` in any bit, or None."""
    return next((name for name, tensor in model.bank_state().items() if not torch.equal(tensor.cpu(), frozen[name])), None)


@torch.no_grad()
def validate(
    model: SRNetwork, metric_network: SqueezeNet, held_out: HeldOut, sheet: Path, batch_size: int, fabric: Fabric
) -> dict[str, float]:
    """PSNR, SSIM (RGB, results clamped and not rounded) and SqueezeNet feature distance, means over the held-out images, of the model and
    of bicubic upscaling. Each process takes its share; the first saves eight images as rows of lr | bicubic | sr | gt."""
    size, content = held_out.gt.shape[-1], held_out.content
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = collections.defaultdict(lambda: torch.zeros((), device=device))
    share = slice(fabric.global_rank, None, fabric.world_size)

    for kind, lrs in held_out.lrs.items():
        batches = zip(held_out.gt[share].split(batch_size), lrs[share].split(batch_size), strict=True)
        for number, (gt, lr) in enumerate(batches):
            gt, lr = from_bytes(gt.to(device)), from_bytes(lr.to(device))
            bicubic = resize(lr, size=size).clamp(-1, 1)
            sr = enlarge(model, lr.to(memory_format=torch.channels_last)).clamp(-1, 1)
            gt_content = content.of(gt)
            gt_features = metric_network(gt_content)
            for name, image in (("", sr), ("bicubic_", bicubic)):
                prefix, image_content = f"{kind}{name}", content.of(image)
                sums[f"{prefix}psnr"] += psnr(image_content, gt_content, rounding="none").sum()
                sums[f"{prefix}ssim"] += ssim(image_content, gt_content, rounding="none").sum()
                sums[f"{prefix}feature_distance"] += feature_distance(metric_network(image_content), gt_features).sum()
            if kind == "" and number == 0 and fabric.global_rank == 0:
                nearest = nn.functional.interpolate(lr, size=size)
                save_grid(
                    sheet,
                    [torch.cat(row) for row in zip(*(images[:8].split(1) for images in (nearest, bicubic, sr, gt)), strict=True)],
                )
    names = [
        f"{kind}{prefix}{name}" for kind in held_out.lrs for prefix in ("", "bicubic_") for name in ("psnr", "ssim", "feature_distance")
    ]
    totals = fabric.all_reduce(torch.stack([sums[name] for name in names]), reduce_op="sum")
    return {name: round(float(total) / len(held_out.gt), 4) for name, total in zip(names, totals, strict=True)}


def compiled(network: nn.Module, *, enabled: bool) -> nn.Module:
    """`network`, compiled by torch.compile if `enabled`; its parameters stay the same objects."""
    return cast("nn.Module", torch.compile(network)) if enabled else network


def schedule(images: int, total: int, warm_up: int, halve_at: Sequence[int] = ()) -> float:
    """The factor of the learning rate: cosine annealing from 1 to 0 over the run, or halving at the numbers of images in `halve_at`, after
    a linear rise over the first `warm_up` images."""
    share = 0.5 ** sum(images >= at for at in halve_at) if halve_at else 0.5 * (1 + math.cos(math.pi * min(1.0, images / total)))
    return min(1.0, (images + 1) / (warm_up + 1)) * share
