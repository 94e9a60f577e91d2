"""MATLAB's bicubic interpolation, the simplest baseline."""

import torch
from torch import Tensor

from gleansr.images.resize import resize
from gleansr.inference.method import ModelOutput, StepReport


class Bicubic:
    """Upscales images of any size by MATLAB's bicubic interpolation."""

    name = "bicubic"
    in_size: int | None = None

    def __init__(self, scale: int, *, device: torch.device):
        self.scale = scale
        self.device = device

    def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:  # noqa: ARG002, too fast to report
        height, width = lr.shape[-2:]
        return ModelOutput(resize(lr, size=(height * self.scale, width * self.scale)))
