"""Losses of GLEAN, named after the equations of its supplement, of ESRGAN+ and of StyleGAN2."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.models.features import VGG16, VGG19, PerceptualNetwork, SqueezeNet, feature_distance
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Discriminator
from gleansr.training.config import VIEW_MARGIN

FLOOR = 1e-2
"""Added to power spectra: about the noise of 8 bits."""
FAINT = 2e-2
"""Added to mean gradients in [-1, 1]: a few steps of 8 bits, so that JPEG blocks in flat areas count little."""


def blend_targets(loss: Callable[[Tensor], Tensor], gt: Tensor, teacher_sr: Tensor | None, share: float) -> Tensor:
    """(1 - share) * loss(gt) + share * loss(teacher_sr); without a teacher loss(gt)."""
    if teacher_sr is None or not share:
        return loss(gt)
    return loss(teacher_sr) if share == 1 else torch.lerp(loss(gt), loss(teacher_sr), share)


def equation1_mse(prediction: Tensor, gt: Tensor) -> Tensor:
    """Equation (1): the mean squared error of images (N, 3, H, W) in [-1, 1].

    Its N is the number of values, three per pixel, as in the official code.
    """
    return F.mse_loss(prediction.float(), gt)


def l1_error(prediction: Tensor, gt: Tensor) -> Tensor:
    """The mean absolute error of images (N, 3, H, W) in [-1, 1], ESRGAN+'s counterpart of equation (1)."""
    return F.l1_loss(prediction.float(), gt)


def equation2_perceptual(network: PerceptualNetwork, prediction: Tensor, gt: Tensor, *, views: bool = False) -> Tensor:
    """Equation (2): distance between features of images (N, 3, H, W) in [-1, 1], or of a random view of them; no gradient reaches `gt`.

    With VGG16, as in the paper, the mean squared difference of conv4_3 before its ReLU, N being the number of values; with VGG19, as in
    ESRGAN+, the mean absolute difference of conv5_4 before its ReLU; with the others their `feature_distance`, mean over images.
    """
    if views:
        prediction, gt = random_view(prediction, gt)
    with torch.no_grad():
        gt_features = network(gt)
    if isinstance(network, VGG16):
        return F.mse_loss(network(prediction).float(), gt_features.float())
    if isinstance(network, VGG19):
        return F.l1_loss(network(prediction).float(), gt_features.float())
    return feature_distance(network(prediction), gt_features).mean()


def one_of(networks: Sequence[PerceptualNetwork]) -> PerceptualNetwork:
    """One of the networks of equation (2), at random. Not in the paper: a model learns what deceives one network, but hardly what deceives
    each of several, as in the ensembles of E-LPIPS (Kettunen et al., 2019)."""
    return networks[int(torch.randint(len(networks), ()))] if len(networks) > 1 else networks[0]


def random_view(*images: Tensor) -> tuple[Tensor, ...]:
    """The same random view of images (N, 3, H, W) of one size: a crop smaller by `VIEW_MARGIN` pixels, at a random offset, flipped
    horizontally, vertically and transposed, each in half of the cases. Not in the paper.

    The networks of the perceptual loss downsample, so that their features depend on the position of their sampling grid. If it is always
    the same, they take a pattern aligned with it for texture; other networks and people do not. These are some of the transformations
    of E-LPIPS (Kettunen et al., 2019).
    """
    top, left = (int(torch.randint(VIEW_MARGIN + 1, ())) for _ in range(2))
    mirror, turn, transpose = (bool(torch.randint(2, ())) for _ in range(3))
    height, width = (side - VIEW_MARGIN for side in images[0].shape[-2:])
    flipped = [axis for axis, chosen in ((3, mirror), (2, turn)) if chosen]

    def view(image: Tensor) -> Tensor:
        crop = image[..., top : top + height, left : left + width].flip(flipped)
        return (crop.transpose(2, 3) if transpose else crop).contiguous(memory_format=torch.channels_last)

    return tuple(view(image) for image in images)


def equation3_adversarial(logits: Tensor, form: str = "non-saturating") -> Tensor:
    """Equation (3) on the discriminator's logits of the results, D = sigmoid(logit): log(1 - D) as printed ("saturating"), or -log D."""
    return -F.softplus(logits).mean() if form == "saturating" else F.softplus(-logits).mean()


def equation4_objective(
    mse: Tensor, perceptual: Tensor | None, adversarial: Tensor | None, perceptual_weight: float, adversarial_weight: float
) -> Tensor:
    """Equation (4): (1) + alpha_percep * (2) + alpha_gen * (3); (2) and (3) are optional."""
    loss = mse if perceptual is None else mse + perceptual_weight * perceptual
    return loss if adversarial is None else loss + adversarial_weight * adversarial


def equation5_discriminator(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Equation (5), negated to be minimised: -log(1 - D(sr)) - log D(gt)."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


def relativistic_adversarial(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """ESRGAN's counterpart of equation (3) on logits (N, 1): each result should look more real than the mean ground truth, and each ground
    truth less real than the mean result.

    (BCE(real - mean fake, 0) + BCE(fake - mean real, 1)) / 2 (Jolicoeur-Martineau, 2018, as in ESRGAN's code). As in the official code,
    `real_logits` must have no gradient.
    """
    return (F.softplus(real_logits - fake_logits.mean()).mean() + F.softplus(real_logits.mean() - fake_logits).mean()) / 2


def relativistic_discriminator(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """ESRGAN's counterpart of equation (5): `relativistic_adversarial` with the targets exchanged.

    (BCE(real - mean fake, 1) + BCE(fake - mean real, 0)) / 2.
    """
    return (F.softplus(fake_logits.mean() - real_logits).mean() + F.softplus(fake_logits - real_logits.mean()).mean()) / 2


def reconstruction_loss(network: SqueezeNet, prediction: Tensor, gt: Tensor) -> Tensor:
    """Feature distance of images (N, 3, H, W) in [-1, 1] plus four times their mean absolute error, since features of unit length ignore
    contrast and brightness."""
    return equation2_perceptual(network, prediction, gt) + 4 * l1_error(prediction, gt)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 128) -> Tensor:
    """Squared Wasserstein distance between the projections of two samples (N, D), mean over random directions (Bonneel et al., 2015)."""
    axes = F.normalize(torch.randn(a.shape[1], directions, device=a.device), dim=0)
    return F.mse_loss((a @ axes).sort(0).values, (b @ axes).sort(0).values)


def lattice_loss(prediction: Tensor, gt: Tensor, scale: int, window: int = 8) -> Tensor:
    """Mean square of the error that repeats with the lattice of the low-resolution pixels. Not in the paper.

    The error at each of the scale x scale offsets within a low-resolution pixel is averaged over windows of `window` x `window` such
    pixels, minus the mean over the offsets. Other errors average out; a grid, which a perceptual loss rewards as texture, does not.
    """
    n, channels = gt.shape[:2]
    error = F.pixel_unshuffle(prediction.float() - gt, scale)  # (N, 3 * scale^2, in, in)
    means = F.avg_pool2d(error, window, stride=max(1, window // 2)).view(n, channels, scale * scale, -1)
    return (means - means.mean(2, keepdim=True)).square().mean()


def checkerboard_loss(prediction: Tensor, period: int) -> Tensor:
    """Variance of the strength of gradients over the offsets within squares of `period` px; 0 without a checkerboard. Not in the paper.

    Pixel shuffles make edges and texture stronger at some offsets than at others (Odena et al., Deconvolution and Checkerboard Artifacts,
    2016). `lattice_loss` does not see it, since the sign follows the texture. Each square counts relative to its mean, dark hair as much as
    a bright edge. The prediction is (N, 3, H, W) in [-1, 1] with sides of at least two periods.
    """
    grey = prediction.float().mean(1)
    rows, columns = (side // period * period for side in grey.shape[1:])
    loss = grey.new_zeros(())
    for image, height, width in ((grey, rows, columns), (grey.transpose(1, 2), columns, rows)):
        gradient = image[:, :height].diff(dim=2).abs()[:, :, : width - period]
        squares = gradient.unflatten(1, (-1, period)).mean(2).unflatten(2, (-1, period))  # (N, rows, columns, offsets)
        relative = squares / (squares.mean(3, keepdim=True) + FAINT)
        loss = loss + relative.mean((0, 1, 2)).var(correction=0) / 2
    return loss


def spectrum_loss(prediction: Tensor, gt: Tensor, patch: int = 32, margin: float = 0.7) -> Tensor:
    """Mean over frequencies of the excess of the result's log power spectrum over that of the ground truth plus `margin`. Not in the paper.

    The spectra are those of brightness and two colour differences, since hatching appears in colour where only brightness is penalised.
    A result may be softer than the ground truth, and the margin of 3 dB allows for random texture. Hatching, another shortcut to a low
    perceptual loss, is 10 dB too strong at a few frequencies.
    """
    sr_spectrum, gt_spectrum = ((power_spectrum(images, patch) + FLOOR).log() for images in (prediction, gt))
    return (sr_spectrum - gt_spectrum - margin).relu().mean()


def power_spectrum(images: Tensor, patch: int = 32) -> Tensor:
    """images (N, 3, H, W) in [-1, 1] -> power of brightness and two colour differences, (N, 3, patch, patch / 2 + 1), averaged over
    overlapping windowed patches without their means."""
    window = torch.hann_window(patch, periodic=False, device=images.device)
    red, green, blue = images.float().unbind(1)
    planes = torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], 1).flatten(0, 1)[:, None]
    patches = F.unfold(planes, patch, stride=patch // 2).transpose(1, 2)
    patches = (patches - patches.mean(2, keepdim=True)).unflatten(2, (patch, patch)) * window * window[:, None]
    spectrum = torch.view_as_real(torch.fft.rfft2(patches)).square().sum(-1)
    return spectrum.mean(1).unflatten(0, (-1, 3))


def r1_penalty(discriminator: StyleGAN2Discriminator, real: Tensor) -> Tensor:
    """Mean over images of the squared gradient of the logit with respect to the real image (Mescheder et al., 2018), without gamma / 2.

    Computed in float32. `real` are the augmented images that the discriminator sees.
    """
    with torch.autocast(real.device.type, enabled=False):
        real = real.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def path_length_penalty(bank: StyleGAN2, latents: Tensor, mean_length: Tensor, decay: float = 0.01) -> tuple[Tensor, Tensor]:
    """Squared deviation of the path length from its running mean (StyleGAN2, equation 4) and the new running mean.

    latents (N, L, code_dim) must require gradients.
    """
    with torch.autocast(latents.device.type, enabled=False):
        image = bank.synthesis(latents, "random")
        noise = torch.randn_like(image) / (image.shape[2] * image.shape[3]) ** 0.5
        (gradient,) = torch.autograd.grad((image * noise).sum(), latents, create_graph=True)
    lengths = gradient.square().sum(2).mean(1).sqrt()
    mean_length = mean_length.lerp(lengths.detach().mean(), decay)
    return (lengths - mean_length).square().mean(), mean_length
