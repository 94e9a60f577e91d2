"""Metrics against scikit-image, torchmetrics, SciPy and hand-computed values."""

import logging
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gleansr.errors import RequestError
from gleansr.evaluation import metrics
from gleansr.evaluation.metrics import consistency, frechet_distance, ms_ssim, psnr, ssim
from gleansr.images.pixels import quantize
from gleansr.images.resize import degrade, resize


def noisy_pair(n: int = 2, scale: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images (n, 3, 3 * scale, 5 * scale) in [-1, 1] and the same with noise, which leaves the range."""
    generator = torch.Generator().manual_seed(0)
    smooth = resize(torch.rand(n, 3, 3, 5, generator=generator) * 2 - 1, scale=scale)
    return smooth.clamp(-1, 1), smooth + 0.15 * torch.randn(smooth.shape, generator=generator)


def as_bytes(image: torch.Tensor) -> np.ndarray:
    return (image.clamp(-1, 1) * 127.5 + 127.5).round().numpy().astype(np.uint8)


def test_rounded_is_what_a_file_holds():
    a, b = noisy_pair()
    stored = torch.from_numpy(as_bytes(b)).float()
    assert torch.equal(quantize(b), ((stored.double() - 127.5) / 127.5).float())
    assert torch.equal(quantize(quantize(a)), quantize(a))


def test_psnr_and_ssim_agree_with_scikit_image():
    a, b = noisy_pair()
    x, y = as_bytes(a), as_bytes(b)
    for i, (p, s) in enumerate(zip(psnr(a, b).tolist(), ssim(a, b).tolist(), strict=True)):
        assert math.isclose(p, peak_signal_noise_ratio(x[i], y[i]), rel_tol=1e-9)
        options = {"channel_axis": 0, "data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        assert math.isclose(s, float(np.mean(structural_similarity(x[i], y[i], **options))), rel_tol=1e-9)


def on_255(image: torch.Tensor) -> torch.Tensor:
    return image.double().clamp(-1, 1) * 127.5 + 127.5


def by_torchmetrics(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SSIM by torchmetrics without the border, which it mirrors."""
    from torchmetrics.functional import image as others

    whole = others.structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)[1]
    return whole[:, :, 5:-5, 5:-5].mean((1, 2, 3))


def test_psnr_and_ssim_agree_with_torchmetrics():
    from torchmetrics.functional import image as others

    a, b = noisy_pair()
    x, y = on_255(a), on_255(b)
    wanted = others.peak_signal_noise_ratio(x, y, data_range=255.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr(a, b, rounding="none"), wanted, rtol=1e-6)
    assert torch.allclose(ssim(a, b, rounding="none"), by_torchmetrics(x, y), rtol=1e-6)


def test_ms_ssim_agrees_with_torchmetrics():
    from torchmetrics.functional import image as others

    a, b = (image[:, :, :177, :201] for image in noisy_pair(1, scale=60))  # odd sides too
    x, y = on_255(a), on_255(b)
    found = ms_ssim(a, b, rounding="none")
    mirrored = others.multiscale_structural_similarity_index_measure(x, y, data_range=255.0)
    assert math.isclose(float(found), float(mirrored), rel_tol=1e-3)
    wanted = torch.ones(1, dtype=torch.float64)
    for weight in (0.0448, 0.2856, 0.3001, 0.2363):
        contrast = others.structural_similarity_index_measure(x, y, data_range=255.0, return_contrast_sensitivity=True)[1]
        wanted = wanted * contrast**weight
        x, y = ((i[:, :, :-1:2, :-1:2] + i[:, :, 1::2, :-1:2] + i[:, :, :-1:2, 1::2] + i[:, :, 1::2, 1::2]) / 4 for i in (x, y))
    wanted = wanted * by_torchmetrics(x, y) ** 0.1333
    assert torch.allclose(found, wanted, rtol=1e-6)
    assert torch.equal(ms_ssim(a, b), ms_ssim(quantize(a), quantize(b)))
    assert not torch.equal(ms_ssim(a, b), found)
    assert bool((found > ssim(a, b)).all())  # noise is of the finest scale


def test_ms_ssim_of_equal_and_of_opposite_images():
    a, _ = noisy_pair(scale=60)
    assert torch.allclose(ms_ssim(a, a), torch.ones(2, dtype=torch.float64), rtol=1e-12)
    assert ms_ssim(a, -a).tolist() == [0, 0]  # a negative structure would have no fractional power


def test_ms_ssim_needs_room_for_its_window_at_the_smallest_scale():
    assert ms_ssim(torch.zeros(1, 3, 176, 176), torch.zeros(1, 3, 176, 176)).tolist() == [1]
    with pytest.raises(RequestError, match="at least 176x176 pixels, not 200x175: leave ms_ssim out"):
        ms_ssim(torch.zeros(1, 3, 175, 200), torch.zeros(1, 3, 175, 200))


def test_rounding_is_an_option():
    a = torch.zeros(1, 3, 12, 12)
    b = a + 0.4 / 127.5  # 127.5 and 127.9 are both stored as 128
    assert float(psnr(a, b)) == math.inf
    assert float(ssim(a, b)) == 1
    assert math.isclose(float(psnr(a, b, rounding="none")), 20 * math.log10(255 / 0.4), rel_tol=1e-6)
    assert float(ssim(a, b, rounding="none")) < 1
    with pytest.raises(RequestError, match="'8-bit' or 'none'"):
        psnr(a, b, rounding="16-bit")  # pyright: ignore[reportArgumentType]


def test_ssim_needs_a_window():
    with pytest.raises(RequestError, match="at least 11x11 pixels, not 20x10"):
        ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


def test_consistency_is_about_the_input_alone():
    gt, _ = noisy_pair()
    lr = degrade(quantize(gt), 4)
    assert consistency(lr, quantize(gt)).tolist() == [math.inf] * 2
    other = quantize(gt.flip(3))
    assert torch.equal(consistency(lr, other), psnr(lr, degrade(other, 4)))
    # A checkerboard finer than the input's pixels is far from the ground truth, yet shrinks to nearly the same.
    checkered = gt * 0.8 + 0.2 * (-1.0) ** (torch.arange(24)[:, None] + torch.arange(40))
    assert bool((consistency(degrade(gt * 0.8, 4), checkered) > psnr(gt * 0.8, checkered) + 20).all())
    with pytest.raises(RequestError, match="not a whole multiple"):
        consistency(lr, gt[:, :, :23])


def by_covariances(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance as it is written, with the root of a matrix."""
    x, y = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(x @ y)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(x + y - 2 * np.real(root)))


def test_frechet_distance_agrees_with_the_root_of_a_matrix():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12)), 3 + rng.normal(size=(50, 12))
    wanted = by_covariances(a, b)
    assert math.isclose(frechet_distance(torch.from_numpy(a), torch.from_numpy(b)), wanted, rel_tol=1e-9)


def test_frechet_distance_with_fewer_images_than_features():
    rng = np.random.default_rng(1)
    a, b = (torch.from_numpy(rng.normal(size=(9, 40))).float() for _ in range(2))
    # All covariance lies in the 18 dimensions that the features span; within these the trace of the root is that of the eigenvalues' roots.
    basis = torch.linalg.qr(torch.cat([a, b]).double().T).Q
    x, y = ((features.double() @ basis).T.cov() for features in (a, b))
    root = np.sqrt(np.linalg.eigvals((x @ y).numpy()).clip(0).real).sum()
    wanted = float((a.double().mean(0) - b.double().mean(0)).square().sum() + x.trace() + y.trace()) - 2 * root
    assert math.isclose(frechet_distance(a, b), wanted, rel_tol=1e-6)
    shift = torch.full((40,), 0.5)
    assert math.isclose(frechet_distance(a, a + shift), 40 * 0.25, rel_tol=1e-6)
    assert frechet_distance(a, a.flip(0)) < 1e-9


def test_frechet_distance_of_too_little():
    with pytest.raises(RequestError, match="at least 2"):
        frechet_distance(torch.zeros(1, 4), torch.zeros(3, 4))
    with pytest.raises(RequestError, match="at least 2"):
        frechet_distance(torch.zeros(3, 5), torch.zeros(3, 4))


def test_frechet_distance_of_few_images_is_warned_of_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "FRECHET_MANY", 30)
    metrics._warn_small_set.cache_clear()
    features = torch.randn(30, 4)
    with caplog.at_level(logging.WARNING, "gleansr"):
        frechet_distance(features, features)
        assert not caplog.messages
        frechet_distance(features[1:], features)
        frechet_distance(features[2:], features)
    assert caplog.messages == ["Fréchet distances of fewer than 30 images are biased upwards: compare sets of one size only"]
