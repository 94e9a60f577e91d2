"""Networks that torchvision publishes, whose features measure likeness. None comes with the package, and torchvision is not needed."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from gleansr.checkpoints import zoo
from gleansr.checkpoints.download import Progress, download
from gleansr.checkpoints.native import check_tensors
from gleansr.checkpoints.pickles import load_torch
from gleansr.errors import CheckpointError, DownloadError, RequestError
from gleansr.models.features import VGG16, InputRange, MobileNetV2

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG16_SHA256_PREFIX = "397923af"

VGG16_EXCESS = tuple(
    f"{layer}.{leaf}"
    for layer in ("features.24", "features.26", "features.28", "classifier.0", "classifier.3", "classifier.6")
    for leaf in ("weight", "bias")
)
"""What lies behind conv4_3 in a file of VGG16. It is not needed and may be left out of the file."""

MOBILENET_V2_EXCESS = ("classifier.1.weight", "classifier.1.bias")


def load_vgg16(
    path: str | os.PathLike[str] | None = None,
    *,
    input_range: InputRange = "signed",
    offline: bool | None = None,
    progress: Progress | None = None,
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


def load_mobilenet_v2(path: str | os.PathLike[str]) -> MobileNetV2:
    """MobileNetV2 of a file of the form of torchvision's mobilenet_v2-b0353104.pth, in eval mode, frozen, float32, on the CPU."""
    with torch.device("meta"):
        network = MobileNetV2()
    _fill(network, Path(path).expanduser(), MOBILENET_V2_EXCESS)
    return network


def vgg16_file(*, offline: bool | None = None, progress: Progress | None = None) -> Path:
    """torchvision's vgg16-397923af.pth, fetched first where it is not on this machine; see `load_vgg16`."""
    path = zoo.cache_folder() / "models" / VGG16_URL.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    otherwise = (
        'choose perceptual = "squeezenet", which needs no download, or give the file with perceptual_file, '
        f"or fetch {VGG16_URL} by hand and save it as {path}"
    )
    if zoo.offline_by_environment() if offline is None else offline:
        raise RequestError(f"VGG16 is not on this machine and downloads are switched off: {otherwise}")
    try:
        return download(VGG16_URL, path, sha256_prefix=VGG16_SHA256_PREFIX, progress=progress)
    except DownloadError as error:
        raise DownloadError(f"{error}; {otherwise}") from error


def _fill(network: nn.Module, path: Path, excess: tuple[str, ...]) -> None:
    """Gives `network`, which has no memory yet, the tensors of a file; those named in `excess` are left alone."""
    try:
        contents = load_torch(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not isinstance(contents, dict) or not all(isinstance(tensor, Tensor) for tensor in contents.values()):
        raise CheckpointError(f"{path}: not named tensors, as torchvision publishes them")
    tensors = {str(name): tensor for name, tensor in contents.items() if name not in excess}
    check_tensors(tensors, {name: tuple(t.shape) for name, t in network.state_dict().items()}, path)
    # Batch normalisation's count of batches stays a whole number.
    network.load_state_dict({n: t.to(torch.float32) if t.is_floating_point() else t for n, t in tensors.items()}, assign=True)
    network.eval().requires_grad_(False)
