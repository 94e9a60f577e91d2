"""Metrics against scikit-image, SciPy and hand-computed values, and the benchmark that prints them."""

import json
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gleansr.errors import RequestError
from gleansr.evaluation.metrics import consistency, frechet_distance, psnr, rounded, ssim
from gleansr.resize import degrade, resize

# The benchmarks are no part of the package.
sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import quality


def noisy_pair(n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures (n, 3, 24, 40) in [-1, 1] and the same with noise, which leaves the range."""
    generator = torch.Generator().manual_seed(0)
    smooth = resize(torch.rand(n, 3, 3, 5, generator=generator) * 2 - 1, scale=8)
    return smooth.clamp(-1, 1), smooth + 0.15 * torch.randn(smooth.shape, generator=generator)


def as_bytes(image: torch.Tensor) -> np.ndarray:
    return (image.clamp(-1, 1) * 127.5 + 127.5).round().numpy().astype(np.uint8)


def test_rounded_is_what_a_file_holds():
    a, b = noisy_pair()
    stored = torch.from_numpy(as_bytes(b)).float()
    assert torch.equal(rounded(b), ((stored.double() - 127.5) / 127.5).float())
    assert torch.equal(rounded(rounded(a)), rounded(a))


def test_psnr_and_ssim_agree_with_scikit_image():
    a, b = noisy_pair()
    x, y = as_bytes(a), as_bytes(b)
    for i, (p, s) in enumerate(zip(psnr(a, b).tolist(), ssim(a, b).tolist(), strict=True)):
        assert math.isclose(p, peak_signal_noise_ratio(x[i], y[i]), rel_tol=1e-9)
        options = {"channel_axis": 0, "data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        assert math.isclose(s, float(np.mean(structural_similarity(x[i], y[i], **options))), rel_tol=1e-9)


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
    truth, _ = noisy_pair()
    low = degrade(rounded(truth), 4)
    assert consistency(low, rounded(truth)).tolist() == [math.inf] * 2
    other = rounded(truth.flip(3))
    assert torch.equal(consistency(low, other), psnr(low, degrade(other, 4)))
    # A checkerboard finer than the input's pixels is far from the truth, yet shrinks to nearly the same.
    checkered = truth * 0.8 + 0.2 * (-1.0) ** (torch.arange(24)[:, None] + torch.arange(40))
    assert bool((consistency(degrade(truth * 0.8, 4), checkered) > psnr(truth * 0.8, checkered) + 20).all())
    with pytest.raises(RequestError, match="no whole multiple"):
        consistency(low, truth[:, :, :23])


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


def test_frechet_distance_with_fewer_pictures_than_features():
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


def test_benchmark_of_quality(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        for i in range(3):
            with archive.open(f"{i}.png", "w") as file:
                Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize((32, 32)).save(file, "PNG")
    options = ["--data", str(tmp_path / "val.zip"), "--batch-size", "2", "--device", "cpu", "--rows", "3"]
    quality.main([str(tiny_model), *options, "--json", str(tmp_path / "q.json"), "--sheet", str(tmp_path / "q.png")])
    report = json.loads((tmp_path / "q.json").read_text())
    model, bicubic = report["figures"][str(tiny_model)], report["figures"]["bicubic"]
    assert report["pictures"] == 3
    assert math.isclose(model["psnr_gain"], model["psnr"] - bicubic["psnr"])
    assert math.isclose(model["squeezenet_distance_ratio"], model["squeezenet_distance"] / bicubic["squeezenet_distance"])
    assert bicubic["consistency"] > model["consistency"]  # it is untrained
    table = capsys.readouterr().out.splitlines()
    assert f"| {bicubic['psnr']:.3f} |" in table[4]
    with Image.open(tmp_path / "q.png") as sheet:
        assert sheet.size == (4 * 32, 3 * 32)
