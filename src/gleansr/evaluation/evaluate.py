"""How good a model is on held-out images: a comparison in this process, which keeps no images."""

import itertools
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gleansr.errors import RequestError
from gleansr.evaluation.compare import QUIET, Watcher
from gleansr.evaluation.plan import Comparison
from gleansr.evaluation.runner import synchronise
from gleansr.evaluation.summary import joined, summary
from gleansr.images.pixels import quantize


def evaluate(comparison: Comparison, watcher: Watcher = QUIET) -> dict[str, Any]:
    """What `compare` would return, but for the memory, which is not measured.

    Raises:
        RequestError: an image cannot be judged by a metric.
        ImageError: a test image cannot be used.
    """
    gts, judge, size = comparison.gts, comparison.judge, comparison.batch_size
    methods = {}
    for participant in comparison.participants:
        entry, place = participant.entry, comparison.place
        upscaler = entry.load(comparison.task.scale, place.device, place.precision)
        methods[entry.label] = upscaler.method
        upscaler.method(gts[0].lr.to(upscaler.device))  # the first time, memory is asked for and kernels are chosen
    records: dict[str, dict[str, Any]] = {label: {} for label in methods}
    features: dict[str, list[dict[str, Tensor]]] = {label: [] for label in ("truth", *methods)}
    for start in range(0, len(gts), size):
        watcher.progress("evaluating", start, len(gts))
        examples = [gts[i] for i in range(start, min(start + size, len(gts)))]
        lr, gt = (torch.cat([getattr(example, key) for example in examples]) for key in ("lr", "gt"))
        # Without their borders, the judge takes images of one size together.
        alike = [list(group) for _, group in itertools.groupby(enumerate(examples), lambda pair: pair[1].content)]
        groups = [([i for i, _ in group], group[0][1].inside) for group in alike]
        features["truth"] += [judge.pooled(inside(gt[group])) for group, inside in groups]
        for label, method in methods.items():
            batch = lr.to(method.device)
            synchronise(method.device)
            begun = time.perf_counter()
            enlarged = method(batch)
            synchronise(method.device)
            seconds = (time.perf_counter() - begun) / len(examples)
            result = enlarged.images.float().contiguous()
            if not result.isfinite().all():
                raise RequestError(f"{label} made NaN or infinite values; try --precision float32")
            figures = []
            for group, inside in groups:
                figures += judge(inside(lr[group]), inside(result[group]), inside(gt[group]))
                features[label].append(judge.pooled(inside(quantize(result[group]))))
            for example, note, row in zip(examples, enlarged.notes or [""] * len(examples), figures, strict=True):
                cost = {"seconds": seconds, "peak": None, "own": None}
                records[label][example.name] = {"name": example.name, "sha256": example.sha256, "note": note, "metrics": row} | cost
    outcomes = [
        replace(participant.outcome(records[label]), features=joined(features[label]), gt_features=joined(features["truth"]))
        for label, participant in zip(methods, comparison.participants, strict=True)
    ]
    return {"protocol": comparison.protocol()} | summary(outcomes, comparison.groups)
