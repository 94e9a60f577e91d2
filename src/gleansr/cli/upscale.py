"""`gleansr upscale`: images and folders of images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from gleansr.cli.options import BatchOptions
from gleansr.cli.progress import fetched
from gleansr.errors import ImageError, RequestError

if TYPE_CHECKING:
    from gleansr.inference.upscaler import Upscaler
    from gleansr.jobs.plan import TaskPlan
    from gleansr.photos import PhotoConfig


_ANY_SCALE = ("dgp", "pulse", "bicubic")
"""Methods that enlarge by any scale."""


@dataclass(frozen=True)
class FileOptions:
    """What is written, and where."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """A file (.png, .jpg, .webp, .tif) for one image, otherwise a folder, which mirrors the tree of an input folder; - is the standard
    output. By default NAME_8x.png beside NAME, and FOLDER_upscaled beside FOLDER."""
    file_format: Annotated[Literal["png", "jpg", "webp", "tif"] | None, tyro.conf.arg(name="format")] = None
    """Format of results that have no name of their own; by default png."""
    overwrite: bool = False
    """Replace existing files. Outdated results that the manifest lists are replaced anyway."""
    quality: int | None = None
    """Quality of JPEG and WebP, 1 to 100; by default 95."""
    sidecar: bool = False
    """Write NAME.json beside each result: model, options, objects found, consistency in dB."""
    manifest: Path | None = None
    """File that records finished images, instead of gleansr.jsonl in the output folder; works without --output too."""
    max_megapixels: float = 200
    """Largest image that is read. Decoding takes about 8 MB per megapixel, enlarging up to 24 MB more."""
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

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "auto"
    """Name of a model (`gleansr models` lists them) or a file of any layout. auto: what each image needs; with --method the bundled model
    of that method and --scale."""
    method: Literal["auto", "glean", "esrgan+", "plain", "dgp", "pulse", "bicubic"] = "auto"
    """auto: the network in the model's file. pulse and dgp search its bank, which takes 100 to 2,000 times as long (docs/baselines.md)."""
    scale: int | None = None
    """How many times larger the result is, 1 to 64; by default that of the model for thumbnails and 4 for larger images, less if the result
    would exceed 50 megapixels."""
    self_ensemble: Literal["on", "off"] | None = None
    """Whether a result is the mean of those for the image and for its mirror image: better, in twice the time. By default as in the model's
    file: on for the bundled models of a category."""
    option: tuple[str, ...] = ()
    """Settings of pulse and dgp, such as steps=50 seed=1."""
    fit: Literal["auto", "crop", "pad", "stretch", "exact"] = "auto"
    """With --model, for an image that does not have its input size. auto: the result is exactly --scale times as large. The others bring
    the image to the model's input size, and the result has its output size: pad repeats the border up to a square, crop cuts out the
    centre square, stretch resizes both sides, exact refuses the image."""
    back_project: bool = False
    """Change each result as little as possible, so that it shrinks to its input again."""
    back_project_strength: float | None = None
    """Strength of back-projection, 0 to 1; by default 1. Implies --back-project."""

    @property
    def automatic(self) -> bool:
        """Whether each image gets the models that it needs."""
        return self.method == self.model == "auto"

    @property
    def ensemble(self) -> bool | None:
        """`self_ensemble` as the library takes it."""
        return None if self.self_ensemble is None else self.self_ensemble == "on"

    @property
    def strength(self) -> float:
        """Of back-projection; 0 without."""
        return float(self.back_project) if self.back_project_strength is None else self.back_project_strength


@dataclass(frozen=True)
class PhotoOptions:
    """Photos: small faces and cats are found, enlarged by their models and pasted back (docs/photos.md)."""

    photo: bool = False
    """Search objects in thumbnails too; with --model, enlarge also objects that are much larger than its input."""
    box: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Left, top, width and height of an object in pixels, such as 100,50,200,200, instead of a search; repeatable. Implies --photo."""
    aligned: bool = False
    """Each image is one object."""
    background: str | None = None
    """Model for the rest of the photo, one that takes any size; by default general-4x, and with --photo and --model bicubic."""
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
    """Search objects in every N-th frame and interpolate in between; by default about ten times a second. Not where one model enlarges
    whole frames."""


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
    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER|VIDEO ...")] = (),
    files: Annotated[FileOptions, tyro.conf.arg(name="output")] = FileOptions(),
    network: Annotated[ModelOptions, tyro.conf.arg(name="model")] = ModelOptions(),
    photos: Annotated[PhotoOptions, tyro.conf.arg(name="photo")] = PhotoOptions(),
    videos: Annotated[VideoOptions, tyro.conf.arg(name="video")] = VideoOptions(),
    cluster: ClusterOptions = ClusterOptions(),
    computing: Annotated[BatchOptions, tyro.conf.arg(name="device")] = BatchOptions(),
) -> None:
    """Enlarge images, folders of images, photos and videos.

    What an image shows is recognised, and the models that fit enlarge it; see docs/upscaling.md.

    - gleansr upscale cat.jpg                        a thumbnail or a photo; writes cat_8x.png or cat_4x.png
    - gleansr upscale me.jpg --scale 2 -o me.webp    exactly twice as large
    - gleansr upscale small/ -o large/               a folder; run it again to resume (docs/folders.md)

    Args:
        sources: Images, folders of images, videos; - is the standard input.
    """
    from gleansr.stores import is_url, normalize

    [alone] = sources if len(sources) == 1 and cluster.ray is None else [""]
    if alone.strip() not in ("", "-") and not is_url(normalize(Path(alone))):
        try:
            Path(alone).stat()
        except FileNotFoundError as error:
            raise ImageError(f"{alone}: cannot be read: {error.strerror}") from None  # before slow imports
        except OSError:
            pass  # reported below, as for several images

    from gleansr.cli.clusters import requested
    from gleansr.cli.pipes import PIPE, upscale_piped
    from gleansr.cli.results import upscale_all
    from gleansr.cli.video import upscale_videos, videos_among
    from gleansr.inference.devices import find_device, find_precision
    from gleansr.jobs import Work
    from gleansr.photos import Photo, PhotoConfig

    if not all(source.strip() for source in sources):
        raise RequestError("an input is empty: give the path of an image or a folder, or . for the current folder")
    inputs = tuple(map(Path, sources))
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
    _check(inputs, files, network, photos, computing)
    detects = photos.photo or network.automatic
    request = videos_among(inputs, files.output, video=videos.video, rate=videos.rate, detect_every=videos.detect_every, detects=detects)
    if request and (ray_cluster or files.manifest):
        raise RequestError("--ray and --manifest are for images, not for videos")
    piped = PIPE in sources or files.output == Path(PIPE)
    one_file = len(inputs) == 1 and not any(source.is_dir() for source in inputs)
    if piped and (not one_file or ray_cluster or request or files.sidecar or files.manifest):
        raise RequestError("- is for one image, from the standard input or to the standard output, without --ray, --sidecar and --manifest")
    to_file = not piped and _is_file(files.output, one_file=one_file, videos=request is not None)
    extension = f".{files.file_format or 'png'}"
    if request is None:
        named = files.output if to_file or (piped and files.output != Path(PIPE)) else None
        _check_format(files, named.suffix.lower() if named else extension)
    elif files.file_format:
        raise RequestError(f"--format is for images: give a video a name with its format, such as -o {inputs[0].stem}.mkv")
    boxes = tuple(_box(text) for text in photos.box)

    find_precision(computing.precision, find_device(device))  # before a download that would be for nothing
    config = PhotoConfig(
        boxes,
        photos.aligned,
        network.scale,
        back_project=network.strength,
        keep_detail=photos.keep_detail,
        require_object=photos.require_object,
        measure_consistency=files.sidecar,
    )
    plan = _plan(network, photos, computing, config, videos=request is not None)
    max_pixels = round(files.max_megapixels * 1e6)
    task, slow, quality = plan.task, network.method in ("dgp", "pulse"), files.quality or 95
    if request:
        batch_size = computing.batch_size or plan.batch_size
        work = Work(task, batch_size, plan.sha256(), plan.settings, quality, files.overwrite, files.sidecar)
        upscale_videos(request, work, model=plan.label, slow=slow, fail_fast=files.fail_fast, verbose=files.verbose, quiet=files.quiet)
        return
    if piped:
        options = Work(task, 1, settings=plan.settings, quality=quality, max_pixels=max_pixels, allow_truncated=files.allow_truncated)
        upscale_piped(sources[0], files.output, extension, options, overwrite=files.overwrite, quiet=files.quiet)
        return
    if ray_cluster:
        from gleansr.cluster import destinations
    else:
        from gleansr.jobs import destinations
    found = destinations(inputs, files.output, plan.suffix(network.scale), to_file=to_file, manifest=files.manifest, extension=extension)
    recorded = files.sidecar or any(place.manifest for place in found)
    alone = one_file and not files.manifest  # so that all threads are for the one image
    work = Work(
        task,
        computing.batch_size or (1 if alone and not isinstance(task, Photo) else plan.batch_size),
        plan.sha256() if recorded else None,
        plan.settings,
        quality,
        files.overwrite,
        files.sidecar,
        max_pixels=max_pixels,
        allow_truncated=files.allow_truncated,
    )
    upscale_all(
        found,
        work,
        model=plan.label,
        scale=plan.scale(network.scale),
        slow=slow,
        fail_fast=files.fail_fast,
        verbose=files.verbose,
        quiet=files.quiet,
        cluster=ray_cluster,
    )


def _check(inputs: tuple[Path, ...], files: FileOptions, network: ModelOptions, photos: PhotoOptions, computing: BatchOptions) -> None:
    """Raises RequestError for what is wrong whatever the model is."""
    from gleansr.configs import check_option
    from gleansr.images.codec import FORMATS
    from gleansr.jobs import Work
    from gleansr.photos import PhotoConfig

    if not inputs:
        raise RequestError("give at least one image, folder or video; `gleansr upscale --help` has examples")
    check_option(Work, "batch_size", computing.batch_size, "--batch-size")
    check_option(Work, "quality", files.quality, "--quality")
    check_option(PhotoConfig, "scale", network.scale, "--scale")
    check_option(PhotoConfig, "back_project", network.back_project_strength, "--back-project-strength")
    check_option(PhotoConfig, "keep_detail", photos.keep_detail, "--keep-detail")
    if not 0 < files.max_megapixels <= 1e6:
        raise RequestError(f"--max-megapixels must be above 0 and at most 1000000, not {files.max_megapixels:g}")
    if files.verbose and files.quiet:
        raise RequestError("--verbose and --quiet exclude each other")
    suffix = files.manifest.suffix.lower() if files.manifest else ""
    if suffix in FORMATS or (files.sidecar and suffix == ".json"):
        raise RequestError(f"--manifest {files.manifest}: is a name of a result; give one that ends in .jsonl")
    if not photos.photo and (network.fit, network.method) != ("auto", "auto"):
        for name in ("aligned", "background", "keep_detail", "require_object"):
            if getattr(photos, name) not in (None, False):
                raise RequestError(f"--{name.replace('_', '-')} is for photos: give --photo too")


def _check_format(files: FileOptions, extension: str) -> None:
    """Raises RequestError for options that the format of the results does not have."""
    if files.file_format and extension != f".{files.file_format}":
        raise RequestError(f"{files.output}: has the format of its name; leave --format {files.file_format} out")
    if files.quality is not None and extension not in (".jpg", ".jpeg", ".webp"):
        raise RequestError(f"--quality is for JPEG and WebP; results are {extension[1:].upper()}: give --format jpg or -o NAME.jpg too")


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


def _plan(network: ModelOptions, photos: PhotoOptions, computing: BatchOptions, config: "PhotoConfig", *, videos: bool) -> "TaskPlan":
    """What is done with each image."""
    from gleansr.jobs.plan import plan_task

    upscaler, file = (None, None) if network.automatic else _upscaler(network, computing, photo=photos.photo or network.fit == "auto")
    if network.automatic and network.option:
        raise RequestError("--option is for pulse and dgp: give --method pulse or --method dgp too")
    around = ModelOptions(photos.background, self_ensemble=network.self_ensemble) if photos.background else None
    background, background_file = _upscaler(around, computing) if around else (None, None)
    plan = plan_task(
        upscaler,
        file,
        config=config,
        photo=photos.photo or (network.automatic and videos),
        background=background,
        background_file=background_file,
        fit=network.fit,
        options=network.option,
        device=computing.device,
        precision=computing.precision,
        self_ensemble=network.ensemble,
    )
    return replace(plan, label=f"{network.method} {plan.label if file else ''}".strip()) if network.method != "auto" else plan


def _upscaler(network: ModelOptions, computing: BatchOptions, *, photo: bool = False) -> "tuple[Upscaler, Path | None]":
    """With the file of its model, if it has one. `photo`: the scale of results need not be that of the model."""
    scale = None if photo and network.method not in _ANY_SCALE else network.scale
    if network.method == "auto":
        from gleansr.inference.upscaler import load

        if network.option:
            raise RequestError("--option is for pulse and dgp: give --method pulse or --method dgp too")
        file = fetched(network.model, computing.offline)
        return load(file, device=computing.device, precision=computing.precision, self_ensemble=network.ensemble), file
    if network.self_ensemble:
        raise RequestError("--self-ensemble is for networks given with --model: leave --method out")
    from gleansr import baselines
    from gleansr.configs import parse_override
    from gleansr.inference.router import AUTO

    settings = {key: value for change in network.option for key, value in parse_override(change).items()}
    model = network.model if network.model != AUTO else None
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
