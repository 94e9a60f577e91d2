"""How often `gleansr.classify` is right, by category, size and degradation.

    python -m benchmarks.categories --data faces=faces.zip cats=cats.zip other=photos/ other=texts/

Each source is a row. Images are reduced by MATLAB's bicubic ("clean") or with the "real" degradation by a fixed seed.
"""

import argparse
import collections
import time
from pathlib import Path

import torch

from gleansr.checkpoints.zoo import asset
from gleansr.data.degradation import fixed_seed
from gleansr.data.sources import open_source
from gleansr.images.codec import decode, to_image
from gleansr.inference.categories import WEIGHTS, classify
from gleansr.models.categories import NAMES
from gleansr.training.classifier import SHARES
from gleansr.training.classifier_views import small_view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="CATEGORY=IMAGES; a category may be repeated")
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 16, 24, 32, 64], help="longer sides in pixels")
    parser.add_argument("--limit", type=int, default=300, help="images of each source")
    arguments = parser.parse_args()
    columns = [(size, real) for size in arguments.sizes for real in (False, True)]
    print("| images | count | " + " | ".join(f"{size} {'real' if real else 'clean'}" for size, real in columns) + " |")
    print("| --- | --- |" + " --- |" * len(columns))
    seconds: list[float] = []
    taken: collections.Counter[tuple[str, str]] = collections.Counter()
    judged: list[tuple[str, bool, float]] = []
    for spec in arguments.data:
        category, _, images = spec.partition("=")
        if category not in NAMES:
            parser.error(f"{spec}: the categories are {', '.join(NAMES)}")
        source = open_source(images)
        count = min(len(source), arguments.limit)
        right: collections.Counter[tuple[int, bool]] = collections.Counter()
        for index in range(count):
            decoded = decode(source.read(index))
            image = to_image(decoded.pixels)
            for size, real in columns:
                small = to_image(small_view(image, size, fixed_seed(index) if real else None))
                start = time.perf_counter()
                found = classify(small)
                seconds.append(time.perf_counter() - start)
                right[size, real] += found.name == category
                taken[category, found.name] += 1
                judged.append((category, found.name == category, found.confidence))
        cells = " | ".join(f"{100 * right[column] / count:.1f}" for column in columns)
        print(f"| {category}: {Path(images).name} | {count} | {cells} |", flush=True)
    print("\nTaken for, all sizes:\n")
    print("| | " + " | ".join(NAMES) + " |\n| --- |" + " --- |" * len(NAMES))
    for category in dict.fromkeys(category for category, _ in taken):
        print(f"| {category} | " + " | ".join(str(taken[category, name]) for name in NAMES) + " |")
    print(f"\ncalibration error {_calibration_error(judged):.3f}, median of {sorted(seconds)[len(seconds) // 2] * 1000:.1f} ms an image, ")
    print(f"{torch.get_num_threads()} threads, weights of {asset(WEIGHTS).stat().st_size:,} bytes")


def _calibration_error(judged: list[tuple[str, bool, float]], bins: int = 15) -> float:
    """Expected calibration error, with the shares of the categories that training assumes."""
    counts = collections.Counter(category for category, _, _ in judged)
    gaps = [0.0] * bins
    total = 0.0
    for category, right, confidence in judged:
        weight = float(SHARES[NAMES.index(category)]) / counts[category]
        gaps[min(bins - 1, int(confidence * bins))] += weight * (right - confidence)
        total += weight
    return sum(map(abs, gaps)) / total


if __name__ == "__main__":
    main()
