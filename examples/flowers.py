"""Draws images of a category that no bundled model knows: flowers, for the tutorial "Train a category".

    python examples/flowers.py flowers --train 200 --test 20

writes 256x256 PNG files to flowers/train and flowers/test. The same seed draws the same flower.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 256


def flower(seed: int, size: int = SIZE) -> Image.Image:
    """A flower with 5 to 9 petals before blurred leaves: RGB, `size` x `size`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5 + rng.uniform(-0.06, 0.06, (2, 1, 1))
    radius, angle = np.hypot(x, y), np.arctan2(y, x)

    leaves = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)) / 255
    image = np.stack([0.15 + 0.25 * leaves, 0.25 + 0.45 * leaves, 0.1 + 0.15 * leaves], -1)

    petals, turn, length = int(rng.integers(5, 10)), rng.uniform(0, np.pi), rng.uniform(0.34, 0.46)
    around = np.abs(np.cos((angle + turn) * petals / 2))
    edge = length * (0.55 + 0.45 * around ** rng.uniform(0.4, 1.2))
    inside = np.clip((edge - radius) * size / 2, 0, 1)[..., None]
    veins = 0.06 * np.sin(angle * petals * 7 + 9 * radius) * (radius / length)
    colour = rng.uniform([0.55, 0.1, 0.3], [1.0, 0.75, 1.0])
    petal = colour * (0.55 + 0.45 * around + 0.3 * (radius / length - 0.5) + veins)[..., None]
    image = image * (1 - inside) + petal * inside

    core = np.clip((length * 0.27 - radius) * size / 2, 0, 1)[..., None]
    dots = 0.8 + 0.2 * np.sin(size * 0.5 * radius) * np.sin(angle * 24)
    image = image * (1 - core) + np.array([0.95, 0.75, 0.15]) * dots[..., None] * core
    noise = rng.normal(0, 0.01, image.shape)
    return Image.fromarray((np.clip(image + noise, 0, 1) * 255).round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--test", type=int, default=20)
    options = parser.parse_args()
    seeds = {"train": range(options.train), "test": range(10_000, 10_000 + options.test)}
    for part, chosen in seeds.items():
        folder = options.output / part
        folder.mkdir(parents=True, exist_ok=True)
        for seed in chosen:
            flower(seed).save(folder / f"{seed:05}.png")
    print(f"{options.train} + {options.test} flowers → {options.output}")


if __name__ == "__main__":
    main()
