"""What all networks that upscale images in one forward pass have in common."""

from torch import Tensor, nn

SIGNED = (-1.0, 1.0)
UNIT = (0.0, 1.0)


class SRNetwork(nn.Module):
    """Upscales images (N, 3, h, w), RGB in `input_range`, to (N, 3, scale * h, scale * w), not clamped."""

    name: str
    """Of the architecture, for messages and metadata."""
    scale: int
    input_size: int | None = None
    """Height and width of the input; None: any."""
    input_range: tuple[float, float] = SIGNED
    """`SIGNED` or `UNIT`, the range of input and output."""
    fold: int = 1
    """Height and width of the input must be multiples of this."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that training changes."""
        return list(self.parameters())

    def bank_state(self) -> dict[str, Tensor]:
        """The tensors of the generative latent bank; empty without one."""
        return {}


def to_range(image: Tensor, input_range: tuple[float, float]) -> Tensor:
    """An image in [-1, 1], converted to `SIGNED` or `UNIT`."""
    return (image + 1) / 2 if input_range == UNIT else image
