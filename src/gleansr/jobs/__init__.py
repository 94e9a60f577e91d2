"""One picture and a million: what to read (`places`, `walk`), what is done (`Manifest`), the work (`run`, or `treat` for one batch).

    upscaler = gleansr.load("cats-8x")
    work = Work(Enlarge(upscaler), upscaler.default_batch_size(), sha256_of(file_of_the_model))
    [place] = places([Path("pictures")], Path("results"), "_8x")
    with closing(Manifest(place.manifest)) as manifest:
        for outcome in run(walk(place), work, [manifest]):
            print(outcome)

On a cluster, `gleansr.cluster.upscale_on_cluster` stands in the place of `run`.
"""

from gleansr.jobs.forward import Forward
from gleansr.jobs.index import Index, Recorded, fingerprint
from gleansr.jobs.jobs import MANIFEST, Job, Place, Unlisted, places
from gleansr.jobs.manifest import FORMAT, Manifest
from gleansr.jobs.pipeline import run
from gleansr.jobs.steps import Outcome, Work, failed, load, skips, store, treat
from gleansr.jobs.storage import LocalStorage, OutputError, State, Storage
from gleansr.jobs.walk import Counted, count, walk

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Counted",
    "Forward",
    "Index",
    "Job",
    "LocalStorage",
    "Manifest",
    "Outcome",
    "OutputError",
    "Place",
    "Recorded",
    "State",
    "Storage",
    "Unlisted",
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
