"""Pillow's images of any mode to planes of grey or RGB in sRGB, in strips."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from gleansr.errors import one_line
from gleansr.images import colour, tiff

_STRIP = 2**20
"""Pixels that are converted at a time."""


def planes_of(
    image: Image.Image, name: str, notes: list[str], cicp: tuple[int, int, int, int] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(1 or 3, H, W) in sRGB, uint8 or float32 in [0, 1], and (1, H, W) of alpha, of an image of any mode."""
    if image.mode in ("P", "PA") and image.palette is None:
        raise ValueError("its palette is missing")
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_planes(image, name, notes, cicp)
    clear = ("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA") if image.has_transparency_data else ""
    convert = conversion(clear[:-1] or image.mode, image.info, cicp, name, notes, image.format)
    (width, height), grey, spread = image.size, True, 0
    colours = torch.empty(0, dtype=torch.uint8)
    alpha = torch.empty(1, height, width, dtype=torch.uint8) if clear else None
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(height, top + rows)))
        if alpha is not None:
            *bands, mask = strip.convert(clear).split()
            strip = Image.merge(clear[:-1], bands)
            alpha[0, top : top + rows] = torch.from_numpy(np.array(mask))
        before, after = unchanged(strip), convert(strip)
        if not top:
            colours = torch.empty(after.shape[-1], height, width, dtype=torch.uint8)
        colours[:, top : top + rows] = torch.from_numpy(np.array(after)).permute(2, 0, 1)
        grey = grey and (before == before[..., :1]).all()
        if grey and convert is not unchanged:
            spread = max(spread, int(np.ptp(after, axis=-1).max()))
    if grey and len(colours) == 3 and spread <= 2:  # which is the rounding of colour management
        colours = colours[1:2].clone()
    return colours, alpha


def _deep_planes(
    image: Image.Image, name: str, notes: list[str], cicp: tuple[int, int, int, int] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    values = np.asarray(image).astype(np.float32)
    alpha = None
    if image.info.get("transparency") is not None:  # one value stands for transparent
        alpha = torch.from_numpy((values != image.info["transparency"]).astype(np.float32))[None]
    kind, bits = {"F": ("f", 32), "I": ("i", 32)}.get(image.mode, ("u", 16))
    values = values.clip(0) / tiff.scale(kind, bits, values.max())
    return torch.from_numpy(converted(values[None], image.info, cicp, name, notes, image.format)), alpha


def converted(
    values: np.ndarray, info: Mapping[Any, Any], cicp: tuple[int, int, int, int] | None, name: str, notes: list[str], kind: str | None
) -> np.ndarray:
    """(1 or 3, H, W) float32 in [0, 1] -> in sRGB; uint8 where a profile is applied, since colour management has 8 bits."""
    convert = conversion("L" if len(values) == 1 else "RGB", info, cicp, name, notes, kind)
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


def conversion(
    mode: str, info: Mapping[Any, Any], cicp: tuple[int, int, int, int] | None, name: str, notes: list[str], kind: str | None
) -> Callable[[Image.Image], np.ndarray]:
    """What makes sRGB, (H, W, 1 or 3) uint8, of 8-bit images of a mode without alpha: `unchanged` where they are sRGB."""
    if mode == "LAB":
        return lambda image: np.asarray(colour.of_lab()(image))
    if cicp:  # they count more than a profile
        try:
            return _stated(colour.of_cicp(cicp))
        except ValueError as error:
            notes.append(f"{name}: {error}")
    if profile := info.get("icc_profile"):
        try:
            apply = colour.by_profile(profile, mode)
            return unchanged if apply is None else lambda image: np.asarray(apply(image))
        except colour.PROFILE_ERRORS as error:
            notes.append(f"{name}: its colour profile was ignored: {one_line(error)}")
    elif kind == "PNG" and not cicp and "srgb" not in info and mode != "CMYK":
        try:
            return _stated(colour.of_numbers(info.get("gamma"), info.get("chromaticity")))
        except ValueError as error:
            notes.append(f"{name}: {error}")
    return unchanged


@dataclass(frozen=True)
class _Stated:
    """To sRGB from a colour that is stated by numbers."""

    stated: colour.Stated

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.rint(self.stated.to_srgb(unchanged(image) / np.float32(255)) * 255).astype(np.uint8)


def _stated(stated: colour.Stated | None) -> Callable[[Image.Image], np.ndarray]:
    return unchanged if stated is None else _Stated(stated)
