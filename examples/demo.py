"""Upscales a cat 8x with the bundled model and lays lr | bicubic | GLEAN side by side. `make demo` runs it."""

from pathlib import Path

from PIL import Image

import gleansr


def main() -> None:
    low_path = Path(__file__).with_name("chelsea-32.png")
    upscaler = gleansr.load("cats-8x")
    with Image.open(low_path) as low:
        size = (upscaler.output_size, upscaler.output_size)
        bicubic = low.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        nearest = low.convert("RGB").resize(size, Image.Resampling.NEAREST)
    result = upscaler(low_path)

    sheet = Image.new("RGB", (3 * size[0] + 16, size[1]), "white")
    for i, picture in enumerate((nearest, bicubic, result)):
        sheet.paste(picture, (i * (size[0] + 8), 0))
    folder = Path("demo")
    folder.mkdir(exist_ok=True)
    result.save(folder / "chelsea-256.png")
    sheet.save(folder / "comparison.png")
    print(f"{low_path} ({low.width}x{low.height}) enlarged {upscaler.scale}x on {upscaler.device}.")
    print(f"lr | bicubic | GLEAN: {(folder / 'comparison.png').resolve()}")


if __name__ == "__main__":
    main()
