"""Reports of benchmarks as tables, JSON and roofline plots.

    python -m benchmarks.report REPORT.json [--plot FILE.png|.pdf]

prints and draws a report that --json wrote.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks.ceilings import NAMES
from benchmarks.counting import Cost
from benchmarks.machine import described
from benchmarks.measure import errors_in_one_line
from benchmarks.roofline import draw
from benchmarks.tables import digits, markdown, spread
from gleansr.errors import RequestError, one_line

Report = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options for the output of a report."""
    add_json(parser)
    parser.add_argument("--plot", type=_drawable, metavar="FILE.png|.pdf", help="draw the roofline")
    parser.add_argument("--small-ceilings", action="store_true", help=argparse.SUPPRESS)  # for tests


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option --json."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        type=_writable,
        metavar="FILE",
        help="file for the report; without FILE print it instead of the table",
    )


def _writable(text: str) -> str:
    """A file to write, checked before anything is measured."""
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(text).parent}")
    return text


def _drawable(text: str) -> Path:
    path = Path(_writable(text))
    if path.suffix not in (".png", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text} must end in .png or .pdf")
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("drawing needs matplotlib: pip install 'gleansr[eval]'")
    return path


def entry(name: str, precision: str, seconds: Sequence[float], cost: Cost, ceilings: Mapping[str, float], images: int) -> Report:
    """The report of one contestant: `seconds` of passes over `images` images at a cost of `cost` each."""
    median = statistics.median(seconds)
    counts = cost.as_dict(precision)
    speed = counts["gflop"] / median
    return {
        "name": name,
        "precision": precision,
        "seconds": list(seconds),
        "seconds_median": median,
        "seconds_min_max": [min(seconds), max(seconds)],
        "pictures_per_second": images / median,
        **counts,
        "gflops": speed,
        "share_of_convolution": speed / ceilings["convolution_gflops"],
        "share_of_matrix": speed / ceilings["matrix_gflops"],
    }


def medians(measured: Mapping[str, Sequence[float]], precisions: Iterable[str]) -> dict[str, dict[str, float]]:
    """The ceilings of each precision, from the values that `interleaved` returns under "PRECISION NAME"."""
    return {precision: {name: statistics.median(measured[f"{precision} {name}"]) for name in NAMES} for precision in precisions}


def baselines(case: Mapping[str, Any]) -> Iterator[tuple[Report, Report | None]]:
    """Pairs of gleansr and a baseline of the same precision; half precision is also paired with mmagic in any precision."""
    subject = case["contestants"][0]["name"]
    others = [result for result in case["contestants"] if result["name"] != subject]
    for result in case["contestants"]:
        if result["name"] == subject:
            half = result["precision"] != "float32"
            matching = [other for other in others if other["precision"] == result["precision"] or (half and other["name"] == "mmagic")]
            yield from ((result, other) for other in matching or [None])


def speed_table(report: Report) -> str:
    """A row for each precision of gleansr and each baseline."""
    pass_, subject = report["unit"], report["cases"][0]["contestants"][0]["name"]
    columns = [
        report["network"]["label"], "batch", f"{subject}, s per {pass_}", "against", "its s", "faster", "images/s", "GFLOP/s",
        "of the convolution's speed", "of the matrix product's", "peak memory, MiB", "largest difference",
    ]  # fmt: skip
    rows = []
    for case in report["cases"]:
        for result, other in baselines(case):
            row = [f"{result['precision']} ({digits(result['gflop'])} GFLOP)", str(case["batch"]), spread(result["seconds"])]
            if other is None:
                row += ["-"] * 3
            else:
                faster = other["seconds_median"] / result["seconds_median"]
                row += [f"{other['name']}, {other['precision']}", digits(other["seconds_median"]), f"{digits(faster)}x"]
            row += [digits(result[name]) for name in ("pictures_per_second", "gflops")]
            row += [f"{result[name]:.2f}" for name in ("share_of_convolution", "share_of_matrix")]
            rows.append([*row, _memory(result, other), _difference(result, other)])
    return markdown(columns, rows)


def _memory(result: Report, other: Report | None) -> str:
    peak, other_peak = result.get("peak_mib"), other and other.get("peak_mib")
    if peak and other_peak:
        return f"{peak:,.0f} against {other_peak:,.0f}: {peak / other_peak:.2f}"
    return f"{peak:,.0f}" if peak else "-"


def _difference(result: Report, other: Report | None) -> str:
    """Largest difference between both results, over the standard deviation of the baseline's."""
    difference = result.get("differences", {}).get(f"{other['name']}, {other['precision']}") if other else None
    return "-" if difference is None else f"{difference:.1e}"


def ceiling_table(report: Report) -> str:
    """The machine's ceilings between the passes, medians."""
    cases = report.get("cases") or [{"batch": "all", "ceilings": report["ceilings"]}]
    return markdown(
        ["ceilings", "with batch", "matrix product, GFLOP/s", "3x3 convolution, GFLOP/s", "copy, GB/s read and written"],
        [
            [precision, str(case["batch"]), *(digits(reached[name]) for name in NAMES)]
            for case in cases
            for precision, reached in case["ceilings"].items()
        ],
    )


def stage_table(report: Report) -> str:
    """Cost and speed of each stage that shows, for the first batch size; "" without stages."""
    case, rows = report["cases"][0], []
    for result in case["contestants"]:
        ceiling = case["ceilings"][result["precision"]]["convolution_gflops"]
        for stage, values in result.get("stages", {}).items():
            cells = [digits(values["gflop"]), digits(1000 * values["gbytes"]), digits(1000 * values["seconds"]), digits(values["gflops"])]
            rows.append([f"{result['name']}, {result['precision']}: {stage}", *cells, f"{values['gflops'] / ceiling:.2f}"])
    return markdown(["stages", "GFLOP", "MB", "ms", "GFLOP/s", "of the convolution's speed"], rows) if rows else ""


def sweep_table(report: Report) -> str:
    """A row for each size and batch."""
    columns = [
        report["network"]["label"], "scale", "batch", "precision", "s per image", "GFLOP per image", "GFLOP/s",
        "of the convolution's speed", "peak memory, MiB",
    ]  # fmt: skip
    rows = []
    for point in report["points"]:
        row = [f"{point['in_size']}→{point['out_size']}", f"{point['out_size'] // point['in_size']}x", str(point["batch"])]
        row += [point["precision"]]
        if "failed" in point:
            rows.append([*row, "failed", *["-"] * 4])
            continue
        row += [digits(1 / point["pictures_per_second"]), digits(point["gflop"] / point["batch"]), digits(point["gflops"])]
        rows.append([*row, f"{point['share_of_convolution']:.2f}", _memory(point, None)])
    failures = [
        f"{row[0]}, batch {row[2]}: {point['failed']}" for row, point in zip(rows, report["points"], strict=True) if "failed" in point
    ]
    return "\n\n".join([markdown(columns, rows), *failures])


def pipeline_table(report: Report) -> str:
    """A row for each way of processing, and the memory of folder mode."""
    [case] = report["cases"]
    folder = case["contestants"][0]
    columns = [
        f"{report['network']['label']}, {case['pictures']} files, batches of {case['batch']}", "precision", "images/s",
        f"{folder['name']} is faster", "the processor's ms per image", "GFLOP/s", "of the convolution's speed",
    ]  # fmt: skip
    rows = []
    for result in case["contestants"]:
        row = [result["name"], result["precision"], spread([case["pictures"] / seconds for seconds in result["seconds"]])]
        ratios = [seconds / folder_seconds for seconds, folder_seconds in zip(result["seconds"], folder["seconds"], strict=True)]
        row += ["-" if result is folder else f"{spread(ratios)}x", spread(result["processor_ms_per_picture"])]
        rows.append([*row, digits(result["gflops"]), f"{result['share_of_convolution']:.2f}"])
    memory = ", ".join(f"{mib:,.0f}" for mib in report["resident_mib"])
    return f"{markdown(columns, rows)}\n\nResident memory after each tenth of the last round, MiB: {memory}"


def text(report: Report) -> str:
    """All tables of a report and the machine."""
    tables = {"sweep": [sweep_table], "pipeline": [pipeline_table]}.get(report["benchmark"], [speed_table, stage_table])
    parts = [table(report) for table in (*tables, ceiling_table)]
    return "\n\n".join([*filter(None, parts), described(report["machine"])])


def write(report: Report, tables: str, json_to: str | None) -> None:
    """Prints the tables, or the report's JSON for `-`; writes the JSON to any other file."""
    report_json = json.dumps(report, indent=2)
    if json_to and json_to != "-":
        Path(json_to).write_text(report_json + "\n", encoding="utf-8")
    print(report_json if json_to == "-" else tables)


def deliver(report: Report, *, json_to: str | None, plot: Path | None) -> None:
    """Prints and writes a report, see `write`, and draws it to `plot`."""
    write(report, text(report), json_to)
    if plot:
        draw(report, plot)


def run_command(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Report], arguments: Sequence[str] | None) -> None:
    """Runs a benchmark and delivers its report; a child process, started with --alone, prints its report for `measure.child`."""
    options = parser.parse_args(arguments)
    with errors_in_one_line(parser):
        with redirect_stdout(sys.stderr):  # mmagic prints to stdout
            report = measure(options)
        if options.alone:
            print(json.dumps(report))
        else:
            deliver(report, json_to=options.json, plot=options.plot)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("--plot", type=_drawable, metavar="FILE.png|.pdf")
    options = parser.parse_args(arguments)
    with errors_in_one_line(parser):
        try:
            report = json.loads(options.report.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(f"{options.report}: is not a report of --json: {one_line(error)}") from None
        deliver(report, json_to=None, plot=options.plot)


if __name__ == "__main__":
    main()
