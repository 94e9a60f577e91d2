"""Pillow images of any mode to planes of grey or RGB in sRGB, in strips."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from gleansr.errors import one_line
from gleansr.images import colour, tiff

_STRIP = 2**20
"""Pixels converted at a time."""


def to_planes(
    image: Image.Image, name: str, notes: list[str], cicp: tuple[int, int, int, int] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Colour (1 or 3, H, W) in sRGB, uint8 or float32 in [0, 1], and alpha (1, H, W) of an image of any mode."""
    if image.mode in ("P", "PA") and image.palette is None:
        raise ValueError("its palette is missing")
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_planes(image, name, notes, cicp)
    alpha_mode = ("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA") if image.has_transparency_data else ""
    convert = srgb_converter(alpha_mode[:-1] or image.mode, image.info, cicp, name, notes, image.format)
    (width, height), grey, spread = image.size, True, 0
    colours = torch.empty(0, dtype=torch.uint8)
    alpha = torch.empty(1, height, width, dtype=torch.uint8) if alpha_mode else None
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(height, top + rows)))
        if alpha is not None:
            *bands, mask = strip.convert(alpha_mode).split()
            strip = Image.merge(alpha_mode[:-1], bands)
            alpha[0, top : top + rows] = torch.from_numpy(np.array(mask))
        before, after = unchanged(strip), convert(strip)
        if not top:
            colours = torch.empty(after.shape[-1], height, width, dtype=torch.uint8)
        colours[:, top : top + rows] = torch.from_numpy(np.array(after)).permute(2, 0, 1)
        grey = grey and (before == before[..., :1]).all()
        if grey and convert is not unchanged:
            spread = max(spread, int(np.ptp(after, axis=-1).max()))
    if grey and len(colours) == 3 and spread <= 2:  # within the rounding of colour management
        colours = colours[1:2].clone()
    return colours, alpha


def _deep_planes(
    image: Image.Image, name: str, notes: list[str], cicp: tuple[int, int, int, int] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    values = np.asarray(image).astype(np.float32)
    alpha = None
    if image.info.get("transparency") is not None:  # one value means transparent
        alpha = torch.from_numpy((values != image.info["transparency"]).astype(np.float32))[None]
    kind, bits = {"F": ("f", 32), "I": ("i", 32)}.get(image.mode, ("u", 16))
    values = values.clip(0) / tiff.white_level(kind, bits, values.max())
    return torch.from_numpy(to_srgb_planes(values[None], image.info, cicp, name, notes, image.format)), alpha


def to_srgb_planes(
    values: np.ndarray, info: Mapping[Any, Any], cicp: tuple[int, int, int, int] | None, name: str, notes: list[str], kind: str | None
) -> np.ndarray:
    """(1 or 3, H, W) float32 in [0, 1] -> sRGB; uint8 if a profile is applied, since colour management has 8 bits."""
    convert = srgb_converter("L" if len(values) == 1 else "RGB", info, cicp, name, notes, kind)
    if convert is unchanged:
        return values
    last = np.moveaxis(values, 0, -1)
    if isinstance(convert, _Stated):
        return np.ascontiguousarray(np.moveaxis(convert.stated.to_srgb(last), -1, 0))
    steps = np.rint(last.clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(convert(Image.fromarray(steps[..., 0] if len(values) == 1 else steps)), -1, 0))


def unchanged(image: Image.Image) -> np.ndarray:
    """(H, W, 1 or 3) uint8 of an image without alpha."""
    return np.atleast_3d(np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")))


def srgb_converter(
    mode: str, info: Mapping[Any, Any], cicp: tuple[int, int, int, int] | None, name: str, notes: list[str], kind: str | None
) -> Callable[[Image.Image], np.ndarray]:
    """The conversion of 8-bit images of a mode without alpha to sRGB, (H, W, 1 or 3) uint8; `unchanged` if they are sRGB."""
    if mode == "LAB":
        return lambda image: np.asarray(colour.lab_converter()(image))
    if cicp:  # takes precedence over a profile
        try:
            return _stated(colour.from_cicp(cicp))
        except ValueError as error:
            notes.append(f"{name}: {error}")
    if profile := info.get("icc_profile"):
        try:
            apply = colour.profile_converter(profile, mode)
            return unchanged if apply is None else lambda image: np.asarray(apply(image))
        except colour.PROFILE_ERRORS as error:
            notes.append(f"{name}: its colour profile was ignored: {one_line(error)}")
    elif kind == "PNG" and not cicp and "srgb" not in info and mode != "CMYK":
        try:
            return _stated(colour.from_gamma(info.get("gamma"), info.get("chromaticity")))
        except ValueError as error:
            notes.append(f"{name}: {error}")
    return unchanged


@dataclass(frozen=True)
class _Stated:
    """Conversion from a `StatedColour` to sRGB."""

    stated: colour.StatedColour

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.rint(self.stated.to_srgb(unchanged(image) / np.float32(255)) * 255).astype(np.uint8)


def _stated(stated: colour.StatedColour | None) -> Callable[[Image.Image], np.ndarray]:
    return unchanged if stated is None else _Stated(stated)
