"""The figures of the paper's supplement, from images that the project may show: docs/figures/figure1.jpg to figure8.jpg.

    python -m benchmarks.figures -o docs/figures [--numbers 3 5]

Images are the photos in examples/ and what the bank of the category draws from the seeds 0, 1, 2, ...; nothing is chosen. Methods are those
that have a bundled model for the category. The retouches of figure 8 are drawn by this script, badly on purpose.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.gallery import PHOTOS, ground_truths
from gleansr.cli import main as gleansr
from gleansr.images.pixels import to_bytes

WIDTH = 1200
"""Of a figure in pixels."""


@dataclass(frozen=True)
class Figure:
    """What a figure shows."""

    category: str
    methods: str | None = None
    images: int = 2
    drawn: int = 2
    """Images of the bank, beside the photo of the category if there is one."""


FIGURES = {
    1: Figure("faces", "pulse,glean", images=6, drawn=5),
    2: Figure("faces", "bicubic,pulse,glean", images=3),
    3: Figure("faces", images=6, drawn=5),
    4: Figure("cats", "pulse,esrgan+,glean", drawn=6),
    5: Figure("cars", "bicubic,pulse,glean", drawn=7),
    6: Figure("bedrooms", "bicubic,pulse,glean", drawn=7),
    7: Figure("towers", "bicubic,pulse,glean", drawn=7),
}


def retouch_cat(image: Image.Image) -> None:
    """Enlarges an eye by repeating its pixels, and paints over fur with flat strokes."""
    eye = image.crop((62, 70, 122, 128)).resize((80, 78), Image.Resampling.NEAREST)
    image.paste(eye, (52, 60))
    draw = ImageDraw.Draw(image)
    for y in (176, 184, 192):
        draw.line((150, y, 196, y - 8), image.getpixel((170, 150)), 7)


def retouch_face(image: Image.Image) -> None:
    """Enlarges an eye by repeating its pixels, and paints lips and eyebrows with flat strokes."""
    eye = image.crop((142, 108, 180, 132)).resize((52, 34), Image.Resampling.NEAREST)
    image.paste(eye, (135, 103))
    draw = ImageDraw.Draw(image)
    draw.line((97, 178, 110, 190, 126, 193, 142, 190, 156, 178), (176, 40, 48), 7)
    draw.line((76, 104, 112, 98), (84, 52, 36), 6)
    draw.line((140, 98, 182, 104), (84, 52, 36), 6)


RETOUCHES: dict[str, Callable[[Image.Image], None]] = {"cats": retouch_cat, "faces": retouch_face}


def retouching(folder: Path, category: str) -> tuple[Path, Path]:
    """Folders with a category's photo before and after an amateur's retouch."""
    before, after = folder / f"{category}-photos", folder / f"{category}-retouched"
    for path in (before, after):
        path.mkdir()
    with Image.open(PHOTOS[category][0]) as photo:
        image = photo.convert("RGB")
    image.save(before / "photo.png")
    RETOUCHES[category](image)
    image.save(after / "photo.png")
    return before, after


def command(number: int, folder: Path, output: Path) -> None:
    """Draws figures 1 to 7."""
    figure = FIGURES[number]
    data = folder / f"{figure.category}-{figure.drawn}"
    data.mkdir(exist_ok=True)
    for i, image in enumerate(ground_truths(figure.category, figure.drawn)):
        Image.fromarray(to_bytes(image * 2 - 1).permute(1, 2, 0).numpy()).save(data / f"{i}.png")
    category = ["--category", figure.category] if number < 4 else []
    methods = ["--methods", figure.methods] if figure.methods else []
    gleansr(["figure", str(number), str(data), "-o", str(output), "--images", str(figure.images), *category, *methods])


def as_jpeg(images: list[Path], output: Path) -> None:
    """Writes PNG images, one above the other, as one JPEG of WIDTH."""
    parts = []
    for path in images:
        with Image.open(path) as image:
            parts.append(image.convert("RGB").resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS))
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    sheet.save(output, quality=88, optimize=True)
    print(f"{output}: {sheet.width}x{sheet.height}")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.figures", description=__doc__, formatter_class=formatter)
    parser.add_argument("--numbers", nargs="+", type=int, choices=range(1, 9), default=range(1, 9))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in options.numbers:
            parts = []
            for category in [FIGURES[number].category] if number in FIGURES else RETOUCHES:
                parts.append(folder / f"{number}-{category}.png")
                if number in FIGURES:
                    command(number, folder, parts[-1])
                else:
                    before, after = retouching(folder, category)
                    gleansr(["figure", "8", str(after), "--original", str(before), "-o", str(parts[-1]), "--category", category])
            as_jpeg(parts, options.output / f"figure{number}.jpg")


if __name__ == "__main__":
    main()
