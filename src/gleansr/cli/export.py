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
    """Write a network as an ONNX file, run the file with ONNX Runtime and compare.

    Args:
        model: Name of a model, or a file of any supported layout, with a network that enlarges images.
        output: The file, .onnx. `gleansr upscale -m FILE.onnx` and `gleansr.load` take it.
        batch_size: Images that go in together.
        dynamic_batch: Any number of images may go in together.
        fp16: Compute in float16, but for demodulation: half the size, meant for GPUs.
        overwrite: Replace the file.
        offline: Never download a model.
    """
    from gleansr.files import spare
    from gleansr.inference import upscaler
    from gleansr.inference.export import export as write

    if output.suffix.lower() != ".onnx":
        raise RequestError(f"{output}: the name of an ONNX file ends in .onnx")
    if dynamic_batch and batch_size != 1:
        raise RequestError("--dynamic-batch takes any number of images; leave --batch-size out")
    if os.path.lexists(output) and not overwrite:
        raise RequestError(f"{output}: exists already and may not be overwritten; --overwrite replaces it")
    if not output.parent.is_dir():
        raise ImageError(f"{output}: the folder {output.parent} does not exist")
    file = fetched(model, offline)
    spare(output, [file])
    network = upscaler.load(file, device="cpu", precision="float32")
    done = write(network, output, batch=None if dynamic_batch else batch_size, half=fp16)
    console = Console(stderr=True, soft_wrap=True)
    images = "any number of images" if done.batch is None else "1 image" if done.batch == 1 else f"{done.batch} images"
    console.print(
        f"{model} -> {output} ({done.size / 1e6:.1f} MB, {images} at once; run by ONNX Runtime it differs from the network by at most "
        f"{done.difference:.2g} of 255, {done.psnr:.1f} dB)",
        markup=False,
        highlight=False,
    )
