"""A sheet of examples of the bundled models: lr, bicubic, GLEAN, ground truth. Of the README and the model cards.

    python -m benchmarks.gallery --drawn 0 -o docs/gallery.jpg --models cats-8x cats-16x faces-8x faces-16x faces-32x faces-64x \\
        cars-8x bedrooms-8x towers-8x
    python -m benchmarks.gallery --models faces-16x --drawn 2 -o docs/models/faces-16x.jpg

Ground truths are those that the project may show: one photo of each category, which no model was trained on, and images that the bank of
the category draws from the seeds 0, 1, 2, ... Nothing is chosen: failures are shown too. Each is degraded twice, as in the paper (MATLAB's
bicubic, 8 bits) and as thumbnails are (`--degradation real` of `gleansr evaluate`, with fixed seeds).
"""

import argparse
from pathlib import Path
from typing import cast, get_args

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

import gleansr
from gleansr.checkpoints import zoo
from gleansr.evaluation.config import Degradation
from gleansr.evaluation.ground_truth import EvaluationTask, default_aspect
from gleansr.images.codec import decode
from gleansr.images.pixels import to_bytes
from gleansr.images.resize import resize
from gleansr.models.stylegan2 import StyleGAN2

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGE = Path(gleansr.__file__).parent / "serving" / "static"
PHOTOS = {
    "cats": (EXAMPLES / "chelsea-256.png", (0, 0, 256, 256)),
    "faces": (EXAMPLES / "astronaut-face-256.png", (0, 0, 256, 256)),
    "cars": (PAGE / "car.jpg", (55, 25, 695, 505)),
    "bedrooms": (PAGE / "bedroom.jpg", (0, 0, 512, 512)),
    "towers": (PAGE / "tower.jpg", (46, 104, 526, 584)),
}
"""Of each category a photo, and what of it fills a small image, as the page's samples: left, top, right, bottom."""
SIZE, GAP, HEADER = 256, 8, 28
COLUMNS = ("lr", "bicubic", "GLEAN", "ground truth")


def photo(category: str) -> Tensor:
    """The category's photo (3, h, w) in [0, 1]; 4:3 for cars, otherwise square."""
    path, (left, top, right, bottom) = PHOTOS[category]
    return decode(path).premultiplied()[:, top:bottom, left:right]


def ground_truths(category: str, drawn: int) -> list[Tensor]:
    """The category's photo and `drawn` images of its bank (3, 256, 256), in [0, 1]."""
    images = [photo(category)]
    if drawn:
        bank = cast("StyleGAN2", gleansr.load_model(f"{category}-bank", part="generator"))
        for seed in range(drawn):
            z = torch.randn(1, bank.config.code_dim, generator=torch.Generator().manual_seed(seed))
            with torch.inference_mode():
                images.append((bank(z, truncation=0.8)[0].clamp(-1, 1) + 1) / 2)
    return images


def row(upscaler: gleansr.Upscaler, image: Tensor, index: int, degradation: Degradation) -> Tensor:
    """(3, 256, 4 * 256) uint8: lr, bicubic, result and ground truth, as `gleansr evaluate` has them."""
    aspect = "crop" if image.shape[1] == image.shape[2] else default_aspect([upscaler])  # the bank of cars draws bars too
    task = EvaluationTask(SIZE, upscaler.scale, aspect, degradation=degradation)
    gt, content = task.fit(image)
    lr = task.degrade(gt, content, index)
    cells = F.interpolate(lr, size=SIZE), resize(lr, size=SIZE), upscaler.method(lr).images, gt
    inside = torch.cat([content.of(cell)[0] for cell in cells], 2)
    above = (SIZE - inside.shape[1]) // 2
    return to_bytes(F.pad(inside, (0, 0, above, SIZE - inside.shape[1] - above), value=1.0))


def sheet(models: list[str], drawn: int) -> Image.Image:
    """Two rows beside each other per image: clean and real."""
    rows, degradations = [], get_args(Degradation)
    for name in models:
        upscaler, category = gleansr.load(name, device="cpu"), zoo.find(name).category
        for index, gt in enumerate(ground_truths(category, drawn)):
            rows.append((name, [row(upscaler, gt, index, degradation) for degradation in degradations]))
    width = 2 * len(COLUMNS) * SIZE + 3 * GAP
    image = Image.new("RGB", (width, HEADER + len(rows) * (SIZE + GAP)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    for half, degradation in enumerate(("clean", "real")):
        left = GAP + half * (len(COLUMNS) * SIZE + GAP)
        for i, column in enumerate(COLUMNS):
            draw.text((left + i * SIZE + 4, 4), f"{column} ({degradation})" if i == 0 else column, "black", font)
        for j, (name, halves) in enumerate(rows):
            top = HEADER + j * (SIZE + GAP)
            image.paste(Image.fromarray(halves[half].permute(1, 2, 0).numpy()), (left, top))
            draw.text((left + 2 * SIZE + 5, top + 5), name, "black", font)
            draw.text((left + 2 * SIZE + 4, top + 4), name, "white", font)
    return image


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.gallery", description=__doc__, formatter_class=formatter)
    parser.add_argument("--models", nargs="+", help="names; default: all bundled GLEANs")
    parser.add_argument("--drawn", type=int, default=1, help="images that the bank draws, beside the photo")
    parser.add_argument("--width", type=int, default=1024, help="of the sheet in pixels")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    names = options.models or [model.name for model in zoo.named_models() if model.asset and model.kind == "glean"]
    image = sheet(names, options.drawn)
    image = image.resize((options.width, round(image.height * options.width / image.width)), Image.Resampling.LANCZOS)
    image.save(options.output, quality=88, optimize=True)
    print(f"{options.output}: {len(names)} models")


if __name__ == "__main__":
    main()
