"""Adaptive discriminator augmentation, which keeps the discriminator from overfitting to few images.

Source: Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020, arXiv:2006.06676.
Real and generated images are augmented alike before the discriminator sees them (section 2), with a probability that
depends on how far the discriminator overfits (section 3). The augmentations are the pipeline "bgc" of appendix B
(pixel blitting, geometry, colour), with the strengths, the order and the resampling of the authors' code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.errors import CheckpointError, RequestError

# Low-pass filter of the wavelet symlet 6. It is orthonormal to its shifts by two taps: upsampling an image by 2 with it
# and downsampling again returns the image.
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
CENTRE = 5  # the tap on the pixel itself when upsampling
REACH = 3  # pixels that the filter covers on either side: 12 taps, half a pixel apart


@dataclass(frozen=True)
class Augmentations:
    """The augmentations of `Augment`, in order. N(0, s²) is a normal distribution."""

    xflip: bool = True
    """Mirror horizontally, in half of the cases."""
    rotate90: bool = True
    """Rotate by 0, 90, 180 or 270 degrees."""
    translate: bool = True
    """Translate by whole pixels, up to 1/8 of the width and of the height."""
    scale: bool = True
    """Enlarge by 2^N(0, 0.2²)."""
    rotate: bool = True
    """Rotate by any angle: before the anisotropic scaling, after it, or both."""
    anisotropic: bool = True
    """Stretch the width by 2^N(0, 0.2²), shrink the height by as much."""
    fraction: bool = True
    """Translate by N(0, 1/8²) of the width and of the height, fractions of a pixel included."""
    brightness: bool = True
    """Add N(0, 0.2²)."""
    contrast: bool = True
    """Multiply by 2^N(0, 0.5²)."""
    lumaflip: bool = True
    """Invert brightness but keep hue and saturation, in half of the cases."""
    hue: bool = True
    """Rotate the colours by any angle about the grey axis."""
    saturation: bool = True
    """Multiply the distance from the grey axis by 2^N(0, 1)."""


class Augment(nn.Module):
    """Applies each of `Augmentations`, independently for each image, with the probability p.

    Its arguments are the fields of `Augmentations`: `Augment(hue=False)`. It has no parameters and no buffers.
    """

    def __init__(self, **augmentations: bool) -> None:
        super().__init__()
        self.augmentations = Augmentations(**augmentations)

    def forward(self, images: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
        """Augments images (N, 3, H, W), RGB in [-1, 1], of any floating type; shape and type stay.

        The result is not clamped: contrast and brightness may leave [-1, 1]. Borders are mirrored once, beyond is 0.
        `p` is in [0, 1]; 0 returns `images` itself and draws nothing. `generator` is on the CPU for every device; None
        is torch's global one.

        The gradient with respect to `images` trains a generator. Take R1 with respect to the augmented images:
        `augment(real, p).detach().requires_grad_()`. The authors' code takes it with respect to the original ones,
        which needs second derivatives of `grid_sample`; older versions of torch lack them (2.5; 2.13 has them).
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise RequestError(f"images are {images.dtype} {tuple(images.shape)}; expected floating point (N, 3, H, W)")
        _check_probability(p)
        if p == 0:
            return images
        geometry = self.draw_geometry(images.shape, p, generator)
        colour = self.draw_colour(images.shape, p, generator)
        with torch.autocast(images.device.type, enabled=False):  # half precision cannot tell neighbouring pixels apart
            result = images.to(torch.promote_types(images.dtype, torch.float32))
            result = _apply_non_identity(warp, result, geometry)
            result = _apply_non_identity(recolour, result, colour)
        return result.to(images.dtype)

    def draw_geometry(self, shape: torch.Size, p: float, generator: torch.Generator | None = None) -> Tensor:
        """Draws matrices for `warp`, (N, 2, 3) float64 on the CPU; exactly the identity for unchanged images."""
        batch, _, height, width = shape
        on, random, size = self.augmentations, _Random(batch, generator), torch.tensor([width, height])
        p_rotate = 1 - math.sqrt(1 - p * on.rotate)  # so that at least one of the two rotations has probability p
        flip = random.maybe(p * on.xflip, random.below(2))
        quarters = random.maybe(p * on.rotate90, random.below(4))
        pixels = (random.maybe(p * on.translate, random.uniform(1 / 8, columns=2)) * size).round()
        zoom = random.maybe(p * on.scale, random.normal(0.2)).exp2()
        angle_before = random.maybe(p_rotate, random.uniform(math.pi))
        stretch = random.maybe(p * on.anisotropic, random.normal(0.2)).exp2()
        angle_after = random.maybe(p_rotate, random.uniform(math.pi))
        fraction = random.maybe(p * on.fraction, random.normal(1 / 8, columns=2)) * size

        # Position in the result = second @ (first @ position in the image + pixels) + fraction.
        first = _rotation(-math.pi / 2 * quarters) @ _scaling(1 - 2 * flip, torch.ones_like(flip))
        second = _rotation(angle_after) @ _scaling(zoom * stretch, zoom / stretch) @ _rotation(angle_before)
        inverse = torch.linalg.inv(second @ first)
        return torch.cat([inverse, -inverse @ (second @ pixels[..., None] + fraction[..., None])], dim=2)

    def draw_colour(self, shape: torch.Size, p: float, generator: torch.Generator | None = None) -> Tensor:
        """Draws matrices for `recolour`, (N, 3, 4) float64 on the CPU; exactly the identity for unchanged images."""
        on, random = self.augmentations, _Random(shape[0], generator)
        brightness = random.maybe(p * on.brightness, random.normal(0.2))[..., None]  # (N, 1, 1), as all below
        contrast = random.maybe(p * on.contrast, random.normal(0.5)).exp2()[..., None]
        flip = random.maybe(p * on.lumaflip, random.below(2))[..., None]
        angle = random.maybe(p * on.hue, random.uniform(math.pi))[..., None]
        saturation = random.maybe(p * on.saturation, random.normal(1.0)).exp2()[..., None]

        eye = torch.eye(3, dtype=torch.float64)
        grey = torch.full((3, 3), 1 / 3, dtype=torch.float64)  # the projection on the grey axis (1, 1, 1)
        cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]).double() / math.sqrt(3)  # grey axis × colour
        hue = eye + angle.sin() * cross + (1 - angle.cos()) * (grey - eye)  # Rodrigues' rotation formula
        linear = (eye + (saturation - 1) * (eye - grey)) @ hue @ (eye - 2 * flip * grey) * contrast
        return torch.cat([linear, linear @ brightness.expand(-1, 3, 1)], dim=2)  # linear @ (colour + brightness)


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Resamples images along affine maps without aliasing: upsample by 2, sample bilinearly, downsample by 2.

    images: (N, C, H, W), float32 or float64, any range; so is the result. inverse: (N, 2, 3), from a pixel's position
    in the result to its position in the image, both in pixels from the centre, x to the right, y down.

    The identity and translations by whole pixels are exact. As the filter is not symmetric, a mirrored axis is off by
    0.1 pixel and slightly blurred, as in the authors' code.
    """
    batch, channels, height, width = images.shape
    size = inverse.new_tensor([width, height])
    half = (size - 1) / 2
    corners = inverse.new_tensor([[-1, 1, 1, -1], [-1, -1, 1, 1]]) * half[:, None]
    corners = inverse[..., :2] @ corners + inverse[..., 2:]  # (N, 2, 4), in the images
    # Each of the two filters reads beyond the corners. Mirroring reaches the opposite border at most.
    margins = [side.amax((0, 2)) + 2 * REACH - half for side in (-corners, corners)]
    (left, top), (right, bottom) = (m.ceil().clamp(min=0).minimum(size - 1).int().tolist() for m in margins)

    # As images of one channel: on a CPU this is several times as fast as a convolution in groups.
    taps = torch.tensor(SYM6, dtype=images.dtype, device=images.device).expand(1, 1, 1, -1)
    padded = F.pad(images, (left, right, top, bottom), mode="reflect").flatten(0, 1)[:, None]
    doubled = F.conv_transpose2d(padded, taps * math.sqrt(2), stride=(1, 2), padding=(0, CENTRE))
    doubled = F.conv_transpose2d(doubled, taps.mT * math.sqrt(2), stride=(2, 1), padding=(CENTRE, 0))
    doubled = doubled.view(batch, channels, *doubled.shape[2:])  # pixel i is sample 2i

    # Without affine_grid, a matrix product: with TF32 its positions would be off by half a pixel.
    x, y = (torch.arange(-CENTRE, 2 * n + CENTRE, dtype=images.dtype, device=images.device) / 2 - (n - 1) / 2 for n in (width, height))
    matrix = inverse[:, None, None].to(images.dtype).to(images.device)
    grid = x[:, None] * matrix[..., 0] + y[:, None, None] * matrix[..., 1] + matrix[..., 2]  # (N, 2H + 10, 2W + 10, 2)
    # For grid_sample the centre lies between samples, and half the doubled size is 1.
    grid = 2 * grid + grid.new_tensor([left - right - 0.5, top - bottom - 0.5])
    grid = grid / grid.new_tensor([padded.shape[3], padded.shape[2]])
    sampled = F.grid_sample(doubled, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    reduced = F.conv2d(sampled.flatten(0, 1)[:, None], taps / math.sqrt(2), stride=(1, 2))
    return F.conv2d(reduced, taps.mT / math.sqrt(2), stride=(2, 1)).view(images.shape)


def recolour(images: Tensor, matrix: Tensor) -> Tensor:
    """Maps the colours of images (N, 3, H, W) by matrix (N, 3, 4), whose last column is added."""
    matrix = matrix.to(images.dtype).to(images.device)
    return torch.baddbmm(matrix[..., 3:], matrix[..., :3], images.flatten(2)).view(images.shape)


class AdaptiveProbability:
    """The p of `Augment`, adjusted so that r_t = E[sign D(real)] stays at `target` (section 3 of the paper).

    r_t is 0 while the discriminator does not overfit and 1 if it classifies every real image as real. p changes by at
    most 1 within `adjust_images` images: 500,000 in the paper, 100,000 in the authors' transfer learning.
    """

    BATCHES = 4
    """Batches over which r_t is averaged, as published."""

    def __init__(self, p: float = 0.0, *, target: float = 0.6, adjust_images: int = 500_000) -> None:
        _check_probability(p)
        if adjust_images <= 0:
            raise RequestError(f"adjust_images is {adjust_images}; expected a positive number of images")
        self.p, self.target, self.adjust_images = float(p), target, adjust_images
        self.sign_sum: Tensor | float = 0.0
        self.batches = 0

    def add(self, real_sign: Tensor, images: int) -> None:
        """Adds the mean sign (scalar) of the logits of a batch of `images` real images. Every fourth batch changes p and waits for the
        device."""
        self.sign_sum = self.sign_sum + real_sign.detach().float()
        self.batches += 1
        if self.batches == self.BATCHES:
            mean = float(self.sign_sum) / self.BATCHES
            direction = (mean > self.target) - (mean < self.target)
            self.p = min(1.0, max(0.0, self.p + direction * self.BATCHES * images / self.adjust_images))
            self.sign_sum, self.batches = 0.0, 0

    def state_dict(self) -> dict[str, float]:
        """State for resuming: p and the batches not yet applied to it."""
        return {"p": self.p, "sign_sum": float(self.sign_sum), "batches": self.batches}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restores `state_dict`, or p alone, as earlier versions saved it."""
        if set(state) not in ({"p"}, {"p", "sign_sum", "batches"}):
            raise CheckpointError(f"The state of the augmentation probability has the keys {sorted(state)}; expected p, sign_sum, batches")
        self.p = float(state["p"])
        self.sign_sum, self.batches = state.get("sign_sum", 0.0), int(state.get("batches", 0))


class _Random:
    """Random numbers for the images of a batch, (N, columns), in float64 on the CPU, the same for every device."""

    def __init__(self, batch: int, generator: torch.Generator | None) -> None:
        self.batch, self.generator = batch, generator

    def uniform(self, limit: float, columns: int = 1) -> Tensor:
        return limit * (2 * torch.rand(self.batch, columns, dtype=torch.float64, generator=self.generator) - 1)

    def normal(self, std: float, columns: int = 1) -> Tensor:
        return std * torch.randn(self.batch, columns, dtype=torch.float64, generator=self.generator)

    def below(self, count: int) -> Tensor:
        return (count * torch.rand(self.batch, 1, dtype=torch.float64, generator=self.generator)).floor()

    def maybe(self, probability: float, value: Tensor) -> Tensor:
        """`value` with the given probability per image, else 0."""
        return torch.where(torch.rand(self.batch, 1, generator=self.generator) < probability, value, 0.0)


def _apply_non_identity(transform: Callable[[Tensor, Tensor], Tensor], images: Tensor, matrices: Tensor) -> Tensor:
    """Applies `transform` to the images whose matrix is not the identity; the others keep every bit."""
    rows = (matrices != torch.eye(*matrices.shape[1:])).flatten(1).any(1).nonzero()[:, 0]
    if len(rows) == 0:
        return images
    # One by one on a CPU, which halves the time: each image has its own margin and fits into the cache.
    batch_size = 1 if images.device.type == "cpu" else len(rows)
    transformed = [transform(images[part.to(images.device)], matrices[part]) for part in rows.split(batch_size)]
    return images.index_copy(0, rows.to(images.device), torch.cat(transformed))


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.cat([x, y], dim=1))  # (N, 2, 2)


def _rotation(angle: Tensor) -> Tensor:
    return torch.cat([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise RequestError(f"The probability of augmentation is {p}; expected one in [0, 1]")
