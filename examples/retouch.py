"""Makes a retouched image realistic where it differs from the original.

python examples/retouch.py edited.png original.png refined.png
"""

import sys

import gleansr


def main(edited: str, original: str, target: str) -> None:
    refined = gleansr.retouch(edited, original, strength=1.0)  # model="faces-8x" instead of a choice
    refined.save(target)
    print(f"{target}: {refined.info['gleansr']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
