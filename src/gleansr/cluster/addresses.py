"""`places`, `count`, `walk` and `Manifest` of `gleansr.jobs`, for what has an address, too."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from gleansr import jobs as folders
from gleansr.cluster.listing import RemoteDestination, listed
from gleansr.cluster.manifest import opened as Manifest
from gleansr.cluster.urls import is_url, normal
from gleansr.errors import RequestError
from gleansr.jobs import Counted, Destination, Job, UnreadableFolder
from gleansr.jobs.walk import Ours

__all__ = ["Manifest", "RemoteDestination", "count", "places", "walk"]


def places(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    suffix: str,
    *,
    to_file: bool = False,
    manifest: str | os.PathLike[str] | None = None,
) -> list[Destination] | list[RemoteDestination]:
    """As `folders.places`. Where anything has an address, all results go into one folder, which must be given.

    Raises:
        RequestError: it is not given, or an input with an address is not there.
    """
    given = [normal(one) for one in (*inputs, *([] if output is None else [output]), *([] if manifest is None else [manifest]))]
    if not any(map(is_url, given)):
        paths = [Path(normal(one)) for one in inputs]
        return folders.places(
            paths,
            None if output is None else Path(normal(output)),
            suffix,
            to_file=to_file,
            manifest=None if manifest is None else Path(normal(manifest)),
        )
    if output is None or to_file:
        raise RequestError("where images or results have addresses, give the folder of the results: --output FOLDER or --output s3://...")
    return [RemoteDestination.of(inputs, output, manifest)]


def walk(place: Destination | RemoteDestination, number: int = 0, ours: Ours | None = None) -> Iterator[Job | UnreadableFolder]:
    """As `folders.walk`."""
    return listed(place, number) if isinstance(place, RemoteDestination) else folders.walk(place, number, ours)


def count(place: Destination | RemoteDestination, ours: Ours | None = None) -> Counted:
    """As `folders.count`. Folders at addresses are listed for it, and again by `walk`."""
    if not isinstance(place, RemoteDestination):
        return folders.count(place, ours)
    counted, unlisted = Counted(), 0
    for found in listed(place, counted=counted):
        counted.images += isinstance(found, Job)
        unlisted += isinstance(found, UnreadableFolder)
    if not counted.images and not unlisted:
        raise RequestError(f"{', '.join(place.inputs)}: no images there")
    return counted
