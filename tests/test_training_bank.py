"""The steps of a bank's training against an independent formulation, and its course whatever is logged and wherever it was stopped."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made_images import smooth_images
from torch import Tensor, nn

from gleansr.checkpoints import native
from gleansr.models.layers import to_channels_last
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator
from gleansr.training.bank import train_bank
from gleansr.training.batches import TrainingBatches
from gleansr.training.checkpoint import TrainingStoppedError
from gleansr.training.config import AboutConfig, BankRecipe, DataConfig, RunConfig
from gleansr.training.data import open_images
from gleansr.training.streams import stream_seed

CPU = torch.device("cpu")
CONFIG = StyleGAN2Config((6, 6, 4), code_dim=6, mapping_layers=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return smooth_images(tmp_path_factory.mktemp("data") / "images.zip", (5, 4), (16, 16))


def recipe(dataset: str, iterations: int, log_every: int = 4, checkpoint_every: int = 1000, **changes: Any) -> BankRecipe:
    run = RunConfig(iterations=iterations, batch_size=4, checkpoint_every=checkpoint_every, log_every=log_every, tensorboard=False)
    return BankRecipe(AboutConfig("bank"), CONFIG, run, data=DataConfig(train=(dataset,)), **changes)


def tensors(path: Path) -> dict[str, Tensor]:
    return {f"{part}.{n}": t for part, network in native.read(path).networks.items() for n, t in network.tensors.items()}


class Adam:
    """As in its paper, for the gradients of one loss at a time."""

    def __init__(self, module: nn.Module, lr: float, betas: tuple[float, float]):
        self.parameters, self.lr, self.betas, self.steps = list(module.parameters()), lr, betas, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]

    def step(self, loss: Tensor) -> None:
        self.steps += 1
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient, (mean, square) in zip(self.parameters, gradients, self.moments, strict=True):
                gradient = torch.zeros_like(parameter) if gradient is None else gradient
                mean.mul_(self.betas[0]).add_((1 - self.betas[0]) * gradient)
                square.mul_(self.betas[1]).add_((1 - self.betas[1]) * gradient**2)
                corrected = mean / (1 - self.betas[0] ** self.steps), square / (1 - self.betas[1] ** self.steps)
                parameter.sub_(self.lr * corrected[0] / (corrected[1].sqrt() + 1e-8))


def drawn(generator: StyleGAN2, n: int) -> Tensor:
    """W+ codes of `n` images, drawn as the training draws them, without mixing styles."""
    w = generator.mapping(torch.randn(2 * n, CONFIG.code_dim))[:n]
    torch.randint(1, CONFIG.n_latents, (n, 1, 1))
    torch.rand(n, 1, 1)
    return w[:, None].expand(-1, CONFIG.n_latents, -1)


def test_a_period_of_lazy_penalties_is_that_of_separate_steps(dataset: str, tmp_path: Path):
    """Main loss and penalty each have a backward pass and a step of Adam, the penalty weighted by its interval, as in the authors' code."""
    r1_every, path_length_every, lr, betas, gamma = 3, 2, 0.01, (0.5, 0.9), 0.7
    changes = {"r1_every": r1_every, "path_length_every": path_length_every, "lr": lr, "betas": betas, "r1_gamma": gamma}
    wanted = recipe(dataset, iterations=4, checkpoint_every=16, style_mixing=0.0, ada_images=0, path_length_weight=1.5, **changes)
    train_bank(wanted, tmp_path, CPU)
    state = torch.load(tmp_path / "states" / "000000016.pt", weights_only=True)

    torch.manual_seed(stream_seed(0, "weights"))
    generator, discriminator = to_channels_last(StyleGAN2(CONFIG), CPU), to_channels_last(StyleGAN2Discriminator(CONFIG), CPU)
    optimizers = {}
    for name, model, every in (("g", generator, path_length_every), ("d", discriminator, r1_every)):
        ratio = every / (every + 1)
        optimizers[name] = Adam(model, lr * ratio, (betas[0] ** ratio, betas[1] ** ratio))
    mean_length = torch.zeros(())
    batches = TrainingBatches(open_images(wanted.data, 16), start=0, end=16, batch_size=4, seed=0, device=CPU)
    for number, (real, _) in enumerate(batches):
        torch.manual_seed(stream_seed(0, "step", 4 * number))
        fake = generator.synthesis(drawn(generator, 4), "random").detach()
        optimizers["d"].step(-F.logsigmoid(discriminator(real)).mean() - F.logsigmoid(-discriminator(fake)).mean())
        if number % r1_every == 0:
            inputs = real.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(discriminator(inputs).sum(), inputs, create_graph=True)
            optimizers["d"].step(r1_every * gamma / 2 * gradient.flatten(1).norm(dim=1).square().mean())
        optimizers["g"].step(-F.logsigmoid(discriminator(generator.synthesis(drawn(generator, 4), "random"))).mean())
        if number % path_length_every == 0:
            latents = drawn(generator, 2)
            image = generator.synthesis(latents, "random")
            noise = torch.randn_like(image) / 16
            (gradient,) = torch.autograd.grad((image * noise).sum(), latents, create_graph=True)
            lengths = gradient.square().sum(2).mean(1).sqrt()
            mean_length = 0.99 * mean_length + 0.01 * lengths.detach().mean()
            optimizers["g"].step(path_length_every * 1.5 * (lengths - mean_length).square().mean())

    assert optimizers["d"].steps == 4 + 2
    assert optimizers["g"].steps == 4 + 2
    for name, model in (("generator", generator), ("discriminator", discriminator)):
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(state[name][key], tensor, atol=2e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_a_penalty_that_weighs_nothing_takes_no_steps(dataset: str, tmp_path: Path):
    train_bank(recipe(dataset, iterations=1, r1_gamma=0.0, r1_every=1, path_length_weight=0.0), tmp_path, CPU)
    state = torch.load(tmp_path / "states" / "000000004.pt", weights_only=True)
    for name in ("g_optimizer", "d_optimizer"):
        assert {float(entry["step"]) for entry in state[name]["state"].values()} == {1.0}
        assert state[name]["param_groups"][0]["lr"] == 0.0025


def test_neither_the_log_nor_a_stop_changes_the_course(dataset: str, tmp_path: Path):
    """A stop after six steps, which is no multiple of the four of the augmentation, of either penalty's interval or of the log's."""
    changes = {"r1_every": 4, "path_length_every": 5, "ada_images": 40, "ada_target": -2.0, "iterations": 11}  # p rises each time
    whole = train_bank(recipe(dataset, log_every=12, **changes), tmp_path / "whole", CPU)

    def ask(images: int, _: dict) -> None:
        if images == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError):
        train_bank(recipe(dataset, log_every=20, **changes), tmp_path / "cut", CPU, ask)
    stopped = torch.load(tmp_path / "cut" / "states" / "000000024.pt", weights_only=True)
    assert stopped["probability"]["batches"] == 2
    resumed = train_bank(recipe(dataset, log_every=20, **changes), tmp_path / "cut", CPU)
    probabilities = [torch.load(tmp_path / run / "states" / "000000044.pt", weights_only=True)["probability"] for run in ("whole", "cut")]
    assert probabilities[0] == probabilities[1]
    assert probabilities[0]["p"] == pytest.approx(0.8)
    expected = tensors(whole)
    for name, tensor in tensors(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_state_of_before_the_separate_steps_is_resumed_with_a_warning(dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    train_bank(recipe(dataset, iterations=1), tmp_path, CPU)
    path = tmp_path / "states" / "000000004.pt"
    state = torch.load(path, weights_only=True)
    state["probability"] = {"p": 0.25}
    torch.save(state, path)
    train_bank(recipe(dataset, iterations=2), tmp_path, CPU)
    assert "the checkpoint at image 4 is of an earlier version" in caplog.text
    assert torch.load(tmp_path / "states" / "000000008.pt", weights_only=True)["probability"]["p"] == 0.25


@pytest.mark.parametrize("off", [{"ema_half_life": 0}, {"ema_ramp_up": 0}])
def test_without_averaging_the_bank_is_the_generator_itself(dataset: str, tmp_path: Path, off: dict[str, Any]):
    train_bank(recipe(dataset, 2, **off), tmp_path, CPU)
    state = torch.load(tmp_path / "states" / "000000008.pt")
    assert all(torch.equal(tensor, state["generator"][name]) for name, tensor in state["averaged"].items())


def test_a_discriminator_with_a_rate_of_0_stays_as_it_is(dataset: str, tmp_path: Path):
    train_bank(recipe(dataset, 2, checkpoint_every=4, discriminator_lr=0), tmp_path, CPU)
    first, last = (torch.load(tmp_path / "states" / f"{images:09d}.pt") for images in (4, 8))
    assert all(torch.equal(tensor, first["discriminator"][name]) for name, tensor in last["discriminator"].items())
    assert any(not torch.equal(tensor, first["generator"][name]) for name, tensor in last["generator"].items())
