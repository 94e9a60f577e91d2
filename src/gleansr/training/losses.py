"""The losses of GLEAN, named after the equations of its supplement, those of ESRGAN+ and those of StyleGAN2."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.models.features import VGG16, VGG19, SqueezeNet, feature_distance
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Discriminator

FLOOR = 1e-2
"""Of a power spectrum: about the noise of 8 bits."""


def between(loss: Callable[[Tensor], Tensor], gt: Tensor, taught: Tensor | None, share: float) -> Tensor:
    """A loss against the ground-truth images, of which a `share` is against those of a teacher instead, where there is one."""
    if taught is None or not share:
        return loss(gt)
    return loss(taught) if share == 1 else torch.lerp(loss(gt), loss(taught), share)


def equation1_mse(prediction: Tensor, gt: Tensor) -> Tensor:
    """Equation (1): the mean squared error of images (N, 3, H, W) in [-1, 1].

    Its N is the number of values, three per pixel, as in the official code.
    """
    return F.mse_loss(prediction.float(), gt)


def l1_error(prediction: Tensor, gt: Tensor) -> Tensor:
    """The mean absolute error of images (N, 3, H, W) in [-1, 1], which stands in the place of equation (1) in ESRGAN+."""
    return F.l1_loss(prediction.float(), gt)


def equation2_perceptual(network: SqueezeNet | VGG16 | VGG19, prediction: Tensor, gt: Tensor) -> Tensor:
    """Equation (2): distance between features of images (N, 3, H, W) in [-1, 1]; no gradient reaches `gt`.

    With VGG16, as in the paper, the mean squared difference of conv4_3 before its ReLU, N being the number of values; with VGG19, as in
    ESRGAN+, the mean absolute difference of conv5_4 before its ReLU; with SqueezeNet its `feature_distance`, mean over images.
    """
    with torch.no_grad():
        wanted = network(gt)
    if isinstance(network, VGG16):
        return F.mse_loss(network(prediction).float(), wanted.float())
    if isinstance(network, VGG19):
        return F.l1_loss(network(prediction).float(), wanted.float())
    return feature_distance(network(prediction), wanted).mean()


def equation3_adversarial(logits: Tensor, form: str = "non-saturating") -> Tensor:
    """Equation (3) on the discriminator's logits of the results, D = sigmoid(logit): log(1 - D) as printed ("saturating"), or -log D."""
    return -F.softplus(logits).mean() if form == "saturating" else F.softplus(-logits).mean()


def equation4_objective(
    mse: Tensor, perceptual: Tensor | None, adversarial: Tensor | None, perceptual_weight: float, adversarial_weight: float
) -> Tensor:
    """Equation (4): (1) + alpha_percep * (2) + alpha_gen * (3); without (2) or (3) where there is no such loss."""
    loss = mse if perceptual is None else mse + perceptual_weight * perceptual
    return loss if adversarial is None else loss + adversarial_weight * adversarial


def equation5_discriminator(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Equation (5), negated to be minimised: -log(1 - D(result)) - log D(truth)."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


def relativistic_adversarial(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """ESRGAN's adversarial loss, in the place of equation (3), of logits (N, 1): each result ought to look more real than the mean ground
    truth, and each ground truth less so than the mean result.

    (BCE(real - mean fake, 0) + BCE(fake - mean real, 1)) / 2 (Jolicoeur-Martineau, 2018, as ESRGAN's code has it). The official code cuts
    the gradient at `real_logits`, which the caller does by handing them over without one.
    """
    return (F.softplus(real_logits - fake_logits.mean()).mean() + F.softplus(real_logits.mean() - fake_logits).mean()) / 2


def relativistic_discriminator(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """ESRGAN's loss of the discriminator, in the place of equation (5), the same with the targets exchanged.

    (BCE(real - mean fake, 1) + BCE(fake - mean real, 0)) / 2.
    """
    return (F.softplus(fake_logits.mean() - real_logits).mean() + F.softplus(fake_logits - real_logits.mean()).mean()) / 2


def reconstruction_loss(network: SqueezeNet, prediction: Tensor, gt: Tensor) -> Tensor:
    """How far images (N, 3, H, W) in [-1, 1] are from those they should be: distance of features, and four times the mean absolute error,
    which the features, of unit length, leave to chance."""
    return equation2_perceptual(network, prediction, gt) + 4 * l1_error(prediction, gt)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 128) -> Tensor:
    """Squared distance of the distributions that vectors (N, D) and (N, D) are drawn from: the squared Wasserstein distance of their
    projections, mean over random directions (Bonneel et al., 2015)."""
    axes = F.normalize(torch.randn(a.shape[1], directions, device=a.device), dim=0)
    return F.mse_loss((a @ axes).sort(0).values, (b @ axes).sort(0).values)


def lattice_loss(prediction: Tensor, gt: Tensor, scale: int, window: int = 8) -> Tensor:
    """Mean square of that part of the error which repeats with the lattice of the low-resolution pixels. Not in the paper.

    The error at each of the scale x scale places within a low-resolution pixel is averaged over windows of `window` x `window` such pixels,
    less the mean over the places. Honest errors average out; a grid, which a perceptual loss rewards as texture for nothing, does not.
    """
    n, channels = gt.shape[:2]
    error = F.pixel_unshuffle(prediction.float() - gt, scale)  # (N, 3 * scale^2, in, in)
    places = F.avg_pool2d(error, window, stride=max(1, window // 2)).view(n, channels, scale * scale, -1)
    return (places - places.mean(2, keepdim=True)).square().mean()


def spectrum_loss(prediction: Tensor, gt: Tensor, patch: int = 32, margin: float = 0.7) -> Tensor:
    """Mean over frequencies of the log power spectrum of the result beyond that of the ground truth plus `margin`. Not in the paper.

    The spectra are those of brightness and of two differences of colour, where hatching hides if only brightness is watched, in overlapping
    windowed patches, averaged over each image. A result may be softer than the ground truth, and the margin of 3 dB forgives what chance
    does to honest texture. Hatching, another shortcut to a low perceptual loss, is 10 dB too strong at a few frequencies.
    """
    result, wanted = ((power_spectrum(images, patch) + FLOOR).log() for images in (prediction, gt))
    return (result - wanted - margin).relu().mean()


def power_spectrum(images: Tensor, patch: int = 32) -> Tensor:
    """images (N, 3, H, W) in [-1, 1] -> the power of brightness and of two differences of colour, (N, 3, patch, patch / 2 + 1), in
    overlapping windowed patches without their means, averaged over each image."""
    window = torch.hann_window(patch, periodic=False, device=images.device)
    red, green, blue = images.float().unbind(1)
    planes = torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], 1).flatten(0, 1)[:, None]
    patches = F.unfold(planes, patch, stride=patch // 2).transpose(1, 2)
    patches = (patches - patches.mean(2, keepdim=True)).unflatten(2, (patch, patch)) * window * window[:, None]
    spectrum = torch.view_as_real(torch.fft.rfft2(patches)).square().sum(-1)
    return spectrum.mean(1).unflatten(0, (-1, 3))


def r1_penalty(discriminator: StyleGAN2Discriminator, real: Tensor) -> Tensor:
    """Mean over images of the squared gradient of the logit with respect to the real image (Mescheder et al., 2018), without gamma / 2.

    Taken in float32, and with respect to the images as the discriminator sees them, augmented.
    """
    with torch.autocast(real.device.type, enabled=False):
        real = real.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def path_length_penalty(bank: StyleGAN2, latents: Tensor, mean_length: Tensor, decay: float = 0.01) -> tuple[Tensor, Tensor]:
    """Squared deviation of the path length from its running mean (StyleGAN2, equation 4) and the new running mean.

    codes (N, L, code_dim) must require gradients.
    """
    with torch.autocast(latents.device.type, enabled=False):
        image = bank.synthesis(latents, "random")
        noise = torch.randn_like(image) / (image.shape[2] * image.shape[3]) ** 0.5
        (gradient,) = torch.autograd.grad((image * noise).sum(), latents, create_graph=True)
    lengths = gradient.square().sum(2).mean(1).sqrt()
    mean_length = mean_length.lerp(lengths.detach().mean(), decay)
    return (lengths - mean_length).square().mean(), mean_length
