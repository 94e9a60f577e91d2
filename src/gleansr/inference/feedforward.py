"""Networks that enlarge images in one forward pass."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gleansr.errors import RequestError
from gleansr.inference.cpu.frozen import FrozenGLEAN, freezable
from gleansr.inference.cuda_graphs import GraphedCall
from gleansr.inference.devices import find_device, find_precision
from gleansr.inference.method import ModelOutput, StepReport
from gleansr.inference.onnx_runtime import OnnxModel
from gleansr.inference.precision import Precision, full_name
from gleansr.models.glean import GLEAN
from gleansr.models.layers import autocast_copy, to_channels_last
from gleansr.models.network import UNIT, SRNetwork, to_range


class FeedForwardModel:
    """One forward pass of a network that enlarges images."""

    _frozen: FrozenGLEAN | None = None
    recorded: GraphedCall | None = None
    """Passes of a GLEAN on a GPU."""

    def __init__(self, model: nn.Module | OnnxModel, *, device: str | torch.device = "auto", precision: Precision = "auto"):
        """`device` and `precision` as in `load`; of an `OnnxModel` both are its own. The model must not change any more.

        Raises:
            RequestError: the network is of another kind.
        """
        if isinstance(model, OnnxModel):
            if full_name(precision) not in ("auto", "float32"):
                raise RequestError(f"an ONNX file computes in the precision that it was exported in, not in {precision}")
            self.name, self.in_size, self.scale = model.name, model.in_size, model.scale
            self.model, self.device, self.precision = model, torch.device("cpu"), torch.float32
            return
        self.device = find_device(device)
        self.precision = find_precision(precision, self.device)
        if not isinstance(model, SRNetwork):
            raise RequestError(
                f"a {type(model).__name__} does not enlarge images by itself; give a GLEAN, an ESRGAN+, an ESRGAN or a plain network"
            )
        self.name, self.in_size, self.scale = model.name, model.input_size, model.scale
        self.model = to_channels_last(model.eval(), self.device)
        self._prepare()

    def _prepare(self) -> None:
        if isinstance(self.model, GLEAN) and self.device.type == "cpu" and freezable(self.model):
            self._frozen = FrozenGLEAN(self.model, self.precision)
        if isinstance(self.model, GLEAN) and self.device.type == "cuda":
            model = self.model if self.precision == torch.float32 else autocast_copy(self.model, self.precision)
            self.recorded = GraphedCall(partial(self._enlarged, self.precision, model))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_frozen", "recorded")}  # made of the model again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    @torch.inference_mode()
    def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:  # noqa: ARG002, it takes no time worth reporting
        if self._frozen:
            return ModelOutput(self._frozen(lr).float())
        return ModelOutput(self.recorded(lr) if self.recorded else self._enlarged(self.precision, self.model, lr))

    @torch.inference_mode()
    def in_float32(self, lr: Tensor) -> Tensor:
        """What the model makes of lr (N, 3, h, w) in the precision of its weights: for what is not finite in half of it."""
        return self._enlarged(torch.float32, self.model, lr)

    def forget(self) -> None:
        """Lets go of memory that only makes passes faster."""
        if self.recorded:
            self.recorded.forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _enlarged(self, precision: torch.dtype, model: SRNetwork | OnnxModel, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        fold = self.model.fold  # ESRGANs of small scales fold so many pixels of each side into channels
        if height % fold or width % fold:
            lr = nn.functional.pad(lr, (0, -width % fold, 0, -height % fold), mode="replicate")
        lr = lr.to(memory_format=torch.channels_last)
        # The casts of weights belong into a recorded pass, which a cache of them would leave out.
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32, cache_enabled=self.recorded is None):
            sr = enlarge(model, lr)
        return sr[..., : height * self.scale, : width * self.scale]


def enlarge(model: SRNetwork | OnnxModel, lr: Tensor) -> Tensor:
    """What a network makes of lr (N, 3, h, w), RGB in [-1, 1]: (N, 3, scale * h, scale * w), float32, not clamped.

    ESRGAN's networks take and make images in [0, 1]; this is where that is converted.
    """
    result = model(to_range(lr, model.input_range)).float()
    return result * 2 - 1 if model.input_range == UNIT else result
