"""The methods that GLEAN is compared with, and GLEAN itself, behind the call of the Upscaler."""

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
"""The methods that search a bank for each image, in many steps."""

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
    """The Upscaler that works by `method`, one of `NAMES`.

    Args:
        method: "glean", "esrgan+" (an ESRGAN without the plus too) or "plain": a forward pass of the network in `model`; "pulse" or "dgp":
            a search in the bank in `model`; "bicubic".
        model: Name or file of any layout; by default the bundled one of the method and the scale, if there is one. PULSE and DGP take a
            bank, by default cats-bank, or a GLEAN for the bank in it; DGP needs its discriminator too.
        scale: Enlargement, by default 8. A network has its own, with which this must agree.
        device: As for `gleansr.load`.
        precision: As for `gleansr.load`; "auto" is float32 for the searches.
        settings: Changes to the `PULSEConfig` or `DGPConfig`; for DGP also "discriminator", a file, where the bank's file has none.

    Raises:
        RequestError: these do not fit together.
        CheckpointError: the file is broken, or lacks what the method needs.
    """
    if method not in NAMES:
        near = difflib.get_close_matches(method, NAMES, n=1)
        raise RequestError(f"there is no method {method!r}; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(NAMES)}"))
    settings = dict(settings or {})
    if settings and method not in SEARCHES:
        raise RequestError(f"{method} has no settings, but {', '.join(settings)} was given")
    if scale is not None and not 2 <= scale <= 64:
        raise RequestError(f"scale must be 2 to 64, not {scale}")
    chosen = find_device(device)
    # The steps of a search are smaller than bfloat16 tells apart.
    arithmetic = find_precision("float32" if precision == "auto" and method in SEARCHES else precision, chosen)
    if method == "bicubic":
        if model is not None:
            raise RequestError(f"bicubic takes no model, but {os.fspath(model)} was given")
        return Upscaler(Bicubic(scale or 8, device=chosen), About("bicubic"))
    path = checkpoints.model_path(model if model is not None else bundled(method, scale or 8))
    checkpoint = checkpoints.read(path)
    if method in _NETWORKS:
        network = checkpoint.build(None, path)
        if not isinstance(network, _NETWORKS[method]):
            raise RequestError(f"{path}: holds a {type(network).__name__}, which is no network of the method {method}")
        upscaler = Upscaler(FeedForwardModel(network, device=chosen, precision=precision), checkpoint.about)
        if scale not in (None, upscaler.scale):
            raise RequestError(
                f"{path}: enlarges {upscaler.scale} times, not {scale} times; give a model of that scale or leave --scale out"
            )
        return upscaler
    own = settings.pop("discriminator", None)
    bank = bank_within(checkpoint, path)
    generator = bank.build("generator", path)
    if method == "pulse":
        if own is not None:
            raise RequestError("pulse uses no discriminator, but one was given")
        config = from_dict(PULSEConfig, settings, "settings of pulse")
        return Upscaler(PULSE(generator, scale or 8, config, device=chosen, precision=arithmetic), checkpoint.about)
    config = _dgp_config(settings)
    judge = cast("Discriminator | None", _discriminator(bank, path, own))  # DGP refuses other networks itself
    return Upscaler(DGP(cast("Bank", generator), judge, scale or 8, config, device=chosen, precision=arithmetic), checkpoint.about)


def _dgp_config(settings: dict[str, Any]) -> DGPConfig:
    preset = settings.pop("preset", "discriminator")
    if preset not in PRESETS:
        raise RequestError(f"settings of dgp: preset must be {' or '.join(PRESETS)}, not {preset!r}")
    return from_dict(DGPConfig, merge(dataclasses.asdict(PRESETS[preset]()), settings), "settings of dgp")


def bundled(method: str, scale: int) -> str:
    """The name of the bundled model of a method and a scale. The searches have a bank, which serves every scale."""
    names = [model.name for model in zoo.named_models() if model.asset]
    name = "cats-bank" if method in SEARCHES else f"cats-{scale}x" if method == "glean" else f"{method}-cats-{scale}x"
    if name not in names:
        raise RequestError(f"no model for {method} at {scale}x comes with the package: give one")
    return name


def _discriminator(bank: Checkpoint, path: Path, own: Any) -> nn.Module | None:
    """The discriminator of a bank, None if there is none: from a file of its own if one is given, otherwise from the bank's, or from the
    one beside it, as DGP's authors name theirs (D_256.pth beside G_ema_256.pth)."""
    if own is not None:
        file = checkpoints.model_path(str(own))
        return checkpoints.read(file).build("discriminator", file)
    if "discriminator" in bank.networks:
        return bank.build("discriminator", path)
    beside = path.with_name(path.name.replace("G_ema_", "D_"))
    if beside != path and beside.is_file():
        return checkpoints.read(beside).build("discriminator", beside)
    return None
