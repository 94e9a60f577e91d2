"""Faces of photos: how many are found, and how much they stay the same persons, in collages of portraits.

    python -m benchmarks.collages PORTRAITS [--widths 40 64 96 128] [--quality 90] [-o FOLDER]

PORTRAITS is a folder or an archive, one face in each image. For each width, all portraits are shrunk until the frame of the head has that
many pixels in the photo, and put into one photo, a JPEG. Each result is compared with the same collage at the result's size:
dlib's distance of embeddings (0: equal; below 0.6 dlib assumes the same person), PSNR and SqueezeNet distance of the heads.
"""

import argparse
import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import gleansr
from gleansr.checkpoints.bundled import squeezenet
from gleansr.data.sources import open_source
from gleansr.evaluation.ground_truth import read_image
from gleansr.evaluation.identity import DlibIdentity
from gleansr.images.back_projection import psnr
from gleansr.images.codec import decode, to_image
from gleansr.images.pixels import from_bytes
from gleansr.inference.router import GENERAL
from gleansr.models.features import feature_distance
from gleansr.photos import AutoTask, PhotoConfig, run
from gleansr.photos.faces import Faces

MARGIN = 0.3
"""Of the portrait around the head, as a share of the head's frame."""


Place = tuple[float, float, float]
"""Centre and width of the frame of a head."""


def layout(count: int, width: int) -> tuple[int, int]:
    """Columns of a collage, and the side of its cells in pixels of the photo."""
    return math.isqrt(count - 1) + 1, round(width * (1 + 2 * MARGIN))


def head(detector: Faces, image: Tensor) -> Place:
    """The head of a portrait (3, H, W) in [0, 1]."""
    frame = detector.detect(image)[0].frame
    return frame.x, frame.y, frame.width


def cell(image: Image.Image, place: Place, width: int) -> Image.Image:
    """The head with its surroundings, its frame `width` pixels wide."""
    x, y, size = place
    reach, side = size * (0.5 + MARGIN), round(width * (1 + 2 * MARGIN))
    border = round(size)  # a portrait may end near the head
    image = Image.fromarray(np.pad(np.asarray(image), ((border, border), (border, border), (0, 0)), mode="edge"))
    box = tuple(border + value for value in (x - reach, y - reach, x + reach, y + reach))
    return image.transform((side, side), Image.Transform.EXTENT, box, Image.Resampling.BICUBIC)


def collage(portraits: list[Image.Image], places: list[Place], width: int, scale: int, quality: int) -> tuple[Image.Image, Image.Image]:
    """All heads in one photo, a JPEG, `width` pixels wide, and its ground truth, `scale` times as large."""
    columns, side = layout(len(portraits), width)
    rows = -(-len(portraits) // columns)
    gt = Image.new("RGB", (columns * side * scale, rows * side * scale), (96, 104, 112))
    for i, (portrait, (x, y, size)) in enumerate(zip(portraits, places, strict=True)):
        # `transform` does not antialias: portraits are first shrunk to about the size.
        factor = max(1.0, size / (width * scale))
        small = portrait.resize((round(portrait.width / factor), round(portrait.height / factor)), Image.Resampling.LANCZOS)
        part = cell(small, (x / factor, y / factor, size / factor), width * scale)
        gt.paste(part, (i % columns * side * scale, i // columns * side * scale))
    file = io.BytesIO()
    gt.resize((columns * side, rows * side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return Image.open(file), gt


def heads(image: Image.Image, count: int, width: int, scale: int) -> Tensor:
    """The cells of a collage (count, 3, side, side) in [-1, 1]."""
    columns, side = layout(count, width)
    side *= scale
    pixels = from_bytes(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
    corners = [(i // columns * side, i % columns * side) for i in range(count)]
    return torch.stack([pixels[:, y : y + side, x : x + side] for y, x in corners])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("portraits")
    parser.add_argument("--widths", type=int, nargs="+", default=(40, 64, 96, 128))
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG")
    parser.add_argument("-o", "--output", type=Path, help="folder for the photos and results")
    options = parser.parse_args()
    source = open_source(options.portraits)
    tensors = [read_image(source, i)[0] for i in range(len(source))]
    detector = Faces()
    portraits, places = [to_image(one).convert("RGB") for one in tensors], [head(detector, one) for one in tensors]
    network, identity = squeezenet(), DlibIdentity()
    task, scale = AutoTask(PhotoConfig(scale=options.scale), device="cpu"), options.scale
    print("| head | found | | dlib | below 0.6 | PSNR | SqueezeNet |\n| --- | --- | --- | --- | --- | --- | --- |")
    for width in options.widths:
        photo, gt = collage(portraits, places, width, scale, options.quality)
        automatic = run(task, decode(photo))
        results = {
            "bicubic": photo.resize(gt.size, Image.Resampling.BICUBIC),
            GENERAL: gleansr.upscale(photo, model=GENERAL, scale=scale, device="cpu"),
            "gleansr upscale": automatic.image,
        }
        gts = heads(gt, len(portraits), width, scale)
        faces = identity.faces(gts)
        for name, result in results.items():
            sr = heads(result, len(portraits), width, scale)
            dlib = identity.distance(sr, faces)
            pairs = list(zip(sr.split(1), gts.split(1), strict=True))
            squeeze = torch.cat([feature_distance(network(one), network(two)).reshape(1) for one, two in pairs])
            decibels = torch.cat([torch.as_tensor(psnr(one, two)).reshape(1) for one, two in pairs])
            found = f"{len(automatic.details['objects'])} of {len(portraits)}"
            cells = [f"{width} px", found, name, f"{float(dlib.mean()):.2f}", f"{int((dlib < 0.6).sum())}"]
            print(f"| {' | '.join([*cells, f'{float(decibels.mean()):.2f} dB', f'{float(squeeze.mean()):.2f}'])} |", flush=True)
            if options.output:
                options.output.mkdir(parents=True, exist_ok=True)
                result.save(options.output / f"{width}-{name.replace(' ', '-')}.png")
        if options.output:
            gt.save(options.output / f"{width}-gt.png")


if __name__ == "__main__":
    main()
