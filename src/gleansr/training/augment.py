"""Adaptive discriminator augmentation: training on few images without the discriminator learning them by heart.

Source: Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020, arXiv:2006.06676.
Real and generated images are changed alike before the discriminator sees them (section 2), each with a probability
that follows from how far the discriminator overfits (section 3). The changes are the pipeline "bgc" of appendix B
(pixel blitting, geometry, colour), with the strengths, the order and the resampling of the authors' code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.errors import CheckpointError, RequestError

# The low-pass filter of the wavelet symlet 6. It is orthonormal to its own shifts by two taps: enlarging an image by 2
# with it and reducing it again returns the image.
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
CENTRE = 5  # the tap that lies on the pixel itself when enlarging
REACH = 3  # pixels that the filter covers on either side: 12 taps, half a pixel apart


@dataclass(frozen=True)
class Augmentations:
    """Which changes `Augment` makes, in the order in which it makes them. N(0, s²) is a normal distribution."""

    xflip: bool = True
    """Mirror left and right in half of the cases."""
    rotate90: bool = True
    """Rotate by 0, 90, 180 or 270 degrees."""
    translate: bool = True
    """Move by whole pixels, up to 1/8 of the width and of the height."""
    scale: bool = True
    """Enlarge by 2^N(0, 0.2²)."""
    rotate: bool = True
    """Rotate by any angle: before the anisotropic scaling, after it, or both."""
    anisotropic: bool = True
    """Stretch the width by 2^N(0, 0.2²), shrink the height by as much."""
    fraction: bool = True
    """Move by fractions of a pixel: N(0, 1/8²) of the width and of the height."""
    brightness: bool = True
    """Add N(0, 0.2²)."""
    contrast: bool = True
    """Multiply by 2^N(0, 0.5²)."""
    lumaflip: bool = True
    """Turn light to dark and keep hue and saturation, in half of the cases."""
    hue: bool = True
    """Rotate the colours by any angle about the grey axis."""
    saturation: bool = True
    """Multiply the distance from the grey axis by 2^N(0, 1)."""


class Augment(nn.Module):
    """Make each change of `Augmentations`, independently for each image, with the probability p.

    Its arguments are the fields of `Augmentations`: `Augment(hue=False)`. It has no parameters and no buffers.
    """

    def __init__(self, **augmentations: bool) -> None:
        super().__init__()
        self.augmentations = Augmentations(**augmentations)

    def forward(self, images: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
        """Change images: images (N, 3, H, W), RGB in [-1, 1], any floating type, to the same shape and type.

        The result is not clamped: contrast and brightness may leave [-1, 1]. Borders are mirrored once, beyond is 0.
        `p` is in [0, 1]; 0 returns `images` itself and draws nothing. `generator` is on the CPU, where the draws are
        made for every device; None is torch's global one.

        The gradient with respect to `images` is what a generator trains with. Take R1 with respect to the changed
        images: `augment(real, p).detach().requires_grad_()`. The authors' code takes it with respect to the unchanged
        ones, which needs second derivatives of `grid_sample`; older versions of torch have none (2.5; 2.13 has them).
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
            result = _where_changed(warp, result, geometry)
            result = _where_changed(recolour, result, colour)
        return result.to(images.dtype)

    def draw_geometry(self, shape: torch.Size, p: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw matrices for `warp`, (N, 2, 3) float64 on the CPU; exactly the identity where nothing changes."""
        batch, _, height, width = shape
        on, dice, size = self.augmentations, _Dice(batch, generator), torch.tensor([width, height])
        p_rotate = 1 - math.sqrt(1 - p * on.rotate)  # so that at least one of the two rotations has probability p
        flip = dice.maybe(p * on.xflip, dice.below(2))
        quarters = dice.maybe(p * on.rotate90, dice.below(4))
        pixels = (dice.maybe(p * on.translate, dice.uniform(1 / 8, columns=2)) * size).round()
        zoom = dice.maybe(p * on.scale, dice.normal(0.2)).exp2()
        angle_before = dice.maybe(p_rotate, dice.uniform(math.pi))
        stretch = dice.maybe(p * on.anisotropic, dice.normal(0.2)).exp2()
        angle_after = dice.maybe(p_rotate, dice.uniform(math.pi))
        fraction = dice.maybe(p * on.fraction, dice.normal(1 / 8, columns=2)) * size

        # Position in the result = second @ (first @ position in the image + pixels) + fraction.
        first = _rotation(-math.pi / 2 * quarters) @ _scaling(1 - 2 * flip, torch.ones_like(flip))
        second = _rotation(angle_after) @ _scaling(zoom * stretch, zoom / stretch) @ _rotation(angle_before)
        inverse = torch.linalg.inv(second @ first)
        return torch.cat([inverse, -inverse @ (second @ pixels[..., None] + fraction[..., None])], dim=2)

    def draw_colour(self, shape: torch.Size, p: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw matrices for `recolour`, (N, 3, 4) float64 on the CPU; exactly the identity where nothing changes."""
        on, dice = self.augmentations, _Dice(shape[0], generator)
        brightness = dice.maybe(p * on.brightness, dice.normal(0.2))[..., None]  # (N, 1, 1), as all below
        contrast = dice.maybe(p * on.contrast, dice.normal(0.5)).exp2()[..., None]
        flip = dice.maybe(p * on.lumaflip, dice.below(2))[..., None]
        angle = dice.maybe(p * on.hue, dice.uniform(math.pi))[..., None]
        saturation = dice.maybe(p * on.saturation, dice.normal(1.0)).exp2()[..., None]

        eye = torch.eye(3, dtype=torch.float64)
        grey = torch.full((3, 3), 1 / 3, dtype=torch.float64)  # the projection on the grey axis (1, 1, 1)
        cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]).double() / math.sqrt(3)  # grey axis × colour
        hue = eye + angle.sin() * cross + (1 - angle.cos()) * (grey - eye)  # Rodrigues' rotation formula
        linear = (eye + (saturation - 1) * (eye - grey)) @ hue @ (eye - 2 * flip * grey) * contrast
        return torch.cat([linear, linear @ brightness.expand(-1, 3, 1)], dim=2)  # linear @ (colour + brightness)


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Resample images along affine maps without aliasing: enlarge by 2, sample bilinearly, reduce by 2.

    images: (N, C, H, W), float32 or float64, any range; so is the result. inverse: (N, 2, 3), from a pixel's position
    in the result to its position in the image, both in pixels from the centre, x to the right, y down.

    The identity and moves by whole pixels are exact. As the filter is not quite symmetric, a mirrored axis is off by
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

    # Not by affine_grid: it multiplies matrices, and where TF32 is allowed its positions would be off by half a pixel.
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
    """Map colours: images (N, 3, H, W), matrix (N, 3, 4) whose last column is added, to (N, 3, H, W)."""
    matrix = matrix.to(images.dtype).to(images.device)
    return torch.baddbmm(matrix[..., 3:], matrix[..., :3], images.flatten(2)).view(images.shape)


class AdaptiveProbability:
    """The p of `Augment`, moved so that r_t = E[sign D(real)] stays at `target` (section 3 of the paper).

    r_t is 0 while the discriminator does not overfit and 1 when it calls every real image real. p moves by 1 within
    `adjust_images` images: 500,000 in the paper, 100,000 where the authors go on from a trained network.
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
        """Take the mean sign of the logits of a batch of `images` real ones, a single number. Every fourth batch moves p, and only then is
        the device waited for."""
        self.sign_sum = self.sign_sum + real_sign.detach().float()
        self.batches += 1
        if self.batches == self.BATCHES:
            mean = float(self.sign_sum) / self.BATCHES
            direction = (mean > self.target) - (mean < self.target)
            self.p = min(1.0, max(0.0, self.p + direction * self.BATCHES * images / self.adjust_images))
            self.sign_sum, self.batches = 0.0, 0

    def state_dict(self) -> dict[str, float]:
        """What a resumed training needs: p and the batches that have not moved it yet. The rest is configuration."""
        return {"p": self.p, "sign_sum": float(self.sign_sum), "batches": self.batches}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up what `state_dict` returned, or p alone, as earlier versions saved it."""
        if set(state) not in ({"p"}, {"p", "sign_sum", "batches"}):
            raise CheckpointError(f"The state of the augmentation probability has the keys {sorted(state)}; expected p, sign_sum, batches")
        self.p = float(state["p"])
        self.sign_sum, self.batches = state.get("sign_sum", 0.0), int(state.get("batches", 0))


class _Dice:
    """Draws for the images of a batch, (N, columns), in float64 on the CPU: a few numbers, alike on every device."""

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


def _where_changed(change: Callable[[Tensor, Tensor], Tensor], images: Tensor, matrices: Tensor) -> Tensor:
    """Leave out the images whose matrix is the identity: they cost nothing and keep every bit."""
    rows = (matrices != torch.eye(*matrices.shape[1:])).flatten(1).any(1).nonzero()[:, 0]
    if len(rows) == 0:
        return images
    # On a CPU one by one, which halves the time: each has the margin that it needs itself, and fits into the cache.
    together = 1 if images.device.type == "cpu" else len(rows)
    changed = [change(images[part.to(images.device)], matrices[part]) for part in rows.split(together)]
    return images.index_copy(0, rows.to(images.device), torch.cat(changed))


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.cat([x, y], dim=1))  # (N, 2, 2)


def _rotation(angle: Tensor) -> Tensor:
    return torch.cat([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise RequestError(f"The probability of augmentation is {p}; expected one in [0, 1]")
