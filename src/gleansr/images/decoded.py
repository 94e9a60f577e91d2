"""A decoded image in memory, and transparency and grey in images."""

import functools

import torch
from PIL import Image

from gleansr.images.metadata import Metadata


class DecodedImage:
    """A decoded image: upright, sRGB. 8-bit images stay uint8 and are converted to float on access."""

    def __init__(
        self,
        pixels: torch.Tensor,
        alpha: torch.Tensor | None = None,
        metadata: Metadata | None = None,
        name: str = "image",
        notes: tuple[str, ...] = (),
        jpeg_quality: float | None = None,
    ):
        """
        Args:
            pixels: (1 or 3, H, W), grey or RGB in sRGB, not premultiplied: uint8, or float32 in [0, 1].
            alpha: (1, H, W), uint8 or float32 in [0, 1]; None for opaque images.
            metadata: the metadata that results keep.
            name: the name for messages, such as a path.
            notes: problems that did not stop decoding, one line each, such as a broken colour profile.
            jpeg_quality: of a JPEG, see `gleansr.images.jpeg`.
        """
        self.stored, self.stored_alpha = pixels, alpha
        self.metadata = metadata or Metadata()
        self.name = name
        self.notes = notes
        self.jpeg_quality = jpeg_quality

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.stored.shape[-2], self.stored.shape[-1]

    @property
    def pixels(self) -> torch.Tensor:
        """(3, H, W) float32 in [0, 1], RGB in sRGB, not premultiplied. Converted on each access if stored as uint8 or grey."""
        return _rgb(self.stored)

    @property
    def alpha(self) -> torch.Tensor | None:
        """(1, H, W) float32 in [0, 1]; None for opaque images."""
        return None if self.stored_alpha is None else _floats(self.stored_alpha)

    @functools.cached_property
    def grey(self) -> bool:
        """Whether red, green and blue are equal in all visible pixels; then results have equal channels, too."""
        if len(self.stored) == 1:
            return True
        red, green, blue = self.stored
        for step in (31, 1):  # a few pixels reveal most coloured images
            sample = (slice(None, None, step), slice(None, None, step))
            coloured = (red[sample] != green[sample]) | (green[sample] != blue[sample])
            if self.stored_alpha is not None:
                coloured &= self.stored_alpha[0][sample] > 0
            if bool(coloured.any()):
                return False
        return True

    def premultiplied(self, rows: slice = slice(None), columns: slice = slice(None)) -> torch.Tensor:
        """(3, rows, columns), colour times alpha: the form for resizing, in which hidden colours do not bleed into visible ones."""
        pixels = _rgb(self.stored[:, rows, columns])
        return pixels if self.stored_alpha is None else pixels * self.alpha_region(rows, columns)

    def alpha_region(self, rows: slice, columns: slice) -> torch.Tensor:
        """(1, rows, columns) float32 in [0, 1]."""
        if self.stored_alpha is None:
            return torch.ones(1, *self.stored[0, rows, columns].shape)
        return _floats(self.stored_alpha[:, rows, columns])


def _floats(values: torch.Tensor) -> torch.Tensor:
    return values.float().div_(255) if values.dtype == torch.uint8 else values


def _rgb(values: torch.Tensor) -> torch.Tensor:
    return _floats(values) if len(values) == 3 else _floats(values).expand(3, -1, -1).contiguous()


def neutral(image: Image.Image) -> Image.Image:
    """RGB or RGBA with red, green and blue equal to the luminance: removes the tint that a colour model adds to a grey image."""
    *_, alpha = image.split()
    grey = image.convert("L")
    result = Image.merge(image.mode, [grey, grey, grey, alpha][: len(image.mode)])
    result.info = image.info
    return result


def unpremultiply(pixels: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Colour (3, H, W) in [0, 1] from premultiplied `pixels` and `alpha` (1, H, W); black where alpha is 0 in 8 bits."""
    visible = alpha > 0.5 / 255
    return torch.where(visible, pixels / torch.where(visible, alpha, 1), 0).clamp(0, 1)
