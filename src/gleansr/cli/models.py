"""`gleansr models`: what models there are, what a file holds, and conversion to the native format."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from gleansr.cli.progress import fetched
from gleansr.errors import GleansrError, RequestError


def list_models() -> None:
    """List the bundled and the official models, with licences and files.

    - gleansr models
    """
    from gleansr.checkpoints.zoo import file_of, installed, named_models

    for entry in named_models():
        scale = f"{entry.out_size // entry.in_size}x" if entry.in_size else "bank"
        sizes = f"{entry.in_size} → {entry.out_size}" if entry.in_size else str(entry.out_size)
        print(f"{entry.name:<22}{scale:<6}{sizes:<14}{entry.category}")
        print(f"    licence: {entry.licence}")
        if installed(entry):
            print(f"    file: {file_of(entry)}")
        else:
            known = entry.sha256_prefix or ""
            facts = [*([f"{entry.size / 1e6:.1f} MB"] if entry.size else []), f"SHA-256 {known}{'' if len(known) == 64 else '…'}"]
            print(f"    fetched on first use from {entry.url} ({', '.join(facts)})")


def info(model: tyro.conf.Positional[str], offline: bool = False) -> None:
    """Say what a model's file holds: layout, networks, licence, training.

    - gleansr models info stylegan2.pkl

    Args:
        model: Name of a model, or a file of any supported layout.
        offline: Never download a model.
    """
    from gleansr import checkpoints

    path = fetched(model, offline)
    checkpoint = checkpoints.read(path)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{path}\nlayout: {checkpoint.layout}", markup=False)
    for part, network in checkpoint.networks.items():
        count = sum(p.numel() for p in network.build(path).parameters())
        console.print(f"{part}: {network.kind}, {count:,} parameters", markup=False)
        console.print(f"  {json.dumps(dataclasses.asdict(network.config))}", markup=False)
    for key, value in dataclasses.asdict(checkpoint.about).items():
        if value:
            console.print(f"{key}: {json.dumps(value) if isinstance(value, dict) else value}", markup=False)


def convert(
    model: tyro.conf.Positional[str],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32",
    bank: str | None = None,
    self_ensemble: Literal["on", "off"] | None = None,
    overwrite: bool = False,
    offline: bool = False,
) -> None:
    """Write a model in the native format (docs/checkpoints.md).

    - gleansr models convert glean.pth -o glean.safetensors

    Args:
        model: Name of a model, or a file of any supported layout.
        output: The .safetensors file to write.
        dtype: How tensors are stored; all load as float32. float16 and bfloat16 take half the space, int8, with a scale for each channel, a
            quarter.
        bank: Refer to this bundled bank, which must be the one in the GLEAN, instead of storing it.
        self_ensemble: Whether the model's results are the mean of those for the image and for its mirror image: better, in twice the time.
            By default as in MODEL.
        overwrite: Replace an existing file.
        offline: Never download a model.
    """
    import torch

    from gleansr import checkpoints
    from gleansr.checkpoints import native, shared
    from gleansr.files import check_not_input

    if output.suffix != ".safetensors":
        raise RequestError(f"`gleansr models convert` writes a .safetensors file: give one with -o, not {output}")
    if os.path.lexists(output) and not overwrite:
        raise RequestError(f"{output}: already exists; use --overwrite or another -o FILE")
    path = fetched(model, offline)
    check_not_input(output, [path])
    checkpoint = checkpoints.read(path)
    for network in checkpoint.networks.values():
        network.build(path)  # what does not fit its architecture is not worth converting
    if bank:
        checkpoint = shared.detach_bank(checkpoint, bank, path)
    if self_ensemble:
        about = dataclasses.replace(checkpoint.about, self_ensemble=self_ensemble == "on")
        checkpoint = dataclasses.replace(checkpoint, about=about)
    try:
        native.write(output, checkpoint, dtype=getattr(torch, dtype))
    except OSError as error:
        raise GleansrError(f"{output}: cannot be written ({error.strerror or error})") from None
    Console(stderr=True, soft_wrap=True).print(f"{path} ({checkpoint.layout}) → {output}", markup=False, highlight=False)


def fetch(model: tyro.conf.Positional[str]) -> None:
    """Download an official model, or all of a category, if they are not there, and print the paths of their files.

    - gleansr models fetch glean-faces-16x
    - gleansr models fetch faces

    Args:
        model: Name of a model or a category.
    """
    from gleansr.checkpoints.zoo import named_models

    names = [entry.name for entry in named_models() if entry.category == model and entry.url] or [model]
    for name in names:
        Console().print(str(fetched(name, False)), soft_wrap=True, highlight=False)


ACTIONS = {"list": list_models, "info": info, "convert": convert, "fetch": fetch}
