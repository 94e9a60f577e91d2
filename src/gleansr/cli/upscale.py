"""`gleansr upscale`: images and folders of images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gleansr.cli.options import BatchOptions
from gleansr.cli.progress import fetched
from gleansr.errors import RequestError

if TYPE_CHECKING:
    from gleansr.inference.tasks import ImageTask
    from gleansr.inference.upscaler import Upscaler


@dataclass(frozen=True)
class FileOptions:
    """What is written, and where."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """A file (.png, .jpg, .webp, .tif) for one image, otherwise a folder, which mirrors the tree of an input folder. By default NAME_8x.png
    beside NAME, and FOLDER_8x beside FOLDER."""
    overwrite: bool = False
    """Replace existing files. Outdated results that the manifest lists are replaced anyway."""
    quality: int = 95
    """Quality of JPEG and WebP, 1 to 100."""
    sidecar: bool = False
    """Write NAME.json beside each result: model, options, objects found, consistency in dB."""
    manifest: Path | None = None
    """File that records finished images, instead of gleansr.jsonl in the output folder; works without --output too."""
    max_megapixels: float = 200
    """Largest image that is read. Decoding takes about 8 MB per megapixel, up to 24 MB with --photo."""
    allow_truncated: bool = False
    """Read truncated files as far as they go; missing rows are black, and their number is reported."""
    fail_fast: bool = False
    """Stop at the first failure."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """Print a line for each result, also where there are many."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print warnings and errors only."""


@dataclass(frozen=True)
class ModelOptions:
    """Which model enlarges, and how an image is fitted to its input."""

    model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None
    """Name of a model (`gleansr models` lists them) or a file of any layout; by default cats-8x, or the one for --method and --scale."""
    method: Literal["auto", "glean", "esrgan+", "plain", "dgp", "pulse", "bicubic"] = "auto"
    """auto: the network in the model's file. pulse and dgp search its bank, which takes 100 to 2,000 times as long (docs/baselines.md)."""
    scale: int | None = None
    """How many times larger the result is: of photos (1 to 64), pulse, dgp and bicubic. A network has a fixed scale."""
    option: tuple[str, ...] = ()
    """Settings of pulse and dgp, such as steps=50 seed=1."""
    fit: Literal["auto", "crop", "pad", "stretch", "exact"] = "auto"
    """For an image that does not have the model's input size. pad (auto): repeat the border up to a square; crop: cut out the centre
    square; stretch: resize both sides; exact: refuse it."""
    back_project: bool = False
    """Change each result as little as possible, so that it shrinks to its input again."""
    back_project_strength: float | None = None
    """Strength of back-projection, 0 to 1; by default 1. Implies --back-project."""


@dataclass(frozen=True)
class PhotoOptions:
    """Whole photos: faces, cats and other objects are found, enlarged by the model and pasted back (docs/photos.md)."""

    photo: bool = False
    """Treat each image as a photo."""
    box: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Left, top, width and height of an object in pixels, such as 100,50,200,200, instead of a search; repeatable. Implies --photo."""
    aligned: bool = False
    """Each image is one object."""
    background: str | None = None
    """Model for the rest of the photo, one that takes any size; by default bicubic."""
    keep_detail: float | None = None
    """How much of the photo's own detail in an object is kept, 0 to 1; by default what a sharp photo resolves, none of a blurred one."""
    require_object: bool = False
    """Fail on a photo in which nothing is found; exit status 3 if nothing else failed."""


@dataclass(frozen=True)
class VideoOptions:
    """Video files are recognised; their options (docs/video.md)."""

    video: bool = False
    """Folders hold the numbered frames of a video."""
    rate: float | None = None
    """Frames per second of a video made of numbered frames; by default 25."""
    detect_every: int | None = None
    """Search objects in every N-th frame and interpolate in between; by default about ten times a second. For --photo."""


@dataclass(frozen=True)
class ClusterOptions:
    """Ray clusters, and inputs and outputs with addresses such as s3://bucket/folder (docs/cluster.md)."""

    ray: tuple[str, ...] | None = None
    """Run on the Ray cluster at HOST:PORT; by default the one of $RAY_ADDRESS or of this machine, or else a new one of its cores."""
    ray_workers: int | None = None
    """Models at once; by default one per GPU, or per core."""
    ray_cores: int | None = None
    """CPU cores per model."""


def upscale(
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER|VIDEO ...")] = (),
    files: Annotated[FileOptions, tyro.conf.arg(name="output")] = FileOptions(),
    network: Annotated[ModelOptions, tyro.conf.arg(name="model")] = ModelOptions(),
    photos: Annotated[PhotoOptions, tyro.conf.arg(name="photo")] = PhotoOptions(),
    videos: Annotated[VideoOptions, tyro.conf.arg(name="video")] = VideoOptions(),
    cluster: ClusterOptions = ClusterOptions(),
    computing: Annotated[BatchOptions, tyro.conf.arg(name="device")] = BatchOptions(),
) -> None:
    """Enlarge images, folders of images, photos and videos.

    - gleansr upscale cat.jpg                        writes cat_8x.png
    - gleansr upscale me.jpg --photo -m faces-8x     a whole photo: faces by faces-8x, the rest by bicubic
    - gleansr upscale small/ -o large/               a folder; run it again to resume (docs/folders.md)

    Args:
        inputs: Images, folders of images, videos.
    """
    from gleansr.cli.clusters import requested
    from gleansr.cli.results import upscale_all
    from gleansr.cli.video import upscale_videos, videos_among
    from gleansr.files import sha256_of
    from gleansr.inference.devices import find_device, find_precision
    from gleansr.jobs import Work
    from gleansr.jobs.folder import run_settings
    from gleansr.stores import is_url, normalize

    ray_cluster, device = None, computing.device
    if cluster.ray is not None:
        ray_cluster, more = requested(cluster.ray, cluster.ray_workers, cluster.ray_cores, device)
        inputs, device = inputs + more, "cpu"  # of this machine, which only sends the model
    elif cluster.ray_workers is not None or cluster.ray_cores is not None:
        raise RequestError("--ray-workers and --ray-cores are for a cluster: give --ray too")
    elif addressed := [normalize(path) for path in (*inputs, *([files.output] if files.output else [])) if is_url(normalize(path))]:
        raise RequestError(f"{addressed[0]}: images and results with addresses are for clusters: give --ray too")
    computing = replace(computing, device=device)
    photos = replace(photos, photo=photos.photo or bool(photos.box))
    _check(inputs, files, photos, computing)
    request = videos_among(inputs, files.output, video=videos.video, rate=videos.rate, detect_every=videos.detect_every, photo=photos.photo)
    if request and (ray_cluster or files.manifest):
        raise RequestError("--ray and --manifest are for images, not for videos")
    one_file = len(inputs) == 1 and not any(source.is_dir() for source in inputs)
    to_file = _is_file(files.output, one_file=one_file, videos=request is not None)
    strength = _strength(network)
    boxes = tuple(_box(text) for text in photos.box)

    find_precision(computing.precision, find_device(device))  # before a download that would be for nothing
    upscaler, file = _upscaler(network, computing, photo=photos.photo)
    settings = run_settings(upscaler, computing.precision, network.option)
    task = _task(upscaler, network, photos, boxes, strength, computing, settings, measured=files.sidecar)
    slow = network.method in ("dgp", "pulse")
    label = " ".join(filter(None, [network.method if network.method != "auto" else "", file.stem if file else ""]))
    if request:
        sha256 = sha256_of(file) if file else None
        batch_size = computing.batch_size or upscaler.default_batch_size()
        work = Work(task, batch_size, sha256, settings, files.quality, files.overwrite, files.sidecar)
        upscale_videos(request, work, model=label, slow=slow, fail_fast=files.fail_fast, verbose=files.verbose, quiet=files.quiet)
        return
    if ray_cluster:
        from gleansr.cluster import destinations
    else:
        from gleansr.jobs import destinations
    found = destinations(inputs, files.output, f"_{task.factor}x", to_file=to_file, manifest=files.manifest)
    recorded = files.sidecar or any(place.manifest for place in found)
    alone = one_file and not files.manifest  # so that all threads are for the one image
    work = Work(
        task,
        computing.batch_size or (1 if alone and not photos.photo else upscaler.default_batch_size()),
        sha256_of(file) if file and recorded else None,
        settings,
        files.quality,
        files.overwrite,
        files.sidecar,
        max_pixels=round(files.max_megapixels * 1e6),
        allow_truncated=files.allow_truncated,
    )
    upscale_all(
        found, work, model=label, slow=slow, fail_fast=files.fail_fast, verbose=files.verbose, quiet=files.quiet, cluster=ray_cluster
    )


def _check(inputs: tuple[Path, ...], files: FileOptions, photos: PhotoOptions, computing: BatchOptions) -> None:
    """Raises RequestError for what is wrong whatever the model is."""
    from gleansr.images.codec import FORMATS

    if not inputs:
        raise RequestError("give at least one image, folder or video; `gleansr upscale --help` has examples")
    if computing.batch_size is not None and computing.batch_size < 1:
        raise RequestError(f"--batch-size must be at least 1, not {computing.batch_size}")
    if not 1 <= files.quality <= 100:
        raise RequestError(f"--quality must be 1 to 100, not {files.quality}")
    if not 0 < files.max_megapixels <= 1e6:
        raise RequestError(f"--max-megapixels must be above 0 and at most 1000000, not {files.max_megapixels:g}")
    if files.verbose and files.quiet:
        raise RequestError("--verbose and --quiet exclude each other")
    suffix = files.manifest.suffix.lower() if files.manifest else ""
    if suffix in FORMATS or (files.sidecar and suffix == ".json"):
        raise RequestError(f"--manifest {files.manifest}: is a name of a result; give one that ends in .jsonl")
    if not photos.photo:
        for name in ("aligned", "background", "keep_detail", "require_object"):
            if getattr(photos, name) not in (None, False):
                raise RequestError(f"--{name.replace('_', '-')} is for photos: give --photo too")


def _is_file(output: Path | None, *, one_file: bool, videos: bool) -> bool:
    """Whether the output is a file rather than a folder.

    Raises:
        RequestError: it is one file for several images, or of an unknown format.
    """
    from gleansr.images.codec import FORMATS

    if output is None or output.is_dir():
        return False
    to_file = output.suffix.lower() in FORMATS
    if to_file and not one_file:
        raise RequestError(f"{output}: is one file, but there are several images; give a folder with --output")
    if output.suffix and not to_file and one_file and not videos:
        raise RequestError(f"{output}: unknown kind of image {output.suffix!r}; use one of {', '.join(FORMATS)}")
    return to_file


def _strength(network: ModelOptions) -> float:
    """Of back-projection; 0 without."""
    if network.back_project_strength is None:
        return float(network.back_project)
    if not 0 <= network.back_project_strength <= 1:
        raise RequestError(f"--back-project-strength must be 0 to 1, not {network.back_project_strength}")
    return network.back_project_strength


def _task(
    upscaler: "Upscaler",
    network: ModelOptions,
    photos: PhotoOptions,
    boxes: tuple[tuple[float, float, float, float], ...],
    strength: float,
    computing: BatchOptions,
    settings: dict[str, Any],
    *,
    measured: bool,
) -> "ImageTask":
    """What is done with each image; adds the background's model to `settings`."""
    from gleansr.files import sha256_of
    from gleansr.inference.tasks import Enlarge

    if not photos.photo:
        return Enlarge(upscaler, network.fit, strength, measured=measured)
    from gleansr.photos import Photo, PhotoConfig

    background, file = _upscaler(ModelOptions(photos.background), computing) if photos.background else (None, None)
    settings["background_sha256"] = file and sha256_of(file)
    config = PhotoConfig(
        boxes,
        photos.aligned,
        network.scale,
        back_project=strength,
        keep_detail=photos.keep_detail,
        require_object=photos.require_object,
        measure_consistency=measured,
    )
    return Photo(upscaler, config, background=background)


def _upscaler(network: ModelOptions, computing: BatchOptions, *, photo: bool = False) -> "tuple[Upscaler, Path | None]":
    """With the file of its model, if it has one. In photos `scale` is that of the photo, not of the model."""
    scale = None if photo else network.scale
    if network.method == "auto":
        from gleansr.inference.upscaler import load

        if network.option:
            raise RequestError("--option is for pulse and dgp: give --method pulse or --method dgp too")
        name = network.model or "cats-8x"
        file = fetched(name, computing.offline)
        upscaler = load(file, device=computing.device, precision=computing.precision)
        if scale not in (None, upscaler.scale):
            raise RequestError(
                f"--scale {scale}: {name} enlarges {upscaler.scale} times; give a model of that scale, or --photo or --method bicubic"
            )
        return upscaler, file
    from gleansr import baselines
    from gleansr.configs import parse_override

    settings = {key: value for change in network.option for key, value in parse_override(change).items()}
    model = network.model
    if model is None and network.method != "bicubic":
        model = baselines.bundled(network.method, scale or 8)
    file = fetched(model, computing.offline) if model else None
    device, precision = computing.device, computing.precision
    return baselines.load(network.method, file, scale=scale, device=device, precision=precision, settings=settings), file


def _box(text: str) -> tuple[float, float, float, float]:
    try:
        left, top, width, height = map(float, text.split(","))
    except ValueError:
        raise RequestError(f"--box takes left,top,width,height in pixels, such as 100,50,200,200, not {text!r}") from None
    return left, top, width, height
