"""Enlarges an image and says what was recognised.

python examples/upscale_image.py small.png large.png
"""

import sys

import gleansr


def main(source: str, target: str) -> None:
    image = gleansr.upscale(source)  # scale=2 for exactly twice as large, model="cats-8x" instead of a choice
    image.save(target)
    print(f"{target}: {image.width}x{image.height}, {image.info['gleansr']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
