"""`gleansr train` and `gleansr train-bank`: recipes in, models out."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

Folder = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Paths = tuple[Path, ...]


def train(
    recipe: tyro.conf.Positional[str],
    output: Folder,
    bank: Path | None = None,
    data: Paths = (),
    validation: Paths = (),
    set: tuple[str, ...] = (),
    device: str = "auto",
    dry_run: bool = False,
) -> None:
    """Train a GLEAN around a bank. A run that was stopped goes on where it was when the same command is given again.

    Args:
        recipe: A .toml file or the name of a bundled recipe.
        output: Folder for the state, the log, sample sheets and the model.
        bank: File with the trained bank.
        data: Folders or zip archives of pictures to learn from.
        validation: Folders or zip archives of pictures to report on.
        set: Changes to the recipe, such as run.images=1000 lr=2e-4.
        device: auto, cpu, cuda, cuda:1.
        dry_run: Check the recipe, print it resolved and stop.
    """
    from gleansr.training.config import GLEANRecipe, load_recipe
    from gleansr.training.glean import train_glean

    changes = _changes(data, validation) | ({"bank": str(bank)} if bank else {})
    _run(train_glean, load_recipe(GLEANRecipe, recipe, set, changes), output, device, dry_run)


def train_bank(
    recipe: tyro.conf.Positional[str],
    output: Folder,
    start: Path | None = None,
    data: Paths = (),
    set: tuple[str, ...] = (),
    device: str = "auto",
    dry_run: bool = False,
) -> None:
    """Train a StyleGAN2 bank. A run that was stopped goes on where it was when the same command is given again.

    Args:
        recipe: A .toml file or the name of a bundled recipe.
        output: Folder for the state, the log, sample sheets and the bank.
        start: A bank of the same or a smaller size to start from.
        data: Folders or zip archives of pictures to learn from.
        set: Changes to the recipe, such as run.images=1000 lr=2e-3.
        device: auto, cpu, cuda, cuda:1.
        dry_run: Check the recipe, print it resolved and stop.
    """
    from gleansr.training import bank
    from gleansr.training.config import BankRecipe, load_recipe

    changes = _changes(data, ()) | ({"start": str(start)} if start else {})
    _run(bank.train_bank, load_recipe(BankRecipe, recipe, set, changes), output, device, dry_run)


def _changes(data: Paths, validation: Paths) -> dict[str, Any]:
    """What the command line says of the data, as part of a recipe."""
    given = {"train": [str(p) for p in data], "validation": [str(p) for p in validation]}
    return {"data": {key: value for key, value in given.items() if value}}


def _run(train: Callable[..., Path], recipe: Any, output: Path, device: str, dry_run: bool) -> None:
    """Trains with progress, or prints the resolved recipe."""
    if dry_run:
        print(json.dumps(dataclasses.asdict(recipe), indent=2))
        return
    from gleansr.cli.progress import training
    from gleansr.upscaler import find_device

    with training(recipe.run.images) as report:
        path = train(recipe, output, find_device(device), report)
    Console(stderr=True, soft_wrap=True).print(f"finished: {path}", markup=False, highlight=False)
