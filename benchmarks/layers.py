"""The picture of the layers in docs/design.md, from the imports of the code and the order that import-linter keeps.

    python -m benchmarks.layers

writes docs/layers.svg. Needs grimp, which comes with import-linter: `gleansr[test]`.
"""

import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "layers.svg"
CAPTION = (
    "A box imports the boxes below its dots.",
    "A band is a layer; the boxes in it do not import each other.",
    "Bold frames: packages; thin ones: single modules.",
)

_BOX = 104
"""Width of a box, whose right end lies on its column."""
_STEP = 22
"""Distance between columns."""
_ROW = 26
_MARGIN = 12
_GAP = 4
"""Above and below a box, in its row."""

_STYLE = """
  svg { --page: #ffffff; --band: #eef2f7; --box: #d9e6f7; --edge: #3d6aa8; --text: #1b1f24; --line: #aab6c4; }
  @media (prefers-color-scheme: dark) {
    svg { --page: #0d1117; --band: #171d26; --box: #1d3352; --edge: #7aa7e6; --text: #e6edf3; --line: #4a5563; }
  }
  text { font: 12px ui-monospace, monospace; fill: var(--text); text-anchor: middle; }
  .caption { font: 13px system-ui, sans-serif; text-anchor: start; }
  .page { fill: var(--page); }
  .band { fill: var(--band); }
  .box { fill: var(--box); stroke: var(--edge); stroke-width: 0.75; }
  .package { stroke-width: 2; }
  .line { fill: none; stroke: var(--line); }
  .dot { fill: var(--edge); }
"""


def layers() -> list[list[str]]:
    """The modules of each layer, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    contract = next(one for one in settings["contracts"] if one.get("exhaustive"))
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def imports(graph: grimp.ImportGraph) -> set[tuple[str, str]]:
    """Pairs of modules right below gleansr of which the first, or a module in it, imports the second."""
    pairs = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            _, *importer = module.split(".")
            _, *other = imported.split(".")
            if importer and other and importer[0] != other[0]:
                pairs.add((importer[0], other[0]))
    return pairs


def picture() -> str:
    """The SVG: boxes along a diagonal, layer by layer, so that each import leads right from a box and down to another."""
    graph = grimp.build_graph("gleansr", cache_dir=None)
    pairs = imports(graph)
    used = {name for pair in pairs for name in pair}
    rows = [[name for name in layer if name in used] for layer in layers()]
    names = [name for row in rows for name in row]
    column = {name: _MARGIN + _BOX - _STEP // 2 + _STEP * i for i, name in enumerate(names)}
    top = {name: _MARGIN + _ROW * i for i, name in enumerate(names)}
    width, height = _MARGIN * 2 + _BOX + _STEP * (len(names) - 1), _MARGIN * 2 + _ROW * len(names)

    bands = [f'<rect class="band" x="0" y="{top[row[0]]}" width="{width}" height="{_ROW * len(row)}"/>' for row in rows[::2]]
    lines, dots, boxes = [], [], []
    for name in names:
        middle = top[name] + _ROW // 2
        right = [column[other] for importer, other in pairs if importer == name]
        above = [top[importer] + _ROW // 2 for importer, other in pairs if other == name]
        if right:
            lines.append(f'<path class="line" d="M{column[name]} {middle}H{max(right)}"/>')
        if above:
            lines.append(f'<path class="line" d="M{column[name]} {min(above)}V{middle}"/>')
        dots += [f'<circle class="dot" cx="{x}" cy="{middle}" r="3.5"/>' for x in sorted(right)]
        left = column[name] + _STEP // 2 - _BOX
        kind = "box package" if graph.find_children(f"gleansr.{name}") else "box"
        boxes.append(f'<rect class="{kind}" x="{left}" y="{top[name] + _GAP}" width="{_BOX}" height="{_ROW - 2 * _GAP}" rx="4"/>')
        boxes.append(f'<text x="{left + _BOX // 2}" y="{middle + 4}">{name}</text>')
    caption = [
        f'<text class="caption" x="{_MARGIN}" y="{height - _MARGIN - 20 * (len(CAPTION) - 1 - i) - 8}">{line}</text>'
        for i, line in enumerate(CAPTION)
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        "<title>Which modules of gleansr import which, layer by layer</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
        *bands, *lines, *dots, *boxes, *caption,
        "</svg>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
