"""Conversion to sRGB by an embedded profile, or by colour codes and numbers in a file."""

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

_SRGB = ImageCms.createProfile("sRGB")
_PROBE = Image.fromarray(np.mgrid[0:256:51, 0:256:51, 0:256:51].reshape(3, 1, -1).transpose(1, 2, 0).astype(np.uint8))

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue."""

_D65, _C, _DCI = (0.3127, 0.329), (0.310, 0.316), (0.314, 0.351)
_BT709: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_PRIMARIES: dict[int, Chromaticities] = {  # of ITU-T H.273
    1: _BT709,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (*_DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
_HDR = {16: "PQ", 18: "HLG"}


def _from_srgb(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _to_srgb(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * np.maximum(values, 0.0031308) ** (1 / 2.4) - 0.055)


def _from_bt709(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))


_TRANSFERS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # code values to light, both in [0, 1]
    1: _from_bt709,
    4: lambda values: values**2.2,
    5: lambda values: values**2.8,
    6: _from_bt709,
    8: lambda values: values,
    13: _from_srgb,
    14: _from_bt709,
    15: _from_bt709,
}


@dataclass(frozen=True, eq=False)
class StatedColour:
    """A colour space that a file describes by numbers."""

    to_light: Callable[[np.ndarray], np.ndarray]
    primaries: Chromaticities = _BT709
    narrow: bool = False
    """Whether black and white are 16 and 235 of 255, as in video."""

    def to_srgb(self, values: np.ndarray) -> np.ndarray:
        """(H, W, 1 or 3) float32 in [0, 1] -> the same shape in sRGB, clamped."""
        if self.narrow:
            values = ((values * 255 - 16) / 219).clip(0, 1)
        light = self.to_light(values)
        if values.shape[-1] == 3 and self.primaries != _BT709:
            light = light @ (np.linalg.inv(_xyz(_BT709)) @ _xyz(self.primaries)).T
        return _to_srgb(light.clip(0, 1)).astype(np.float32)


def from_cicp(cicp: tuple[int, int, int, int]) -> StatedColour | None:
    """The colour space of ITU-T H.273 codes for primaries, transfer, matrix and range; None for sRGB.

    Raises ValueError for HDR, unknown codes, and colour that is not stored as RGB.
    """
    primaries, transfer, matrix, full = cicp
    if transfer in _HDR:
        raise ValueError(f"HDR ({_HDR[transfer]}) is not converted; the models are trained on SDR images")
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS or matrix or full not in (0, 1):
        raise ValueError(f"its colour (cICP {'/'.join(map(str, cicp))}) is unknown and was ignored; convert the image to sRGB")
    if (primaries, transfer, full) == (1, 13, 1):
        return None
    return StatedColour(_TRANSFERS[transfer], _PRIMARIES[primaries], narrow=not full)


def from_gamma(gamma: float | None, chromaticities: tuple[float, ...] | None) -> StatedColour | None:
    """The colour space of a PNG's gAMA and cHRM; None for sRGB or without both.

    Programs write the exponent 1/2.2 for sRGB, whose curve is not a power: it means the curve of sRGB.
    """
    srgb = gamma is None or abs(gamma - 1 / 2.2) < 0.005
    if not chromaticities or len(chromaticities) != 8 or np.abs(np.subtract(chromaticities, _BT709)).max() < 0.002:
        primaries = _BT709
    else:
        primaries = chromaticities
    if gamma is not None and not 0.1 <= gamma <= 10:
        raise ValueError(f"its gamma (gAMA {gamma:g}) is out of range and was ignored")
    if primaries is not _BT709:
        try:
            usable = np.linalg.cond(_xyz(primaries)) < 1e4
        except (ZeroDivisionError, np.linalg.LinAlgError):
            usable = False
        if not usable:
            raise ValueError("its primaries (cHRM) are invalid and were ignored")
    if srgb and primaries is _BT709:
        return None
    exponent = 1 / (gamma or 1)
    return StatedColour(_from_srgb if srgb else lambda values: values**exponent, primaries)


def _xyz(primaries: Chromaticities) -> np.ndarray:
    """(3, 3): linear RGB to XYZ, adapted to D65 by Bradford."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    white, red, green, blue = (xyz(*primaries[i : i + 2]) for i in (0, 2, 4, 6))
    columns = np.stack([red, green, blue], 1)
    matrix = columns * np.linalg.solve(columns, white)
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapted = np.diag((cones @ xyz(*_D65)) / (cones @ white))
    return np.linalg.inv(cones) @ adapted @ cones @ matrix


def profile_converter(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """The conversion of images of Pillow's `mode` to sRGB by their ICC profile; None if that is sRGB.

    Raises one of PROFILE_ERRORS for a profile that is broken or does not fit the mode.
    """
    source = ImageCms.getOpenProfile(io.BytesIO(profile))
    space = profile[16:20].decode("latin-1")  # of its header
    colours = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}.get(space, "")
    if colours not in {"1": ("L", "RGB"), "L": ("L", "RGB"), "CMYK": ("CMYK",)}.get(mode, ("RGB",)):
        raise ValueError(f"it is for {space}, but the image is {mode}")
    transform = ImageCms.buildTransform(source, _SRGB, colours, "RGB", ImageCms.Intent.PERCEPTUAL)
    difference = np.asarray(transform.apply(_PROBE), int) - np.asarray(_PROBE) if colours == "RGB" else np.inf
    if np.abs(difference).max() <= 1:  # another version of sRGB: the pixels are kept
        return None
    return lambda image: transform.apply(image.convert(colours))


PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, TypeError, ValueError)


@functools.cache
def lab_converter() -> Callable[[Image.Image], Image.Image]:
    """The conversion of images of mode LAB to sRGB."""
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB").apply
