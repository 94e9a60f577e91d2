"""Which part of a GLEAN is being computed: encoder, bank, fusion or decoder, for counting and for timing.

It is told by hooks of the modules. A `FrozenGLEAN` has none, and computes bank and decoder together, strip by strip, so that its stages do
not show. Time and arithmetic always belong to the innermost part.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gleansr.evaluation.runner import synchronise

STAGES = ("encoder", "bank", "fusion", "decoder")
REST = "rest"
"""What is computed between them."""

PARTS = {name: name for name in ("encoder", "bank", "decoder")} | {"generator": "bank", "fusion_out": "fusion", "fusion_skip": "fusion"}
"""The outermost modules of our GLEAN and of mmagic's, which calls its bank the generator."""


class Stages:
    """Where in a network the computation is."""

    def __init__(self, moved: Callable[[str], None] = lambda _: None):
        """`moved` is told of each stage that is left, before it is."""
        self._open, self._moved = [REST], moved

    @property
    def now(self) -> str:
        return self._open[-1]

    def enter(self, stage: str) -> None:
        if stage != self.now:
            self._moved(self.now)
        self._open.append(stage)

    def leave(self) -> None:
        left = self._open.pop()
        if left != self.now:
            self._moved(left)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follows the calls of a network's modules."""
        handles = []
        for name, module in model.named_modules():
            if stage := PARTS.get(name.partition(".")[0]):
                handles.append(module.register_forward_pre_hook(lambda *_, stage=stage: self.enter(stage)))
                handles.append(module.register_forward_hook(lambda *_: self.leave()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def stage_seconds(call: Callable[[], object], network: nn.Module, device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each stage over `rounds` passes, after a warm-up; {} where the stages do not show, as in a recorded pass.

    The device is waited for whenever the stage changes, so that on a GPU the stages may take longer together than a pass.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for round_ in range(rounds + 1):
        spent: dict[str, float] = defaultdict(float)
        since = 0.0

        def moved(left: str, spent: dict[str, float] = spent) -> None:
            nonlocal since
            synchronise(device)
            now = time.perf_counter()
            spent[left] += now - since
            since = now

        stages = Stages(moved)
        synchronise(device)
        since = time.perf_counter()
        with stages.watching(network):
            call()
        moved(REST)
        for stage in (*STAGES, REST) if round_ else ():
            found[stage].append(spent[stage])
    medians = {stage: statistics.median(seconds) for stage, seconds in found.items()}
    return {stage: medians[stage] for stage in STAGES} if any(medians[stage] for stage in STAGES) else {}
