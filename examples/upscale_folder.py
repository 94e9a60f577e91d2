"""Enlarges a folder. Run again, it does what is missing.

python examples/upscale_folder.py small large
"""

import sys

import gleansr


def main(source: str, target: str) -> None:
    summary = gleansr.upscale_folder(source, target)  # model="faces-8x" for one model, scale=4 for one scale
    print(summary)
    for name, reason in summary.failures.items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main(*sys.argv[1:])
