"""Evaluates methods on test images in this process, without storing images."""

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gleansr.errors import RequestError
from gleansr.evaluation.compare import QUIET, Watcher
from gleansr.evaluation.plan import Comparison
from gleansr.evaluation.runner import Stopwatch
from gleansr.evaluation.summary import concatenated, summarise
from gleansr.images.pixels import quantize


def evaluate(comparison: Comparison, watcher: Watcher = QUIET) -> dict[str, Any]:
    """The report of `compare`, without peak memory.

    Raises:
        RequestError: a metric does not apply to an image.
        ImageError: a test image cannot be used.
    """
    gts, suite, size = comparison.gts, comparison.suite, comparison.compute.batch_size
    methods = {}
    for participant in comparison.participants:
        entry, compute = participant.entry, comparison.compute
        upscaler = entry.load(comparison.task.scale, compute.device, compute.precision)
        methods[entry.label] = upscaler.method
        upscaler.method(gts[0].lr.to(upscaler.device))  # the first run allocates memory and selects kernels
    records: dict[str, dict[str, Any]] = {label: {} for label in methods}
    features: dict[str, list[dict[str, Tensor]]] = {label: [] for label in ("truth", *methods)}
    for start in range(0, len(gts), size):
        watcher.progress("evaluating", start, len(gts))
        examples = [gts[i] for i in range(start, min(start + size, len(gts)))]
        lr, gt = (torch.cat([getattr(example, key) for example in examples]) for key in ("lr", "gt"))
        # Metrics take images of one size together; without borders, sizes may differ.
        by_content = [list(group) for _, group in itertools.groupby(enumerate(examples), lambda pair: pair[1].content)]
        groups = [([i for i, _ in group], group[0][1].inside) for group in by_content]
        features["truth"] += [suite.pooled(inside(gt[group])) for group, inside in groups]
        for label, method in methods.items():
            batch = lr.to(method.device)
            stopwatch = Stopwatch(method.device)
            output = method(batch)
            stopwatch.stop()
            result = output.images.float().contiguous()
            if not result.isfinite().all():
                raise RequestError(f"{label} returned NaN or infinite values; try --precision float32")
            rows = []
            for group, inside in groups:
                rows += suite(inside(lr[group]), inside(result[group]), inside(gt[group]))
                features[label].append(suite.pooled(inside(quantize(result[group]))))
            for example, note, row in zip(examples, output.notes or [""] * len(examples), rows, strict=True):
                cost = {"seconds": stopwatch.seconds / len(examples), "waited": stopwatch.waited, "peak": None, "own": None}
                records[label][example.name] = {"name": example.name, "sha256": example.sha256, "note": note, "metrics": row} | cost
    summaries = [
        replace(
            participant.summary(records[label]),
            features=concatenated(features[label]),
            gt_features=concatenated(features["truth"]),
        )
        for label, participant in zip(methods, comparison.participants, strict=True)
    ]
    return {"protocol": comparison.protocol()} | summarise(summaries, comparison.groups)
