"""Which model a thumbnail should get, and when its own detail should be kept: images of a category shrunk to several sizes, as JPEGs.

    python -m benchmarks.thumbnails faces faces-val.zip --count 18

Each is enlarged by each model of the category (shrunk or enlarged to its input), by the general model and as `gleansr upscale` does, and
compared at the size of the ground truth: PSNR in dB and SqueezeNet feature distance.
"""

import argparse
import io
from collections import defaultdict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gleansr.checkpoints.bundled import squeezenet
from gleansr.data.sources import open_source
from gleansr.evaluation.ground_truth import read_image
from gleansr.images.back_projection import psnr
from gleansr.images.codec import decode, to_image
from gleansr.images.pixels import from_bytes
from gleansr.inference.router import GENERAL, Models, models_of
from gleansr.models.features import feature_distance
from gleansr.photos import AutoTask, run

SIZES = (12, 16, 20, 24, 28, 32, 40, 48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category")
    parser.add_argument("data")
    parser.add_argument("--count", type=int, default=18)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--quality", type=int, default=75)
    options = parser.parse_args()
    network, models, automatic = squeezenet(), Models(device="cpu"), AutoTask(device="cpu")
    names = [model.name for model in models_of(options.category)] + [GENERAL]
    source = open_source(options.data)
    numbers = np.linspace(0, len(source) - 1, options.count).round().astype(int)
    for size in options.sizes:
        figures: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for number in numbers:
            gt = to_image(read_image(source, int(number))[0])
            small = jpeg(gt.resize((size, size), Image.Resampling.LANCZOS), options.quality)
            results = {"bicubic": small, **{name: models[name](small) for name in names}, "auto": run(automatic, decode(small)).image}
            for name, image in results.items():
                sr, truth = (signed(one.convert("RGB").resize(gt.size, Image.Resampling.BICUBIC)) for one in (image, gt))
                distance = feature_distance(network(sr), network(truth))
                figures[name].append((float(psnr(sr, truth)), float(distance)))
        means = {name: np.mean(values, 0) for name, values in figures.items()}
        print(size, ", ".join(f"{name} {decibels:.2f} {distance:.2f}" for name, (decibels, distance) in means.items()), flush=True)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def signed(image: Image.Image) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return from_bytes(torch.from_numpy(np.array(image)).permute(2, 0, 1))[None]


if __name__ == "__main__":
    main()
