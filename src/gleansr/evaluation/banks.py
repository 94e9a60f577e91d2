"""How near the pictures that a bank draws are to true ones, and how many different ones it draws."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.checkpoints.bundled import squeezenet
from gleansr.errors import RequestError
from gleansr.evaluation.judges import METRICS, Judge
from gleansr.evaluation.metrics import frechet_distance, rounded
from gleansr.evaluation.truths import Truths
from gleansr.models.features import feature_distance
from gleansr.models.generator import Generator

_BATCH = 16


@dataclass(frozen=True)
class Drawn:
    """What a bank draws, held against true pictures."""

    samples: int
    """Pictures drawn, of random codes."""
    pictures: int
    """True ones."""
    frechet: dict[str, float]
    """Fréchet distance of each metric of sets between both; see `gleansr.evaluation.judges`."""
    frechet_of_truths: dict[str, float]
    """The same between the two halves of the true pictures: what so few pictures give where nothing differs. It is higher than that of
    twice as many would be."""
    apart: float
    """Mean SqueezeNet distance between two samples."""
    truths_apart: float
    """The same between two true pictures: a bank that draws one picture for all codes is at 0."""

    def table(self) -> str:
        """In Markdown."""
        names = list(self.frechet)
        head = [*(METRICS[name].title for name in names), "SqueezeNet distance between two"]
        rows = [
            [f"{self.samples:,} samples", *(f"{self.frechet[name]:,.1f}" for name in names), f"{self.apart:.2f}"],
            [f"{self.pictures:,} true, in halves", *(f"{self.frechet_of_truths[name]:,.1f}" for name in names), f"{self.truths_apart:.2f}"],
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in [["", *head], ["---"] * (len(head) + 1), *rows])

    def report(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@plain_torch()
@torch.inference_mode()
def evaluate_bank(
    bank: Generator, truths: Truths, judge: Judge, *, samples: int, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Drawn:
    """Draws pictures of random codes z and compares them with the truths, as sets.

    Args:
        bank: a StyleGAN or StyleGAN2; it draws on the judge's device.
        truths: of the bank's size.
        judge: with metrics of sets.
        samples: how many are drawn, at least 2.
        seed: of the codes.
        progress: is told the pictures looked at and those in all.

    Raises:
        RequestError: there are fewer than 4 truths or 2 samples, or the sizes differ.
        PictureError: a true picture cannot be used.
    """
    if truths.task.size != bank.config.size:
        raise RequestError(f"the bank draws {bank.config.size} px, but the true pictures have {truths.task.size}")
    if samples < 2 or len(truths) < 4:
        raise RequestError(f"sets of at least 2 samples and 4 true pictures can be compared, not of {samples} and {len(truths)}")
    bank, network = bank.to(judge.device), squeezenet().to(judge.device)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, bank.config.code_dim, generator=generator)
    total, done = samples + len(truths), 0

    def look(batches: list[tuple[int, int]], pictures: Callable[[int, int], Tensor]) -> tuple[dict[str, Tensor], float]:
        """The features of all, and the mean distance of each to the one before."""
        nonlocal done
        parts: list[dict[str, Tensor]] = []
        last: list[Tensor] | None = None
        distances: list[Tensor] = []
        for start, end in batches:
            batch = rounded(pictures(start, end).to(judge.device).float())
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
    true, truths_apart = look(_batches(len(truths)), lambda start, end: torch.cat([truths[i].truth for i in range(start, end)]))
    halves = {name: (features[::2], features[1::2]) for name, features in true.items()}
    return Drawn(
        samples,
        len(truths),
        {name: float(frechet_distance(features, true[name])) for name, features in drawn.items()},
        {name: float(frechet_distance(*half)) for name, half in halves.items()},
        apart,
        truths_apart,
    )


def _batches(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]
