"""DGP: fine-tunes a bank, layer after layer, until an image of it, shrunk, is the one that was given.

Source: Pan et al., "Exploiting Deep Generative Prior for Versatile Image Restoration and Manipulation", ECCV 2020. Numbers are those of the
official code for super-resolution, which knows one bank, BigGAN, and a factor of 4; here the factor is free, and StyleGAN's banks are tuned
in the same way, see `parameter_groups`.
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
from gleansr.baselines.search import check_lr, check_scale, reduction
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
"""Iterations between two reports."""


# ---------------------------------------------------------------------------------------------------------- degradation


def lanczos2_matrix(size: int, factor: int) -> Tensor:
    """The official reduction of one axis, (size / factor, size), for an even factor: 4 * factor taps, border pixels repeated."""
    return reduction(size, factor, lambda x: torch.sinc(x) * torch.sinc(x / 2), lambda i: i.clamp(0, size - 1)).float()


def bicubic_matrix(size: int, factor: int) -> Tensor:
    """MATLAB's bicubic reduction of one axis, (size / factor, size)."""
    return resize(torch.eye(size, dtype=torch.float64), size=(size // factor, size)).float()


def bilinear_matrix(size: int, factor: int) -> Tensor:
    """Bilinear enlargement of one axis, (size * factor, size), by the centres of pixels."""
    return F.interpolate(torch.eye(size)[None], scale_factor=float(factor), mode="linear", align_corners=False)[0].T.contiguous()


class Degradation:
    """Shrinks images and enlarges them again bilinearly, which is where DGP compares them.

    Both are linear and treat the axes alike, so that each is two products with a small matrix, with a deterministic backward pass.
    """

    def __init__(self, size: int, factor: int, downsampler: Downsampler, device: torch.device):
        matrix = {"bicubic": bicubic_matrix, "lanczos2": lanczos2_matrix}[downsampler]
        self.down = matrix(size, factor).to(device)
        self.up = bilinear_matrix(size // factor, factor).to(device)

    def __call__(self, image: Tensor) -> Tensor:
        """image (N, 3, size, size) -> the same shape."""
        return self.enlarge(self.shrink(image))

    def shrink(self, image: Tensor) -> Tensor:
        """image (N, 3, size, size) -> (N, 3, size / factor, size / factor)."""
        return self.down @ image @ self.down.T

    def enlarge(self, lr: Tensor) -> Tensor:
        """low (N, 3, size / factor, size / factor) -> (N, 3, size, size)."""
        return self.up @ lr @ self.up.T


# ------------------------------------------------------------------------------------------------------------- the bank


def parameter_groups(bank: Bank) -> list[list[nn.Parameter]]:
    """The parameters that DGP tunes, in the order in which it sets them free, from the input to the output.

    BigGAN's are its first layer, then its blocks. Their counterparts in StyleGAN's banks: what makes the features of 4 px (mapping network,
    constant, first layers), then the layers of each further size with their affine maps, so that a bank of 256 px has 7 groups too. What
    turns features into RGB stays as it is in all of them; so do noise images and the classes' embedding.
    """
    if isinstance(bank, BigGAN):
        return bank.parameter_groups()
    synthesis = bank.synthesis
    layers = [nn.ModuleList(synthesis.layers[i] for i in synthesis.layers_at(j)) for j in range(len(bank.config.channels))]
    groups = [list(group.parameters()) for group in layers]
    return [[*bank.mapping.parameters(), synthesis.constant, *groups[0]], *groups[1:]]


def storage_factors(bank: Bank) -> dict[nn.Parameter, float]:
    """What a stored parameter is multiplied by before it acts, where it does not act as it is stored.

    StyleGAN's weights are stored with unit variance, and the factor is 1/68 for a 3x3 convolution of 512 channels. Adam's steps do not
    depend on it, and the published learning rates are for weights that act as they are stored; divided by the factor, they change what
    acts as much in these banks.
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
    """DGP with a bank and its discriminator: enlarges images of bank size / scale. A `Method`.

    It works on copies of both networks: those that are given stay as they are, whatever happens. Each image starts from the bank's own
    weights and from an optimiser without a past; the official code keeps Adam's moments from one image to the next.
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
        """`scale` is a power of two from 2 to half the bank's size. `config`: the official one by default. `precision` is that of
        the convolutions; at bfloat16 they do not see the smallest steps of fine-tuning.

        Raises:
            RequestError: there is no discriminator, or bank, discriminator, scale and class do not fit together.
        """
        if not isinstance(bank, Bank):
            raise RequestError(f"DGP fine-tunes a BigGAN, a StyleGAN or a StyleGAN2; a {type(bank).__name__} is none, give such a bank")
        self.config = config or DGPConfig()
        size = size_of(bank)
        self._classes = bank.config.n_classes if isinstance(bank, BigGAN) else None
        wanted = self.config.class_index
        if wanted is not None and self._classes is None:
            raise RequestError(f"class_index is {wanted}, but a {type(bank).__name__} knows no classes; leave it out")
        if wanted is not None and self._classes is not None and wanted >= self._classes:
            raise RequestError(f"class_index is {wanted}, but this bank's classes are 0 to {self._classes - 1}")
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
        """low (N, 3, in_size, in_size), RGB in [-1, 1], float32 -> images (N, 3, size, size), RGB, nominally in [-1, 1], not clamped.

        One image after the other; what becomes of each depends on it, the seed and the configuration. `report` counts the samples to
        start from, which are drawn once for all images, and the iterations. The notes say how near to the given image the result
        comes when it is shrunk again, and which class was chosen.

        Raises:
            GleansrError: a loss became infinite.
        """
        check_lr("DGP", lr, self.in_size)
        progress = SearchProgress(report, self.config.select_samples + len(lr) * sum(self.config.iterations))
        with torch.inference_mode(False), torch.enable_grad():
            # A copy: a tensor of inference mode could not be differentiated through.
            images = lr.to(self.device, torch.float32, copy=True).split(1)
            starts = self._select(images, progress)
            results = [self._search(image, *start, progress) for image, start in zip(images, starts, strict=True)]
        return ModelOutput(torch.cat([image for image, _ in results]), [note for _, note in results])

    def _select(self, images: Sequence[Tensor], progress: "SearchProgress") -> list[tuple[Tensor, int | None]]:
        """The z (1, code_dim) and the class, None where there are none, from which each image's search starts."""
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
            wanted = [self._features(self._degradation.enlarge(image))[-config.select_features :] for image in images]
            for first in range(0, len(samples), batch):
                z = samples[first : first + batch].to(self.device)
                found = self._features(self._degradation(self._paint(z, self._embedding(labels[first : first + batch]))))
                distances.append(torch.stack([features_distance(found, features, config.select_features) for features in wanted]))
                progress.add(len(z))
        best = torch.cat(distances, 1).argmin(1).tolist()
        return [(samples[i : i + 1].to(self.device), labels[i]) for i in best]

    def _search(self, lr: Tensor, z: Tensor, label: int | None, progress: "SearchProgress") -> tuple[Tensor, str]:
        """low (1, 3, in_size, in_size), z (1, code_dim) and the class to start from -> the image (1, 3, size, size) and its note."""
        config = self.config
        self._restore()
        target = self._degradation.enlarge(lr)
        with torch.no_grad():
            wanted = self._features(target)
        embedding = self._embedding([label])
        z = z.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.0, betas=self.config.betas, eps=1e-8, fused=True)
        norms: list[InstanceNorm] | None = None
        image = target
        for stage, iterations in enumerate(config.iterations):
            self._enter(stage, z, optimizer)
            norms = (norms or self._instance_norms(z, embedding)) if config.instance_norm[stage] else None
            loss = torch.zeros(())
            for _ in range(iterations):
                image = self._paint(z, embedding, norms)
                degraded = self._degradation(image)
                loss = (
                    config.feature_weights[stage] * features_distance(self._features(degraded), wanted, config.features[stage]).sum()
                    + config.mse_weights[stage] * F.mse_loss(degraded, target)
                    + config.prior_weight * z.square().mean() / 2
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.add(1)
            if not loss.isfinite():
                raise GleansrError(f"DGP went astray in stage {stage + 1}: its loss is not finite; lower generator_lrs or latent_lrs")
        image = image.detach()  # as in the official code the one that the last step was taken for, not what came of that step
        error = float(F.mse_loss(self._degradation.shrink(image.clamp(-1, 1)), lr)) / 4
        note = f"shrunk again, {-10 * math.log10(max(error, 1e-10)):.1f} dB to the given image"
        return image, note if label == config.class_index else f"{note}, class {label}"

    def _paint(self, z: Tensor, embedding: Tensor, norms: list[InstanceNorm] | None = None) -> Tensor:
        """The bank's images of z (N, code_dim), (N, 3, size, size)."""
        with self._autocast():
            image = self._bank.synthesis(z, embedding, norms) if isinstance(self._bank, BigGAN) else self._bank(z)
        return image.float()

    def _embedding(self, labels: list[int | None]) -> Tensor:
        """Those of classes, (N, shared_dim), or nothing, (N, 0), where there are none."""
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
        """Gives the copy the bank's own weights again, wherever an earlier search left off."""
        for group, originals in zip(self._groups, self._originals, strict=True):
            for parameter, original in zip(group, originals, strict=True):
                parameter.copy_(original)

    def _enter(self, stage: int, z: Tensor, optimizer: torch.optim.Adam) -> None:
        """Sets learning rates, and which parameters have gradients: those that this or a later stage tunes.

        What a later stage tunes has the learning rate 0 until then, but its second moments gather from the start, as in the official code.
        """
        tuned = [len(self._groups) if n == "all" else n for n in self.config.tuned_groups]
        lr, ratio = self.config.generator_lrs[stage], self.config.lr_ratios[stage]
        rates: dict[float, list[Tensor]] = defaultdict(list)  # one group for each of them: Adam takes its time for every group
        rates[self.config.latent_lrs[stage]].append(z)
        self._bank.requires_grad_(False)
        for depth, group in enumerate(self._groups[: max(tuned[stage:])]):
            for parameter in group:
                parameter.requires_grad_()
                rate = lr * ratio**depth / self._factors.get(parameter, 1.0) if depth < tuned[stage] else 0.0
                rates[rate].append(parameter)
        optimizer.param_groups.clear()  # Adam's moments are kept with the parameters
        for rate, parameters in rates.items():
            optimizer.add_param_group({"params": parameters, "lr": rate})


class SearchProgress:
    """Counts steps and tells a report of them, now and then."""

    def __init__(self, report: StepReport | None, total: int):
        self.report, self.total = report, total
        self.done = self.told = 0

    def add(self, steps: int) -> None:
        self.done += steps
        if self.report and (self.done - self.told >= REPORT_EVERY or self.done == self.total):
            self.told = self.done
            self.report(self.done, self.total)


class _MeanDistance(torch.autograd.Function):
    """Mean absolute difference of (N, ...) and (1, ...) over all but the first axis, (N), differentiable once in the first of them.

    In plain operators a feature is read and written a dozen times there and back, and copied where it is channels-last: a twelfth of
    DGP's time.
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


def features_distance(found: Sequence[Tensor], wanted: Sequence[Tensor], count: int) -> Tensor:
    """Mean absolute differences of the last `count` features, (N, ...) and (1, ...) each, summed over these, (N)."""
    return torch.stack([_MeanDistance.apply(x, y) for x, y in zip(found[-count:], wanted[-count:], strict=True)]).sum(0)


def size_of(network: Bank | Discriminator) -> int:
    """Height and width of the images that it makes or judges."""
    return network.config.resolution if isinstance(network.config, BigGANConfig) else network.config.size


def _checked(discriminator: Discriminator | None, size: int) -> Discriminator:
    """The discriminator, if it is one and for images of `size` px."""
    if discriminator is None:
        raise RequestError(
            "DGP needs the bank's own discriminator, which this file lacks; `gleansr train-bank` writes a bank with it where the recipe "
            'says discriminator = "stylegan2", or name the file of one by the setting discriminator'
        )
    if not isinstance(discriminator, Discriminator):
        known = "a BigGAN's, StyleGAN's or StyleGAN2's"
        raise RequestError(f"DGP compares images by the features of {known} discriminator, not of a {type(discriminator).__name__}")
    if size_of(discriminator) != size:
        raise RequestError(
            f"the discriminator is for images of {size_of(discriminator)} px, but the bank makes {size} px; give the bank's own"
        )
    return discriminator
