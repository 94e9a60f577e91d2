"""`gleansr upscale`: images and folders of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gleansr.cli.progress import fetched
from gleansr.errors import RequestError
from gleansr.files import sha256_of
from gleansr.inference.precision import Precision

if TYPE_CHECKING:
    from gleansr.inference.tasks import ImageTask
    from gleansr.inference.upscaler import Upscaler


def upscale(
    inputs: tyro.conf.Positional[tuple[Path, ...]],
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    model: Annotated[str | None, tyro.conf.arg(aliases=["-m"])] = None,
    method: Literal["auto", "glean", "esrgan+", "plain", "dgp", "pulse", "bicubic"] = "auto",
    scale: int | None = None,
    set: tuple[str, ...] = (),
    fit: Literal["auto", "crop", "pad", "stretch", "exact"] = "auto",
    consistent: bool = False,
    consistent_strength: float | None = None,
    photo: bool = False,
    box: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    aligned: bool = False,
    factor: int | None = None,
    background: str | None = None,
    keep: float | None = None,
    require_object: bool = False,
    video: bool = False,
    rate: float | None = None,
    find_every: int | None = None,
    report: bool = False,
    manifest: Path | None = None,
    ray: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[ADDRESS]")] = None,
    ray_workers: int | None = None,
    ray_cores: int | None = None,
    fail_fast: bool = False,
    verbose: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    quality: int = 95,
    overwrite: bool = False,
    max_megapixels: float = 200,
    allow_truncated: bool = False,
    offline: bool = False,
) -> None:
    """Enlarge images, all images in folders, and videos; see docs/folders.md, docs/photos.md (whole photographs), docs/video.md and
    docs/cluster.md.

    A folder's results come with gleansr.jsonl, which remembers what is done: the same command goes on where it was stopped.

    Args:
        inputs: Images and folders of images.
        output: A file (.png, .jpg, .webp, .tif) for one image, otherwise a folder, in which the tree of an input folder is mirrored. By
            default NAME_8x.png beside NAME, and FOLDER_8x beside FOLDER.
        model: Name of a model (see `gleansr models`) or file of any layout; by default cats-8x, or what suits the method and the scale.
        method: auto: whatever network the model is. pulse, dgp: search the model's bank, which takes a hundred to two
            thousand times longer; see docs/baselines.md.
        scale: Enlargement by pulse, dgp and bicubic, by default 8; a network has its own.
        set: Changes to the settings of pulse and dgp, such as steps=50 seed=1.
        fit: What to do with an image that is not of the model's input size. exact: refuse it; stretch: resize both sides; crop: cut out
            the centre square; pad: repeat the border up to a square; auto: as pad, which loses nothing.
        consistent: Change each result, as little as possible, so that shrunk again it equals its image.
        consistent_strength: How far, 0 to 1; by default 1. Implies --consistent.
        photo: Find the faces, cats, ... in each image, upscale each, and paste them into the enlarged image.
        box: Left, top, width and height of an object in pixels, such as 100,50,200,200, instead of finding them; may be repeated. Implies
            --photo.
        aligned: Each image is one object. For --photo.
        factor: How many times larger photographs become; by default the model's scale, less for large ones. For --photo.
        background: Model that takes images of any size, for what is no object; by default bicubic. For --photo.
        keep: How much of an object's own detail, which the model does not see, is kept, 0 to 1; by default what the photograph
            resolves, and none in blurred ones. For --photo.
        require_object: A photograph in which nothing is found is a failure; exit status 3 if that is the only kind. For --photo.
        video: Folders hold the numbered frames of a video, to be treated as one: into frames, or into a video named by --output.
        rate: Frames per second of a video that is made of numbered frames; by default 25.
        find_every: Search every so many frames of a video, and interpolate in between; by default about ten a second. For --photo.
        report: Write NAME.json beside each result: how it was made, what was found, and how consistent it is in dB.
        manifest: File that remembers what is done, instead of gleansr.jsonl in the folder of results; for images without --output, too.
        ray: Work on a Ray cluster: that at HOST:PORT, by default the one that $RAY_ADDRESS names or that this machine belongs to, or else a
            new one of this machine's cores. Inputs and --output may then have addresses, such as s3://bucket/folder.
        ray_workers: Models at once on the cluster; by default one for each GPU, or for each core. For --ray.
        ray_cores: CPU cores for each of them. For --ray.
        fail_fast: Stop at the first failure instead of going on with the other images.
        verbose: A line for each result also where there are many.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps. With --ray, all GPUs of a machine work, each with a model of its own.
        precision: Arithmetic: auto is float32 on a CPU and bfloat16 on a GPU that has it.
        batch_size: Images per forward pass; by default as many as suit the device.
        quality: Of JPEG and WebP, 1 to 100.
        overwrite: Replace files that exist already. Results that the manifest knows and that are outdated are replaced anyway.
        max_megapixels: The largest image that is read; each million pixels takes about 8 MB while it is, and up to 24 MB with --photo.
        allow_truncated: Read files that end too early as far as they go, and say how many rows are missing. They are black.
        offline: Never download a model.
    """
    from gleansr.cli.clusters import requested
    from gleansr.cli.outcomes import upscale_all  # imports torch, which `gleansr --help` need not wait for
    from gleansr.cli.video import upscale_videos, videos_among
    from gleansr.images.codec import FORMATS
    from gleansr.inference.devices import find_device, find_precision
    from gleansr.inference.tasks import Enlarge
    from gleansr.jobs import Work
    from gleansr.stores import is_url, normalize

    cluster = None
    if ray is not None:
        cluster, more = requested(ray, ray_workers, ray_cores, device)
        inputs, device = inputs + more, "cpu"  # of this machine, which only sends the model
    elif ray_workers is not None or ray_cores is not None:
        raise RequestError("--ray-workers and --ray-cores are for a cluster: give --ray too")
    elif addressed := [normalize(path) for path in (*inputs, *([output] if output else [])) if is_url(normalize(path))]:
        raise RequestError(f"{addressed[0]}: images and results with addresses are for clusters: give --ray too")
    if not inputs:
        raise RequestError("give at least one image or folder")
    if batch_size is not None and batch_size < 1:
        raise RequestError(f"--batch-size must be at least 1, not {batch_size}")
    if not 1 <= quality <= 100:
        raise RequestError(f"--quality must be 1 to 100, not {quality}")
    if not 0 < max_megapixels <= 1e6:
        raise RequestError(f"--max-megapixels must be above 0 and at most 1000000, not {max_megapixels:g}")
    videos = videos_among(inputs, output, video=video, rate=rate, find_every=find_every, photo=photo or bool(box))
    if videos and (cluster or manifest):
        raise RequestError("--ray and --manifest are for images, not for videos")
    if manifest and (manifest.suffix.lower() in FORMATS or (report and manifest.suffix.lower() == ".json")):
        raise RequestError(f"--manifest {manifest}: is a name of a result; give one that ends in .jsonl")
    to_file = output is not None and output.suffix.lower() in FORMATS and not output.is_dir()
    one_file = len(inputs) == 1 and not any(source.is_dir() for source in inputs)
    if to_file and not one_file:
        raise RequestError(f"{output}: is one file, but there are several images; give a folder with --output")
    if output is not None and output.suffix and not to_file and not output.is_dir() and one_file and not videos:
        raise RequestError(f"{output}: unknown kind of image {output.suffix!r}; use one of {', '.join(FORMATS)}")
    photo = photo or bool(box)
    for_photos = {"aligned": aligned, "factor": factor, "background": background, "keep": keep, "require-object": require_object}
    if not photo and (given := [name for name, value in for_photos.items() if value is not None and value is not False]):
        raise RequestError(f"--{given[0]} is for photographs: give --photo too")
    strength = 1.0 if consistent_strength is None else consistent_strength
    strength = strength if consistent or consistent_strength is not None else 0.0
    if not 0 <= strength <= 1:
        raise RequestError(f"--consistent-strength must be from 0 to 1, not {strength}")
    boxes = tuple(_box(text) for text in box)

    find_precision(precision, chosen := find_device(device))  # before a download that would be for nothing
    upscaler, file = _upscaler(model, method, scale, set, device, precision, offline)
    settings: dict[str, Any] = {
        "method": upscaler.method.name,
        "scale": upscaler.scale,
        "set": list(set),
        "precision": str(find_precision(precision, chosen)).removeprefix("torch."),
    }
    task: ImageTask = Enlarge(upscaler, fit, strength, measured=report)
    if photo:
        from gleansr.photos import Photo, PhotoConfig

        behind, behind_file = _upscaler(background, "auto", None, (), device, precision, offline) if background else (None, None)
        settings["background_sha256"] = behind_file and sha256_of(behind_file)
        config = PhotoConfig(boxes, aligned, factor, consistent=strength, keep=keep, require_object=require_object, measured=report)
        task = Photo(upscaler, config, background=behind)
    slow = method in ("dgp", "pulse")
    if videos:
        sha256 = sha256_of(file) if file else None
        work = Work(task, batch_size or upscaler.default_batch_size(), sha256, settings, quality, overwrite, report)
        upscale_videos(videos, work, slow=slow, fail_fast=fail_fast, verbose=verbose)
        return
    if cluster:
        from gleansr.cluster import destinations
    else:
        from gleansr.jobs import destinations
    found = destinations(inputs, output, f"_{task.factor}x", to_file=to_file, manifest=manifest)
    remembered = report or any(place.manifest for place in found)
    alone = one_file and not manifest  # so that all threads are for the one image
    work = Work(
        task,
        batch_size or (1 if alone and not photo else upscaler.default_batch_size()),
        sha256_of(file) if file and remembered else None,
        settings,
        quality,
        overwrite,
        report,
        max_pixels=round(max_megapixels * 1e6),
        allow_truncated=allow_truncated,
    )
    upscale_all(found, work, slow=slow, fail_fast=fail_fast, verbose=verbose, cluster=cluster)


def _upscaler(
    model: str | None, method: str, scale: int | None, changes: tuple[str, ...], device: str, precision: Precision, offline: bool
) -> "tuple[Upscaler, Path | None]":
    """With the file of its model, if it has one."""
    if method == "auto":
        from gleansr.inference.upscaler import load

        if scale is not None or changes:
            raise RequestError("--scale and --set are for a method that is named: give --method pulse, dgp or bicubic too")
        file = fetched(model or "cats-8x", offline)
        return load(file, device=device, precision=precision), file
    from gleansr import baselines as baselines
    from gleansr.configs import override

    settings = {key: value for change in changes for key, value in override(change).items()}
    if model is None and method != "bicubic":
        model = baselines.bundled(method, scale or 8)
    file = fetched(model, offline) if model else None
    return baselines.load(method, file, scale=scale, device=device, precision=precision, settings=settings), file


def _box(text: str) -> tuple[float, float, float, float]:
    try:
        left, top, width, height = map(float, text.split(","))
    except ValueError:
        raise RequestError(f"--box takes left,top,width,height in pixels, such as 100,50,200,200, not {text!r}") from None
    return left, top, width, height
