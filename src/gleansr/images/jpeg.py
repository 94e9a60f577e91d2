"""How strongly a JPEG file was compressed."""

from collections.abc import Mapping, Sequence

from PIL import Image

_LUMINANCE = 3689
"""Sum of the luminance table of libjpeg at quality 50 (the JPEG standard, table K.1)."""


def jpeg_quality(image: Image.Image) -> float | None:
    """The quality, 1 to 100 on libjpeg's scale, by the sum of the luminance table of an opened JPEG; None for other images.

    Inverts `jpeg_quality_scaling` of libjpeg (jcparam.c). Tables that are not scaled from the standard's give a comparable number.
    """
    tables: Mapping[int, Sequence[int]] = getattr(image, "quantization", None) or {}
    table = tables.get(0, ())
    if len(table) != 64:
        return None
    percent = 100 * sum(table) / _LUMINANCE
    quality = 5000 / percent if percent > 100 else (200 - percent) / 2
    return min(100.0, max(1.0, quality))
