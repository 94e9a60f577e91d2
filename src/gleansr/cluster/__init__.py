"""Folder jobs on a Ray cluster, with files read and written by path or through fsspec.

    upscaler = gleansr.load("cats-8x")
    work = Work(Enlarge(upscaler), upscaler.default_batch_size(), sha256_of(file_of_the_model))
    [destination] = destinations(["s3://bucket/images"], "s3://bucket/results", "_8x")
    with closing(open_manifest(destination.manifest)) as manifest:
        for result in upscale_on_cluster(walk(destination), work, [manifest], cluster=ClusterConfig("head:6379")):
            print(result)

`destinations`, `count`, `walk` and `open_manifest` also accept URLs; otherwise they equal their counterparts in `gleansr.jobs`.
`upscale_on_cluster` replaces `run`. Ray is imported on first use.
"""

from gleansr.cluster.config import ClusterConfig
from gleansr.cluster.listing import RemoteDestination, count, destinations, walk
from gleansr.cluster.manifest import open_manifest
from gleansr.cluster.upscale import upscale_on_cluster

__all__ = ["ClusterConfig", "RemoteDestination", "count", "destinations", "open_manifest", "upscale_on_cluster", "walk"]
