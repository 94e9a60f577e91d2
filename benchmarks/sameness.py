"""Whether the same image gives the same result: in every run, with other numbers of threads, and at every position of a batch.

    python -m benchmarks.sameness [--models cats-8x faces-4x general-4x] [--threads 1 2 3] [--batches 1 2 5] [--precision float32]

Every number of threads is a process of its own, in which each of four images is upscaled at each position of each size of batch. The
reference is the image alone on one thread. Prints the largest difference of the network's values, of 255, and of the written bytes.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

import gleansr
from gleansr.images.pixels import to_bytes
from gleansr.inference.precision import Precision

IMAGES = 4
FREE = 48  # side of the images of a model that takes any size


def images(side: int) -> torch.Tensor:
    """Smooth random images (IMAGES, 3, side, side) in [-1, 1]."""
    coarse = torch.rand(IMAGES, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(-1, 1)


def compute(model: str, batches: Sequence[int], precision: Precision, threads: int) -> dict[str, np.ndarray]:
    """Results of each image, by size of batch, position and image."""
    torch.set_num_threads(threads)
    upscaler = gleansr.load(model, device="cpu", precision=precision)
    given, found = images(upscaler.input_size or FREE), {}
    for batch in batches:
        for position in range(batch):
            for image in range(IMAGES):
                order = [(image + other - position) % IMAGES for other in range(batch)]
                results = upscaler.runner([given[one] for one in order]).images
                found[f"{batch} {position} {image}"] = results[position].float().numpy()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cats-8x", "faces-4x", "cars-16x", "general-4x"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 5])
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--child", nargs=2, metavar=("THREADS", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        results = compute(options.models[0], options.batches, options.precision, int(options.child[0]))
        np.savez(options.child[1], allow_pickle=False, **results)
        return
    print(
        "| model | threads | batch | results | largest difference, of 255 | bytes that differ, largest difference |\n" + "| --- " * 6 + "|"
    )
    for model in options.models:
        reference: dict[str, np.ndarray] = {}
        for run, threads in enumerate([1, *options.threads]):  # one thread twice: two runs
            found = in_process(model, threads, options.batches, options.precision)
            reference = reference or {name: values for name, values in found.items() if name.startswith("1 ")}
            for batch in options.batches if run else ():
                own = {name: values for name, values in found.items() if name.startswith(f"{batch} ")}
                print(f"| {model} | {threads} | {batch} | {compare(reference, own)} |", flush=True)


def in_process(model: str, threads: int, batches: Sequence[int], precision: str) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.npz")
        command = ["--models", model, "--batches", *map(str, {1, *batches}), "--precision", precision, "--child", str(threads), str(file)]
        subprocess.run([sys.executable, "-m", "benchmarks.sameness", *command], check=True)
        with np.load(file) as results:
            return dict(results)


def compare(reference: dict[str, np.ndarray], own: dict[str, np.ndarray]) -> str:
    """The last cells of a row."""
    differences, changed, most, total = [], 0, 0, 0
    for name, values in own.items():
        expected = reference[f"1 0 {name.rpartition(' ')[2]}"]
        differences.append(float(np.abs(values - expected).max()) * 127.5)
        one, other = (to_bytes(torch.from_numpy(part)[None])[0].int() for part in (values, expected))
        gap = (one - other).abs()
        changed, most, total = changed + int((gap > 0).sum()), max(most, int(gap.max())), total + gap.numel()
    same = "equal bit for bit" if not max(differences) else f"{max(differences):.2g}"
    return f"{len(own)} | {same} | {changed} of {total:,}, {most}"


if __name__ == "__main__":
    main()
