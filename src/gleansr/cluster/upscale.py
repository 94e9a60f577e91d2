"""Runs jobs on a cluster. The driver plans them and writes the manifests; the workers read and write the images."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from gleansr.cluster.config import ClusterConfig
from gleansr.cluster.connection import connect, ray_module, resolve_address
from gleansr.cluster.manifest import StoredManifest
from gleansr.cluster.portions import Portion, portions
from gleansr.cluster.rounds import Fleet, Rounds, quiet_ray_data
from gleansr.cluster.urls import CachedStorage
from gleansr.cluster.worker import WorkerConfig
from gleansr.errors import RequestError, one_line
from gleansr.inference.method import StepReport
from gleansr.inference.runner import FeedForwardModel
from gleansr.jobs import Job, JobResult, Manifest, UnreadableFolder, Work

_WAVES = (20_000, 200_000, 1_000_000)
"""Jobs in the first waves and in all later ones: workers begin with few while the next are listed."""


def upscale_on_cluster(
    jobs: Iterable[Job | UnreadableFolder],
    work: Work,
    manifests: Sequence[Manifest | None],
    *,
    cluster: ClusterConfig | None = None,
    stopped: Callable[[], bool] = lambda: False,
    report: StepReport | None = None,
) -> Iterator[JobResult | UnreadableFolder]:
    """Processes all jobs on a Ray cluster; yields each result. Replaces `jobs.run`.

    Jobs are planned in waves; the next is planned while one runs. Finished jobs are skipped first, and if all are finished no cluster is
    started. Only this process writes to the manifests.

    Args:
        jobs: from `jobs.walk` or `cluster.walk`.
        work: picklable; sent once to each machine, with the weights. The network runs on the cluster's GPUs in the precision that it has
            here.
        manifests: by `Job.destination`.
        cluster: the cluster and its number of workers.
        stopped: checked a few times a second. After a stop, running portions are dropped; the next run processes them.
        report: unused, because images run in parallel.

    Raises:
        RequestError: Ray is not installed, or the cluster cannot be joined.
        OutputError: nothing more can be written.
        GleansrError: no worker can start.
    """
    del report
    config = cluster or ClusterConfig()
    ray = ray_module()
    if not ray.is_initialized():
        resolve_address(config.address)  # before anything is listed
    planning = replace(work, storage=CachedStorage())
    waves = _waves(portions(jobs, planning, manifests, 1 if _is_slow(work) else work.batch_size), stopped)
    for wave in waves:
        yield from _recorded(wave.known, manifests)
        if wave.portions:
            with quiet_ray_data(ray), connect(config.address):
                yield from _recorded(_run_waves(ray, config, work, manifests, _Wave([], wave.portions), waves, stopped), manifests)
            return


def _run_waves(
    ray: Any,
    config: ClusterConfig,
    work: Work,
    manifests: Sequence[Manifest | None],
    wave: "_Wave | None",
    waves: "Iterator[_Wave]",
    stopped: Callable[[], bool],
) -> Iterator[JobResult | UnreadableFolder]:
    """Runs a wave and all that follow; the next is planned in a thread."""
    local = [manifest.file for manifest in manifests if manifest and not isinstance(manifest, StoredManifest)]
    files = [os.path.abspath(file) for file in local if file.exists()]  # noqa: PTH100
    worker_config = WorkerConfig(witnesses=tuple(dict.fromkeys(files)))
    fleet = Fleet.of(ray, config, gpu=config.gpus and isinstance(work.task.upscaler.method, FeedForwardModel))
    rounds = Rounds(ray, fleet, config, ray.put(_pickled(work)), worker_config, stopped)
    with ThreadPoolExecutor(1, "gleansr-plan") as pool:
        while wave and not stopped():
            following = pool.submit(next, waves, None)
            yield from wave.known
            for manifest in manifests:
                if isinstance(manifest, StoredManifest):
                    manifest.upload()
            yield from rounds(wave.portions)
            wave = following.result()


class _Wave(NamedTuple):
    known: list[JobResult | UnreadableFolder]
    """Results that need no worker."""
    portions: list[Portion]
    """Jobs for the workers."""


def _waves(planned: Iterable[Portion | JobResult | UnreadableFolder], stopped: Callable[[], bool]) -> Iterator[_Wave]:
    """Groups portions into waves; results that need no worker come before and between them, in small groups."""
    sizes = chain(_WAVES, iter(lambda: _WAVES[-1], None))
    size = next(sizes)
    known: list[JobResult | UnreadableFolder] = []
    wave: list[Portion] = []
    count = 0
    for item in planned:
        if stopped():
            return
        if not isinstance(item, Portion):
            known.append(item)
            if len(known) == _WAVES[0]:
                yield _Wave(known, [])
                known = []
            continue
        wave.append(item)
        count += item.count
        if count >= size:
            yield _Wave(known, wave)
            known, wave, count, size = [], [], 0, next(sizes)
    yield _Wave(known, wave)


def _recorded(
    results: Iterable[JobResult | UnreadableFolder], manifests: Sequence[Manifest | None]
) -> Iterator[JobResult | UnreadableFolder]:
    for result in results:
        if isinstance(result, JobResult) and result.entry and (manifest := manifests[result.job.destination]):
            manifest.add(result.entry)
        yield result


def _pickled(work: Work) -> bytes:
    from ray.cloudpickle import dumps  # pyright: ignore[reportAttributeAccessIssue]

    try:
        return dumps(work)
    except Exception as error:
        raise RequestError(f"this work cannot be sent to other machines: {one_line(error)}") from error


def _is_slow(work: Work) -> bool:
    from gleansr.baselines import SEARCHES  # a slow import that networks do not need

    return work.task.upscaler.method.name.lower() in SEARCHES
