"""Networks published by torchvision, for perceptual losses and metrics. They are downloaded; torchvision itself is not needed."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from gleansr.checkpoints import pickles, zoo
from gleansr.checkpoints.download import DownloadProgress, download
from gleansr.checkpoints.lazy_tensors import LazyTensor
from gleansr.checkpoints.native import check_tensors, check_values
from gleansr.errors import CheckpointError, DownloadError, RequestError
from gleansr.models.features import VGG16, VGG19, AlexNet, InputRange, MobileNetV2, VGG16Stages

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG16_SHA256_PREFIX = "397923af"
VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
VGG19_SHA256_PREFIX = "dcbb9e9d"
ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
ALEXNET_SHA256_PREFIX = "7be5be79"
MOBILENET_V2_URL = "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"
MOBILENET_V2_SHA256_PREFIX = "b0353104"

VGG_CLASSIFIER = tuple(f"{layer}.{leaf}" for layer in ("classifier.0", "classifier.3", "classifier.6") for leaf in ("weight", "bias"))
"""Tensors after the convolutions in files of VGG16 and VGG19. They are not needed and optional."""

VGG16_EXCESS = tuple(f"features.{i}.{leaf}" for i in (24, 26, 28) for leaf in ("weight", "bias")) + VGG_CLASSIFIER
"""Tensors after conv4_3 in a file of VGG16. They are not needed and optional."""

ALEXNET_EXCESS = tuple(f"{layer}.{leaf}" for layer in ("classifier.1", "classifier.4", "classifier.6") for leaf in ("weight", "bias"))
MOBILENET_V2_EXCESS = ("classifier.1.weight", "classifier.1.bias")

PERCEPTUAL_ADVICE = 'choose perceptual = "squeezenet", which needs no download, or give the file with perceptual_file'
"""Alternative to a download for recipes."""


def load_vgg16(path: str | os.PathLike[str] | None = None, *, input_range: InputRange = "signed") -> VGG16:
    """VGG16 up to conv4_3 with torchvision's ImageNet weights, in eval mode, frozen, float32, on the CPU.

    Args:
        path: a file like torchvision's vgg16-397923af.pth, of which names and shapes are checked. None downloads that file (528 MB) at its
            first use to the folder of downloaded models and checks its hash, see `vgg16_file`.
        input_range: see `VGG16`.

    Raises:
        CheckpointError: the file is missing, broken, or does not hold VGG16.
        RequestError: a download is needed but forbidden by the environment variable GLEANSR_OFFLINE.
        DownloadError: the download failed.
    """
    return _load(partial(VGG16, input_range), vgg16_file() if path is None else path, VGG16_EXCESS)


def load_vgg19(path: str | os.PathLike[str] | None = None) -> VGG19:
    """VGG19 up to conv5_4 with torchvision's ImageNet weights, as `load_vgg16`: torchvision's vgg19-dcbb9e9d.pth (548 MB)."""
    return _load(VGG19, vgg19_file() if path is None else path, VGG_CLASSIFIER)


def load_vgg16_stages(path: str | os.PathLike[str]) -> VGG16Stages:
    """All convolutions of VGG16 from a file like torchvision's vgg16-397923af.pth, in eval mode, frozen, float32, on the CPU."""
    return _load(VGG16Stages, path, VGG_CLASSIFIER)


def load_alexnet(path: str | os.PathLike[str]) -> AlexNet:
    """AlexNet from a file like torchvision's alexnet-owt-7be5be79.pth, in eval mode, frozen, float32, on the CPU."""
    return _load(AlexNet, path, ALEXNET_EXCESS)


def load_mobilenet_v2(path: str | os.PathLike[str]) -> MobileNetV2:
    """MobileNetV2 from a file like torchvision's mobilenet_v2-b0353104.pth, in eval mode, frozen, float32, on the CPU."""
    return _load(MobileNetV2, path, MOBILENET_V2_EXCESS)


def vgg16_file(*, progress: DownloadProgress | None = None, instead: str = PERCEPTUAL_ADVICE) -> Path:
    """torchvision's vgg16-397923af.pth, downloaded if it is not on this machine; see `load_vgg16`.

    Args:
        progress: called during a download with the bytes received and the size in bytes (None while it is unknown).
        instead: an alternative to the download, for error messages.
    """
    return _downloaded("VGG16", VGG16_URL, VGG16_SHA256_PREFIX, progress, instead)


def vgg19_file(*, progress: DownloadProgress | None = None) -> Path:
    """torchvision's vgg19-dcbb9e9d.pth, downloaded if it is not on this machine; see `load_vgg19`."""
    return _downloaded("VGG19", VGG19_URL, VGG19_SHA256_PREFIX, progress, PERCEPTUAL_ADVICE)


def alexnet_file(*, instead: str, progress: DownloadProgress | None = None) -> Path:
    """torchvision's alexnet-owt-7be5be79.pth (233 MB), downloaded if it is not on this machine; see `vgg16_file`."""
    return _downloaded("AlexNet", ALEXNET_URL, ALEXNET_SHA256_PREFIX, progress, instead)


def mobilenet_v2_file(*, instead: str, progress: DownloadProgress | None = None) -> Path:
    """torchvision's mobilenet_v2-b0353104.pth (14 MB), downloaded if it is not on this machine; see `vgg16_file`."""
    return _downloaded("MobileNetV2", MOBILENET_V2_URL, MOBILENET_V2_SHA256_PREFIX, progress, instead)


def _downloaded(name: str, url: str, sha256_prefix: str, progress: DownloadProgress | None, instead: str) -> Path:
    """The file of a network in the folder of downloaded models, downloaded if it is missing."""
    path = zoo.cache_folder() / "models" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    advice = f"{instead}, or download {url} manually and save it as {path}"
    if zoo.offline_by_environment():
        raise RequestError(f"{name} is not on this machine and downloads are switched off: {advice}")
    try:
        return download(url, path, sha256_prefix=sha256_prefix, progress=progress)
    except DownloadError as error:
        raise DownloadError(f"{error}; {advice}") from error


TorchvisionNetwork = TypeVar("TorchvisionNetwork", bound=nn.Module)


def _load(build: Callable[[], TorchvisionNetwork], path: str | os.PathLike[str], excess: tuple[str, ...]) -> TorchvisionNetwork:
    """The network with the tensors of a file, except those named in `excess`, in eval mode, frozen."""
    with torch.device("meta"):
        network = build()
    path = Path(path).expanduser()
    try:
        contents = pickles.load_torch(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not isinstance(contents, dict) or not all(isinstance(tensor, LazyTensor) for tensor in contents.values()):
        raise CheckpointError(f"{path}: not a state dict, as torchvision publishes")
    tensors = pickles.tensors({name: tensor for name, tensor in contents.items() if name not in excess}, path)
    check_tensors(tensors, {name: tuple(t.shape) for name, t in network.state_dict().items()}, path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            check_values(name, tensor, path)
    # The batch counter of batch normalisation stays an integer.
    network.load_state_dict({n: t.to(torch.float32) if t.is_floating_point() else t for n, t in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)
