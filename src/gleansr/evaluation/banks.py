"""How near the images that a bank draws are to true ones, and how many different ones it draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.checkpoints.bundled import squeezenet
from gleansr.errors import RequestError
from gleansr.evaluation.ground_truth import GroundTruth
from gleansr.evaluation.judges import METRICS, MetricSuite
from gleansr.evaluation.metrics import frechet_distance
from gleansr.images.pixels import quantize
from gleansr.models.features import feature_distance
from gleansr.models.generator import Generator

_BATCH = 16


@dataclass(frozen=True)
class Drawn:
    """Samples of a bank, compared with ground-truth images."""

    samples: int
    """Images drawn, of random codes."""
    images: int
    """Ground-truth images."""
    frechet: dict[str, float]
    """Fréchet distance of each metric of sets between both; see `gleansr.evaluation.judges`."""
    frechet_of_gts: dict[str, float]
    """The same between the two halves of the ground-truth images: what so few images give where nothing differs. It is higher than that of
    twice as many would be."""
    apart: float
    """Mean SqueezeNet distance between two samples."""
    gts_apart: float
    """The same between two ground-truth images: a bank that draws one image for all codes is at 0."""

    def table(self) -> str:
        """In Markdown."""
        names = list(self.frechet)
        head = [*(METRICS[name].title for name in names), "SqueezeNet distance between two"]
        rows = [
            [f"{self.samples:,} samples", *(f"{self.frechet[name]:,.1f}" for name in names), f"{self.apart:.2f}"],
            [f"{self.images:,} true, in halves", *(f"{self.frechet_of_gts[name]:,.1f}" for name in names), f"{self.gts_apart:.2f}"],
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in [["", *head], ["---"] * (len(head) + 1), *rows])

    def report(self) -> dict[str, Any]:
        """As plain data, under the keys of `gleansr evaluate --json`."""
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
    judge: MetricSuite,
    *,
    samples: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Drawn:
    """Draws images of random codes z and compares them with the ground truth, as sets.

    Args:
        bank: a StyleGAN or StyleGAN2; it draws on the judge's device.
        ground truths: of the bank's size.
        judge: with metrics of sets.
        samples: how many are drawn, at least 2.
        seed: of the codes.
        progress: is told the images looked at and those in all.

    Raises:
        RequestError: there are fewer than 4 ground truths or 2 samples, or the sizes differ.
        ImageError: a ground-truth image cannot be used.
    """
    if gts.task.size != bank.config.size:
        raise RequestError(f"the bank draws {bank.config.size} px, but the ground-truth images have {gts.task.size}")
    if samples < 2 or len(gts) < 4:
        raise RequestError(f"sets of at least 2 samples and 4 ground-truth images can be compared, not of {samples} and {len(gts)}")
    bank, network = bank.to(judge.device), squeezenet().to(judge.device)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, bank.config.code_dim, generator=generator)
    total, done = samples + len(gts), 0

    def look(batches: list[tuple[int, int]], images: Callable[[int, int], Tensor]) -> tuple[dict[str, Tensor], float]:
        """The features of all, and the mean distance of each to the one before."""
        nonlocal done
        parts: list[dict[str, Tensor]] = []
        last: list[Tensor] | None = None
        distances: list[Tensor] = []
        for start, end in batches:
            batch = quantize(images(start, end).to(judge.device).float())
            parts.append(judge.pooled(batch))
            features = network(batch)
            before = [torch.cat([level[:1] if last is None else last[i], level[:-1]]) for i, level in enumerate(features)]
            distances.append(feature_distance(features, before)[1 if last is None else 0 :])
            last = [level[-1:] for level in features]
            done += end - start
            if progress:
                progress(done, total)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, float(torch.cat(distances).mean())

    drawn, apart = look(_batches(samples), lambda start, end: bank(z[start:end].to(judge.device)).clamp(-1, 1))
    true, gts_apart = look(_batches(len(gts)), lambda start, end: torch.cat([gts[i].gt for i in range(start, end)]))
    halves = {name: (features[::2], features[1::2]) for name, features in true.items()}
    return Drawn(
        samples,
        len(gts),
        {name: float(frechet_distance(features, true[name])) for name, features in drawn.items()},
        {name: float(frechet_distance(*half)) for name, half in halves.items()},
        apart,
        gts_apart,
    )


def _batches(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]
