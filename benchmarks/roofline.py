"""The roofline plot of a report: speed of networks and limits of the machine by arithmetic intensity."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.machine import described
from benchmarks.tables import digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "gleansr": "#0072b2", "mmagic": "#d55e00", "plain formulation": "#009e73", "ONNX Runtime": "#cc79a7", "folder mode": "#e69f00",
    "bare forward passes": "#0072b2",
}  # fmt: skip
MARKERS = {"float32": "o", "bfloat16": "s", "float16": "D"}
STYLES = {"float32": "-", "bfloat16": "--", "float16": ":"}


class Point(NamedTuple):
    """A network, or a stage of one, at FLOP per byte and GFLOP/s."""

    name: str
    precision: str
    intensity: float
    gflops: float
    note: str
    """Text next to the point."""
    stage: bool = False


def peak(ceilings: dict[str, float]) -> float:
    """GFLOP/s of the faster of convolution and matrix product."""
    return max(ceilings["convolution_gflops"], ceilings["matrix_gflops"])


def roof(intensity: float, ceilings: dict[str, float]) -> float:
    """The machine's limit in GFLOP/s at an intensity in FLOP per byte: that of memory, up to the peak."""
    return min(intensity * ceilings["copy_gbs"], peak(ceilings))


def points(report: dict[str, Any]) -> list[Point]:
    """Points of each network, of its stages at the first batch size, and of each pass of a sweep."""

    def point(entry: dict[str, Any], note: str) -> Point:
        return Point(entry["name"], entry["precision"], entry["intensity"], entry["gflops"], note)

    result = []
    for entry in report.get("points", ()):
        if "failed" not in entry:
            result.append(
                point(entry, f"{entry['in_size']}→{entry['out_size']}" + (f", batch {entry['batch']}" if entry["batch"] > 1 else ""))
            )
    for i, case in enumerate(report.get("cases", ())):
        for entry in case["contestants"]:
            result.append(point(entry, f"batch {case['batch']}" if len(report["cases"]) > 1 else ""))
            if i == 0:
                result += [point(entry | values, stage)._replace(stage=True) for stage, values in entry.get("stages", {}).items()]
    return result


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes a PNG or PDF with the ceilings of the first batch size. Needs matplotlib: `gleansr[eval]`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    drawn = points(report)
    reached: dict[str, dict[str, float]] = (report.get("cases") or [report])[0]["ceilings"]
    figure = Figure(figsize=(6.3, 4.5), layout="constrained")
    axes = figure.subplots()
    intensities = [*(item.intensity for item in drawn), *(peak(ceilings) / ceilings["copy_gbs"] for ceilings in reached.values())]
    left, right = min(intensities) / 3, max(intensities) * 3
    for number, (precision, ceilings) in enumerate(reached.items()):
        _draw_roof(axes, precision, ceilings, (left, right), with_copy=number == 0)
    labelled = set()
    for item in drawn:
        label = f"{item.name}, {item.precision}"
        axes.plot(
            item.intensity, item.gflops, MARKERS[item.precision], color=COLOURS[item.name], markersize=4 if item.stage else 7,
            alpha=0.7 if item.stage else 1, label=None if label in labelled or item.stage else label, markeredgecolor="white", zorder=3,
        )  # fmt: skip
        labelled |= set() if item.stage else {label}
        if item.note:
            offset, side = ((-4, -2), "right") if item.stage else ((4, 3), "left")  # apart from each other
            axes.annotate(item.note, (item.intensity, item.gflops), offset, textcoords="offset points", ha=side, fontsize=5.5, alpha=0.8)
    speeds = [*(item.gflops for item in drawn), *(peak(ceilings) for ceilings in reached.values())]
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(min(speeds) / 2.5, max(speeds) * 2))
    axes.set_xlabel("arithmetic intensity, FLOP per byte", fontsize=8)
    axes.set_ylabel("GFLOP/s", fontsize=8)
    figure.suptitle(report["network"]["label"], x=0.02, ha="left", fontsize=9)
    axes.set_title(textwrap.fill(described(report["machine"]), 140), loc="left", fontsize=5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if f"{value:e}"[0] in "25" else ""))
    axes.tick_params(labelsize=7, which="both")
    axes.grid(which="major", linewidth=0.4, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=7)
    figure.savefig(path, dpi=200, metadata={"Title" if path.suffix == ".pdf" else "Software": "gleansr benchmarks"})


def _draw_roof(axes: "Axes", precision: str, ceilings: dict[str, float], ends: tuple[float, float], *, with_copy: bool) -> None:
    (left, right), top = ends, peak(ceilings)
    corner = top / ceilings["copy_gbs"]
    axes.plot([left, corner, right], [roof(left, ceilings), top, top], STYLES[precision], color="0.3", linewidth=1)
    which = "3x3 convolution" if top == ceilings["convolution_gflops"] else "matrix product"
    label = f"{which}, {precision}: {digits(top)} GFLOP/s"
    axes.annotate(label, (right, top), (-2, 3), textcoords="offset points", ha="right", fontsize=6.5)
    if with_copy:
        label, x = f"copy: {digits(ceilings['copy_gbs'])} GB/s", (left * corner) ** 0.5
        axes.annotate(label, (x, roof(x, ceilings)), (5, -7), textcoords="offset points", fontsize=6.5)
