"""Images that several tests train on."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def smooth_images(path: Path, seeds: tuple[int, int], size: tuple[int, int]) -> str:
    """A zip archive of six images of `size`, width and height, enlarged from `seeds` random pixels; its path."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(6):
            image = Image.fromarray(rng.integers(0, 255, (*reversed(seeds), 3), np.uint8)).resize(size)
            with archive.open(f"{i}.png", "w") as file:
                image.save(file, "PNG")
    return str(path)
