"""The Gaussian that PULSE takes for the distribution of a bank's codes before the mapping network's last activation.

Fitting it maps a million codes: seconds on a GPU, a minute or more on a CPU. It is kept in the folder of downloaded models.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gleansr.checkpoints.zoo import cache_folder
from gleansr.files import replacing
from gleansr.models.stylegan import StyleGAN
from gleansr.models.stylegan2 import StyleGAN2

SEED = 0
CHUNK = 8192
"""Codes that are mapped at once."""


@dataclass(frozen=True)
class Gaussian:
    """One for each number of a code, all independent."""

    mean: Tensor
    """(code_dim)."""
    std: Tensor
    """(code_dim)."""

    def latents(self, latent: Tensor) -> Tensor:
        """Standard normal (..., code_dim) -> codes in W (..., code_dim)."""
        return F.leaky_relu(latent * self.std + self.mean, 0.2)

    def to(self, device: torch.device) -> "Gaussian":
        """The same on `device`."""
        return Gaussian(self.mean.to(device), self.std.to(device))


def before_activation(latents: Tensor) -> Tensor:
    """w -> what the mapping's last leaky ReLU received: its slope of 0.2 is undone by one of 5.

    StyleGAN2's gain of sqrt(2) behind it commutes with both and stays in mean and deviation: the codes made of them are the same.
    """
    return F.leaky_relu(latents, 5.0)


def chunks(samples: int) -> int:
    """How often `fitted` tells that it has come further."""
    return math.ceil(samples / CHUNK)


@torch.no_grad()
def fitted(bank: StyleGAN | StyleGAN2, samples: int, tell: Callable[[], None] = lambda: None) -> Gaussian:
    """The Gaussian of `before_activation(w)` over seeded samples, which are drawn on the CPU; kept for `kept`, where that is possible.

    Chunks are put together in float64 (Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979).
    `tell` is called after each.
    """
    device = next(bank.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    n, mean, squares = 0, torch.zeros(bank.config.code_dim).double(), torch.zeros(bank.config.code_dim).double()
    for first in range(0, samples, CHUNK):
        z = torch.randn(min(CHUNK, samples - first), bank.config.code_dim, generator=generator)
        values = before_activation(bank.mapping(z.to(device))).cpu().double()
        share = len(values) / (n + len(values))
        offset = values.mean(0) - mean
        squares += values.var(0, correction=0) * len(values) + offset.square() * (n * share)
        mean += offset * share
        n += len(values)
        tell()
    gaussian = Gaussian(mean.float(), (squares / (n - 1)).sqrt().float())
    with contextlib.suppress(OSError):
        path = _path(bank, samples)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file({"mean": gaussian.mean, "std": gaussian.std}, temporary)
    return gaussian


def kept(bank: StyleGAN | StyleGAN2, samples: int) -> Gaussian | None:
    """What `fitted` kept; None if there is nothing or the file is broken."""
    try:
        tensors = load_file(_path(bank, samples))
        gaussian = Gaussian(tensors["mean"], tensors["std"])
    except (OSError, SafetensorError, KeyError):
        return None
    both = (gaussian.mean, gaussian.std)
    whole = all(t.shape == (bank.config.code_dim,) and t.dtype == torch.float32 and bool(t.isfinite().all()) for t in both)
    return gaussian if whole else None


def _path(bank: StyleGAN | StyleGAN2, samples: int) -> Path:
    """The file of this mapping network's fit: its name follows from the weights and from how it is made."""
    digest = hashlib.sha256(f"{type(bank).__name__} {samples} {SEED} {CHUNK}".encode())
    for name, tensor in bank.mapping.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().tobytes())
    return cache_folder() / "pulse" / f"{digest.hexdigest()[:32]}.safetensors"
