"""`gleansr retouch`: a retouched image made realistic."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from gleansr.cli.options import DeviceOptions
from gleansr.cli.progress import fetched
from gleansr.errors import RequestError


@dataclass(frozen=True)
class InputOptions:
    """What is read beside the retouched image."""

    original: Path | None = None
    """The image before the retouch, of the same size. Only what differs is refined, all else stays bit for bit. Without it, the whole
    image is refined."""
    mask: Path | None = None
    """An image, white where the refinement may show, instead of the difference from the original."""
    max_megapixels: float = 200
    """Largest image that is read."""


@dataclass(frozen=True)
class OutputOptions:
    """What is written."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """A file (.png, .jpg, .webp, .tif); by default NAME_retouched.png beside the retouched image."""
    save_mask: Path | None = None
    """File for the mask in use: how much of the refinement shows, in grey."""
    quality: int = 95
    """Quality of JPEG and WebP, 1 to 100."""
    overwrite: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class RefinementOptions:
    """What the model sees, and how its result is blended in."""

    model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None
    """Name of a model (`gleansr models` lists them) or a file of any layout. By default what the region shows is recognised, and the
    bundled model of its category that suits --scale refines it."""
    strength: float = 1.0
    """Blend of both images: 0 is the retouched one, 1 the refined one."""
    scale: int | None = None
    """How many times the image is shrunk before it is refined; the more, the more is repainted. By default the model's scale."""
    feather: int | None = None
    """Pixels over which the refinement fades; by default a 32nd of the region's width."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X,Y,WIDTH")] = None
    """Left, top and width in pixels, such as 100,50,512, of the region that the model sees, which should hold the whole head. By default
    the whole image, or the largest region around the retouch."""
    tolerance: float = 0.01
    """Difference from the original, of 0 to 1, that is ignored."""


def retouch(
    edited: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")],
    inputs: Annotated[InputOptions, tyro.conf.arg(name="input")] = InputOptions(),
    files: Annotated[OutputOptions, tyro.conf.arg(name="output")] = OutputOptions(),
    refinement: RefinementOptions = RefinementOptions(),
    computing: Annotated[DeviceOptions, tyro.conf.arg(name="device")] = DeviceOptions(),
) -> None:
    """Make a retouched image realistic, in one forward pass (docs/retouching.md).

    - gleansr retouch edited.png --original photo.png           refines what differs from the original
    - gleansr retouch edited.png --mask mask.png -o out.png     refines where the mask is white
    - gleansr retouch face.png -m faces-8x --strength 0.5       blends the whole image with its refinement

    Args:
        edited: The retouched image.
    """
    from gleansr.files import check_not_input
    from gleansr.images.codec import check_output, decode, encode
    from gleansr.inference.devices import find_device, find_precision
    from gleansr.inference.router import Models
    from gleansr.inference.upscaler import load
    from gleansr.retouching.refine import RetouchConfig, prepare, refine

    original, mask, overwrite = inputs.original, inputs.mask, files.overwrite
    target = check_output(files.output or edited.with_name(f"{edited.stem}_retouched.png"), overwrite=overwrite)
    check_not_input(target, (edited, original, mask))
    if (save_mask := files.save_mask) is not None:
        check_output(save_mask, overwrite=overwrite)
        check_not_input(save_mask, (edited, original, mask))
        if save_mask.resolve() == target.resolve():
            raise RequestError(f"{save_mask}: is the result; give the mask another name")
    config = RetouchConfig(refinement.strength, refinement.scale, refinement.feather, _box(refinement.box), refinement.tolerance)
    find_precision(computing.precision, find_device(computing.device))  # before a download that would be for nothing
    if not 0 < (max_megapixels := inputs.max_megapixels) <= 1e6:
        raise RequestError(f"--max-megapixels must be above 0 and at most 1000000, not {max_megapixels:g}")
    read = partial(decode, max_pixels=round(max_megapixels * 1e6))
    image = read(edited)
    device, precision = computing.device, computing.precision
    if refinement.model:
        models = load(fetched(refinement.model, computing.offline), device=device, precision=precision)
    else:
        models = Models(device=device, precision=precision)
    prepared = prepare(image, original and read(original), models, config, mask=mask and read(mask))
    name = prepared.upscaler.about.name
    encode(refine(prepared), target, metadata=image.metadata, model=name, quality=files.quality, overwrite=overwrite)
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"{edited} → {target}: {prepared.summary} ({prepared.note})", markup=False, highlight=False)
    if save_mask is not None:
        encode(prepared.mask, save_mask, quality=files.quality, overwrite=overwrite)
        console.print(f"mask → {save_mask}", markup=False, highlight=False)


def _box(text: str | None) -> tuple[int, int, int] | None:
    try:
        left, top, width = map(int, text.split(",")) if text else (0, 0, 0)
    except ValueError:
        raise RequestError(f"--box takes left,top,width in pixels, such as 100,50,512, not {text!r}") from None
    return (left, top, width) if text else None
