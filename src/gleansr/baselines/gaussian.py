"""The Gaussian that PULSE fits to a bank's latents w before the mapping network's last activation.

The fit maps a million latents: seconds on a GPU, a minute or more on a CPU. It is cached in the folder of downloaded models.
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
from safetensors.torch import load_file, save
from torch import Tensor

from gleansr.checkpoints.zoo import cache_folder
from gleansr.files import replacing
from gleansr.models.stylegan import StyleGAN
from gleansr.models.stylegan2 import StyleGAN2

SEED = 0
CHUNK = 8192
"""Latents mapped at once."""


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians, one per element of a latent."""

    mean: Tensor
    """(code_dim,)."""
    std: Tensor
    """(code_dim,)."""

    def latents(self, normal: Tensor) -> Tensor:
        """Standard normal values (..., code_dim) -> latents in W (..., code_dim)."""
        return F.leaky_relu(normal * self.std + self.mean, 0.2)

    def to(self, device: torch.device) -> "Gaussian":
        """A copy on `device`."""
        return Gaussian(self.mean.to(device), self.std.to(device))


def before_activation(latents: Tensor) -> Tensor:
    """Inverts the mapping network's last leaky ReLU, with a slope of 5 for 0.2.

    StyleGAN2's gain of sqrt(2) after it commutes with both, so it stays in mean and deviation and the latents are the same.
    """
    return F.leaky_relu(latents, 5.0)


def chunks(samples: int) -> int:
    """Number of steps of `fit_gaussian`."""
    return math.ceil(samples / CHUNK)


@torch.no_grad()
def fit_gaussian(bank: StyleGAN | StyleGAN2, samples: int, on_step: Callable[[], None] = lambda: None) -> Gaussian:
    """Fits the Gaussian to `before_activation(w)` of seeded samples, drawn on the CPU, and caches it for `cached_gaussian` if possible.

    Chunks are combined in float64 (Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979).
    `on_step` is called after each.
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
        on_step()
    gaussian = Gaussian(mean.float(), (squares / (n - 1)).sqrt().float())
    with contextlib.suppress(OSError):
        path = _path(bank, samples)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(save({"mean": gaussian.mean, "std": gaussian.std}))
    return gaussian


def cached_gaussian(bank: StyleGAN | StyleGAN2, samples: int) -> Gaussian | None:
    """The result of an earlier `fit_gaussian`; None if there is none or its file is broken."""
    try:
        tensors = load_file(_path(bank, samples))
        gaussian = Gaussian(tensors["mean"], tensors["std"])
    except (OSError, SafetensorError, KeyError):
        return None
    pair = (gaussian.mean, gaussian.std)
    valid = all(t.shape == (bank.config.code_dim,) and t.dtype == torch.float32 and bool(t.isfinite().all()) for t in pair)
    return gaussian if valid else None


def _path(bank: StyleGAN | StyleGAN2, samples: int) -> Path:
    """The cache file of a fit; its name is a hash of the mapping network's weights and the fit's parameters."""
    digest = hashlib.sha256(f"{type(bank).__name__} {samples} {SEED} {CHUNK}".encode())
    for name, tensor in bank.mapping.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().tobytes())
    return cache_folder() / "pulse" / f"{digest.hexdigest()[:32]}.safetensors"
