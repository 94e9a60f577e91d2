"""`destinations`, `count` and `walk` of `gleansr.jobs`, also for URLs."""

import os
from collections.abc import Iterator, Sequence

from gleansr import jobs
from gleansr.cluster.listing import RemoteDestination, walk_remote
from gleansr.errors import RequestError
from gleansr.jobs import Destination, InputCounts, Job, UnreadableFolder
from gleansr.jobs.walk import IsResult
from gleansr.stores import is_url, normalize

__all__ = ["RemoteDestination", "count", "destinations", "walk"]


def destinations(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    suffix: str,
    *,
    to_file: bool = False,
    manifest: str | os.PathLike[str] | None = None,
) -> list[Destination] | list[RemoteDestination]:
    """As `jobs.destinations`. If any path is a URL, all results go into one folder, which is required.

    Raises:
        RequestError: the folder is missing, or an input URL does not exist.
    """
    paths = [normalize(path) for path in (*inputs, *([] if output is None else [output]), *([] if manifest is None else [manifest]))]
    if not any(map(is_url, paths)):
        return jobs.destinations(inputs, output, suffix, to_file=to_file, manifest=manifest)
    if output is None or to_file:
        raise RequestError("URLs of images or results require a results folder: --output FOLDER or --output s3://...")
    return [RemoteDestination.of(inputs, output, manifest)]


def walk(
    destination: Destination | RemoteDestination, number: int = 0, is_result: IsResult | None = None
) -> Iterator[Job | UnreadableFolder]:
    """As `jobs.walk`."""
    if isinstance(destination, RemoteDestination):
        return walk_remote(destination, number)
    return jobs.walk(destination, number, is_result)


def count(destination: Destination | RemoteDestination, is_result: IsResult | None = None) -> InputCounts:
    """As `jobs.count`. It lists remote folders, and `walk` lists them again."""
    if not isinstance(destination, RemoteDestination):
        return jobs.count(destination, is_result)
    counts, unreadable = InputCounts(), 0
    for item in walk_remote(destination, counts=counts):
        counts.images += isinstance(item, Job)
        unreadable += isinstance(item, UnreadableFolder)
    if not counts.images and not unreadable:
        raise RequestError(f"{', '.join(destination.inputs)}: no images found")
    return counts
