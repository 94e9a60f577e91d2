"""Upscales a cat 8x with the bundled model and lays lr | bicubic | GLEAN side by side. `make demo` runs it."""

from pathlib import Path

from PIL import Image

import gleansr


def main() -> None:
    lr_path = Path(__file__).with_name("chelsea-32.png")
    upscaler = gleansr.load("cats-8x")
    with Image.open(lr_path) as lr:
        size = (upscaler.output_size, upscaler.output_size)
        bicubic = lr.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        nearest = lr.convert("RGB").resize(size, Image.Resampling.NEAREST)
    result = upscaler(lr_path)

    sheet = Image.new("RGB", (3 * size[0] + 16, size[1]), "white")
    for i, image in enumerate((nearest, bicubic, result)):
        sheet.paste(image, (i * (size[0] + 8), 0))
    folder = Path("demo")
    folder.mkdir(exist_ok=True)
    result.save(folder / "chelsea-256.png")
    sheet.save(folder / "comparison.png")
    print(f"{lr_path} ({lr.width}x{lr.height}) enlarged {upscaler.scale}x on {upscaler.device}.")
    print(f"lr | bicubic | GLEAN: {(folder / 'comparison.png').resolve()}")


if __name__ == "__main__":
    main()
