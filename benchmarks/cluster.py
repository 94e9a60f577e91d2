"""A folder of images on a local Ray cluster, compared with folder mode at the same total number of threads.

    python -m benchmarks.cluster [--images 600] [--few 100] [--rounds 3] [--workers 2] [--cores 1] [--model cats-8x] [--batch-size 8]

The images are those of `benchmarks.pipeline`. A round runs few and all images in both modes, each into an empty folder; the cluster keeps
running, but workers start and load the model in each run. The start-up time is the same for few and all images, so the speed of a long
run is (all - few) / (seconds of all - seconds of few). Prints one JSON object: images per second of both modes and their ratio, start-up
seconds, bytes read and written per image, CPU seconds of the driver per image, peak memory of driver, workers and object store.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

import gleansr
from benchmarks.pipeline import make, resident
from gleansr import checkpoints
from gleansr.cluster import ClusterConfig, upscale_on_cluster
from gleansr.cluster.connection import connect
from gleansr.files import sha256_of
from gleansr.inference.tasks import Enlarge
from gleansr.jobs import Destination, Manifest, UnreadableFolder, Work, destinations, run, walk


def timed(images: Path, count: int, work: Work, way: Callable[..., Iterator[Any]]) -> tuple[float, float]:
    """Seconds, and bytes written per image."""
    with tempfile.TemporaryDirectory() as results:
        [place] = cast("list[Destination]", destinations([images], Path(results), ""))
        started = time.perf_counter()
        with closing(Manifest(cast("Path", place.manifest))) as manifest:
            for outcome in way(islice(walk(place), count), work, [manifest]):
                if isinstance(outcome, UnreadableFolder) or outcome.status != "done":
                    raise SystemExit(f"{outcome}")
        seconds = time.perf_counter() - started
        return seconds, sum(path.stat().st_size for path in Path(results).rglob("*.png")) / count


class MemoryMonitor:
    """Peak memory in MiB of the driver, of a worker and of the object store."""

    def __init__(self, ray: Any):
        self.largest = {"driver_mib": 0.0, "worker_mib": 0.0, "objects_mib": 0.0}
        self.over_time: list[dict[str, int]] = []
        self._ray = ray

    def sample(self) -> None:
        resources = (
            self._ray.cluster_resources().get("object_store_memory", 0),
            self._ray.available_resources().get("object_store_memory", 0),
        )
        now = {"driver_mib": resident(), "worker_mib": max(workers(), default=0.0), "objects_mib": (resources[0] - resources[1]) / 2**20}
        self.largest = {name: max(value, now[name]) for name, value in self.largest.items()}
        self.over_time.append({name: round(value) for name, value in now.items()})

    @contextmanager
    def watching(self, seconds: float = 2.0) -> Iterator[None]:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(seconds):
                self.sample()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def workers() -> list[float]:
    """Resident memory in MiB of each Ray worker with a model."""
    listed = subprocess.run(["ps", "-eo", "rss,args"], capture_output=True, text=True, check=True).stdout  # noqa: S607
    return [int(line.split()[0]) / 2**10 for line in listed.splitlines() if "ray::" in line and "Batches" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--model", default="cats-8x")
    parser.add_argument("--only-cluster", action="store_true", help="no folder mode")
    options = parser.parse_args()
    torch.set_num_threads(options.workers * options.cores)
    upscaler = gleansr.load(options.model, device="cpu")
    file = checkpoints.model_path(options.model)
    work = Work(Enlarge(upscaler), options.batch_size or upscaler.default_batch_size(), sha256_of(file))
    config = ClusterConfig(workers=options.workers, cores=options.cores)
    seconds: dict[str, list[float]] = {}
    processor: dict[int, list[float]] = {}
    written = 0.0

    with tempfile.TemporaryDirectory() as folder, connect("local", num_cpus=options.workers * options.cores) as ray:
        images = Path(folder)
        make(images, options.images)
        read = sum(path.stat().st_size for path in images.rglob("*.*") if path.is_file()) / options.images
        monitor = MemoryMonitor(ray)

        def on_cluster(*arguments: Any) -> Iterator[Any]:
            return upscale_on_cluster(*arguments, cluster=config)

        ways = {"cluster": on_cluster} if options.only_cluster else {"folder": run, "cluster": on_cluster}
        for _ in range(options.rounds):
            for count in (options.few, options.images):
                for name, way in ways.items():
                    busy = time.process_time()
                    with monitor.watching() if name == "cluster" else nullcontext():
                        took, written = timed(images, count, work, way)
                    seconds.setdefault(f"{name}_{count}", []).append(took)
                    if name == "cluster":
                        processor.setdefault(count, []).append(time.process_time() - busy)

    def speeds(name: str) -> list[float]:
        pairs = zip(seconds[f"{name}_{options.few}"], seconds[f"{name}_{options.images}"], strict=True)
        return [(options.images - options.few) / (whole - few) for few, whole in pairs]

    rates = {name: speeds(name) for name in ways}
    starting = [few - options.few / rate for few, rate in zip(seconds[f"cluster_{options.few}"], rates["cluster"], strict=True)]
    machine = platform.processor() or platform.machine()
    report: dict[str, Any] = {
        "machine": f"{machine}, {options.workers} workers of {options.cores} cores, torch {torch.__version__}",
        "model": options.model,
        "batch_size": work.batch_size,
        "pictures_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "pictures_per_second_min_max": {name: (min(values), max(values)) for name, values in rates.items()},
        "seconds_of_starting": statistics.median(starting),
        "seconds": seconds,
        "bytes_read_per_picture": read,
        "bytes_written_per_picture": written,
        "driver_processor_seconds_per_picture": statistics.median(
            (whole - few) / (options.images - options.few)
            for few, whole in zip(processor[options.few], processor[options.images], strict=True)
        ),
        "driver_processor_seconds_of_starting": statistics.median(processor[options.few]),
        "largest": monitor.largest,
        "over_time": monitor.over_time[:: max(1, len(monitor.over_time) // 20)],
    }
    if "folder" in rates:
        report["ratio_cluster_to_folder"] = statistics.median(
            cluster / folder for cluster, folder in zip(rates["cluster"], rates["folder"], strict=True)
        )
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
