"""GLEAN and the methods that it is compared with, as Upscalers."""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from gleansr import checkpoints
from gleansr.ambient import plain_torch
from gleansr.baselines.bicubic import Bicubic
from gleansr.baselines.dgp import DGP, Bank, Discriminator
from gleansr.baselines.dgp_config import PRESETS, DGPConfig
from gleansr.baselines.pulse import PULSE, PULSEConfig
from gleansr.checkpoints import zoo
from gleansr.checkpoints.native import About, Checkpoint, bank_within
from gleansr.configs import from_dict, merge
from gleansr.errors import RequestError
from gleansr.inference.devices import find_device, find_precision
from gleansr.inference.precision import Precision
from gleansr.inference.runner import FeedForwardModel
from gleansr.inference.upscaler import Upscaler
from gleansr.models.esrgan_plus import ESRGANPlus
from gleansr.models.glean import GLEAN
from gleansr.models.residual import ResidualNet
from gleansr.models.rrdb import RRDBNet

NAMES = ("glean", "esrgan+", "plain", "dgp", "pulse", "bicubic")
SEARCHES = ("dgp", "pulse")
"""Methods that search a bank (a pretrained StyleGAN or BigGAN generator) for each image, in many steps."""

_NETWORKS = {"glean": (GLEAN,), "esrgan+": (ESRGANPlus, RRDBNet), "plain": (ResidualNet,)}


@plain_torch()
def load(
    method: str,
    model: str | os.PathLike[str] | None = None,
    *,
    scale: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    settings: Mapping[str, Any] | None = None,
) -> Upscaler:
    """Loads the Upscaler of a method.

    Args:
        method: one of `NAMES`. "glean", "esrgan+" (also ESRGAN) and "plain" run the network in `model`; "pulse" and "dgp" search the bank
            in `model`.
        model: name, or file of any layout; default: the bundled model of the method and scale. PULSE and DGP take a bank, by default
            cats-bank, or a GLEAN for its bank; DGP also needs the bank's discriminator.
        scale: scale factor, by default 8. A network has its own, which this must equal.
        device: as for `gleansr.load`.
        precision: as for `gleansr.load`; "auto" is float32 for searches.
        settings: changes to `PULSEConfig` or `DGPConfig`; for DGP also "discriminator", a file, if the bank's file has none.

    Raises:
        RequestError: the arguments do not fit together.
        CheckpointError: the file is broken or lacks a network.
    """
    if method not in NAMES:
        near = difflib.get_close_matches(method, NAMES, n=1)
        raise RequestError(f"unknown method {method!r}; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(NAMES)}"))
    settings = dict(settings or {})
    if settings and method not in SEARCHES:
        raise RequestError(f"{method} has no settings: leave {', '.join(settings)} out")
    if scale is not None and not 2 <= scale <= 64:
        raise RequestError(f"scale must be 2 to 64, not {scale}")
    torch_device = find_device(device)
    # The steps of a search are below the resolution of bfloat16.
    dtype = find_precision("float32" if precision == "auto" and method in SEARCHES else precision, torch_device)
    if method == "bicubic":
        if model is not None:
            raise RequestError(f"bicubic takes no model: leave {os.fspath(model)} out")
        return Upscaler(Bicubic(scale or 8, device=torch_device), About("bicubic"))
    path = checkpoints.model_path(model if model is not None else bundled(method, scale or 8))
    checkpoint = checkpoints.read(path)
    if method in _NETWORKS:
        network = checkpoint.build(None, path)
        if not isinstance(network, _NETWORKS[method]):
            raise RequestError(f"{path}: holds a {type(network).__name__}, not a network of the method {method}")
        forward = FeedForwardModel(network, device=torch_device, precision=precision, self_ensemble=checkpoint.about.self_ensemble)
        upscaler = Upscaler(forward, checkpoint.about)
        if scale not in (None, upscaler.scale):
            raise RequestError(f"{path}: has a scale of {upscaler.scale}x, not {scale}x; give a model of that scale or leave --scale out")
        return upscaler
    discriminator_file = settings.pop("discriminator", None)
    bank = bank_within(checkpoint, path)
    generator = bank.build("generator", path)
    if method == "pulse":
        if discriminator_file is not None:
            raise RequestError("pulse uses no discriminator: leave the setting discriminator out")
        config = from_dict(PULSEConfig, settings, "settings of pulse")
        return Upscaler(PULSE(generator, scale or 8, config, device=torch_device, precision=dtype), checkpoint.about)
    config = _dgp_config(settings)
    discriminator = cast("Discriminator | None", _discriminator(bank, path, discriminator_file))  # DGP refuses other networks
    return Upscaler(DGP(cast("Bank", generator), discriminator, scale or 8, config, device=torch_device, precision=dtype), checkpoint.about)


def _dgp_config(settings: dict[str, Any]) -> DGPConfig:
    preset = settings.pop("preset", "discriminator")
    if preset not in PRESETS:
        raise RequestError(f"settings of dgp: preset must be {' or '.join(PRESETS)}, not {preset!r}")
    return from_dict(DGPConfig, merge(dataclasses.asdict(PRESETS[preset]()), settings), "settings of dgp")


def bundled(method: str, scale: int, category: str = "cats") -> str:
    """The name of the bundled model of a method at a scale; searches use one bank for all scales. Raises RequestError if there is none."""
    names = [model.name for model in zoo.named_models() if model.asset]
    name = f"{category}-bank" if method in SEARCHES else network_name(method, scale, category)
    if name not in names:
        raise RequestError(f"no model of {method} for {category} at {scale}x is bundled: give one")
    return name


def network_name(method: str, scale: int, category: str) -> str:
    """The name of a method's model, with which that of its recipe begins too."""
    return f"{category}-{scale}x" if method == "glean" else f"{method}-{category}-{scale}x"


def _discriminator(bank: Checkpoint, path: Path, file: Any) -> nn.Module | None:
    """The discriminator of a bank: from `file` if given, otherwise from the bank's file or, under the names of DGP's authors, from
    D_256.pth in the folder of G_ema_256.pth. None if there is none."""
    if file is not None:
        discriminator_path = checkpoints.model_path(str(file))
        return checkpoints.read(discriminator_path).build("discriminator", discriminator_path)
    if "discriminator" in bank.networks:
        return bank.build("discriminator", path)
    sibling = path.with_name(path.name.replace("G_ema_", "D_"))
    if sibling != path and sibling.is_file():
        return checkpoints.read(sibling).build("discriminator", sibling)
    return None
