"""Reports of a comparison: JSON and CSV for programs, Markdown for papers, an HTML page for viewing."""

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from gleansr.evaluation.metric_suite import METRICS
from gleansr.evaluation.records import plain
from gleansr.evaluation.summary import MethodSummary, Table, tables
from gleansr.files import replacing

_TITLES = {"low": "input", "truth": "ground truth"}
"""Of the folders that are not of a method; in the words of figures."""
_BUSY = 0.1  # share of the time in which a method had no processor, above which its times are no results
_ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def write_reports(output: Path, report: Mapping[str, Any], summaries: Sequence[MethodSummary], files: Mapping[str, str]) -> None:
    """Writes comparison.json, comparison.csv, comparison.md and index.html.

    Args:
        output: the folder; its pictures/ holds low/FILE.png, truth/FILE.png and LABEL/FILE.png.
        report: content of comparison.json.
        summaries: the methods' summaries.
        files: FILE of each image by name.
    """
    _write(output / "comparison.json", f"{json.dumps(report, indent=2, allow_nan=False)}\n")
    with replacing(output / "comparison.csv") as temporary, temporary.open("w", encoding="utf-8", errors="replace", newline="") as file:
        _write_rows(file, summaries)
    _write(output / "comparison.md", markdown(report))
    _write(output / "index.html", page(report, summaries, files))


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def _write_rows(file: Any, summaries: Sequence[MethodSummary]) -> None:
    """Writes a row for each image and method."""
    measured = {name for summary in summaries for record in summary.records.values() for name in record["metrics"]}
    metrics = [name for name in METRICS if name in measured]
    rows = csv.writer(file)
    rows.writerow(["picture", "sha256", "method", *metrics, "seconds", "note"])
    for summary in summaries:
        for name, record in summary.records.items():
            values = [record["metrics"].get(metric, "") for metric in metrics]
            rows.writerow([name, record["sha256"], summary.label, *values, record["seconds"], record["note"]])


# ------------------------------------------------------------------------------------------------------------------- text


def facts(report: Mapping[str, Any]) -> dict[str, str]:
    """The protocol in words, for the head of a report."""
    protocol = report["protocol"]
    task, metrics, compute, versions = (protocol[key] for key in ("task", "judge", "place", "versions"))
    lr_size = task["size"] // task["scale"]
    aspects = {
        "crop": "cut to the centre square",
        "squash": "each axis scaled by itself",
        "pad": "padded",
        "bars": "4:3 between black bars",
    }
    border = f", without a border of {metrics['crop_border']} pixels" if metrics["crop_border"] else ""
    rounding = "rounded to 8 bits" if metrics["rounding"] == "8-bit" else "clamped, not rounded (Fréchet distances: rounded to 8 bits)"
    batches = "one by one" if protocol["batch_size"] == 1 else f"in batches of {protocol['batch_size']}"
    threads = f"{compute['threads']} thread{'s' * (compute['threads'] != 1)}"
    machine = (
        f"{compute['gpu']}, {compute['precision']}; {compute['cpu']}"
        if "gpu" in compute
        else f"{compute['cpu']}, {threads}, {compute['precision']}"
    )
    jobs = protocol["jobs"]
    share = max(1, compute["threads"] // jobs)
    parallel = "" if jobs == 1 else f"; searches {jobs} images at once, each with {share} thread{'s' * (share != 1)}"
    memory = "peak of torch's allocations on the GPU" if "gpu" in compute else "peak resident size of the method's own process"
    return {
        "Data": f"{protocol['data']}, {protocol['pictures']:,} images, {aspects[task['aspect']]} if not square",
        "Task": f"{task['scale']}x, {lr_size}x{lr_size} to {task['size']}x{task['size']}",
        "Low-resolution images": protocol["low"],
        "Metrics": f"{metrics['colour_space']}, results {rounding}{border}; means over images ± standard error of the mean",
        "Time": f"median seconds per image, {batches}, without reading and writing files; networks after one warm-up, searches without; "
        f"one method after the other{parallel}",
        "Memory": memory,
        "Machine": machine,
        "Versions": f"gleansr {versions['gleansr']}, torch {versions['torch']}",
    }


def remarks(report: Mapping[str, Any]) -> list[str]:
    """A line for each method: its model, settings, notes and failure."""
    lines = []
    for method in report["methods"]:
        parts = [
            f"model {method['model']} (sha256 {method['sha256'][:16]}…)" if method["model"] else "",
            f"{method['pictures']:,} images",
        ]
        if method["settings"]:
            parts.append(", ".join(f"{key}={value}" for key, value in method["settings"].items()))
        if method["notes"]:
            parts.append(f"notes on {method['notes']:,} images, see comparison.csv")
        if (method["waited"] or 0) > _BUSY:
            parts.append(f"waited for a free processor {method['waited']:.0%} of the time, so that its times are too long")
        if method["licence"]:
            parts.append(f"licence of the model: {method['licence']}")
        if method["failed"]:
            parts.append(f"FAILED: {method['failed']}")
        name = method["label"] if method["label"] == method["method"] else f"{method['label']} ({method['method']})"
        lines.append(f"{name}: {'; '.join(filter(None, parts))}")
    if any(METRICS[metric].of_set for metric in report["protocol"]["judge"]["metrics"]):
        lines.append("Fréchet distances depend on the number of images: compare only values over equally many images.")
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """The report in Markdown, with the best values in bold."""
    parts = ["# Comparison", "\n".join(f"- {key}: {_escaped(text)}" for key, text in facts(report).items())]
    for table in tables(report):
        parts += [f"## {table.title}", markdown_table(table)]
    parts += ["## Methods", "\n".join(f"- {_escaped(line)}" for line in remarks(report))]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    titles = [f"{column.title}{f' ({column.unit})' * bool(column.unit)}{_ARROWS[column.better]}" for column in table.columns]
    lines = [["", *titles], ["---", *(["--:"] * len(titles))]]
    for label, cells in table.rows.items():
        texts = [f"{cell.text} ± {cell.error}" if cell.error else cell.text for cell in cells]
        lines.append([label, *(f"**{text}**" if cell.best else text for text, cell in zip(texts, cells, strict=True))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


# ------------------------------------------------------------------------------------------------------------------- HTML


def page(report: Mapping[str, Any], summaries: Sequence[MethodSummary], files: Mapping[str, str]) -> str:
    """A page that needs only the images: sortable tables, and a row of images for each test image, which zoom together."""
    environment = Environment(loader=PackageLoader("gleansr", "evaluation"), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    style, script = ((resources.files("gleansr") / "evaluation" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    protocol = report["protocol"]
    labels = [summary.label for summary in summaries if summary.records]
    metrics = [METRICS[name] for name in protocol["judge"]["metrics"] if not METRICS[name].of_set]
    data = {
        "metrics": [{key: getattr(metric, key) for key in ("name", "title", "unit", "digits", "better")} for metric in metrics],
        "labels": labels,
        "titles": _TITLES,
        "pictures": [
            {
                "name": name,
                "figures": {summary.label: summary.records[name]["metrics"] for summary in summaries if name in summary.records},
                "notes": {
                    summary.label: summary.records[name]["note"] for summary in summaries if summary.records.get(name, {}).get("note")
                },
            }
            for name in files
        ],
    }
    return environment.get_template("report.html").render(
        title=f"{protocol['data']}, {protocol['task']['scale']}x",
        style=style,
        script=script,
        facts=facts(report),
        remarks=remarks(report),
        tables=tables(report),
        arrows=_ARROWS,
        titles=_TITLES,
        rows={name: _sources(name, file, labels, summaries) for name, file in files.items()},
        size=protocol["task"]["size"],
        data=plain(data),
    )


def _sources(name: str, file: str, labels: Sequence[str], summaries: Sequence[MethodSummary]) -> dict[str, str | None]:
    """The address of each image of a row by label; None for methods without a result."""
    available = {"low", "truth", *(summary.label for summary in summaries if name in summary.records)}
    return {
        label: quote(os.fsencode(f"pictures/{label}/{file}.png")) if label in available else None for label in ("low", *labels, "truth")
    }
