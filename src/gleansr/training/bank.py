"""Training of a StyleGAN2 bank, as one flat function in the order of events."""

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gleansr import checkpoints as model_files
from gleansr.checkpoints import native
from gleansr.checkpoints.bundled import squeezenet
from gleansr.checkpoints.native import bank_within
from gleansr.errors import RequestError
from gleansr.models.encoder import LatentEncoder
from gleansr.models.layers import to_channels_last
from gleansr.models.projected import ProjectedDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Discriminator, StyleGAN2Mapping
from gleansr.signals import stop_on_signal
from gleansr.training.augment import AdaptiveProbability, Augment
from gleansr.training.batches import TrainingBatches
from gleansr.training.checkpoint import (
    Checkpoints,
    TrainingStoppedError,
    compare_inputs,
    fingerprint_inputs,
    load_errors,
    lock_run,
    make_folder,
)
from gleansr.training.config import BankRecipe
from gleansr.training.data import open_images, warn_skipped
from gleansr.training.log import Log, Meter, is_due, save_grid
from gleansr.training.losses import (
    equation3_adversarial,
    equation5_discriminator,
    path_length_penalty,
    r1_penalty,
    reconstruction_loss,
    sliced_wasserstein,
)
from gleansr.training.parts import describe_model, update_average
from gleansr.training.streams import stream_seed

TrainingProgress = Callable[[int, dict[str, Any]], None]
"""Called after each line of the log, with the images seen and the line."""

logger = logging.getLogger(__name__)


def train_bank(
    recipe: BankRecipe, output: Path, device: torch.device, progress: TrainingProgress | None = None, resume: str = "auto"
) -> Path:
    """Trains a bank and returns the file with its averaged generator and its discriminator.

    `output` receives states/ (checkpoints; see `Checkpoints.load` for `resume`), log.jsonl, samples/ and the bank.

    Raises:
        RequestError: the recipe and the images do not fit together.
        GleansrError: a loss was not finite, or a file could not be written.
        TrainingStoppedError: SIGTERM or SIGINT stopped the run after it saved a checkpoint.
    """
    with lock_run(output):
        return _train(recipe, output, device, progress, resume)


def _train(recipe: BankRecipe, output: Path, device: torch.device, progress: TrainingProgress | None, resume: str) -> Path:
    run, network = recipe.run, recipe.network
    checkpoints, resolved = Checkpoints(output / "states", run.keep, "generator"), dataclasses.asdict(recipe)
    checkpoint = checkpoints.load(resolved, device, resume)
    dataset = open_images(recipe.data, network.size)
    inputs = fingerprint_inputs(dataset)
    if checkpoint:
        compare_inputs(checkpoints.last or output, checkpoint.get("inputs", {}), inputs, resolved)
    torch.manual_seed(stream_seed(run.seed, "weights"))
    generator = StyleGAN2(network)
    projected, features = recipe.discriminator == "projected", squeezenet()
    discriminator = ProjectedDiscriminator(features, network.size) if projected else StyleGAN2Discriminator(network)
    encoder = LatentEncoder(network) if recipe.reconstruction_weight else None
    companions: dict[str, StyleGAN2Discriminator | LatentEncoder] = {}  # saved with the generator, by their names in the file
    if isinstance(discriminator, StyleGAN2Discriminator):
        companions["discriminator"] = discriminator
    if encoder:
        companions["encoder"] = encoder
    if recipe.start and not checkpoint:
        _start_from(recipe.start, generator, companions)
    generator = to_channels_last(generator, device)
    discriminator = to_channels_last(discriminator, device)
    features = to_channels_last(features, device)
    d_trained = discriminator.heads if isinstance(discriminator, ProjectedDiscriminator) else discriminator
    averaged = copy.deepcopy(generator).eval()
    recent = RecentLatents(network.code_dim).to(device)
    # With an encoder, the mapping network learns nothing but the distribution of the encoder's latents.
    encoder = encoder and to_channels_last(encoder, device)
    g_trained = nn.ModuleList([generator.synthesis, encoder]) if encoder else generator
    r1_gamma = 0.0002 * network.size**2 / run.batch_size if recipe.r1_gamma is None else recipe.r1_gamma
    regularised = r1_gamma > 0 and not projected
    g_optimizer = _adam(g_trained, recipe.lr, recipe, recipe.path_length_every if recipe.path_length_weight else None)
    discriminator_lr = recipe.lr if recipe.discriminator_lr is None else recipe.discriminator_lr
    d_optimizer = _adam(d_trained, discriminator_lr, recipe, recipe.r1_every if regularised else None)
    m_optimizer = torch.optim.Adam(generator.mapping.parameters(), RecentLatents.LR, (0.0, 0.99))
    augment = Augment().to(device)
    probability = AdaptiveProbability(target=recipe.ada_target, adjust_images=max(1, recipe.ada_images))
    mean_length = torch.zeros((), device=device)
    grid_z = torch.randn(24, network.code_dim, generator=torch.Generator().manual_seed(stream_seed(run.seed, "samples"))).to(device)

    parts: dict[str, Any] = {"generator": generator, "discriminator": discriminator, "averaged": averaged, "probability": probability}
    parts |= {"g_optimizer": g_optimizer, "d_optimizer": d_optimizer}
    if encoder:
        parts |= {"encoder": encoder, "recent": recent, "m_optimizer": m_optimizer}
    make_folder(output / "samples")
    images = 0
    if checkpoint:
        with load_errors(checkpoints.last):
            images = checkpoint["images"]
            mean_length.copy_(checkpoint["mean_length"])
            if "batches" not in checkpoint["probability"]:
                logger.warning(
                    "the checkpoint at image %d is of an earlier version, which added the penalties to the main losses; the run resumes "
                    "with separate steps for them, and its result differs from that of either version alone",
                    images,
                )
            for name, part in parts.items():
                part.load_state_dict(checkpoint[name])
        checkpoint.clear()  # as large as all networks and optimisers
    resumed = images

    with stop_on_signal() as stop:
        log = Log(output / "log.jsonl", images, tensorboard=run.tensorboard)
        log.write(images, pictures=len(dataset), in_memory=dataset.in_memory, device=str(device), **checkpoints.resume_facts(images))
        meter = Meter(log, run.batch_size)
        batches = TrainingBatches(dataset, start=images, end=run.images, batch_size=run.batch_size, seed=run.seed, device=device)
        path = output / f"{recipe.about.name}.safetensors"
        step_ended = time.perf_counter()
        for real, _ in batches:
            waited = time.perf_counter() - step_ended
            step = images // run.batch_size
            torch.manual_seed(stream_seed(run.seed, "step", images))  # a step's randomness depends on seed and images seen alone
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16")

            # Encoder: latents of half of the images, which both steps use along with random ones.
            gt, encoded = real[: run.batch_size // 2], None
            if encoder:
                encoder.requires_grad_(True)
                with autocast:
                    encoded = encoder(gt)
                recent.add(encoded.detach())

            # Discriminator: non-saturating logistic loss. Every r1_every steps a second step, for R1.
            generator.requires_grad_(False)
            d_trained.requires_grad_(True)
            with autocast, torch.no_grad():
                fake = generator.synthesis(_latents(generator, run.batch_size, recipe.style_mixing, encoded), "random")
            with autocast:
                real_logits = discriminator(augment(real, probability.p))
                d_loss = equation5_discriminator(discriminator(augment(fake, probability.p)), real_logits)
            losses = {"d_loss": d_loss, "real_sign": real_logits.detach().float().sign().mean()}
            _step(d_optimizer, d_loss)
            if isinstance(discriminator, StyleGAN2Discriminator) and regularised and step % recipe.r1_every == 0:
                losses["r1"] = r1_penalty(discriminator, augment(real, probability.p))
                _step(d_optimizer, losses["r1"] * (r1_gamma / 2 * recipe.r1_every))

            if recipe.lr:
                # Generator: non-saturating logistic loss. Encoder: reconstruction. Every path_length_every steps a second step, for the
                # path length of half a batch.
                g_trained.requires_grad_(True)
                d_trained.requires_grad_(False)
                with autocast:
                    fake = generator.synthesis(_latents(generator, run.batch_size, recipe.style_mixing, encoded), "random")
                    g_loss = equation3_adversarial(discriminator(augment(fake, probability.p)))
                    losses["g_loss"] = g_loss
                    if encoder:
                        losses["reconstruction"] = reconstruction_loss(features, fake[-len(gt) :], gt)
                        g_loss = g_loss + recipe.reconstruction_weight * losses["reconstruction"]
                if projected:
                    # Unit-length features hide contrast, and the feature network was trained on [-1, 1]: penalise values outside.
                    losses["overshoot"] = (fake.abs() - 1).relu().square().mean()
                    g_loss = g_loss + 10 * losses["overshoot"]
                _step(g_optimizer, g_loss)
                if recipe.path_length_weight and step % recipe.path_length_every == 0:
                    latents = _latents(generator, max(1, run.batch_size // 2), recipe.style_mixing).requires_grad_()
                    losses["path_length"], mean_length = path_length_penalty(generator, latents, mean_length)
                    _step(g_optimizer, losses["path_length"] * (recipe.path_length_weight * recipe.path_length_every))
                if encoder:
                    generator.mapping.requires_grad_(True)
                    losses["codes"] = recent.distance(generator.mapping)
                    _step(m_optimizer, losses["codes"])

            images += run.batch_size
            if recipe.ada_images:
                probability.add(losses["real_sign"], run.batch_size)
            if recipe.lr:
                half_life = min(recipe.ema_half_life, images * recipe.ema_ramp_up)
                update_average(averaged, generator, 0.5 ** (run.batch_size / half_life) if half_life else 0.0)
            meter.add(images, losses, waited)

            end = images >= run.images
            stopping = meter.agree_on_stop(stop.name)
            if end or stopping or is_due(images, run.batch_size, run.log_every):
                warn_skipped(batches.skipped)
                batches.skipped.clear()
                line = meter.write(images, checkpoints, augment_p=probability.p) or {}
                if progress:
                    progress(images, line)
            if end or stopping or is_due(images, run.batch_size, run.checkpoint_every):
                meter.check(checkpoints)
                sheet = output / "samples" / f"{images:09d}.png"
                with torch.no_grad():
                    save_grid(sheet, list(averaged(grid_z).split(8)))
                log.add_image("samples", sheet, images)
                checkpoints.save(
                    {
                        "recipe": resolved,
                        "images": images,
                        "inputs": inputs,
                        "mean_length": mean_length,
                        **{name: part.state_dict() for name, part in parts.items()},
                    }
                )
                _save_bank(path, averaged, companions, recipe, images)
            if stopping and not end:
                raise TrainingStoppedError(stopping, checkpoints.describe_last())
            step_ended = time.perf_counter()
        if images == resumed:  # a run that was killed after its last checkpoint has an older model, or none
            _save_bank(path, averaged, companions, recipe, images)
    return path


class RecentLatents(nn.Module):
    """The encoder's last `CAPACITY` latents w, whose distribution the mapping network learns."""

    CAPACITY = 4096
    COMPARED = 1024
    """Latents of each distribution that a step compares."""
    LR = 0.1
    """Learning rate of Adam for the mapping network. Its weights act as a hundredth of what is stored: this is a thousandth of their
    deviation."""

    codes: Tensor  # the name in checkpoints
    seen: Tensor
    """Latents added so far, a scalar."""

    def __init__(self, code_dim: int):
        super().__init__()
        self.register_buffer("codes", torch.zeros(self.CAPACITY, code_dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def add(self, latents: Tensor) -> None:
        """Replaces the oldest latents by `latents` (n, code_dim)."""
        self.codes[(torch.arange(len(latents), device=latents.device) + self.seen) % self.CAPACITY] = latents
        self.seen += len(latents)

    def distance(self, mapping: StyleGAN2Mapping) -> Tensor:
        """Distance between samples of `mapping`'s distribution and of these latents, see `sliced_wasserstein`."""
        count = min(int(self.seen), self.CAPACITY)
        latents = self.codes[torch.randint(count, (self.COMPARED,), device=self.codes.device)]
        return sliced_wasserstein(mapping(torch.randn_like(latents)), latents)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    # Zeros, not None: Adam's moments must decay in a penalty's step also for parameters that the penalty does not reach.
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()


def _latents(generator: StyleGAN2, n: int, mixing: float, encoded: Tensor | None = None) -> Tensor:
    """W+ latents (n, L, code_dim) of random z; a share `mixing` of them switches to a second latent at a random row. `encoded`, w
    (m, code_dim), replaces the last m."""
    if encoded is not None:
        return torch.cat([_latents(generator, n - len(encoded), mixing), _repeat_rows(encoded, generator)])
    width, rows = generator.config.code_dim, generator.config.n_latents
    device = generator.synthesis.constant.device
    first, second = _repeat_rows(generator.mapping(torch.randn(2 * n, width, device=device)), generator).chunk(2)
    crossover = torch.randint(1, rows, (n, 1, 1), device=device)
    crossover = torch.where(torch.rand(n, 1, 1, device=device) < mixing, crossover, rows)
    return torch.where(torch.arange(rows, device=device)[:, None] < crossover, first, second)


def _repeat_rows(w: Tensor, generator: StyleGAN2) -> Tensor:
    """w (n, code_dim) -> W+ (n, L, code_dim)."""
    return w[:, None].expand(-1, generator.config.n_latents, -1)


def _adam(model: nn.Module, lr: float, recipe: BankRecipe, every: int | None) -> torch.optim.Adam:
    """Adam, with rate and decays corrected for a penalty's extra step after every `every` steps (StyleGAN2, appendix B)."""
    share = every / (every + 1) if every else 1.0
    betas = (recipe.betas[0] ** share, recipe.betas[1] ** share)
    return torch.optim.Adam(model.parameters(), lr * share, betas, eps=1e-8)


def _start_from(source: str, generator: StyleGAN2, companions: Mapping[str, StyleGAN2Discriminator | LatentEncoder]) -> None:
    """Copies a bank of the same or a smaller size, and those `companions` that its file has; layers of new resolutions stay random.

    The blocks of discriminator and encoder are numbered from the top, so those of a smaller network are the last. The layer that reads the
    image is copied only if the size is the same, or that at which the encoder sees the image.
    """
    path = model_files.model_path(source)
    file = bank_within(model_files.read(path), path)
    parts: dict[str, StyleGAN2 | StyleGAN2Discriminator | LatentEncoder] = {"generator": generator}
    for name, model in companions.items():
        if name in file.networks:
            parts[name] = model
        else:
            logger.warning("%s: has no %s; training starts with a new one", source, name)
    for name, model in parts.items():
        network = file.networks.get(name)
        if network is None:
            raise RequestError(f"{source}: has no {name} to start from")
        n_new, n_old = len(model.config.channels), len(network.config.channels)
        expected = dataclasses.replace(model.config, channels=model.config.channels[:n_old])
        if n_old > n_new or network.config != expected:
            raise RequestError(f"{source}: its {name} is {network.config}, which cannot grow into {model.config}")
        tensors = dict(network.tensors)
        blocks = {key.split(".")[1] for key in tensors if key.startswith("blocks.")}
        if not isinstance(model, StyleGAN2) and (added := len(model.blocks) - len(blocks)):
            tensors = {
                ".".join(["blocks", str(int(key.split(".")[1]) + added), *key.split(".")[2:]]) if key.startswith("blocks.") else key: tensor
                for key, tensor in tensors.items()
                if not key.startswith("from_rgb")
            }
        tensors.pop("w_avg", None)
        model.load_state_dict(tensors, strict=False)


def _save_bank(path: Path, averaged: StyleGAN2, companions: Mapping[str, nn.Module], recipe: BankRecipe, images: int) -> None:
    bank = copy.deepcopy(averaged).cpu()
    bank.w_avg = bank.estimate_w_avg()
    native.save(path, {"generator": bank, **companions}, describe_model(recipe, images))
