"""One image and a million: what to read (`places`, `walk`), what is done (`Manifest`), the work (`run`, or `treat` for one batch).

    upscaler = gleansr.load("cats-8x")
    work = Work(Enlarge(upscaler), upscaler.default_batch_size(), sha256_of(file_of_the_model))
    [place] = places([Path("pictures")], Path("results"), "_8x")
    with closing(Manifest(place.manifest)) as manifest:
        for outcome in run(walk(place), work, [manifest]):
            print(outcome)

On a cluster, `gleansr.cluster.upscale_on_cluster` stands in the place of `run`.
"""

from gleansr.jobs.forward import Forward
from gleansr.jobs.index import Index, ManifestEntry, fingerprint
from gleansr.jobs.jobs import MANIFEST, Destination, Job, UnreadableFolder, places
from gleansr.jobs.manifest import FORMAT, Manifest
from gleansr.jobs.pipeline import run
from gleansr.jobs.steps import JobResult, Work, failed, load, skips, store, treat
from gleansr.jobs.storage import FileStore, LocalStorage, OutputError, State
from gleansr.jobs.walk import Counted, count, walk

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Counted",
    "Destination",
    "FileStore",
    "Forward",
    "Index",
    "Job",
    "JobResult",
    "LocalStorage",
    "Manifest",
    "ManifestEntry",
    "OutputError",
    "State",
    "UnreadableFolder",
    "Work",
    "count",
    "failed",
    "fingerprint",
    "load",
    "places",
    "run",
    "skips",
    "store",
    "treat",
    "walk",
]
