"""What came of a comparison: means over images with their errors, and the tables that show them."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gleansr.evaluation.judges import METRICS, Metric
from gleansr.evaluation.metrics import frechet_distance
from gleansr.evaluation.records import Record, plain

_MIB = 2**20


@dataclass(frozen=True, eq=False)
class MethodSummary:
    """What a method did."""

    label: str
    method: str
    file: str | None
    """Name of its model's file."""
    sha256: str | None
    settings: Mapping[str, Any]
    licence: str | None
    failed: str | None
    """Why it could not go on, None if it could."""
    records: Mapping[str, Record]
    """Of each image by name: "seconds", "peak" and "own" memory in bytes or None, "note", and "metrics"."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """For each metric of sets the features (N, D) of its results, in the order of `records`."""
    gt_features: Mapping[str, Tensor] = field(default_factory=dict)
    """The same of the ground truth of these images."""

    def figures(self, names: Sequence[str]) -> dict[str, Any]:
        """Mean of each metric over the images of these names, and the standard error of the mean where it is one of images."""
        means: dict[str, float] = {}
        errors: dict[str, float] = {}
        for metric in self.records[names[0]]["metrics"] if names else ():
            values = [float(self.records[name]["metrics"][metric]) for name in names]
            means[metric] = math.fsum(values) / len(values)
            if len(values) > 1 and math.isfinite(means[metric]):
                errors[metric] = statistics.stdev(values, means[metric]) / math.sqrt(len(values))
        if len(names) > 1:
            index = {name: i for i, name in enumerate(self.records)}
            rows = [index[name] for name in names]
            for metric, features in self.features.items():
                means[metric] = frechet_distance(features[rows], self.gt_features[metric][rows])
        order = list(METRICS)
        return {"means": {name: means[name] for name in sorted(means, key=order.index)}, "standard_errors": errors}


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The features of each metric of sets, (N, D), from those of batches; none from no batch."""
    return {metric: torch.cat([part[metric] for part in parts]) for metric in (parts[0] if parts else ())}


def summary(outcomes: Sequence[MethodSummary], groups: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The "methods" of a comparison, "common": the figures over the images that all have done, None where all have done the same, and
    "groups": the figures over the images of each group, None without `groups`.

    Methods that failed are left out of "common" and "groups".

    Args:
        outcomes: of each method.
        groups: of each image by name.
    """
    methods = []
    for outcome in outcomes:
        records = list(outcome.records.values())
        seconds = [record["seconds"] for record in records]
        memory = {key: max((record[key] or 0 for record in records), default=0) or None for key in ("peak", "own")}
        methods.append(
            {
                "label": outcome.label,
                "method": outcome.method,
                "model": outcome.file,
                "sha256": outcome.sha256,
                "licence": outcome.licence,
                "settings": dict(outcome.settings),
                "failed": outcome.failed,
                "pictures": len(records),
                "notes": sum(bool(record["note"]) for record in records),
                **outcome.figures(list(outcome.records)),
                "above_bicubic": _above(outcome, outcomes),
                "seconds": {"median": statistics.median(seconds), "mean": statistics.fmean(seconds)} if seconds else None,
                "memory": memory,
            }
        )
    whole = [outcome for outcome in outcomes if not outcome.failed]
    counts = {len(outcome.records) for outcome in whole}
    common = None
    if len(counts) > 1:
        names = [name for name in whole[0].records if all(name in outcome.records for outcome in whole)]
        common = {"pictures": len(names), "methods": [{"label": outcome.label, **outcome.figures(names)} for outcome in whole]}
    return plain({"methods": methods, "common": common, "groups": _by_group(whole, groups) if groups else None})


def _above(outcome: MethodSummary, outcomes: Sequence[MethodSummary]) -> float | None:
    """The share of images on which a method's PSNR is higher than that of bicubic interpolation; None where that did not take part."""
    base = next((other for other in outcomes if other.method == "bicubic" and other is not outcome), None)
    names = [name for name in outcome.records if name in base.records] if base else []
    pairs = [[float(of.records[name]["metrics"].get("psnr", math.nan)) for of in (outcome, base) if of] for name in names]
    if not pairs or math.isnan(pairs[0][0]):
        return None
    return sum(own > other for own, other in pairs) / len(pairs)


def _by_group(outcomes: Sequence[MethodSummary], groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """The figures of each group over the images that all methods have done."""
    rows = []
    for group in sorted(set(groups.values())):
        names = [name for name, of in groups.items() if of == group and all(name in outcome.records for outcome in outcomes)]
        if names:
            of_methods = [{"label": outcome.label, **outcome.figures(names)} for outcome in outcomes]
            rows.append({"group": group, "pictures": len(names), "methods": of_methods})
    return rows


# ---------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Column:
    """A column of figures."""

    title: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    hint: str = ""
    """What it is, in a few words."""


@dataclass(frozen=True)
class Cell:
    """A figure in a table."""

    text: str = ""
    error: str = ""
    """Its standard error."""
    value: float | None = None
    """To sort by."""
    best: bool = False
    """Whether it is the best of its column."""


@dataclass(frozen=True)
class Table:
    """Methods and their figures."""

    title: str
    columns: Sequence[Column]
    rows: Mapping[str, Sequence[Cell]]
    """By label."""


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of a comparison: all figures; where methods had different numbers of images, the figures over the same; the figures
    relative to bicubic's, where it took part; and the figures by group."""
    methods = [method for method in report["methods"] if method["pictures"] and not method["failed"]]
    if not methods:
        return
    common = report["common"]
    counts = {method["pictures"] for method in methods}
    title = f"{max(counts):,} images" if len(counts) == 1 else "All images that each method had"
    yield _figures(title, methods, costs=True, ranked=common is None)
    shared = methods
    if common:
        shared = [{**method, **figures} for figures in common["methods"] for method in methods if method["label"] == figures["label"]]
        yield _figures(f"The {common['pictures']:,} images that all methods had", shared, costs=False, ranked=True)
    base = next((method for method in shared if method["method"] == "bicubic"), None)
    if base and len(shared) > 1:
        over = f", over the {common['pictures']:,} common images" if common else ""
        yield _relative(f"Relative to bicubic{over}", base, [method for method in shared if method is not base])
    if report.get("groups"):
        yield _grouped(report["groups"], methods)


def _figures(title: str, methods: Sequence[Mapping[str, Any]], *, costs: bool, ranked: bool) -> Table:
    metrics = _metrics(methods)
    columns = [Column(metric.title, metric.unit, metric.better) for metric in metrics]
    counted = len({method["pictures"] for method in methods}) > 1 and costs
    columns = [*([Column("images")] if counted else []), *columns]
    best = {metric.name: _best(metric, methods) if ranked else None for metric in metrics}
    rows = {}
    for method in methods:
        cells = [Cell(f"{method['pictures']:,}", value=method["pictures"])] if counted else []
        for metric in metrics:
            cell = _cell(metric, method)
            cells.append(replace(cell, best=cell.value is not None and cell.value == best[metric.name]))
        if costs:
            seconds, memory = method["seconds"]["median"], method["memory"]
            cells.append(Cell(f"{seconds:.3g}", value=seconds))
            for key in ("peak", "own"):
                cells.append(Cell(f"{memory[key] / _MIB:,.0f}" if memory[key] else "", value=memory[key]))
        rows[method["label"]] = cells
    if costs:
        columns += [
            Column("time", "s", hint="seconds per image, median"),
            Column("memory", "MiB", hint="most memory of the method's process"),
            Column("of which own", "MiB", hint="added since before the model was read"),
        ]
        filled = [any(row[i].text for row in rows.values()) for i in range(len(columns))]
        rows = {label: [cell for cell, used in zip(row, filled, strict=True) if used] for label, row in rows.items()}
        columns = [column for column, used in zip(columns, filled, strict=True) if used]
    return Table(title, columns, rows)


def _relative(title: str, base: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> Table:
    """Distances as ratios to bicubic's, the other figures as differences from it; and on how many images PSNR is above bicubic's."""
    metrics = [metric for metric in _metrics(methods) if metric.name in base["means"]]
    columns = [Column(metric.title, "ratio" if metric.better == "lower" else metric.unit, metric.better) for metric in metrics]
    told = any(method.get("above_bicubic") is not None for method in methods)
    rows = {}
    for method in methods:
        cells = []
        for metric in metrics:
            value, other = float(method["means"].get(metric.name, math.nan)), float(base["means"][metric.name])
            if metric.better == "lower":
                relative = value / other if other else math.nan
                text = f"{relative:.{max(metric.digits, 3)}f}"
            else:
                relative = value - other
                text = f"{relative:+.{metric.digits}f}"
            cells.append(Cell(text, value=relative) if math.isfinite(relative) else Cell())
        if told:
            above = method.get("above_bicubic")
            cells.append(Cell() if above is None else Cell(f"{100 * above:.1f}", value=above))
        rows[method["label"]] = cells
    if told:
        columns.append(Column("PSNR above bicubic's", "% of images", "higher"))
    return Table(title, columns, rows)


def _grouped(groups: Sequence[Mapping[str, Any]], methods: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each group and method."""
    metrics = _metrics(methods)
    columns = [Column("images"), *(Column(metric.title, metric.unit, metric.better) for metric in metrics)]
    rows = {}
    for group in groups:
        for figures in group["methods"]:
            cells = [Cell(f"{group['pictures']:,}", value=group["pictures"])]
            cells += [_cell(metric, figures) for metric in metrics]
            rows[f"{group['group']}: {figures['label']}"] = cells
    return Table("By group", columns, rows)


def _cell(metric: Metric, figures: Mapping[str, Any]) -> Cell:
    """A mean with its standard error, both where they are known."""
    mean, error = (figures[key].get(metric.name) for key in ("means", "standard_errors"))
    if mean is None:
        return Cell()
    return Cell(f"{float(mean):.{metric.digits}f}", "" if error is None else f"{error:.{metric.digits}f}", float(mean))


def _metrics(methods: Sequence[Mapping[str, Any]]) -> list[Metric]:
    return [metric for name, metric in METRICS.items() if any(name in method["means"] for method in methods)]


def _best(metric: Metric, methods: Sequence[Mapping[str, Any]]) -> float | None:
    values = [float(method["means"][metric.name]) for method in methods if metric.name in method["means"]]
    if len(methods) < 2 or not values:
        return None
    return max(values) if metric.better == "higher" else min(values)
