"""Images on a Ray cluster, read and written by path or through fsspec.

    upscaler = gleansr.load("cats-8x")
    work = Work(Enlarge(upscaler), upscaler.default_batch_size(), sha256_of(file_of_the_model))
    [place] = places(["s3://bucket/pictures"], "s3://bucket/results", "_8x")
    with closing(Manifest(place.manifest)) as manifest:
        for outcome in upscale_on_cluster(walk(place), work, [manifest], cluster=ClusterConfig("head:6379")):
            print(outcome)

`places`, `count`, `walk` and `Manifest` are those of `gleansr.jobs`, for addresses too, and `upscale_on_cluster` stands in the place of
`run`. Ray is imported when it is needed.
"""

from gleansr.cluster.addresses import Manifest, RemoteDestination, count, places, walk
from gleansr.cluster.config import ClusterConfig
from gleansr.cluster.upscale import upscale_on_cluster
from gleansr.cluster.urls import is_url, normal

__all__ = ["ClusterConfig", "Manifest", "RemoteDestination", "count", "is_url", "normal", "places", "upscale_on_cluster", "walk"]
