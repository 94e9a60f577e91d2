"""Training of a StyleGAN2 bank. One flat function in the order in which things happen."""

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gleansr import checkpoints
from gleansr.checkpoints import native
from gleansr.checkpoints.bundled import squeezenet
from gleansr.checkpoints.native import bank_within
from gleansr.errors import RequestError
from gleansr.models.encoder import LatentEncoder
from gleansr.models.layers import to_channels_last
from gleansr.models.projected import ProjectedDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Discriminator
from gleansr.signals import stop_on_signal
from gleansr.training.augment import AdaptiveProbability, Augment
from gleansr.training.config import BankRecipe
from gleansr.training.data import TrainingBatches, open_images, warn_left_out
from gleansr.training.latents import LR, RecentLatents
from gleansr.training.losses import (
    equation3_adversarial,
    equation5_discriminator,
    path_length_penalty,
    r1_penalty,
    reconstruction_loss,
)
from gleansr.training.resume import compare_inputs, inputs_of
from gleansr.training.state import Log, Meter, States, TrainingStoppedError, average, facts, make_folder, passed, restoring, save_grid
from gleansr.training.streams import stream_seed

TrainingProgress = Callable[[int, dict[str, Any]], None]

logger = logging.getLogger(__name__)


def train_bank(
    recipe: BankRecipe, output: Path, device: torch.device, progress: TrainingProgress | None = None, resume: str = "auto"
) -> Path:
    """Trains a bank and returns the file with its generator (averaged) and discriminator.

    `output` receives states/ (the run resumes from them, see `States.load` for `resume`), log.jsonl, samples/ and the bank.
    `progress(images, log line)` is called after each line of the log.

    Raises:
        RequestError: the recipe and the images do not fit together.
        GleansrError: a loss was not finite, or a file could not be written.
        StoppedError: SIGTERM or SIGINT came; the state was saved.
    """
    run, network = recipe.run, recipe.network
    states, resolved = States(output / "states", run.keep, "generator"), dataclasses.asdict(recipe)
    state = states.load(resolved, device, resume)
    dataset = open_images(recipe.data, network.size)
    inputs = inputs_of(dataset)
    if state:
        compare_inputs(states.last or output, state.get("inputs", {}), inputs, resolved)
    torch.manual_seed(stream_seed(run.seed, "weights"))
    generator = StyleGAN2(network)
    projected, features = recipe.discriminator == "projected", squeezenet()
    discriminator = ProjectedDiscriminator(features, network.size) if projected else StyleGAN2Discriminator(network)
    encoder = LatentEncoder(network) if recipe.reconstruction_weight else None
    kept: dict[str, StyleGAN2Discriminator | LatentEncoder] = {}  # beside the generator, by their parts of the file
    if isinstance(discriminator, StyleGAN2Discriminator):
        kept["discriminator"] = discriminator
    if encoder:
        kept["encoder"] = encoder
    if recipe.start and not state:
        _start_from(recipe.start, generator, kept)
    generator = to_channels_last(generator, device)
    discriminator = to_channels_last(discriminator, device)
    features = to_channels_last(features, device)
    trained = discriminator.heads if isinstance(discriminator, ProjectedDiscriminator) else discriminator
    averaged = copy.deepcopy(generator).eval()
    recent = RecentLatents(network.code_dim).to(device)
    # With an encoder, which finds codes for images, the mapping network learns the distribution of these and nothing else.
    encoder = encoder and to_channels_last(encoder, device)
    learning = nn.ModuleList([generator.synthesis, encoder]) if encoder else generator
    r1_gamma = 0.0002 * network.size**2 / run.batch_size if recipe.r1_gamma is None else recipe.r1_gamma
    regularised = r1_gamma > 0 and not projected
    g_optimizer = _adam(learning, recipe.lr, recipe, recipe.path_length_every if recipe.path_length_weight else None)
    discriminator_lr = recipe.lr if recipe.discriminator_lr is None else recipe.discriminator_lr
    d_optimizer = _adam(trained, discriminator_lr, recipe, recipe.r1_every if regularised else None)
    m_optimizer = torch.optim.Adam(generator.mapping.parameters(), LR, (0.0, 0.99))
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
    if state:
        with restoring(states.last):
            images = state["images"]
            mean_length.copy_(state["mean_length"])
            if "batches" not in state["probability"]:
                logger.warning(
                    "the state at image %d is of an earlier version, which added the penalties to the main losses; from here on they have "
                    "steps of their own, and the result is that of neither version alone",
                    images,
                )
            for name, part in parts.items():
                part.load_state_dict(state[name])
        state.clear()  # as large as all networks and optimisers

    log = Log(output / "log.jsonl", images, tensorboard=run.tensorboard)
    log.write(images, dataset=len(dataset), in_memory=dataset.in_memory, device=str(device), **states.resumed(images))
    meter = Meter(log, run.batch_size)
    batches = TrainingBatches(dataset, start=images, end=run.images, batch_size=run.batch_size, seed=run.seed, device=device)
    finished = output / f"{recipe.about.name}.safetensors"
    fetched = time.perf_counter()
    with stop_on_signal() as stop:
        for real, _ in batches:
            waited = time.perf_counter() - fetched
            number = images // run.batch_size
            torch.manual_seed(stream_seed(run.seed, "step", images))  # all that a step draws follows from the seed and the images seen
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16")

            # Encoder, where there is one: codes for half of the images, which both steps draw beside random ones.
            gt, found = real[: run.batch_size // 2], None
            if encoder:
                encoder.requires_grad_(True)
                with autocast:
                    found = encoder(gt)
                recent.add(found.detach())

            # Discriminator: non-saturating logistic loss. Every now and then a second step, for R1.
            generator.requires_grad_(False)
            trained.requires_grad_(True)
            with autocast, torch.no_grad():
                fake = generator.synthesis(_latents(generator, run.batch_size, recipe.style_mixing, found), "random")
            with autocast:
                real_logits = discriminator(augment(real, probability.p))
                d_loss = equation5_discriminator(discriminator(augment(fake, probability.p)), real_logits)
            losses = {"d_loss": d_loss, "real_sign": real_logits.detach().float().sign().mean()}
            _step(d_optimizer, d_loss)
            if isinstance(discriminator, StyleGAN2Discriminator) and regularised and number % recipe.r1_every == 0:
                losses["r1"] = r1_penalty(discriminator, augment(real, probability.p))
                _step(d_optimizer, losses["r1"] * (r1_gamma / 2 * recipe.r1_every))

            if recipe.lr:
                # Generator: non-saturating logistic loss. Encoder: its images again. Every now and then a second step, for the path length
                # of half a batch.
                learning.requires_grad_(True)
                trained.requires_grad_(False)
                with autocast:
                    fake = generator.synthesis(_latents(generator, run.batch_size, recipe.style_mixing, found), "random")
                    g_loss = equation3_adversarial(discriminator(augment(fake, probability.p)))
                    losses["g_loss"] = g_loss
                    if encoder:
                        losses["reconstruction"] = reconstruction_loss(features, fake[-len(gt) :], gt)
                        g_loss = g_loss + recipe.reconstruction_weight * losses["reconstruction"]
                if projected:
                    # Features at unit length hide contrast, and the network was never shown values outside [-1, 1]: keep the results there.
                    losses["overshoot"] = (fake.abs() - 1).relu().square().mean()
                    g_loss = g_loss + 10 * losses["overshoot"]
                _step(g_optimizer, g_loss)
                if recipe.path_length_weight and number % recipe.path_length_every == 0:
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
                average(averaged, generator, 0.5 ** (run.batch_size / half_life) if half_life else 0.0)
            meter.add(images, losses, waited)

            end = images >= run.images
            stopping = meter.agreed(stop.name)
            if end or stopping or passed(images, run.batch_size, run.log_every):
                warn_left_out(batches.left_out)
                batches.left_out.clear()
                line = meter.write(images, states, augment_p=probability.p) or {}
                if progress:
                    progress(images, line)
            if end or stopping or passed(images, run.batch_size, run.checkpoint_every):
                meter.check(states)
                sheet = output / "samples" / f"{images:09d}.png"
                with torch.no_grad():
                    save_grid(sheet, list(averaged(grid_z).split(8)))
                log.add_image("samples", sheet, images)
                states.save(
                    {
                        "recipe": resolved,
                        "images": images,
                        "inputs": inputs,
                        "mean_length": mean_length,
                        **{name: part.state_dict() for name, part in parts.items()},
                    }
                )
                _export(finished, averaged, kept, recipe, images)
            if stopping and not end:
                raise TrainingStoppedError(stopping, states.last_good())
            fetched = time.perf_counter()
    if not finished.exists():
        _export(finished, averaged, kept, recipe, images)
    return finished


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    # Zeros, not None: in the step of a penalty Adam's moments decay for those parameters too that the penalty does not reach.
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()


def _latents(generator: StyleGAN2, n: int, mixing: float, found: Tensor | None = None) -> Tensor:
    """W+ codes (n, L, code_dim) of random z; a share `mixing` of them changes to a second code at a random row. The last ones are of w that
    were `found`, (m, code_dim), instead."""
    if found is not None:
        return torch.cat([_latents(generator, n - len(found), mixing), _rows(found, generator)])
    width, rows = generator.config.code_dim, generator.config.n_latents
    device = generator.synthesis.constant.device
    first, second = _rows(generator.mapping(torch.randn(2 * n, width, device=device)), generator).chunk(2)
    crossover = torch.randint(1, rows, (n, 1, 1), device=device)
    crossover = torch.where(torch.rand(n, 1, 1, device=device) < mixing, crossover, rows)
    return torch.where(torch.arange(rows, device=device)[:, None] < crossover, first, second)


def _rows(w: Tensor, generator: StyleGAN2) -> Tensor:
    """w (n, code_dim) -> W+ codes (n, L, code_dim)."""
    return w[:, None].expand(-1, generator.config.n_latents, -1)


def _adam(model: nn.Module, lr: float, recipe: BankRecipe, every: int | None) -> torch.optim.Adam:
    """Adam, its rate and decays corrected for one more step, that of a penalty, after every so many (StyleGAN2, appendix B)."""
    share = every / (every + 1) if every else 1.0
    betas = (recipe.betas[0] ** share, recipe.betas[1] ** share)
    return torch.optim.Adam(model.parameters(), lr * share, betas, eps=1e-8)


def _start_from(source: str, generator: StyleGAN2, others: Mapping[str, StyleGAN2Discriminator | LatentEncoder]) -> None:
    """Copies a bank of the same or a smaller size, and what its file has of the `others`; layers of new resolutions keep their random
    start.

    The blocks of discriminator and encoder are numbered from the top, so those of a smaller one are the last. What reads the image is new
    unless the size is the same, or that at which the encoder sees the image.
    """
    path = checkpoints.model_path(source)
    checkpoint = bank_within(checkpoints.read(path), path)
    parts: dict[str, StyleGAN2 | StyleGAN2Discriminator | LatentEncoder] = {"generator": generator}
    for part, model in others.items():
        if part in checkpoint.networks:
            parts[part] = model
        else:
            logger.warning("%s: has no %s, a new one starts", source, part)
    for part, model in parts.items():
        network = checkpoint.networks.get(part)
        if network is None:
            raise RequestError(f"{source}: has no {part} to start from")
        n_new, n_old = len(model.config.channels), len(network.config.channels)
        expected = dataclasses.replace(model.config, channels=model.config.channels[:n_old])
        if n_old > n_new or network.config != expected:
            raise RequestError(f"{source}: its {part} is {network.config}, which cannot grow into {model.config}")
        tensors = dict(network.tensors)
        blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
        if not isinstance(model, StyleGAN2) and (added := len(model.blocks) - len(blocks)):
            tensors = {
                ".".join(["blocks", str(int(name.split(".")[1]) + added), *name.split(".")[2:]])
                if name.startswith("blocks.")
                else name: tensor
                for name, tensor in tensors.items()
                if not name.startswith("from_rgb")
            }
        tensors.pop("w_avg", None)
        model.load_state_dict(tensors, strict=False)


def _export(path: Path, averaged: StyleGAN2, others: Mapping[str, nn.Module], recipe: BankRecipe, images: int) -> None:
    bank = copy.deepcopy(averaged).cpu()
    bank.w_avg = bank.estimate_w_avg()
    native.save(path, {"generator": bank, **others}, facts(recipe, images))
