"""Refreshes the tables of the README from docs/results.md, the cards and the bundled files.

    python -m benchmarks.docs [--check]

`benchmarks.models` and `gleansr compare` measure what docs/results.md holds. With --check nothing is written, and the exit status is 1 if
the README would change.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gleansr.checkpoints import native, zoo
from gleansr.files import replacing
from gleansr.inference.router import GENERAL, NOUNS

ROOT = Path(__file__).resolve().parents[1]
TIMES, ARROW = "\N{MULTIPLICATION SIGN}", "\N{RIGHTWARDS ARROW}"
MODEL_ROWS = re.compile(r"(?:^\| \[[^\n]*\n)+", re.MULTILINE)
BASELINE_ROWS = re.compile(r"(?<=\n\| --- \| --- \| --- \| --- \| --- \| --- \| --- \|\n)(?:\| [^\n]*\n)+")
COLUMNS = (
    "PSNR ↑",
    "SqueezeNet distance ↓",
    "MobileNetV2 distance ↓",
    "Fréchet distance, MobileNetV2 ↓",
    "consistency ↑",
    "seconds per image ↓",
)
"""Of the comparison in docs/results.md, in the order of the README."""


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading or a bold line, without the line of dashes."""
    _, found, rest = text.partition(f"\n{heading}\n")
    if not found:
        raise ValueError(f"docs/results.md has no line {heading!r}")
    [rows] = re.findall(r"^\|.*?\n(?!\|)", rest, re.MULTILINE | re.DOTALL)[:1]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.strip().splitlines()]
    return [cells[0], *cells[2:]]


def gains(text: str, heading: str) -> dict[str, str]:
    """PSNR over bicubic, SqueezeNet and MobileNetV2 distance of each model."""
    head, *rows = table(text, heading)
    columns = [head.index(name) for name in ("PSNR over bicubic", "SqueezeNet", "MobileNetV2")]
    return {row[0]: ", ".join(row[column].partition(" (")[0] for column in columns) for row in rows}


def general_gains(card: str) -> str:
    """The ranges of `general-4x` over the categories."""
    rows = re.findall(rf"^\| \w+, {GENERAL} \| \**(\S+) dB\** \| \**([\d.]+)\** \| \**([\d.]+)\** \|", card, re.MULTILINE)
    ranges = [sorted(column, key=float) for column in zip(*rows, strict=True)]
    return ", ".join(f"{values[0]} to {values[-1]}{unit}" for values, unit in zip(ranges, (" dB", "", ""), strict=True))


def card_of(name: str) -> str:
    """The path of a model's card, which names it in its title."""
    for card in sorted((ROOT / "docs" / "models").glob("*.md")):
        title = card.read_text("utf-8").partition("\n")[0]
        if name in re.split(r"[:, ]+", title):
            return card.relative_to(ROOT).as_posix()
    raise ValueError(f"no card in docs/models has {name} in its title")


def model_rows(results: str) -> str:
    """A row for each bundled GLEAN, by category and scale, and for the general model."""
    clean, real = gains(results, "**Clean**"), gains(results, "**Real**")
    real[GENERAL] = general_gains((ROOT / card_of(GENERAL)).read_text("utf-8"))
    models = [model for model in zoo.named_models() if model.asset and model.kind == "glean"]
    models.sort(key=lambda model: (list(NOUNS).index(model.category), -(model.in_size or 0)))
    rows = []
    for model in (*models, zoo.find(GENERAL)):
        in_size, out_size, file = model.in_size or 1, model.out_size, zoo.file_of(model)
        height = native.read(file).about.content_height or out_size
        scale = out_size // in_size
        sizes = f"{in_size}{TIMES}{height // scale} {ARROW} {out_size}{TIMES}{height}" if model.name != GENERAL else "any size"
        size, licence = f"{file.stat().st_size / 1e6:.1f} MB", model.licence.replace("CC-BY-NC-", "CC BY-NC ")
        gain = clean.get(model.name, ""), real[model.name]
        cells = (f"[{model.name}]({card_of(model.name)})", model.category, f"{scale}{TIMES}", sizes, *gain, size, licence)
        rows.append(f"| {' | '.join(cells)} |\n")
    return "".join(rows)


def baseline_rows(results: str) -> str:
    """A row for each method of the comparison on cats."""
    head, *rows = table(results, "### The 64 images that all methods had")
    columns = [head.index(name) for name in COLUMNS]
    return "".join(f"| {' | '.join((row[0], *(row[column] for column in columns)))} |\n" for row in rows)


def refreshed(readme: str, results: str) -> str:
    """The README with its tables as the results are now."""
    for pattern, rows in ((MODEL_ROWS, model_rows(results)), (BASELINE_ROWS, baseline_rows(results))):
        readme, count = pattern.subn(lambda _, rows=rows: rows, readme)
        if count != 1:
            raise ValueError(f"README.md has {count} tables of this kind, but one is expected")
    return readme


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.docs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    file = ROOT / "README.md"
    before = file.read_text("utf-8")
    after = refreshed(before, (ROOT / "docs" / "results.md").read_text("utf-8"))
    if options.check:
        sys.exit(int(before != after))
    if before != after:
        with replacing(file) as part:
            part.write_text(after, "utf-8")
    print("README.md: " + ("unchanged" if before == after else "refreshed"))


if __name__ == "__main__":
    main()
