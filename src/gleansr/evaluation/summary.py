"""Results of a comparison: means over images with standard errors, and tables of them."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gleansr.evaluation.metric_suite import METRICS, Metric
from gleansr.evaluation.metrics import frechet_distance
from gleansr.evaluation.records import Record, plain

_MIB = 2**20


@dataclass(frozen=True, eq=False)
class MethodSummary:
    """The results of a method."""

    label: str
    method: str
    file: str | None
    """Name of the model's file."""
    sha256: str | None
    settings: Mapping[str, Any]
    licence: str | None
    failed: str | None
    """Reason of a failure, otherwise None."""
    records: Mapping[str, Record]
    """By image name: "seconds", the share of it "waited" for a processor or None, "peak" and "own" memory in bytes or None, "note", and
    "metrics"."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """Features (N, D) of the results by metric of sets, in the order of `records`."""
    gt_features: Mapping[str, Tensor] = field(default_factory=dict)
    """Features of the ground truths, as `features`."""

    def values(self, names: Sequence[str]) -> dict[str, Any]:
        """Mean of each metric over the named images, with the standard error of metrics per image."""
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


def concatenated(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The features (N, D) of all batches by metric; empty without batches."""
    return {metric: torch.cat([part[metric] for part in parts]) for metric in (parts[0] if parts else ())}


def summarise(summaries: Sequence[MethodSummary], groups: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The results of a comparison, without methods that failed in "common" and "groups".

    Args:
        summaries: the methods' summaries.
        groups: group of each image by name.

    Returns:
        "methods": results of each method; "common": results over the images that all methods processed, None if they are the same for
        all; "groups": results by group, None without `groups`.
    """
    methods = []
    for summary in summaries:
        records = list(summary.records.values())
        seconds = [record["seconds"] for record in records]
        memory = {key: max((record[key] or 0 for record in records), default=0) or None for key in ("peak", "own")}
        methods.append(
            {
                "label": summary.label,
                "method": summary.method,
                "model": summary.file,
                "sha256": summary.sha256,
                "licence": summary.licence,
                "settings": dict(summary.settings),
                "failed": summary.failed,
                "pictures": len(records),
                "notes": sum(bool(record["note"]) for record in records),
                **summary.values(list(summary.records)),
                "above_bicubic": _above_bicubic(summary, summaries),
                "seconds": {"median": statistics.median(seconds), "mean": statistics.fmean(seconds)} if seconds else None,
                "waited": _waited(records),
                "memory": memory,
            }
        )
    whole = [summary for summary in summaries if not summary.failed]
    counts = {len(summary.records) for summary in whole}
    common = None
    if len(counts) > 1:
        names = [name for name in whole[0].records if all(name in summary.records for summary in whole)]
        common = {"pictures": len(names), "methods": [{"label": summary.label, **summary.values(names)} for summary in whole]}
    return plain({"methods": methods, "common": common, "groups": _by_group(whole, groups) if groups else None})


def _waited(records: Sequence[Record]) -> float | None:
    """The share of their time in which a method had no processor; None if it is unknown, as in records of earlier versions."""
    known = [record for record in records if record.get("waited") is not None]
    seconds = math.fsum(record["seconds"] for record in known)
    return math.fsum(record["seconds"] * record["waited"] for record in known) / seconds if seconds else None


def _above_bicubic(summary: MethodSummary, summaries: Sequence[MethodSummary]) -> float | None:
    """The share of images with a PSNR above bicubic's; None if bicubic or PSNR is missing."""
    base = next((other for other in summaries if other.method == "bicubic" and other is not summary), None)
    names = [name for name in summary.records if name in base.records] if base else []
    pairs = [[float(of.records[name]["metrics"].get("psnr", math.nan)) for of in (summary, base) if of] for name in names]
    if not pairs or math.isnan(pairs[0][0]):
        return None
    return sum(own > other for own, other in pairs) / len(pairs)


def _by_group(summaries: Sequence[MethodSummary], groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """The results of each group over the images that all methods processed."""
    rows = []
    for group in sorted(set(groups.values())):
        names = [name for name, of in groups.items() if of == group and all(name in summary.records for summary in summaries)]
        if names:
            of_methods = [{"label": summary.label, **summary.values(names)} for summary in summaries]
            rows.append({"group": group, "pictures": len(names), "methods": of_methods})
    return rows


# ---------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    hint: str = ""
    """Short description."""


@dataclass(frozen=True)
class Cell:
    """A value in a table."""

    text: str = ""
    error: str = ""
    """Standard error."""
    value: float | None = None
    """Sort key."""
    best: bool = False
    """Whether it is the best value of its column."""


@dataclass(frozen=True)
class Table:
    """Methods and their values."""

    title: str
    columns: Sequence[Column]
    rows: Mapping[str, Sequence[Cell]]
    """By label."""


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of a comparison: all results; results over common images, if methods had different ones; results relative to bicubic, if
    it took part; results by group."""
    methods = [method for method in report["methods"] if method["pictures"] and not method["failed"]]
    if not methods:
        return
    common = report["common"]
    counts = {method["pictures"] for method in methods}
    title = f"{max(counts):,} images" if len(counts) == 1 else "All images of each method"
    yield _results(title, methods, costs=True, ranked=common is None)
    shared = methods
    if common:
        shared = [{**method, **values} for values in common["methods"] for method in methods if method["label"] == values["label"]]
        yield _results(f"The {common['pictures']:,} images of all methods", shared, costs=False, ranked=True)
    base = next((method for method in shared if method["method"] == "bicubic"), None)
    if base and len(shared) > 1:
        over = f", over the {common['pictures']:,} common images" if common else ""
        yield _relative(f"Relative to bicubic{over}", base, [method for method in shared if method is not base])
    if report.get("groups"):
        yield _grouped(report["groups"], methods)


def _results(title: str, methods: Sequence[Mapping[str, Any]], *, costs: bool, ranked: bool) -> Table:
    metrics = _metrics(methods)
    columns = [Column(metric.title, metric.unit, metric.better) for metric in metrics]
    show_counts = len({method["pictures"] for method in methods}) > 1 and costs
    columns = [*([Column("images")] if show_counts else []), *columns]
    best = {metric.name: _best(metric, methods) if ranked else None for metric in metrics}
    rows: dict[str, list[Cell]] = {}
    for method in methods:
        cells = [Cell(f"{method['pictures']:,}", value=method["pictures"])] if show_counts else []
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
        costly = [
            Column("time", "s", "lower", hint="seconds per image, median"),
            Column("memory", "MiB", "lower", hint="peak memory of the method's process"),
            Column("of which own", "MiB", "lower", hint="added since before the model was loaded"),
        ]
        columns += costly
        for i in range(len(columns) - len(costly), len(columns)):
            least = min((value for row in rows.values() if (value := row[i].value) is not None), default=None)
            for row in rows.values() if len(rows) > 1 else ():
                row[i] = replace(row[i], best=least is not None and row[i].value == least)
        filled = [any(row[i].text for row in rows.values()) for i in range(len(columns))]
        rows = {label: [cell for cell, used in zip(row, filled, strict=True) if used] for label, row in rows.items()}
        columns = [column for column, used in zip(columns, filled, strict=True) if used]
    return Table(title, columns, rows)


def _relative(title: str, base: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> Table:
    """Distances as ratios to bicubic's and other values as differences; also the share of images with a PSNR above bicubic's."""
    metrics = [metric for metric in _metrics(methods) if metric.name in base["means"]]
    columns = [Column(metric.title, "ratio" if metric.better == "lower" else metric.unit, metric.better) for metric in metrics]
    has_share = any(method.get("above_bicubic") is not None for method in methods)
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
        if has_share:
            share = method.get("above_bicubic")
            cells.append(Cell() if share is None else Cell(f"{100 * share:.1f}", value=share))
        rows[method["label"]] = cells
    if has_share:
        columns.append(Column("PSNR above bicubic's", "% of images", "higher"))
    return Table(title, columns, rows)


def _grouped(groups: Sequence[Mapping[str, Any]], methods: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each group and method."""
    metrics = _metrics(methods)
    columns = [Column("images"), *(Column(metric.title, metric.unit, metric.better) for metric in metrics)]
    rows = {}
    for group in groups:
        for values in group["methods"]:
            cells = [Cell(f"{group['pictures']:,}", value=group["pictures"])]
            cells += [_cell(metric, values) for metric in metrics]
            rows[f"{group['group']}: {values['label']}"] = cells
    return Table("By group", columns, rows)


def _cell(metric: Metric, values: Mapping[str, Any]) -> Cell:
    """A mean with its standard error."""
    mean, error = (values[key].get(metric.name) for key in ("means", "standard_errors"))
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
