"""The machine's ceilings, measured between the passes that are compared with them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.measure import kernel_clock

NAMES = {"matrix_gflops": "matrix product", "convolution_gflops": "3x3 convolution", "copy_gbs": "copy"}
"""Names of the ceilings in tables."""


class Ceilings:
    """GFLOP/s of a matrix product and of a 3x3 convolution of 256 channels, and GB/s (read and written) of a copy."""

    def __init__(self, precision: str, device: torch.device, *, small: bool = False):
        """`precision` names a torch dtype; `small` selects tiny sizes, for tests."""
        dtype, gpu = getattr(torch, precision), device.type == "cuda"
        self._device = device
        side, (batch, channels, pixels), copied = (8192, (16, 256, 128), 2**30) if gpu else (2048, (1, 256, 128), 2**28)
        if small:
            side, (batch, channels, pixels), copied = 16, (1, 4, 8), 2**10
        self._matrix = torch.randn(side, side, device=device).to(dtype)
        self._map = torch.randn(batch, channels, pixels, pixels, device=device).to(dtype, memory_format=torch.channels_last)
        self._weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
        self._bytes = torch.zeros(copied, dtype=torch.uint8, device=device)
        self._copy = torch.zeros_like(self._bytes)
        self.gflop = {"matrix_gflops": 2 * side**3 / 1e9, "convolution_gflops": 18 * batch * (channels * pixels) ** 2 / 1e9}

    def runs(self, prefix: str = "") -> dict[str, Callable[[], float]]:
        """A function per ceiling that measures it once, for `measure.interleaved`; `prefix` tells several precisions apart."""
        return {
            f"{prefix}matrix_gflops": lambda: self.gflop["matrix_gflops"] / self._seconds(lambda: self._matrix @ self._matrix),
            f"{prefix}convolution_gflops": lambda: self.gflop["convolution_gflops"] / self._seconds(self._convolve),
            f"{prefix}copy_gbs": lambda: 2 * len(self._bytes) / 1e9 / self._seconds(lambda: self._copy.copy_(self._bytes)),
        }

    def _convolve(self) -> torch.Tensor:
        return F.conv2d(self._map, self._weight, padding=1)

    @torch.inference_mode()
    def _seconds(self, call: Callable[[], object]) -> float:
        """The shortest of three runs."""
        return min(kernel_clock(call, self._device) for _ in range(3))
