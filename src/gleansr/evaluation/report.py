"""A comparison as files: JSON and CSV for programs, Markdown for papers, HTML to look at."""

import csv
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gleansr.evaluation.judges import METRICS
from gleansr.evaluation.records import plain
from gleansr.evaluation.summary import MethodSummary, Table, tables
from gleansr.files import replacing

_ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def write_reports(output: Path, report: Mapping[str, Any], outcomes: Sequence[MethodSummary], files: Mapping[str, str]) -> None:
    """Writes comparison.json, comparison.csv, comparison.md and index.html.

    Args:
        output: the folder, in which pictures/ has low/FILE.png, truth/FILE.png and LABEL/FILE.png.
        report: what comparison.json is to hold.
        outcomes: of the methods.
        files: FILE of each image by its name.
    """
    _write(output / "comparison.json", f"{json.dumps(report, indent=2, allow_nan=False)}\n")
    with replacing(output / "comparison.csv") as temporary, temporary.open("w", encoding="utf-8", errors="replace", newline="") as file:
        _write_rows(file, outcomes)
    _write(output / "comparison.md", markdown(report))
    _write(output / "index.html", page(report, outcomes, files))


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def _write_rows(file: Any, outcomes: Sequence[MethodSummary]) -> None:
    """One row an image and method."""
    measured = {name for outcome in outcomes for record in outcome.records.values() for name in record["metrics"]}
    metrics = [name for name in METRICS if name in measured]
    rows = csv.writer(file)
    rows.writerow(["picture", "sha256", "method", *metrics, "seconds", "note"])
    for outcome in outcomes:
        for name, record in outcome.records.items():
            figures = [record["metrics"].get(metric, "") for metric in metrics]
            rows.writerow([name, record["sha256"], outcome.label, *figures, record["seconds"], record["note"]])


# ------------------------------------------------------------------------------------------------------------------ words


def facts(report: Mapping[str, Any]) -> dict[str, str]:
    """What was done, in words, for the head of a report."""
    protocol = report["protocol"]
    task, judge, place, versions = (protocol[key] for key in ("task", "judge", "place", "versions"))
    small = task["size"] // task["scale"]
    fitted = {
        "crop": "cut to the centre square",
        "squash": "each axis scaled by itself",
        "pad": "padded with black",
        "bars": "4:3 between black bars",
    }
    border = f", without a border of {judge['crop_border']} pixels" if judge["crop_border"] else ""
    rounding = "rounded to 8 bits" if judge["rounding"] == "8-bit" else "clamped, not rounded (Fréchet distances: rounded to 8 bits)"
    batches = "one by one" if protocol["batch_size"] == 1 else f"in batches of {protocol['batch_size']}"
    threads = f"{place['threads']} thread{'s' * (place['threads'] != 1)}"
    machine = (
        f"{place['gpu']}, {place['precision']}; {place['cpu']}" if "gpu" in place else f"{place['cpu']}, {threads}, {place['precision']}"
    )
    jobs = protocol["jobs"]
    shared = max(1, place["threads"] // jobs)
    beside = "" if jobs == 1 else f"; searches {jobs} images at once, each with {shared} thread{'s' * (shared != 1)}"
    memory = "what torch held at most on the GPU" if "gpu" in place else "the largest resident size of the method's own process"
    return {
        "Data": f"{protocol['data']}, {protocol['pictures']:,} images, {fitted[task['aspect']]} where they are not square",
        "Task": f"{task['scale']}x, {small}x{small} to {task['size']}x{task['size']}",
        "Low-resolution images": protocol["low"],
        "Judged": f"{judge['colour_space']}, results {rounding}{border}; means over images ± standard error of the mean",
        "Time": f"median seconds per image, {batches}, without reading and writing files; networks after one warm-up, searches without; "
        f"one method after the other{beside}",
        "Memory": memory,
        "Machine": machine,
        "Versions": f"gleansr {versions['gleansr']}, torch {versions['torch']}",
    }


def remarks(report: Mapping[str, Any]) -> list[str]:
    """A line on each method's model and on what went wrong."""
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
        if method["licence"]:
            parts.append(f"licence of the model: {method['licence']}")
        if method["failed"]:
            parts.append(f"FAILED: {method['failed']}")
        name = method["label"] if method["label"] == method["method"] else f"{method['label']} ({method['method']})"
        lines.append(f"{name}: {'; '.join(filter(None, parts))}")
    if any(METRICS[metric].of_set for metric in report["protocol"]["judge"]["metrics"]):
        lines.append("Fréchet distances depend on the number of images: compare those of equal numbers only.")
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of a comparison, the best figures in bold."""
    parts = ["# Comparison", "\n".join(f"- {key}: {_escaped(text)}" for key, text in facts(report).items())]
    for table in tables(report):
        parts += [f"## {table.title}", markdown_table(table)]
    parts += ["## Methods", "\n".join(f"- {_escaped(line)}" for line in remarks(report))]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A table in Markdown, one method a line."""
    titles = [f"{column.title}{f' ({column.unit})' * bool(column.unit)}{_ARROWS[column.better]}" for column in table.columns]
    lines = [["", *titles], ["---", *(["--:"] * len(titles))]]
    for label, cells in table.rows.items():
        texts = [f"{cell.text} ± {cell.error}" if cell.error else cell.text for cell in cells]
        lines.append([label, *(f"**{text}**" if cell.best else text for text, cell in zip(texts, cells, strict=True))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


# ------------------------------------------------------------------------------------------------------------------- HTML


def page(report: Mapping[str, Any], outcomes: Sequence[MethodSummary], files: Mapping[str, str]) -> str:
    """A page that needs nothing but the images: tables to sort, and for each test image a row that zooms as one."""
    folder = resources.files("gleansr") / "evaluation"
    template, style, script = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    protocol = report["protocol"]
    labels = [outcome.label for outcome in outcomes if outcome.records]
    data = {
        "metrics": [
            {
                "name": name,
                "title": METRICS[name].title,
                "unit": METRICS[name].unit,
                "digits": METRICS[name].digits,
                "better": METRICS[name].better,
            }
            for name in protocol["judge"]["metrics"]
            if not METRICS[name].of_set
        ],
        "labels": labels,
        "pictures": [
            {
                "name": name,
                "figures": {outcome.label: outcome.records[name]["metrics"] for outcome in outcomes if name in outcome.records},
                "notes": {
                    outcome.label: outcome.records[name]["note"] for outcome in outcomes if outcome.records.get(name, {}).get("note")
                },
            }
            for name in files
        ],
    }
    task = protocol["task"]
    parts = {
        "title": html.escape(f"{protocol['data']}, {task['scale']}x"),
        "style": style,
        "script": script,
        "facts": "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(text)}</dd>" for key, text in facts(report).items()),
        "tables": "".join(_table(table) for table in tables(report)),
        "remarks": "".join(f"<li>{html.escape(line)}</li>" for line in remarks(report)),
        "rows": "".join(_row(name, file, labels, outcomes, task["size"]) for name, file in files.items()),
        "data": json.dumps(plain(data), allow_nan=False).replace("<", "\\u003c"),  # no text can end the script
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _table(table: Table) -> str:
    heads = ['<th scope="col"><button type="button">method</button></th>']
    for column in table.columns:
        title = html.escape(column.title) + (f" <small>{html.escape(column.unit)}</small>" if column.unit else "") + _ARROWS[column.better]
        hint = html.escape(column.hint)
        heads.append(f'<th scope="col" data-better="{column.better}" title="{hint}"><button type="button">{title}</button></th>')
    rows = []
    for label, cells in table.rows.items():
        values = "".join(
            f'<td data-value="{"" if cell.value is None else cell.value}"{" class=best" * cell.best}>{html.escape(cell.text)}'
            f"{f' <small>± {html.escape(cell.error)}</small>' if cell.error else ''}</td>"
            for cell in cells
        )
        rows.append(f'<tr><th scope="row">{html.escape(label)}</th>{values}</tr>')
    return (
        f"<h2>{html.escape(table.title)}</h2><div class=scroll><table><thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(name: str, file: str, labels: Sequence[str], outcomes: Sequence[MethodSummary], size: int) -> str:
    done = {"low", "truth", *(outcome.label for outcome in outcomes if name in outcome.records)}
    figures = []
    for label in ("low", *labels, "truth"):
        pane = '<div class="pane empty">not run</div>'
        if label in done:
            source = html.escape(quote(os.fsencode(f"pictures/{label}/{file}.png")))
            image = f'src="{source}" alt="{html.escape(f"{label} of {name}")}" width={size} height={size}'
            pane = f"<div class=pane><img {image} loading=lazy decoding=async draggable=false></div>"
        title = html.escape(label)
        figures.append(f'<figure data-label="{title}">{pane}<figcaption><b>{title}</b> <span></span></figcaption></figure>')
    title = html.escape(name)
    return f'<section class=row tabindex=0 aria-label="{title}"><h3>{title}</h3><div class=panes>{"".join(figures)}</div></section>'
