"""DGP: fine-tunes a bank, layer by layer, until one of its images equals the input when downsampled.

Source: Pan et al., "Exploiting Deep Generative Prior for Versatile Image Restoration and Manipulation", ECCV 2020. Numbers are those of the
official code for super-resolution, which supports BigGAN at a scale of 4; here the scale is free, and StyleGAN's banks are tuned in the
same way, see `parameter_groups`.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gleansr.baselines.dgp_config import DGPConfig, Downsampler
from gleansr.baselines.search import check_lr, check_scale, downsampling_matrix
from gleansr.errors import GleansrError, RequestError
from gleansr.images.resize import resize
from gleansr.inference.method import ModelOutput, StepReport
from gleansr.models.biggan import BigGAN, BigGANConfig, BigGANDiscriminator, InstanceNorm
from gleansr.models.layers import to_channels_last
from gleansr.models.stylegan import StyleGAN, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Discriminator

Bank = BigGAN | StyleGAN | StyleGAN2
Discriminator = BigGANDiscriminator | StyleGANDiscriminator | StyleGAN2Discriminator

REPORT_EVERY = 5
"""Steps between two progress reports."""


# ---------------------------------------------------------------------------------------------------------- degradation


def lanczos2_matrix(size: int, scale: int) -> Tensor:
    """The official downsampling matrix of one axis, (size / scale, size), for an even scale: 4 * scale taps, border pixels repeated."""
    return downsampling_matrix(size, scale, lambda x: torch.sinc(x) * torch.sinc(x / 2), lambda i: i.clamp(0, size - 1)).float()


def bicubic_matrix(size: int, scale: int) -> Tensor:
    """MATLAB's bicubic downsampling matrix of one axis, (size / scale, size)."""
    return resize(torch.eye(size, dtype=torch.float64), size=(size // scale, size)).float()


def bilinear_matrix(size: int, scale: int) -> Tensor:
    """The bilinear upsampling matrix of one axis, (size * scale, size), aligned by pixel centres."""
    return F.interpolate(torch.eye(size)[None], scale_factor=float(scale), mode="linear", align_corners=False)[0].T.contiguous()


class Degradation:
    """Downsamples images and upsamples them bilinearly; DGP compares the results.

    Both are separable and linear: each is two products with a small matrix, with a deterministic backward pass.
    """

    def __init__(self, size: int, scale: int, downsampler: Downsampler, device: torch.device):
        matrix = {"bicubic": bicubic_matrix, "lanczos2": lanczos2_matrix}[downsampler]
        self.down = matrix(size, scale).to(device)
        self.up = bilinear_matrix(size // scale, scale).to(device)

    def __call__(self, image: Tensor) -> Tensor:
        """image (N, 3, size, size) -> the same shape."""
        return self.upsample(self.downsample(image))

    def downsample(self, image: Tensor) -> Tensor:
        """image (N, 3, size, size) -> (N, 3, size / scale, size / scale)."""
        return self.down @ image @ self.down.T

    def upsample(self, lr: Tensor) -> Tensor:
        """lr (N, 3, size / scale, size / scale) -> (N, 3, size, size)."""
        return self.up @ lr @ self.up.T


# ------------------------------------------------------------------------------------------------------------- the bank


def parameter_groups(bank: Bank) -> list[list[nn.Parameter]]:
    """The groups of parameters that DGP tunes, in the order in which it adds them, from input to output.

    BigGAN: the first layer, then the blocks. StyleGAN's banks: mapping network, constant and layers of 4 px, then the layers of each larger
    size with their affine maps, so that a bank of 256 px also has 7 groups. RGB layers, noise images and the class embedding are not tuned.
    """
    if isinstance(bank, BigGAN):
        return bank.parameter_groups()
    synthesis = bank.synthesis
    layers = [nn.ModuleList(synthesis.layers[i] for i in synthesis.layers_at(j)) for j in range(len(bank.config.channels))]
    groups = [list(layers_of_size.parameters()) for layers_of_size in layers]
    return [[*bank.mapping.parameters(), synthesis.constant, *groups[0]], *groups[1:]]


def storage_factors(bank: Bank) -> dict[nn.Parameter, float]:
    """The factors of equalised parameters: the effective weight is the stored one times the factor.

    StyleGAN stores weights with unit variance; the factor of a 3x3 convolution of 512 channels is 1/68. Adam's steps do not depend on the
    factor, and the published learning rates are for weights without one: divided by the factor, they change effective weights as much.
    """
    factors: dict[nn.Parameter, float] = {}
    for module in bank.modules():
        for name, factor in (("weight", getattr(module, "scale", None)), ("bias", getattr(module, "lr_mul", None))):
            parameter = getattr(module, name, None)
            if factor is not None and parameter is not None:
                factors[parameter] = factor
    return factors


# ----------------------------------------------------------------------------------------------------------- the search


class DGP:
    """DGP with a bank and its discriminator: upscales images of bank size / scale. A `Model`.

    It works on copies of both networks. Each image starts from the bank's own weights and a new optimiser; the official code keeps Adam's
    moments from one image to the next.
    """

    def __init__(
        self,
        bank: Bank,
        discriminator: Discriminator | None,
        scale: int,
        config: DGPConfig | None = None,
        *,
        device: str | torch.device = "cpu",
        precision: torch.dtype = torch.float32,
    ):
        """
        Args:
            bank: the generator.
            discriminator: the bank's own discriminator.
            scale: a power of two from 2 to half the bank's size.
            config: default: the official settings.
            device: where the search runs.
            precision: precision of the convolutions; bfloat16 loses the smallest steps of fine-tuning.

        Raises:
            RequestError: there is no discriminator, or bank, discriminator, scale and class do not fit together.
        """
        if not isinstance(bank, Bank):
            raise RequestError(f"DGP needs a BigGAN, StyleGAN or StyleGAN2 bank, not a {type(bank).__name__}")
        self.config = config or DGPConfig()
        size = size_of(bank)
        self._classes = bank.config.n_classes if isinstance(bank, BigGAN) else None
        class_index = self.config.class_index
        if class_index is not None and self._classes is None:
            raise RequestError(f"class_index is {class_index}, but a {type(bank).__name__} has no classes; leave it out")
        if class_index is not None and self._classes is not None and class_index >= self._classes:
            raise RequestError(f"class_index is {class_index}, but this bank's classes are 0 to {self._classes - 1}")
        check_scale("DGP", size, scale)
        self.name, self.scale = "DGP", scale
        self.in_size: int | None = size // scale
        self.device, self.precision = torch.device(device), precision
        self._bank = to_channels_last(copy.deepcopy(bank).eval(), self.device)
        self._discriminator = to_channels_last(copy.deepcopy(_checked(discriminator, size)).eval().requires_grad_(False), self.device)
        self._groups = parameter_groups(self._bank)
        self._originals = [[parameter.detach().clone() for parameter in group] for group in self._groups]
        self._factors = storage_factors(self._bank)
        self._degradation = Degradation(size, scale, self.config.downsampler, self.device)

    def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:
        """lr (N, 3, in_size, in_size), RGB in [-1, 1], float32 -> images (N, 3, size, size), RGB, nominally in [-1, 1], not clamped.

        Images are searched one after the other; each result depends on its input, the seed and the configuration. `report` counts the
        initial samples, which are drawn once for all images, and the iterations. The notes give the PSNR between the input and the
        downsampled result, and the chosen class.

        Raises:
            GleansrError: a loss is not finite.
        """
        check_lr("DGP", lr, self.in_size)
        progress = SearchProgress(report, self.config.select_samples + len(lr) * sum(self.config.iterations))
        with torch.inference_mode(False), torch.enable_grad():
            # A copy, since tensors of inference mode do not support autograd.
            images = lr.to(self.device, torch.float32, copy=True).split(1)
            starts = self._select(images, progress)
            results = [self._search(image, *start, progress) for image, start in zip(images, starts, strict=True)]
        return ModelOutput(torch.cat([image for image, _ in results]), [note for _, note in results])

    def _select(self, images: Sequence[Tensor], progress: "SearchProgress") -> list[tuple[Tensor, int | None]]:
        """The initial z (1, code_dim) and class, None without classes, of each image's search."""
        config = self.config
        self._restore()
        generator = torch.Generator().manual_seed(config.seed)
        samples = torch.randn(config.select_samples, self._bank.config.code_dim, generator=generator) * config.select_std
        labels: list[int | None] = [config.class_index] * len(samples)
        if self._classes is not None and config.class_index is None:
            labels = torch.randint(self._classes, (len(samples),), generator=generator).tolist()
        batch = max(1, (2**19 if self.device.type == "cpu" else 2**23) // size_of(self._bank) ** 2)
        distances: list[Tensor] = []  # (images, samples)
        with torch.no_grad():
            targets = [self._features(self._degradation.upsample(image))[-config.select_features :] for image in images]
            for first in range(0, len(samples), batch):
                z = samples[first : first + batch].to(self.device)
                features = self._features(self._degradation(self._generate(z, self._embedding(labels[first : first + batch]))))
                distances.append(torch.stack([features_distance(features, target, config.select_features) for target in targets]))
                progress.add(len(z))
        best = torch.cat(distances, 1).argmin(1).tolist()
        return [(samples[i : i + 1].to(self.device), labels[i]) for i in best]

    def _search(self, lr: Tensor, z: Tensor, label: int | None, progress: "SearchProgress") -> tuple[Tensor, str]:
        """lr (1, 3, in_size, in_size), initial z (1, code_dim) and class -> the image (1, 3, size, size) and its note."""
        config = self.config
        self._restore()
        target = self._degradation.upsample(lr)
        with torch.no_grad():
            features = self._features(target)
        embedding = self._embedding([label])
        z = z.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.0, betas=self.config.betas, eps=1e-8, fused=True)
        norms: list[InstanceNorm] | None = None
        image = target
        for stage, iterations in enumerate(config.iterations):
            self._begin_stage(stage, z, optimizer)
            norms = (norms or self._instance_norms(z, embedding)) if config.instance_norm[stage] else None
            loss = torch.zeros(())
            for _ in range(iterations):
                image = self._generate(z, embedding, norms)
                degraded = self._degradation(image)
                loss = (
                    config.feature_weights[stage] * features_distance(self._features(degraded), features, config.features[stage]).sum()
                    + config.mse_weights[stage] * F.mse_loss(degraded, target)
                    + config.prior_weight * z.square().mean() / 2
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.add(1)
            if not loss.isfinite():
                raise GleansrError(f"DGP diverged in stage {stage + 1}: the loss is not finite; lower generator_lrs or latent_lrs")
        image = image.detach()  # as in the official code, the image before the last step
        error = float(F.mse_loss(self._degradation.downsample(image.clamp(-1, 1)), lr)) / 4
        note = f"downsampled, {-10 * math.log10(max(error, 1e-10)):.1f} dB to the input"
        return image, note if label == config.class_index else f"{note}, class {label}"

    def _generate(self, z: Tensor, embedding: Tensor, norms: list[InstanceNorm] | None = None) -> Tensor:
        """The bank's images (N, 3, size, size) of z (N, code_dim)."""
        with self._autocast():
            image = self._bank.synthesis(z, embedding, norms) if isinstance(self._bank, BigGAN) else self._bank(z)
        return image.float()

    def _embedding(self, labels: list[int | None]) -> Tensor:
        """The class embeddings (N, shared_dim), or (N, 0) without classes."""
        if not isinstance(self._bank, BigGAN):
            return torch.empty(len(labels), 0)
        return self._bank.embed(torch.tensor(labels, device=self.device)).detach()

    def _instance_norms(self, z: Tensor, embedding: Tensor) -> list[InstanceNorm] | None:
        return self._bank.instance_norms(z, embedding) if isinstance(self._bank, BigGAN) else None

    def _features(self, image: Tensor) -> list[Tensor]:
        with self._autocast():
            features = self._discriminator.features(image)
        return [feature.float() for feature in features]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    @torch.no_grad()
    def _restore(self) -> None:
        """Restores the bank's own weights."""
        for group, originals in zip(self._groups, self._originals, strict=True):
            for parameter, original in zip(group, originals, strict=True):
                parameter.copy_(original)

    def _begin_stage(self, stage: int, z: Tensor, optimizer: torch.optim.Adam) -> None:
        """Sets learning rates, and enables the gradients of parameters that this or a later stage tunes.

        Parameters of later stages have a learning rate of 0, but collect second moments from the start, as in the official code.
        """
        tuned = [len(self._groups) if n == "all" else n for n in self.config.tuned_groups]
        lr, ratio = self.config.generator_lrs[stage], self.config.lr_ratios[stage]
        rates: dict[float, list[Tensor]] = defaultdict(list)  # a group for each rate: Adam's overhead grows with the number of groups
        rates[self.config.latent_lrs[stage]].append(z)
        self._bank.requires_grad_(False)
        for depth, group in enumerate(self._groups[: max(tuned[stage:])]):
            for parameter in group:
                parameter.requires_grad_()
                rate = lr * ratio**depth / self._factors.get(parameter, 1.0) if depth < tuned[stage] else 0.0
                rates[rate].append(parameter)
        optimizer.param_groups.clear()  # Adam's moments stay with the parameters
        for rate, parameters in rates.items():
            optimizer.add_param_group({"params": parameters, "lr": rate})


class SearchProgress:
    """Counts steps and reports them every `REPORT_EVERY` steps."""

    def __init__(self, report: StepReport | None, total: int):
        self.report, self.total = report, total
        self.done = self.reported = 0

    def add(self, steps: int) -> None:
        self.done += steps
        if self.report and (self.done - self.reported >= REPORT_EVERY or self.done == self.total):
            self.reported = self.done
            self.report(self.done, self.total)


class _MeanDistance(torch.autograd.Function):
    """Mean absolute difference (N) of x (N, ...) and y (1, ...), once differentiable in x.

    Plain operators read and write features a dozen times, and copy channels-last ones: a twelfth of DGP's time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        difference = x - y
        ctx.save_for_backward(difference)
        return torch.linalg.vector_norm(difference, 1, dim=tuple(range(1, x.ndim))) / x[0].numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference.sign_().mul_(gradient.view(-1, *[1] * (difference.ndim - 1)) / difference[0].numel()), None


def features_distance(features: Sequence[Tensor], target: Sequence[Tensor], count: int) -> Tensor:
    """The sum (N) of the mean absolute differences of the last `count` features, (N, ...) and (1, ...) each."""
    return torch.stack([_MeanDistance.apply(x, y) for x, y in zip(features[-count:], target[-count:], strict=True)]).sum(0)


def size_of(network: Bank | Discriminator) -> int:
    """Height and width of the images of a bank or discriminator."""
    return network.config.resolution if isinstance(network.config, BigGANConfig) else network.config.size


def _checked(discriminator: Discriminator | None, size: int) -> Discriminator:
    """The discriminator. Raises RequestError if it is missing, another network, or not for images of `size` px."""
    if discriminator is None:
        raise RequestError(
            "DGP needs the bank's own discriminator, which this file lacks; train one with `gleansr train-bank` and discriminator = "
            '"stylegan2" in the recipe, or give its file with the setting discriminator'
        )
    if not isinstance(discriminator, Discriminator):
        raise RequestError(f"DGP needs the discriminator of a BigGAN, StyleGAN or StyleGAN2, not a {type(discriminator).__name__}")
    if size_of(discriminator) != size:
        raise RequestError(
            f"the discriminator is for images of {size_of(discriminator)} px, but the bank generates {size} px; give the bank's own"
        )
    return discriminator
