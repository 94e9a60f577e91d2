"""`gleansr export`: a network as an ONNX file."""

import os
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from gleansr.cli.progress import fetched
from gleansr.errors import ImageError, RequestError


def export(
    model: tyro.conf.Positional[str],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    batch_size: int = 1,
    dynamic_batch: bool = False,
    fp16: bool = False,
    overwrite: bool = False,
    offline: bool = False,
) -> None:
    """Write a model as an ONNX file, run the file with ONNX Runtime and compare the results (docs/export.md).

    - gleansr export faces-8x -o faces-8x.onnx
    - gleansr export faces-8x -o faces-8x-fp16.onnx --fp16 --dynamic-batch
    - gleansr upscale small.png -m faces-8x.onnx

    Args:
        model: Name of a model, or a file of any supported layout, with a network that enlarges images.
        output: The file, .onnx. `gleansr upscale -m FILE.onnx` and `gleansr.load` read it.
        batch_size: Images in a batch.
        dynamic_batch: Batches of any size.
        fp16: Compute in fp16, except demodulation: half the size, meant for GPUs.
        overwrite: Replace an existing file.
        offline: Never download a model.
    """
    from gleansr.files import check_not_input
    from gleansr.inference import upscaler
    from gleansr.inference.export import export as write

    if output.suffix.lower() != ".onnx":
        raise RequestError(f"{output}: the name of an ONNX file ends in .onnx")
    if dynamic_batch and batch_size != 1:
        raise RequestError("--dynamic-batch takes any number of images; leave --batch-size out")
    if os.path.lexists(output) and not overwrite:
        raise RequestError(f"{output}: already exists; use --overwrite or another -o FILE")
    if not output.parent.is_dir():
        raise ImageError(f"{output}: the folder {output.parent} does not exist")
    file = fetched(model, offline)
    check_not_input(output, [file])
    network = upscaler.load(file, device="cpu", precision="float32")
    done = write(network, output, batch=None if dynamic_batch else batch_size, half=fp16)
    console = Console(stderr=True, soft_wrap=True)
    images = "any number of images" if done.batch is None else "1 image" if done.batch == 1 else f"{done.batch} images"
    console.print(
        f"{model} → {output} ({done.size / 1e6:.1f} MB, {images} at once; run by ONNX Runtime it differs from the network by at most "
        f"{done.difference:.2g} of 255, {done.psnr:.1f} dB)",
        markup=False,
        highlight=False,
    )
