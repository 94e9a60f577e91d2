"""Named models: sources, local files and licences.

Environment variables: GLEANSR_HOME replaces the user's cache folder for downloaded files (in models/);
GLEANSR_OFFLINE=1 forbids downloads.
"""

import difflib
import os
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from gleansr.checkpoints.download import DownloadProgress, download
from gleansr.errors import CheckpointError, DownloadError, RequestError


@dataclass(frozen=True)
class NamedModel:
    """A named model: one file, bundled or published elsewhere."""

    name: str
    """Name for `load` and the command line."""
    kind: Literal["glean", "stylegan2", "residual", "esrgan+", "rrdbnet", "srvgg"]
    """The architecture."""
    category: str
    """Subject of its images."""
    in_size: int | None
    """Side of the square low-resolution input in pixels; None for a bank, which generates from latents."""
    out_size: int
    """Side of the square output in pixels (StyleGAN2's cars leave a quarter of theirs black: 512 wide, 384 high)."""
    licence: str
    """Licence of the weights."""
    credit: str
    """Attribution: authors, publisher, training images and their terms."""
    asset: str | None = None
    """Name of the file in this package's assets folder, for a bundled model."""
    url: str | None = None
    """Address of the file, for a downloaded model."""
    sha256_prefix: str | None = None
    """First digits of the file's SHA-256; for a downloaded model those that its publisher writes into the file name."""
    size: int | None = None
    """Size of the downloaded file in bytes, if known."""
    parts: tuple[str, ...] = ("generator", "discriminator")
    """The networks in the file."""


def named_models() -> tuple[NamedModel, ...]:
    """All named models, bundled ones first."""
    return _MODELS


def find(name: str) -> NamedModel:
    """The model with this name.

    Raises:
        RequestError: no model has this name; the message suggests the nearest one.
    """
    names = [model.name for model in _MODELS]
    if name in names:
        return _MODELS[names.index(name)]
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RequestError(f"no model is named {name!r}: {hint}`gleansr models` lists all names; for a file, give its path")


def model_path(
    name_or_path: str | os.PathLike[str],
    *,
    offline: bool | None = None,
    progress: DownloadProgress | None = None,
) -> Path:
    """The file of a model, downloaded if necessary.

    Args:
        name_or_path: an existing file, which takes precedence, or the name of a model.
        offline: forbids downloads; None takes the environment variable GLEANSR_OFFLINE.
        progress: called during a download with the bytes received and the size in bytes (None while it is unknown).

    Raises:
        RequestError: neither a file nor a name, or a download is needed but forbidden.
        DownloadError: the download failed.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if not isinstance(name_or_path, str) or _looks_like_path(name_or_path):
        problem = "is a folder; expected a file" if path.is_dir() else "no such file"
        raise CheckpointError(f"{name_or_path}: {problem}; `gleansr models` lists the named models")

    model = find(name_or_path)
    path = file_of(model)
    if installed(model):
        return path
    if not model.url or not model.sha256_prefix:
        raise CheckpointError(f"{path}: no such file; this installation is incomplete, install gleansr again")
    advice = f"download {model.url} manually and save it as {path}"
    if offline_by_environment() if offline is None else offline:
        raise RequestError(f"{model.name} is not on this machine and downloads are switched off: {advice}")
    try:
        return download(model.url, path, sha256_prefix=model.sha256_prefix, size=model.size, progress=progress)
    except DownloadError as error:
        raise DownloadError(f"{error}; or {advice}") from error


def file_of(model: NamedModel) -> Path:
    """The local path of a model's file, whether it is downloaded or not."""
    if model.asset:
        return asset(model.asset)
    return cache_folder() / "models" / PurePosixPath(urlsplit(model.url or "").path).name


def asset(name: str) -> Path:
    """The path of a file in the package's assets."""
    return Path(str(resources.files("gleansr"))) / "assets" / name


def model_of_file(path: Path) -> NamedModel | None:
    """The named model whose local file is `path`."""
    return next((model for model in _MODELS if file_of(model) == path), None)


def installed(model: NamedModel) -> bool:
    """Whether a model's file is on this machine."""
    return file_of(model).is_file()


def cache_folder() -> Path:
    """The folder of downloaded files: $GLEANSR_HOME, otherwise gleansr/ in the user's cache folder."""
    if home := os.environ.get("GLEANSR_HOME"):
        return Path(home).expanduser()
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    base = Path(os.environ.get(variable, ""))
    # The XDG specification says to ignore relative paths.
    return (base if base.is_absolute() else Path.home() / ".cache") / "gleansr"


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.lower().endswith((".pth", ".pt", ".pkl", ".safetensors", ".onnx"))


def offline_by_environment() -> bool:
    return os.environ.get("GLEANSR_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


# ---------------------------------------------------------------------------------------------------------- the models

_OPENMMLAB = "https://download.openmmlab.com/mmediting"
# A GLEAN file holds the bank, and a discriminator fine-tuned from the bank's: NVIDIA's terms come first.
# MMagic's licence is that of its code; its model pages do not mention the weights.
_NVIDIA = "Nvidia Source Code License-NC (non-commercial), see https://github.com/NVlabs/stylegan2/blob/master/LICENSE.txt"
_NVIDIA_AND_MMAGIC = f"{_NVIDIA}, for the StyleGAN2 in it; its publisher MMagic is Apache-2.0, see https://github.com/open-mmlab/mmagic"
_FFHQ = "FFHQ (CC BY-NC-SA 4.0 by NVIDIA, see https://github.com/NVlabs/ffhq-dataset)"
_CELEBA_HQ = "CelebA-HQ (CelebA's terms, see https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
_LSUN = "LSUN (its own terms, see https://www.yf.io/p/lsun)"


_AFHQ = "AFHQ: Choi, Uh, Yoo, Ha, StarGAN v2, CVPR 2020 (NAVER Corporation)"
_PORTRAITS = "portraits of people who do not exist, made by StyleGAN-like networks, collected from public repositories"
_CARS = "Stanford Cars: Krause, Stark, Deng, Fei-Fei, 2013"
_CHURCHES = "churches of ImageNet: Deng et al., 2009"
_PLACES = "Places365: Zhou, Lapedriza, Khosla, Oliva, Torralba, 2017"
_CREDITS = {
    "cats": _AFHQ,
    "faces": f"{_PORTRAITS}; trained on from weights of {_AFHQ}",
    "cars": f"{_CARS}; trained on from weights of {_AFHQ}",
    "bedrooms": f"{_PLACES}; trained on from weights of {_AFHQ}",
    "towers": f"{_CHURCHES}; trained on from weights of {_PLACES} and of {_AFHQ}",
    "any": f"{_AFHQ}; {_CARS}; {_PLACES}; {_CHURCHES}; {_PORTRAITS}",
}
"""Attributions of the bundled models by category."""


def _bundled(
    name: str,
    in_size: int | None,
    sha256: str,
    kind: Literal["glean", "stylegan2", "residual", "esrgan+"] = "glean",
    parts: tuple[str, ...] = ("generator",),
    category: str = "cats",
    out_size: int = 256,
    also: str = "",
) -> NamedModel:
    """`also`: whose weights it was trained on from, beside those of its category."""
    return NamedModel(
        name=name,
        kind=kind,
        category=category,
        in_size=in_size,
        out_size=out_size,
        licence="CC-BY-NC-4.0",
        credit=_CREDITS[category] + (f"; trained on from weights of {also}" if also else ""),
        asset=f"{name}.safetensors",
        sha256_prefix=sha256,
        parts=parts,
    )


def _glean(name: str, category: str, in_size: int, out_size: int, images: str, file: str, sha256: str) -> NamedModel:
    return NamedModel(
        name=name,
        kind="glean",
        category=category,
        in_size=in_size,
        out_size=out_size,
        licence=_NVIDIA_AND_MMAGIC,
        credit="GLEAN: Chan, Wang, Xu, Gu, Loy, CVPR 2021, published by MMagic (OpenMMLab); bank: StyleGAN2, Karras, "
        f"Laine, Aittala, Hellsten, Lehtinen, Aila, CVPR 2020 (NVIDIA); trained on {images}",
        url=f"{_OPENMMLAB}/restorers/glean/{file}-{sha256}.pth",
        sha256_prefix=sha256,
    )


def _stylegan2(name: str, category: str, out_size: int, images: str, file: str, sha256: str) -> NamedModel:
    return NamedModel(
        name=name,
        kind="stylegan2",
        category=category,
        in_size=None,
        out_size=out_size,
        licence=_NVIDIA,
        credit="StyleGAN2: Karras, Laine, Aittala, Hellsten, Lehtinen, Aila, CVPR 2020 (NVIDIA), converted by MMagic "
        f"(OpenMMLab); trained on {images}",
        url=f"{_OPENMMLAB}/stylegan2/official_weights/stylegan2-{file}-{sha256}.pth",
        sha256_prefix=sha256,
    )


def _real_esrgan(name: str, kind: Literal["rrdbnet", "srvgg"], release: str, size: int, sha256: str) -> NamedModel:
    return NamedModel(
        name=name,
        kind=kind,
        category="any",
        in_size=64,
        out_size=256,
        licence="BSD-3-Clause, see https://github.com/xinntao/Real-ESRGAN/blob/master/LICENSE",
        credit="Real-ESRGAN: Wang, Xie, Dong, Shan, ICCV workshops 2021, published by the authors",
        url=f"https://github.com/xinntao/Real-ESRGAN/releases/download/{release}/{name}.pth",
        sha256_prefix=sha256,
        size=size,
        parts=("generator",),
    )


_MODELS = (
    _bundled("cats-8x", 32, "572f7799f645a699"),
    _bundled("cats-8x-light", 32, "cd49798e33542ff1"),
    _bundled("cats-4x", 64, "f569e07a1ee6ff1d", also=_PORTRAITS),
    _bundled("cats-16x", 16, "8db448967607f320", also=_PORTRAITS),
    _bundled("plain-cats-8x", 32, "9d7a99ee0a98c45f", "residual"),
    _bundled("esrgan+-cats-8x", 32, "c7e86a2e1d879eda", "esrgan+"),
    _bundled("cats-bank", None, "593c74b648e554bb", "stylegan2", ("generator", "discriminator", "encoder")),
    _bundled("cats-bank-first", None, "054a62f3f32c0377", "stylegan2", ("generator",)),
    _bundled("faces-4x", 64, "7e09f690b2594382", category="faces"),
    _bundled("faces-8x", 32, "fb76a6cb38c8af23", category="faces"),
    _bundled("faces-16x", 16, "f8c54fc6f4598e43", category="faces"),
    _bundled("faces-32x", 8, "055f5ab1a0a75510", category="faces"),
    _bundled("faces-64x", 4, "f9b0b36ff14f34b1", category="faces"),
    _bundled("cars-8x", 32, "3743d0009d4f62fc", category="cars"),
    _bundled("cars-16x", 16, "dcf9ad36693d5d69", category="cars"),
    _bundled("bedrooms-8x", 32, "b86652cbe593a46e", category="bedrooms"),
    _bundled("bedrooms-16x", 16, "159bc8c88148eb09", category="bedrooms"),
    _bundled("towers-8x", 32, "ade196a952ba8e14", category="towers"),
    _bundled("towers-16x", 16, "fc203414943e5f13", category="towers"),
    _bundled("general-4x", 32, "7a24cfc6a7b7cbd9", "residual", category="any", out_size=128),
    _bundled("faces-bank", None, "b595fea406ae92f3", "stylegan2", ("generator",), "faces"),
    _bundled("cars-bank", None, "d08178ca7d0fddc8", "stylegan2", ("generator",), "cars"),
    _bundled("bedrooms-bank", None, "d8ce89be4acd9c09", "stylegan2", ("generator",), "bedrooms"),
    _bundled("towers-bank", None, "77f3aafc755b2b11", "stylegan2", ("generator",), "towers"),
    _real_esrgan(
        "realesr-general-x4v3", "srvgg", "v0.2.5.0", 4_885_111, "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292"
    ),
    _real_esrgan("RealESRGAN_x4plus", "rrdbnet", "v0.1.0", 67_040_989, "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1"),
    _glean("glean-cats-8x", "cats", 32, 256, _LSUN, "glean_cat_8x_20210614", "d3ac8683"),
    _glean("glean-cats-16x", "cats", 16, 256, _LSUN, "glean_cat_16x_20210527", "68912543"),
    _glean(
        "glean-faces-8x",
        "faces",
        128,
        1024,
        f"{_FFHQ} and {_CELEBA_HQ}",
        "glean_in128out1024_4x2_300k_ffhq_celebahq_20210812",
        "acbcb04f",
    ),
    _glean("glean-faces-16x", "faces", 64, 1024, _FFHQ, "glean_ffhq_16x_20210527", "61a3afad"),
    _stylegan2("stylegan2-ffhq", "faces", 1024, _FFHQ, "ffhq-config-f-official_20210327_171224", "bce9310c"),
    _stylegan2("stylegan2-cat", "cats", 256, _LSUN, "cat-config-f-official_20210327_172444", "15bc485b"),
    _stylegan2("stylegan2-car", "cars", 512, _LSUN, "car-config-f-official_20210327_172340", "8cfe053c"),
    _stylegan2("stylegan2-church", "churches", 256, _LSUN, "church-config-f-official_20210327_172657", "1d42b7d1"),
    _stylegan2("stylegan2-horse", "horses", 256, _LSUN, "horse-config-f-official_20210327_173203", "ef3e69ca"),
)
