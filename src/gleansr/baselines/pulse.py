"""PULSE: searches the latents of a bank for an image that equals the input when downsampled.

Source: Menon et al., "PULSE: Self-Supervised Photo Upsampling via Latent Space Exploration of Generative Models", CVPR 2020. Numbers are
those of the official code, which supports one bank of 1024 px; here scale, rows and noise images follow from the bank.
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

from gleansr.baselines.gaussian import Gaussian, cached_gaussian, chunks, fit_gaussian
from gleansr.baselines.search import check_lr, check_scale, downsampling_matrix
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
    """Settings of PULSE. The defaults are the official ones."""

    steps: Annotated[int, Range(1, 1_000_000)] = 100
    """Steps of the search; each is a forward and a backward pass through the bank."""
    eps: Annotated[float, Range(0, 1e6)] = 2e-3
    """Mean squared error of the downsampled image, in [0, 1], at which the search has succeeded; the loss does not go below it."""
    lr: Annotated[float, Range(0, 1e6)] = 0.4
    """Maximum learning rate."""
    schedule: Schedule = "linear1cycledrop"
    """Schedule of the learning rate: up from a tenth and down again; with "drop" over nine tenths of the steps, then to a thousandth."""
    noise: NoiseKind = "trainable"
    """Noise images: trainable in the first layers, all fixed, or zero."""
    trainable_noise_layers: Annotated[int, Range(0)] = 5
    """Number of layers, from the first, with trainable noise images."""
    zero_noise_layers: tuple[int, ...] = (-1,)
    """Layers without noise; negative numbers count from the last."""
    optimizer: OptimizerName = "adam"
    """Optimiser of the search; sgdm is sgd with momentum 0.9."""
    l2: Annotated[float, Range(0, 1e6)] = 100.0
    """Weight of the mean squared error of the downsampled image."""
    l1: Annotated[float, Range(0, 1e6)] = 0.0
    """Weight of ten times the mean absolute error of the downsampled image."""
    geocross: Annotated[float, Range(0, 1e6)] = 0.05
    """Weight of the angles between the rows of the W+ latent."""
    tile_latent: bool = False
    """Whether all layers share one latent."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the initial latents and noise, the same for every image."""
    result: SelectedResult = "last"
    """Returned image if eps is reached: the last one or that of the least loss."""
    fit_samples: Annotated[int, Range(2, 10**9)] = 1_000_000
    """Number of latents for the fit of the Gaussian to the mapping network."""

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
            share = 1.0
        elif step < end:
            share = (9 * (1 - 2 * abs(step / end - 0.5)) + 1) / 10
        else:
            share = 1 / 10 + (step - end) / (0.1 * self.steps) * (1 / 1000 - 1 / 10)
        return self.lr * share


# ----------------------------------------------------------------------------------------------------------------- losses


def bicubic_matrix(size: int, scale: int) -> Tensor:
    """The official bicubic downsampling matrix of one axis, (size / scale, size): 4 * scale taps of Keys' cubic, a = -0.5.

    It differs from MATLAB's only at the borders: here the reflection does not repeat the last pixel.
    """

    def cubic(x: Tensor) -> Tensor:
        x = x.abs()
        return torch.where(x <= 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)

    return downsampling_matrix(size, scale, cubic, lambda i: size - 1 - (size - 1 - i.abs()).abs())


def geocross(latents: Tensor) -> Tensor:
    """512 / 8 times the mean square of the L x L angles between the rows of W+ latents (N, L, D), (N).

    The official 512 is kept for every D, since angles do not depend on D.
    """
    x, y = latents[:, None], latents[:, :, None]
    difference = ((x - y).square().sum(-1) + 1e-9).sqrt()
    total = ((x + y).square().sum(-1) + 1e-9).sqrt()
    angles = 2 * torch.atan2(difference, total)
    return angles.square().mean((1, 2)) * (512 / 8)


def norms(x: Tensor) -> Tensor:
    """The norms of `x` (N, n, ...) over all but the first two axes, (N, n, 1, ...)."""
    return (x.square().sum(tuple(range(2, x.ndim)), keepdim=True) + 1e-9).sqrt()


# -------------------------------------------------------------------------------------------------------------- the search


class PULSE:
    """PULSE with a bank: upscales images of bank size / scale. A `Model`.

    If a search does not reach eps, the result is the image of the least loss, with a note; the official code returns nothing. The official
    code compares eps with the sum over a batch; here each image is compared separately.
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
        """
        Args:
            bank: a StyleGAN or StyleGAN2; it is moved to `device`, its weights do not change.
            scale: a power of two from 2 to half the bank's size.
            config: default: the official settings.
            device: where the search runs.
            precision: precision of the bank's convolutions.

        Raises:
            RequestError: the bank is another network, or the scale or a layer of the configuration does not fit it.
        """
        if not isinstance(bank, StyleGAN | StyleGAN2):
            raise RequestError(f"PULSE needs a StyleGAN or StyleGAN2 bank, not a {type(bank).__name__}")
        size, layers = bank.config.size, len(bank.synthesis.layers)
        check_scale("PULSE", size, scale)
        self.config = config or PULSEConfig()
        if invalid := [i for i in self.config.zero_noise_layers if not -layers <= i < layers]:
            raise RequestError(f"zero_noise_layers must be {-layers} to {layers - 1} with this bank, not {invalid[0]}")
        self.name, self.scale = "PULSE", scale
        self.in_size: int | None = size // scale
        self.device, self.precision = torch.device(device), precision
        self.bank = to_channels_last(bank.eval(), self.device)
        self._matrix = bicubic_matrix(size, scale).float().to(self.device)
        self._gaussian: Gaussian | None = None

    def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:
        """lr (N, 3, in_size, in_size), RGB in [-1, 1] -> images (N, 3, size, size), RGB, nominally in [-1, 1], not clamped, float32.

        Every image starts from the same seeded latents and noise. On a CPU images are searched one after the other, so results do not
        depend on the batch. A GPU searches all images of a batch at once; its rounding may depend on the batch size, and the many steps
        magnify that to visible differences.

        `report` receives the steps of the Gaussian fit, which is done once per bank and cached, and of the search.
        """
        check_lr("PULSE", lr, self.in_size)
        samples = self.config.fit_samples
        with torch.inference_mode(False), torch.enable_grad(), frozen(self.bank):
            lr = lr.to(self.device, torch.float32)
            groups = lr.split(1) if self.device.type == "cpu" else (lr,)
            fit = self._gaussian or cached_gaussian(self.bank, samples)
            on_step = counter(report, (0 if fit else chunks(samples)) + len(groups) * self.config.steps)
            fit = self._gaussian = (fit or fit_gaussian(self.bank, samples, on_step)).to(self.device)
            outputs = [self.search(group, fit, on_step) for group in groups]
        return ModelOutput(torch.cat([output.images for output in outputs]), [note for output in outputs for note in output.notes])

    def search(self, lr: Tensor, fit: Gaussian, on_step: Callable[[], None] = lambda: None) -> ModelOutput:
        """Searches for all images at once. `fit` is the bank's Gaussian; `on_step` is called after every step. Needs enabled gradients."""
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
            if step + 1 < config.steps:  # the latents after the last step are not used
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
            on_step()
        reached = least_l2 <= config.eps
        if config.result == "last":
            best = torch.where(reached[:, None, None, None], image.detach(), best)
        failure = "PULSE did not reach eps {:g}: L2 {:.3g} after {} steps"
        notes = [
            "" if success else failure.format(config.eps, distance, config.steps)
            for success, distance in zip(reached.tolist(), best_l2.tolist(), strict=True)
        ]
        return ModelOutput(best, notes)

    def _start(self, n: int) -> tuple[Tensor, list[Tensor]]:
        """The seeded latents (n, L or 1, code_dim) and noise images, trainable ones (n, 1, H, W) and others (1, 1, H, W).

        They are drawn on the CPU in the official order."""
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
            trainable = config.noise == "trainable" and i < config.trainable_noise_layers
            noises.append(variable(noise) if trainable else noise.to(self.device))
        return latent, noises

    def _losses(self, image: Tensor, latents: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and mean squared error (N) of images, after downsampling and on the scale of [0, 1]."""
        config = self.config
        difference = (self._matrix @ (image @ self._matrix.t()) - lr) / 2
        l2 = difference.square().mean((1, 2, 3))
        loss = config.l2 * l2.clamp(min=config.eps) + config.geocross * geocross(latents)
        if config.l1:
            loss = loss + config.l1 * 10 * difference.abs().mean((1, 2, 3)).clamp(min=config.eps)
        return loss, l2.detach()


@contextlib.contextmanager
def frozen(bank: nn.Module) -> Iterator[None]:
    """Disables the gradients of the bank's parameters and selects deterministic cuDNN algorithms, as in the official code."""
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
    """A function that counts `total` steps and reports them."""
    done = itertools.count(1)
    return (lambda: report(next(done), total)) if report else (lambda: None)
