"""Quality and diversity of the images that a bank generates, against ground truths."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.checkpoints.bundled import squeezenet
from gleansr.errors import RequestError
from gleansr.evaluation.ground_truth import GroundTruth
from gleansr.evaluation.metric_suite import METRICS, MetricSuite
from gleansr.evaluation.metrics import frechet_distance
from gleansr.images.pixels import quantize
from gleansr.models.features import feature_distance
from gleansr.models.generator import Generator

_BATCH = 16


@dataclass(frozen=True)
class BankScores:
    """Samples of a bank compared with ground-truth images."""

    samples: int
    """Number of images generated from random latents."""
    images: int
    """Number of ground-truth images."""
    frechet: dict[str, float]
    """Fréchet distance between samples and ground truths, by metric name."""
    frechet_of_gts: dict[str, float]
    """Fréchet distance between the two halves of the ground truths: a baseline, higher than that of twice as many images."""
    apart: float
    """Mean SqueezeNet distance between two samples; 0 for a bank that generates one image for all latents."""
    gts_apart: float
    """Mean SqueezeNet distance between two ground truths."""

    def table(self) -> str:
        """The scores as a Markdown table."""
        names = list(self.frechet)
        head = [*(METRICS[name].title for name in names), "SqueezeNet distance between two"]
        rows = [
            [f"{self.samples:,} samples", *(f"{self.frechet[name]:,.1f}" for name in names), f"{self.apart:.2f}"],
            [f"{self.images:,} true, in halves", *(f"{self.frechet_of_gts[name]:,.1f}" for name in names), f"{self.gts_apart:.2f}"],
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in [["", *head], ["---"] * (len(head) + 1), *rows])

    def report(self) -> dict[str, Any]:
        """The scores under the keys of `gleansr evaluate --json`."""
        return {
            "samples": self.samples,
            "pictures": self.images,
            "frechet": self.frechet,
            "frechet_of_truths": self.frechet_of_gts,
            "apart": self.apart,
            "truths_apart": self.gts_apart,
        }


@plain_torch()
@torch.inference_mode()
def evaluate_bank(
    bank: Generator,
    gts: GroundTruth,
    suite: MetricSuite,
    *,
    samples: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> BankScores:
    """Generates images from random latents z and compares them with the ground truths as sets.

    Args:
        bank: a StyleGAN or StyleGAN2; it is moved to the suite's device.
        gts: ground truths of the bank's size, at least 4.
        suite: metrics of sets.
        samples: number of generated images, at least 2.
        seed: seed of the latents.
        progress: called with the number of images processed and the total.

    Raises:
        RequestError: there are fewer than 4 ground truths or 2 samples, or the sizes differ.
        ImageError: a ground-truth image cannot be used.
    """
    if gts.task.size != bank.config.size:
        raise RequestError(f"the bank generates {bank.config.size} px, but the ground truths have {gts.task.size} px")
    if samples < 2 or len(gts) < 4:
        raise RequestError(f"a bank needs at least 2 samples and 4 ground truths, not {samples} and {len(gts)}")
    bank, network = bank.to(suite.device), squeezenet().to(suite.device)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, bank.config.code_dim, generator=generator)
    total, done = samples + len(gts), 0

    def features_and_distance(count: int, images: Callable[[int, int], Tensor]) -> tuple[dict[str, Tensor], float]:
        """The pooled features of all images, and the mean distance of each image to the previous one."""
        nonlocal done
        parts: list[dict[str, Tensor]] = []
        last: list[Tensor] | None = None
        distances: list[Tensor] = []
        for start in range(0, count, _BATCH):
            end = min(start + _BATCH, count)
            batch = quantize(images(start, end).to(suite.device).float())
            parts.append(suite.pooled(batch))
            features = network(batch)
            previous = [torch.cat([level[:1] if last is None else last[i], level[:-1]]) for i, level in enumerate(features)]
            distances.append(feature_distance(features, previous)[1 if last is None else 0 :])
            last = [level[-1:] for level in features]
            done += end - start
            if progress:
                progress(done, total)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, float(torch.cat(distances).mean())

    fake, apart = features_and_distance(samples, lambda start, end: bank(z[start:end].to(suite.device)).clamp(-1, 1))
    real, gts_apart = features_and_distance(len(gts), lambda start, end: torch.cat([gts[i].gt for i in range(start, end)]))
    halves = {name: (features[::2], features[1::2]) for name, features in real.items()}
    return BankScores(
        samples,
        len(gts),
        {name: float(frechet_distance(features, real[name])) for name, features in fake.items()},
        {name: float(frechet_distance(*half)) for name, half in halves.items()},
        apart,
        gts_apart,
    )
