"""A folder of pictures through `gleansr.folders` against the bare forward passes at the same batch size, in turn in one process.

    python -m benchmarks.pipeline [--pictures 500] [--rounds 3] [--batch-size 8] [--model cats-8x]

The pictures are made of examples/ on the spot: PNG, JPEG, WebP, TIFF and BMP, of the model's input size and of eight times that, each
turned, mirrored and tinted in its own way. A round runs all through `run`, with their manifest, and then as many through the network alone,
from tensors that are ready. Prints one JSON object: pictures per second of both, their ratio (median over the rounds), the processor's time
per picture of both, and the resident memory after each tenth of the last round.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

import gleansr
from gleansr import checkpoints
from gleansr.folders import Manifest, Unlisted, Work, places, run, sha256_of, walk
from gleansr.pictures import decode
from gleansr.tasks import Enlarge, Task
from gleansr.upscaler import Upscaler

KINDS = (".png", ".jpg", ".webp", ".tif", ".bmp")


def make(folder: Path, count: int) -> None:
    """Writes so many pictures, none like another."""
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


def through_folders(pictures: Path, work: Work, count: int) -> tuple[float, list[float]]:
    """Seconds, and the resident memory after each tenth."""
    memory = []
    with tempfile.TemporaryDirectory() as results:
        [place] = places([pictures], Path(results), "")
        started = time.perf_counter()
        with closing(Manifest(cast("Path", place.manifest))) as manifest:
            for number, outcome in enumerate(run(walk(place), work, [manifest]), 1):
                if isinstance(outcome, Unlisted) or outcome.status != "done":
                    raise SystemExit(f"{outcome}")
                if number % max(1, count // 10) == 0:
                    memory.append(round(resident()))
        return time.perf_counter() - started, memory


def bare(upscaler: Upscaler, lows: torch.Tensor, count: int, batch_size: int) -> float:
    """Seconds of forward passes over so many pictures."""
    started = time.perf_counter()
    for start in range(0, count, batch_size):
        upscaler.method(lows[: min(batch_size, count - start)].to(upscaler.device)).pictures.cpu()
    return time.perf_counter() - started


def rounds(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    upscaler = gleansr.load(options.model, device=options.device)
    size = options.batch_size or upscaler.default_batch_size()
    work = Work(cast("Task", Enlarge(upscaler)), size, sha256_of(checkpoints.model_path(options.model)))
    with tempfile.TemporaryDirectory() as pictures:
        make(Path(pictures), options.pictures)
        examples = [upscaler.fit(decode(path)).low for path in sorted(Path(pictures).rglob("*.*"))[:size]]
        lows = torch.stack(examples).repeat(-(-size // len(examples)), 1, 1, 1)
        bare(upscaler, lows, 2 * size, size)
        for _ in range(options.rounds):
            before = cpu_seconds()
            seconds, memory = through_folders(Path(pictures), work, options.pictures)
            between = cpu_seconds()
            alone = bare(upscaler, lows, options.pictures, size)
            yield {
                "batch_size": size,
                "folder": options.pictures / seconds,
                "bare": options.pictures / alone,
                "ratio": alone / seconds,
                "cpu_folder": (between - before) / options.pictures,
                "cpu_bare": (cpu_seconds() - between) / options.pictures,
                "resident_mib": memory,
            }


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--model", default="cats-8x")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    found = list(rounds(options))
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "pictures": options.pictures,
        "batch_size": found[0]["batch_size"],
        "pictures_per_second": {name: [round(one[name], 2) for one in found] for name in ("folder", "bare")},
        "ratio": [round(one["ratio"], 3) for one in found],
        "ratio_median": round(statistics.median(one["ratio"] for one in found), 3),
        "cpu_ms_per_picture": {name: [round(1e3 * one[f"cpu_{name}"], 1) for one in found] for name in ("folder", "bare")},
        "resident_mib": found[-1]["resident_mib"],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
