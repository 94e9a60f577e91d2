"""Trains a GLEAN of 8x around a bank from a folder of images. Run again, it resumes.

python examples/train.py images cats-bank runs/mine
"""

import sys
from pathlib import Path

from gleansr.training.config import NetworkRecipe, load_recipe
from gleansr.training.devices import find_devices, launch
from gleansr.training.enlarge import train_network


def main(images: str, bank: str, output: str, *options: str) -> None:
    changes = {"bank_file": bank, "data": {"train": (images,)}, "about": {"name": "mine", "category": "mine"}}
    recipe = load_recipe(NetworkRecipe, "light-8x", options, changes)  # options: run.iterations=400 lr=1e-3
    accelerator, devices, nodes, _ = find_devices(recipe.run)
    print(train_network(recipe, Path(output), launch(accelerator, devices, nodes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
