"""`gleansr retouch`: a retouched image made realistic."""

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from gleansr.cli.progress import fetched
from gleansr.errors import RequestError
from gleansr.inference.precision import Precision


def retouch(
    edited: tyro.conf.Positional[Path],
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    original: Path | None = None,
    mask: Path | None = None,
    model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None,
    strength: float = 1.0,
    factor: int | None = None,
    feather: int | None = None,
    box: str | None = None,
    tolerance: float = 0.01,
    save_mask: Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    quality: int = 95,
    overwrite: bool = False,
    max_megapixels: float = 200,
    offline: bool = False,
) -> None:
    """Make a retouched image realistic, in one forward pass; see docs/retouching.md.

    Args:
        edited: The retouched image.
        output: A file (.png, .jpg, .webp, .tif); by default NAME_retouched.png beside the retouched image.
        original: The image before, of the same size: only what differs from it is refined, and all else stays as it is there, bit for
            bit. Without it, the whole image is refined.
        mask: An image that is white where the refined image may show; instead of what the original tells.
        model: Name of a model (see `gleansr models`) or file of any layout; by default cats-8x, or cats-16x for a factor of 16.
        strength: 0 leaves the retouched image as it is, 1 shows the refined one alone.
        factor: How many times the image is shrunk before it is refined, at the size of the model's output; the more, the more is painted
            anew. By default the model's scale.
        feather: Pixels over which the refined image fades into the original; by default a 32nd of the region's width.
        box: Left, top and width in pixels, such as 100,50,512, of the region that the model sees, which should hold the whole head. By
            default the whole image, or the largest region that holds what was touched.
        tolerance: Difference from the original, of 0 to 1, that counts as none.
        save_mask: File for what was found: how much of the refined image shows, in grey.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
        precision: Arithmetic: auto is float32 on a CPU and bfloat16 on a GPU that has it.
        quality: Of JPEG and WebP, 1 to 100.
        overwrite: Replace a result that exists already.
        max_megapixels: The largest image that is read.
        offline: Never download a model.
    """
    from gleansr.files import check_not_input
    from gleansr.images.codec import check_output, decode, encode
    from gleansr.inference.devices import find_device, find_precision
    from gleansr.inference.upscaler import load
    from gleansr.retouching.refine import RetouchConfig, default_model, prepare, refine

    target = check_output(output or edited.with_name(f"{edited.stem}_retouched.png"), overwrite=overwrite)
    check_not_input(target, (edited, original, mask))
    if save_mask is not None:
        check_output(save_mask, overwrite=overwrite)
        check_not_input(save_mask, (edited, original, mask))
        if save_mask.resolve() == target.resolve():
            raise RequestError(f"{save_mask}: is the result; give the mask another name")
    config = RetouchConfig(strength, factor, feather, _box(box), tolerance)
    find_precision(precision, find_device(device))  # before a download that would be for nothing
    if not 0 < max_megapixels <= 1e6:
        raise RequestError(f"--max-megapixels must be above 0 and at most 1000000, not {max_megapixels:g}")
    read = partial(decode, max_pixels=round(max_megapixels * 1e6))
    image = read(edited)
    upscaler = load(fetched(model or default_model(factor), offline), device=device, precision=precision)
    prepared = prepare(image, original and read(original), upscaler, config, mask=mask and read(mask))
    encode(refine(prepared, upscaler), target, metadata=image.metadata, model=upscaler.about.name, quality=quality, overwrite=overwrite)
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"{edited} -> {target} ({prepared.note})", markup=False, highlight=False)
    if save_mask is not None:
        encode(prepared.mask, save_mask, quality=quality, overwrite=overwrite)
        console.print(f"mask -> {save_mask}", markup=False, highlight=False)


def _box(text: str | None) -> tuple[int, int, int] | None:
    try:
        left, top, width = map(int, text.split(",")) if text else (0, 0, 0)
    except ValueError:
        raise RequestError(f"--box takes left,top,width in pixels, such as 100,50,512, not {text!r}") from None
    return (left, top, width) if text else None
