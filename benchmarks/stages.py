"""Stages of a GLEAN for counting and timing: encoder, bank, fusion and decoder.

Module hooks follow the stages. A `FrozenGLEAN` calls no modules and computes bank and decoder together in strips, so its stages do not
show. Time and arithmetic belong to the innermost stage.
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
"""Computation outside of the stages."""

PARTS = {name: name for name in ("encoder", "bank", "decoder")} | {"generator": "bank", "fusion_out": "fusion", "fusion_skip": "fusion"}
"""The outermost modules of gleansr's and mmagic's GLEAN; mmagic calls the bank the generator."""


class Stages:
    """The current stage of a network."""

    def __init__(self, left: Callable[[str], None] = lambda _: None):
        """`left` is called with each stage before it ends."""
        self._stack, self._left = [REST], left

    @property
    def now(self) -> str:
        return self._stack[-1]

    def enter(self, stage: str) -> None:
        if stage != self.now:
            self._left(self.now)
        self._stack.append(stage)

    def leave(self) -> None:
        stage = self._stack.pop()
        if stage != self.now:
            self._left(stage)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follows the module calls of a network."""
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
    """Median seconds of each stage over `rounds` passes after a warm-up; {} if the stages do not show, as with CUDA graphs.

    Each change of stage synchronises the device, so on a GPU the stages may take longer than a pass.
    """
    measured: dict[str, list[float]] = defaultdict(list)
    for round_ in range(rounds + 1):
        spent: dict[str, float] = defaultdict(float)
        since = 0.0

        def left(stage: str, spent: dict[str, float] = spent) -> None:
            nonlocal since
            synchronise(device)
            now = time.perf_counter()
            spent[stage] += now - since
            since = now

        stages = Stages(left)
        synchronise(device)
        since = time.perf_counter()
        with stages.watching(network):
            call()
        left(REST)
        for stage in (*STAGES, REST) if round_ else ():
            measured[stage].append(spent[stage])
    medians = {stage: statistics.median(seconds) for stage, seconds in measured.items()}
    return {stage: medians[stage] for stage in STAGES} if any(medians[stage] for stage in STAGES) else {}
