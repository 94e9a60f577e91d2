"""Folders and lists of files: which images to read (`destinations`, `walk`), which are done (`Manifest`), and the work (`run`).

    upscaler = gleansr.load("cats-8x")
    work = Work(Enlarge(upscaler), upscaler.default_batch_size(), sha256_of(file_of_the_model))
    [destination] = destinations([Path("images")], Path("results"), "_8x")
    with closing(Manifest(destination.manifest)) as manifest:
        for result in run(walk(destination), work, [manifest]):
            print(result)

`process` handles one batch in the calling thread. On a cluster, `gleansr.cluster.upscale_on_cluster` replaces `run`.
"""

from gleansr.jobs.index import Index, ManifestEntry, fingerprint
from gleansr.jobs.jobs import MANIFEST, Destination, Job, UnreadableFolder, destinations
from gleansr.jobs.manifest import FORMAT, Manifest
from gleansr.jobs.pipeline import run
from gleansr.jobs.steps import JobResult, Work, decode_job, failed_result, is_done, process, write_result
from gleansr.jobs.storage import FileState, FileStore, LocalStorage, OutputError
from gleansr.jobs.walk import InputCounts, count, walk

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Destination",
    "FileState",
    "FileStore",
    "Index",
    "InputCounts",
    "Job",
    "JobResult",
    "LocalStorage",
    "Manifest",
    "ManifestEntry",
    "OutputError",
    "UnreadableFolder",
    "Work",
    "count",
    "decode_job",
    "destinations",
    "failed_result",
    "fingerprint",
    "is_done",
    "process",
    "run",
    "walk",
    "write_result",
]
