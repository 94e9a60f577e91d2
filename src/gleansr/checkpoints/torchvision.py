"""Networks that torchvision publishes, whose features measure likeness. None comes with the package, and torchvision is not needed."""

import os
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from gleansr.checkpoints import pickles, zoo
from gleansr.checkpoints.download import DownloadProgress, download
from gleansr.checkpoints.native import check_tensors, check_values
from gleansr.checkpoints.stored import StoredTensor
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
"""What lies behind the convolutions in a file of VGG16 or VGG19. It is not needed and may be left out of the file."""

VGG16_EXCESS = tuple(f"features.{i}.{leaf}" for i in (24, 26, 28) for leaf in ("weight", "bias")) + VGG_CLASSIFIER
"""What lies behind conv4_3 in a file of VGG16. It is not needed and may be left out of the file."""

ALEXNET_EXCESS = tuple(f"{layer}.{leaf}" for layer in ("classifier.1", "classifier.4", "classifier.6") for leaf in ("weight", "bias"))
MOBILENET_V2_EXCESS = ("classifier.1.weight", "classifier.1.bias")

FOR_PERCEPTUAL = 'choose perceptual = "squeezenet", which needs no download, or give the file with perceptual_file'
"""What to do instead of a download, where a recipe asks for the network."""


def load_vgg16(
    path: str | os.PathLike[str] | None = None,
    *,
    input_range: InputRange = "signed",
    offline: bool | None = None,
    progress: DownloadProgress | None = None,
) -> VGG16:
    """VGG16 up to conv4_3 with torchvision's ImageNet weights, in eval mode, frozen, float32, on the CPU.

    Args:
        path: a file of the form of torchvision's vgg16-397923af.pth; it is taken for what it is, only names and shapes are checked.
            None fetches that very file (528 MB) at its first use, into the folder of downloaded models, and checks its hash.
        input_range: see `VGG16`.
        offline: refuse to download; None asks the environment variable GLEANSR_OFFLINE.
        progress: called during a download with the bytes received and the size in bytes (None while it is unknown).

    Raises:
        CheckpointError: the file is missing, broken, or does not hold VGG16.
        RequestError: a download is needed but forbidden.
        DownloadError: the download failed.
    """
    with torch.device("meta"):
        network = VGG16(input_range)
    _fill(network, Path(path).expanduser() if path is not None else vgg16_file(offline=offline, progress=progress), VGG16_EXCESS)
    return network


def load_vgg19(
    path: str | os.PathLike[str] | None = None, *, offline: bool | None = None, progress: DownloadProgress | None = None
) -> VGG19:
    """VGG19 up to conv5_4 with torchvision's ImageNet weights, as `load_vgg16` has VGG16: torchvision's vgg19-dcbb9e9d.pth (548 MB)."""
    with torch.device("meta"):
        network = VGG19()
    _fill(network, Path(path).expanduser() if path is not None else vgg19_file(offline=offline, progress=progress), VGG_CLASSIFIER)
    return network


def load_vgg16_stages(path: str | os.PathLike[str]) -> VGG16Stages:
    """All convolutions of VGG16, of a file of the form of torchvision's vgg16-397923af.pth, in eval mode, frozen, float32, on the CPU."""
    return _load(VGG16Stages, path, VGG_CLASSIFIER)


def load_alexnet(path: str | os.PathLike[str]) -> AlexNet:
    """AlexNet of a file of the form of torchvision's alexnet-owt-7be5be79.pth, in eval mode, frozen, float32, on the CPU."""
    return _load(AlexNet, path, ALEXNET_EXCESS)


def load_mobilenet_v2(path: str | os.PathLike[str]) -> MobileNetV2:
    """MobileNetV2 of a file of the form of torchvision's mobilenet_v2-b0353104.pth, in eval mode, frozen, float32, on the CPU."""
    return _load(MobileNetV2, path, MOBILENET_V2_EXCESS)


def vgg16_file(*, offline: bool | None = None, progress: DownloadProgress | None = None, instead: str = FOR_PERCEPTUAL) -> Path:
    """torchvision's vgg16-397923af.pth, fetched first where it is not on this machine; see `load_vgg16`.

    `instead` is what the message of an error advises before a download by hand.
    """
    return _fetched("VGG16", VGG16_URL, VGG16_SHA256_PREFIX, offline, progress, instead)


def vgg19_file(*, offline: bool | None = None, progress: DownloadProgress | None = None) -> Path:
    """torchvision's vgg19-dcbb9e9d.pth, fetched first where it is not on this machine; see `load_vgg19`."""
    return _fetched("VGG19", VGG19_URL, VGG19_SHA256_PREFIX, offline, progress, FOR_PERCEPTUAL)


def alexnet_file(*, instead: str, offline: bool | None = None, progress: DownloadProgress | None = None) -> Path:
    """torchvision's alexnet-owt-7be5be79.pth (233 MB), fetched first where it is not on this machine; see `vgg16_file`."""
    return _fetched("AlexNet", ALEXNET_URL, ALEXNET_SHA256_PREFIX, offline, progress, instead)


def mobilenet_v2_file(*, instead: str, offline: bool | None = None, progress: DownloadProgress | None = None) -> Path:
    """torchvision's mobilenet_v2-b0353104.pth (14 MB), fetched first where it is not on this machine; see `vgg16_file`."""
    return _fetched("MobileNetV2", MOBILENET_V2_URL, MOBILENET_V2_SHA256_PREFIX, offline, progress, instead)


def _fetched(name: str, url: str, sha256_prefix: str, offline: bool | None, progress: DownloadProgress | None, instead: str) -> Path:
    """The file of a network in the folder of downloaded models, fetched first where it is not there."""
    path = zoo.cache_folder() / "models" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    otherwise = f"{instead}, or fetch {url} by hand and save it as {path}"
    if zoo.offline_by_environment() if offline is None else offline:
        raise RequestError(f"{name} is not on this machine and downloads are switched off: {otherwise}")
    try:
        return download(url, path, sha256_prefix=sha256_prefix, progress=progress)
    except DownloadError as error:
        raise DownloadError(f"{error}; {otherwise}") from error


TorchvisionNetwork = TypeVar("TorchvisionNetwork", bound=nn.Module)


def _load(kind: type[TorchvisionNetwork], path: str | os.PathLike[str], excess: tuple[str, ...]) -> TorchvisionNetwork:
    with torch.device("meta"):
        network = kind()
    _fill(network, Path(path).expanduser(), excess)
    return network


def _fill(network: nn.Module, path: Path, excess: tuple[str, ...]) -> None:
    """Gives `network`, which has no memory yet, the tensors of a file; those named in `excess` are left alone."""
    try:
        contents = pickles.load_torch(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not isinstance(contents, dict) or not all(isinstance(tensor, StoredTensor) for tensor in contents.values()):
        raise CheckpointError(f"{path}: not named tensors, as torchvision publishes them")
    tensors = pickles.tensors({name: tensor for name, tensor in contents.items() if name not in excess}, path)
    check_tensors(tensors, {name: tuple(t.shape) for name, t in network.state_dict().items()}, path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            check_values(name, tensor, path)
    # Batch normalisation's count of batches stays a whole number.
    network.load_state_dict({n: t.to(torch.float32) if t.is_floating_point() else t for n, t in tensors.items()}, assign=True)
    network.eval().requires_grad_(False)
