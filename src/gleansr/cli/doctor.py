"""`gleansr doctor`: what this machine can do, whether it does it right, and how fast."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gleansr.inference.precision import Precision

if TYPE_CHECKING:
    from gleansr.doctor import DoctorReport

_FIRST = 26
"""Columns that names take."""

_STYLES = {None: "", True: "green", False: "bold red"}
"""By what a check came to."""


def doctor(
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "cats-8x",
    device: str = "auto",
    precision: Precision = "auto",
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Check this machine and this installation, compare a model with the plain network on the CPU, and measure its speed (docs/doctor.md).

    Exit status 1 if something is wrong.

    - gleansr doctor
    - gleansr doctor -m faces-8x --device cuda
    - gleansr doctor --json > report.json

    Args:
        model: Name of a model, or a file of any supported layout.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        precision: The one to test; auto tests all that the device supports.
        as_json: Print the report as JSON.
    """
    from gleansr.doctor import as_dict, examine

    console = Console(stderr=True)
    with console.status("checking") as status:
        report = examine(model, device=device, precision=precision, on_step=lambda text: status.update(text))
    if as_json:
        print(json.dumps(as_dict(report), indent=2))
    else:
        _print(report)
    if not report.ok:
        sys.exit(1)


def _print(report: "DoctorReport") -> None:
    console = Console(highlight=False)
    for section, findings in report.findings.items():
        console.print(Text(section, style="bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=min(_FIRST, console.width // 3))
        table.add_column(overflow="fold")
        for finding in findings:
            table.add_row(Text(f"  {finding.name}"), Text(finding.text, style=_STYLES[finding.ok]))
        console.print(table)
    if report.trials:
        console.print(Text(f"{report.model} on {report.device}, images per second", style="bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=min(_FIRST, console.width // 3))
        for _ in range(1 + len(report.trials[0].rates)):
            table.add_column(justify="right")
        table.add_column()
        table.add_row("", "result", *("one by one" if n == 1 else f"{n} at once" for n in report.trials[0].rates))
        for trial in report.trials:
            verdict = Text("right" if trial.ok else "WRONG", style=_STYLES[trial.ok]) + Text(f", {trial.psnr:.0f} dB", style="")
            table.add_row(Text(f"  {trial.precision}"), verdict, *(f"{rate:.3g}" for rate in trial.rates.values()))
        console.print(table)
    for line in report.advice:
        console.print(Text(f"* {line}", style="cyan"))
    console.print(Text("all is well" if report.ok else "something is wrong: see above", style=_STYLES[report.ok]))
