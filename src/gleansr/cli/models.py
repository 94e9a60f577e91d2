"""`gleansr models`: what models there are, what a file holds, and conversion to the native format."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from gleansr.cli.progress import fetched
from gleansr.errors import RequestError


def models(
    action: tyro.conf.Positional[Literal["list", "info", "convert", "fetch"]] = "list",
    model: tyro.conf.Positional[str | None] = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    bank: str | None = None,
    overwrite: bool = False,
    offline: bool = False,
) -> None:
    """List models, inspect a file, convert it to the native format, or download an official model (docs/checkpoints.md).

    - gleansr models                                       lists them
    - gleansr models info stylegan2.pkl
    - gleansr models convert glean.pth -o glean.safetensors

    Args:
        action: list: bundled and official models; info: the networks in MODEL; convert: write MODEL in the native format; fetch: download
            MODEL.
        model: Name of a model, or a file of any supported layout.
        output: convert: the .safetensors file to write.
        dtype: convert: how tensors are stored; float16 and bfloat16 take half the space and load as float32.
        bank: convert: refer to this bundled bank, which must be the one in the GLEAN, instead of storing it.
        overwrite: convert: replace an existing file.
        offline: Never download a model.
    """
    if action == "list":
        _list()
        return
    if model is None:
        raise RequestError(f"`gleansr models {action}` needs the name of a model or a file")
    if action == "info":
        _info(model, offline)
    elif action == "convert":
        _convert(model, output, dtype, bank, overwrite, offline)
    else:
        Console().print(str(fetched(model, offline)), soft_wrap=True, highlight=False)


def _list() -> None:
    from gleansr.checkpoints.zoo import file_of, installed, named_models

    for entry in named_models():
        scale = f"{entry.out_size // entry.in_size}x" if entry.in_size else "bank"
        sizes = f"{entry.in_size} → {entry.out_size}" if entry.in_size else str(entry.out_size)
        print(f"{entry.name:<18}{scale:<6}{sizes:<14}{entry.category}")
        print(f"    licence: {entry.licence}")
        print(f"    file: {file_of(entry)}" if installed(entry) else f"    fetched on first use from {entry.url}")


def _info(model: str, offline: bool) -> None:
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


def _convert(model: str, output: Path | None, dtype: str, bank: str | None, overwrite: bool, offline: bool) -> None:
    import torch

    from gleansr import checkpoints
    from gleansr.checkpoints import native, shared
    from gleansr.files import check_not_input

    if output is None or output.suffix != ".safetensors":
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
    try:
        native.write(output, checkpoint, dtype=getattr(torch, dtype))
    except OSError as error:
        raise RequestError(f"{output}: cannot be written ({error.strerror})") from None
    Console(stderr=True, soft_wrap=True).print(f"{path} ({checkpoint.layout}) → {output}", markup=False, highlight=False)
