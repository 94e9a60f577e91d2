"""PULSE: searches the codes of a bank for an image that, shrunk, is the one that was given.

Source: Menon et al., "PULSE: Self-Supervised Photo Upsampling via Latent Space Exploration of Generative Models", CVPR 2020. Numbers are
those of the official code, which knows one bank, of 1024 px; here factor, rows and noise images follow from the bank.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, cast, get_args

import torch
from torch import Tensor, nn

from gleansr.baselines import gaussian
from gleansr.baselines.gaussian import Gaussian
from gleansr.baselines.search import check_lr, check_scale, reduction
from gleansr.configs import Range, check
from gleansr.errors import RequestError
from gleansr.inference.method import ModelOutput, StepReport
from gleansr.models.layers import to_channels_last
from gleansr.models.stylegan import StyleGAN
from gleansr.models.stylegan2 import StyleGAN2

Schedule = Literal["linear1cycledrop", "linear1cycle", "fixed"]
NoiseKind = Literal["trainable", "fixed", "zero"]
OptimizerName = Literal["adam", "sgd", "sgdm", "adamax"]
SelectedResult = Literal["last", "best"]

OPTIMIZERS: dict[OptimizerName, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "sgdm": partial(torch.optim.SGD, momentum=0.9),
    "adamax": torch.optim.Adamax,
}


@dataclass(frozen=True)
class PULSEConfig:
    """How PULSE searches. The defaults are the official ones."""

    steps: Annotated[int, Range(1, 1_000_000)] = 100
    """Steps of the search; each is one pass through the bank and back."""
    eps: Annotated[float, Range(0, 1e6)] = 2e-3
    """Mean squared error of the shrunk image, in [0, 1], that is near enough: below it, it attracts no more."""
    lr: Annotated[float, Range(0, 1e6)] = 0.4
    """Learning rate that the schedule scales."""
    schedule: Schedule = "linear1cycledrop"
    """Course of the learning rate: up from a tenth and down again; with "drop" so over nine tenths of the steps, then to a thousandth."""
    noise: NoiseKind = "trainable"
    """Noise images: of the first layers searched for too, all as drawn, or none."""
    trainable_noise_layers: Annotated[int, Range(0)] = 5
    """How many layers' noise images, from the first, are searched for with noise "trainable"."""
    zero_noise_layers: tuple[int, ...] = (-1,)
    """Layers without noise, negative ones counted from the last."""
    optimizer: OptimizerName = "adam"
    """Optimiser of the search; sgdm is sgd with momentum 0.9."""
    l2: Annotated[float, Range(0, 1e6)] = 100.0
    """Weight of the mean squared error of the shrunk image."""
    l1: Annotated[float, Range(0, 1e6)] = 0.0
    """Weight of ten times its mean absolute error."""
    geocross: Annotated[float, Range(0, 1e6)] = 0.05
    """Weight of the angles between the rows of the W+ code: the smaller, the nearer to one code for all layers."""
    tile_latent: bool = False
    """Search for one code for all layers."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the start, the same for every image."""
    result: SelectedResult = "last"
    """Which image to return where eps was reached: the last, or the one of the least loss."""
    fit_samples: Annotated[int, Range(2, 10**9)] = 1_000_000
    """Codes drawn to fit the Gaussian to the mapping network."""

    def __post_init__(self):
        choices = {"schedule": Schedule, "noise": NoiseKind, "optimizer": OptimizerName, "result": SelectedResult}
        check(
            self,
            *(
                (getattr(self, name) in get_args(kinds), f"{name} must be {' or '.join(get_args(kinds))}, not {getattr(self, name)!r}")
                for name, kinds in choices.items()
            ),
        )

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        end = 0.9 * self.steps if self.schedule == "linear1cycledrop" else self.steps
        if self.schedule == "fixed":
            factor = 1.0
        elif step < end:
            factor = (9 * (1 - 2 * abs(step / end - 0.5)) + 1) / 10
        else:
            factor = 1 / 10 + (step - end) / (0.1 * self.steps) * (1 / 1000 - 1 / 10)
        return self.lr * factor


# ---------------------------------------------------------------------------------------------------------------- terms


def shrinking_matrix(size: int, factor: int) -> Tensor:
    """The official bicubic reduction of one axis, (size / factor, size): 4 * factor taps of Keys' cubic with a = -0.5, reflecting borders.

    Inside it is MATLAB's; at the borders MATLAB doubles the last pixel, which is not doubled here.
    """

    def cubic(x: Tensor) -> Tensor:
        x = x.abs()
        return torch.where(x <= 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)

    return reduction(size, factor, cubic, lambda i: size - 1 - (size - 1 - i.abs()).abs())


def geocross(latents: Tensor) -> Tensor:
    """How far apart the rows of W+ codes (N, L, D) point: 512 / 8 times the mean square of the L x L angles, (N).

    The official 512 is kept for every D: an angle does not grow with it.
    """
    x, y = latents[:, None], latents[:, :, None]
    difference = ((x - y).square().sum(-1) + 1e-9).sqrt()
    total = ((x + y).square().sum(-1) + 1e-9).sqrt()
    angles = 2 * torch.atan2(difference, total)
    return angles.square().mean((1, 2)) * (512 / 8)


def norms(x: Tensor) -> Tensor:
    """The lengths of the parts of `x` (N, n, ...), one for each of the first two axes, (N, n, 1, ...)."""
    return (x.square().sum(tuple(range(2, x.ndim)), keepdim=True) + 1e-9).sqrt()


# -------------------------------------------------------------------------------------------------------------- the search


class PULSE:
    """PULSE on a bank: enlarges images of bank size / scale. A `Method`.

    Where an image never comes within eps, the official code returns nothing; here it is the image of the least loss, with a note. It
    asks that of the sum over a batch, which of several images is never so small; here each is asked by itself.
    """

    def __init__(
        self,
        bank: nn.Module,
        scale: int,
        config: PULSEConfig | None = None,
        *,
        device: str | torch.device = "cpu",
        precision: torch.dtype = torch.float32,
    ):
        """`scale` is a power of two from 2 to half the bank's size. `config`: the official one by default. The bank is moved to `device`,
        its weights stay as they are. `precision` is that of its convolutions.

        Raises:
            RequestError: the bank is another network, or the scale or a layer of the configuration does not fit it.
        """
        if not isinstance(bank, StyleGAN | StyleGAN2):
            raise RequestError(f"PULSE searches the codes of a StyleGAN or StyleGAN2; give such a bank, not a {type(bank).__name__}")
        size, layers = bank.config.size, len(bank.synthesis.layers)
        check_scale("PULSE", size, scale)
        self.config = config or PULSEConfig()
        if wrong := [i for i in self.config.zero_noise_layers if not -layers <= i < layers]:
            raise RequestError(f"zero_noise_layers must be {-layers} to {layers - 1} with this bank, not {wrong[0]}")
        self.name, self.scale = "PULSE", scale
        self.in_size: int | None = size // scale
        self.device, self.precision = torch.device(device), precision
        self.bank = to_channels_last(bank.eval(), self.device)
        self._matrix = shrinking_matrix(size, scale).float().to(self.device)
        self._gaussian: Gaussian | None = None

    def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:
        """low (N, 3, in_size, in_size), RGB in [-1, 1] -> images (N, 3, size, size), RGB, nominally in [-1, 1], not clamped, float32.

        Every image starts from the same seeded code and noise and goes its own way, whatever else is in the batch. A GPU goes all ways at
        once; how it rounds may depend on the number of images, which the many steps magnify to visible differences. A CPU gains nothing
        by that and takes one image after the other: its results are the same in any batch.

        `report` is told of the steps and, before them, of the chunks of the Gaussian fit. That is made once for a bank, and kept in the
        folder of downloaded models.
        """
        check_lr("PULSE", lr, self.in_size)
        samples = self.config.fit_samples
        with torch.inference_mode(False), torch.enable_grad(), frozen(self.bank):
            lr = lr.to(self.device, torch.float32)
            groups = lr.split(1) if self.device.type == "cpu" else (lr,)
            fit = self._gaussian or gaussian.kept(self.bank, samples)
            tell = counter(report, (0 if fit else gaussian.chunks(samples)) + len(groups) * self.config.steps)
            fit = self._gaussian = (fit or gaussian.fitted(self.bank, samples, tell)).to(self.device)
            found = [self.search(group, fit, tell) for group in groups]
        return ModelOutput(torch.cat([f.images for f in found]), [note for f in found for note in f.notes])

    def search(self, lr: Tensor, fit: Gaussian, tell: Callable[[], None] = lambda: None) -> ModelOutput:
        """As a call, for all images at once. `fit` is the bank's Gaussian; `tell` is called after every step. Gradients must be on."""
        config = self.config
        latent, noises = self._start(len(lr))
        variables = [x for x in (latent, *noises) if x.requires_grad]
        radii = [norms(x.detach()) for x in variables]
        optimizer = OPTIMIZERS[config.optimizer](variables, lr=config.lr)
        best_loss = best_l2 = least_l2 = lr.new_full((len(lr),), math.inf)
        image = best = lr.new_zeros(())
        for step in range(config.steps):
            latents = fit.latents(latent.expand(-1, self.bank.config.n_latents, -1))
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                image = self.bank.synthesis(latents, noises)
            image = image.float()
            loss, l2 = self._losses(image, latents, lr)
            if step + 1 < config.steps:  # no image would be made of the last step's codes
                optimizer.param_groups[0]["lr"] = config.rate(step)
                optimizer.zero_grad()
                loss.sum().backward()
                optimizer.step()
                with torch.no_grad():
                    for x, radius in zip(variables, radii, strict=True):
                        x.div_(norms(x)).mul_(radius)
            with torch.no_grad():
                better = loss < best_loss
                best = torch.where(better[:, None, None, None], image, best)
                best_loss, best_l2 = torch.where(better, loss, best_loss), torch.where(better, l2, best_l2)
                least_l2 = torch.minimum(l2, least_l2)
            tell()
        reached = least_l2 <= config.eps
        if config.result == "last":
            best = torch.where(reached[:, None, None, None], image.detach(), best)
        failure = "PULSE did not reach eps {:g}: L2 {:.3g} after {} steps"
        notes = [
            "" if near else failure.format(config.eps, distance, config.steps)
            for near, distance in zip(reached.tolist(), best_l2.tolist(), strict=True)
        ]
        return ModelOutput(best, notes)

    def _start(self, n: int) -> tuple[Tensor, list[Tensor]]:
        """The seeded latent (n, L or 1, code_dim) and noise images, (n, 1, H, W) where they are searched for and (1, 1, H, W) elsewhere,
        drawn on the CPU in the official order."""
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        bank = self.bank.config

        def variable(x: Tensor) -> Tensor:
            return x.to(self.device).repeat(n, *(1,) * (x.ndim - 1)).requires_grad_()

        latent = variable(torch.randn(1, 1 if config.tile_latent else bank.n_latents, bank.code_dim, generator=generator))
        shapes = [cast("Tensor", noise).shape for noise in self.bank.synthesis.noises("fixed", 1)]
        silent = {i % len(shapes) for i in config.zero_noise_layers}
        noises = []
        for i, shape in enumerate(shapes):
            if config.noise == "zero" or i in silent:
                noises.append(torch.zeros(shape, device=self.device))
                continue
            noise = torch.randn(shape, generator=generator)
            searched = config.noise == "trainable" and i < config.trainable_noise_layers
            noises.append(variable(noise) if searched else noise.to(self.device))
        return latent, noises

    def _losses(self, image: Tensor, latents: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and mean squared error (N) of images: both compare in [0, 1] after shrinking."""
        config = self.config
        difference = (self._matrix @ (image @ self._matrix.t()) - lr) / 2
        l2 = difference.square().mean((1, 2, 3))
        loss = config.l2 * l2.clamp(min=config.eps) + config.geocross * geocross(latents)
        if config.l1:
            loss = loss + config.l1 * 10 * difference.abs().mean((1, 2, 3)).clamp(min=config.eps)
        return loss, l2.detach()


@contextlib.contextmanager
def frozen(bank: nn.Module) -> Iterator[None]:
    """Within, the bank's parameters get no gradient and cuDNN takes algorithms that repeat their results, as in the official code."""
    flags, deterministic = [(p, p.requires_grad) for p in bank.parameters()], torch.backends.cudnn.deterministic
    try:
        bank.requires_grad_(False)
        torch.backends.cudnn.deterministic = True
        yield
    finally:
        torch.backends.cudnn.deterministic = deterministic
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def counter(report: StepReport | None, total: int) -> Callable[[], None]:
    """What to call after each of `total` steps."""
    done = itertools.count(1)
    return (lambda: report(next(done), total)) if report else (lambda: None)
