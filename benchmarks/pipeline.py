"""A folder of images through `gleansr.jobs`, compared with bare forward passes at the same batch size in the same process.

    python -m benchmarks.pipeline [--images 500] [--rounds 3] [--batch-size 8] [--model cats-8x] [--plain] [--json report.json]
                                  [--plot roofline.png]

The images are generated from examples/: PNG, JPEG, WebP, TIFF and BMP of 32x32 and 256x256 with random rotations, flips and tints. A round
runs all images through `run` with a manifest, then as many tensors through the network alone, and with --plain through the plain
formulation. The machine's ceilings are measured in each round.

Prints a table, with --json the report: images per second and the speed-up of folder mode, median and range over the rounds; CPU time per
image; share of the ceilings; resident memory after each tenth of the last round.
"""

import argparse
import itertools
import os
import resource
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from PIL import Image

import gleansr
from benchmarks import networks
from benchmarks.ceilings import Ceilings
from benchmarks.counting import Cost, total
from benchmarks.machine import machine
from benchmarks.measure import clock, errors_in_one_line, interleaved, positive
from benchmarks.networks import PLAIN, Forward, Network, costs_of
from benchmarks.report import Report, add_options, deliver, entry, medians
from gleansr import checkpoints
from gleansr.errors import GleansrError, RequestError
from gleansr.files import sha256_of
from gleansr.images.codec import decode
from gleansr.inference.precision import Precision
from gleansr.inference.tasks import Enlarge, ImageTask
from gleansr.jobs import Manifest, UnreadableFolder, Work, destinations, run, walk

SIZES = (32, 256)
KINDS = (".png", ".jpg", ".webp", ".tif", ".bmp")
FOLDER, BARE = "folder mode", "bare forward passes"


def make(folder: Path, count: int) -> None:
    """Writes `count` different images."""
    examples = [Image.open(path).convert("RGB") for path in sorted((Path(__file__).parents[1] / "examples").glob("*.png"))]
    rng = np.random.default_rng(0)
    for i in range(count):
        image = examples[i // len(KINDS) % len(examples)]
        values = np.rot90(np.asarray(image, np.float32), int(rng.integers(4)))[:, :: int(rng.choice([-1, 1]))]
        values = values * rng.uniform(0.7, 1.0, 3) + rng.uniform(0, 40)
        path = folder / f"{i // 100:03d}" / f"{i:05d}{KINDS[i % len(KINDS)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)


def resident() -> float:
    """This process's resident memory in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def through_folders(images: Path, results: Path, work: Work, count: int) -> list[float]:
    """Upscales all images into a new folder. Returns the resident memory after each tenth."""
    memory = []
    [place] = destinations([images], results, "")
    with closing(Manifest(cast("Path", place.manifest))) as manifest:
        for number, outcome in enumerate(run(walk(place), work, [manifest]), 1):
            if isinstance(outcome, UnreadableFolder) or outcome.status != "done":
                raise GleansrError(f"folder mode failed: {outcome}")
            if number % max(1, count // 10) == 0:
                memory.append(round(resident()))
    return memory


def bare(forward: Forward, lrs: torch.Tensor, count: int, device: torch.device) -> None:
    """Forward passes over `count` images in batches like `lrs`, with transfers to and from the device."""
    for start in range(0, count, len(lrs)):
        forward(lrs[: count - start].to(device)).cpu()


def cost_of(network: Network, count: int, batch_size: int) -> Cost:
    """The cost of bare passes over `count` images."""
    whole, rest = divmod(count, batch_size)
    last = total(costs_of(network, rest)) if rest else Cost()
    return total(costs_of(network, batch_size)) * whole + last


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(options: argparse.Namespace) -> Report:
    upscaler = gleansr.load(options.model, device=options.device, precision=options.precision)
    if upscaler.input_size is None:
        raise RequestError(f"{options.model} takes images of any size; give a GLEAN")
    network = networks.find_network(options.model, None, None, SIZES)
    device, size, count = upscaler.device, options.batch_size or upscaler.default_batch_size(), options.images
    precision = str(getattr(upscaler.method, "precision", torch.float32)).removeprefix("torch.")
    facts = machine(device)
    work = Work(cast("ImageTask", Enlarge(upscaler)), size, sha256_of(checkpoints.model_path(options.model)))
    memory: list[float] = []
    busy: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images, rounds = Path(folder, "pictures"), itertools.count()
        make(images, count)
        examples = [upscaler.fit(decode(path)).lr for path in sorted(images.rglob("*.*"))[:size]]
        lrs = torch.stack(examples).repeat(-(-size // len(examples)), 1, 1, 1)[:size]
        forwards: dict[str, Forward] = {BARE: lambda lr: upscaler.method(lr).images}
        if options.plain:
            forwards[PLAIN] = torch.inference_mode()(networks.plain(network.build(), precision, device).forward)
        for forward in forwards.values():
            bare(forward, lrs, 2 * size, device)  # warm-up

        def through_all() -> None:
            memory[:] = through_folders(images, Path(folder, f"results{next(rounds)}"), work, count)

        def timed(name: str, call: Callable[[], None]) -> float:
            before = cpu_seconds()
            seconds = clock(call, device)
            busy.setdefault(name, []).append(1000 * (cpu_seconds() - before) / count)
            return seconds

        calls = {FOLDER: through_all} | {name: partial(bare, forward, lrs, count, device) for name, forward in forwards.items()}
        runs: dict[str, Callable[[], float]] = {name: partial(timed, name, call) for name, call in calls.items()}
        ceilings = Ceilings(precision, device, small=options.small_ceilings)
        measured = interleaved(runs | ceilings.runs(f"{precision} "), options.rounds, warm_ups=0)
    reached, cost = medians(measured, [precision]), cost_of(network, count, size)
    entries = [
        entry(name, precision, measured[name], cost, reached[precision], count) | {"processor_ms_per_picture": busy[name]} for name in calls
    ]
    case = {"batch": size, "pictures": count, "contestants": entries, "ceilings": reached}
    about = {"label": network.label, "in_size": network.in_size, "out_size": network.out_size}
    return {"benchmark": "pipeline", "network": about, "machine": facts, "cases": [case], "resident_mib": memory}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=positive, default=500)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--batch-size", type=positive, help="default: that of folder mode")
    parser.add_argument("--model", default="cats-8x", help="name or file of a GLEAN")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--plain", action="store_true", help="include the plain formulation of the network")
    add_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(arguments)
    with errors_in_one_line(parser):
        deliver(measure(options), json_to=options.json, plot=options.plot)


if __name__ == "__main__":
    main()
