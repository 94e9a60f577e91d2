"""The jobs of folders, or of addresses, on a cluster: planned here, done there, remembered here."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from gleansr.cluster.ahead import ahead
from gleansr.cluster.config import ClusterConfig
from gleansr.cluster.connection import connected, find, ray_module
from gleansr.cluster.manifest import StoredManifest
from gleansr.cluster.portions import Portion, portions
from gleansr.cluster.rounds import Fleet, Rounds, tolerant
from gleansr.cluster.urls import Listed
from gleansr.cluster.worker import Setting
from gleansr.errors import RequestError
from gleansr.inference.feedforward import FeedForwardModel
from gleansr.inference.method import StepReport
from gleansr.jobs import Job, JobResult, Manifest, UnreadableFolder, Work

_WAVES = (20_000, 200_000, 1_000_000)
"""Jobs of the first waves, and of all others: workers begin with few while the next ones are listed."""


def upscale_on_cluster(
    jobs: Iterable[Job | UnreadableFolder],
    work: Work,
    manifests: Sequence[Manifest | None],
    *,
    cluster: ClusterConfig | None = None,
    stopped: Callable[[], bool] = lambda: False,
    report: StepReport | None = None,
) -> Iterator[JobResult | UnreadableFolder]:
    """Does all jobs on a Ray cluster; yields what became of each. Stands in the place of `folders.run`.

    Jobs are taken in waves; while one is done, the next is taken. What the manifests say is done is skipped before a cluster is sought, and
    none is where all is done. Only this process writes to the manifests.

    Args:
        jobs: as `folders.walk` gives them, or `cluster.walk`.
        work: what to do; must be possible to pickle. It is sent to each machine once, with the weights. Its network runs on the GPUs of the
            cluster in the arithmetic that it has here.
        manifests: by `Job.place`.
        cluster: which, and how it is used.
        stopped: asked a few times a second. What is under way when it says so is dropped, and done by the next run.
        report: is not told, since images are done in parallel.

    Raises:
        RequestError: Ray is not installed, or the cluster does not answer within 10 seconds.
        OutputError: nothing more can be written.
        GleansrError: no worker can work.
    """
    del report
    config = cluster or ClusterConfig()
    if not ray_module().is_initialized():
        find(config.address)
    here = replace(work, storage=Listed())
    waves = _waves(portions(jobs, here, manifests, 1 if _is_slow(work) else work.batch_size), stopped)
    for told, wave in waves:
        yield from _recorded(told, manifests)
        if wave:
            with tolerant(ray_module()), connected(config.address) as ray:
                yield from _recorded(_waves_done(ray, config, work, manifests, wave, waves, stopped), manifests)
            return


def _waves_done(
    ray: Any,
    config: ClusterConfig,
    work: Work,
    manifests: Sequence[Manifest | None],
    wave: list[Portion],
    waves: "Iterator[_Wave]",
    stopped: Callable[[], bool],
) -> Iterator[JobResult | UnreadableFolder]:
    files = [os.path.abspath(one.file) for one in manifests if one and not isinstance(one, StoredManifest) and one.file.exists()]  # noqa: PTH100
    setting = Setting(witnesses=tuple(dict.fromkeys(files)))
    fleet = Fleet.of(ray, config, gpu=config.gpus and isinstance(work.task.upscaler.method, FeedForwardModel))
    rounds = Rounds(ray, fleet, config, ray.put(_pickled(work)), setting, stopped)
    with ahead(waves, 1) as coming:
        for next_wave in chain([_Wave([], wave)], coming):
            if stopped():
                return
            if next_wave is None:
                continue
            yield from next_wave.told
            for one in manifests:
                if isinstance(one, StoredManifest):
                    one.bring()
            yield from rounds(next_wave.portions)


class _Wave(NamedTuple):
    told: list[JobResult | UnreadableFolder]
    """What is known already."""
    portions: list[Portion]
    """What is to be done."""


def _waves(planned: Iterable[Portion | JobResult | UnreadableFolder], stopped: Callable[[], bool]) -> Iterator[_Wave]:
    """In waves what is to be done, and before and between them in small parts what is known already."""
    sizes = chain(_WAVES, iter(lambda: _WAVES[-1], None))
    size = next(sizes)
    told: list[JobResult | UnreadableFolder] = []
    wave: list[Portion] = []
    count = 0
    for one in planned:
        if stopped():
            return
        if not isinstance(one, Portion):
            told.append(one)
            if len(told) == _WAVES[0]:
                yield _Wave(told, [])
                told = []
            continue
        wave.append(one)
        count += one.count
        if count >= size:
            yield _Wave(told, wave)
            told, wave, count, size = [], [], 0, next(sizes)
    yield _Wave(told, wave)


def _recorded(
    outcomes: Iterable[JobResult | UnreadableFolder], manifests: Sequence[Manifest | None]
) -> Iterator[JobResult | UnreadableFolder]:
    for outcome in outcomes:
        if isinstance(outcome, JobResult) and outcome.entry and (manifest := manifests[outcome.job.place]):
            manifest.add(outcome.entry)
        yield outcome


def _pickled(work: Work) -> bytes:
    from ray.cloudpickle import dumps  # pyright: ignore[reportAttributeAccessIssue]

    try:
        return dumps(work)
    except Exception as error:
        raise RequestError(f"this work cannot be sent to other machines: {' '.join(str(error).split())}") from error


def _is_slow(work: Work) -> bool:
    from gleansr.baselines import SEARCHES  # which enlarging by a network need not wait for

    return work.task.upscaler.method.name.lower() in SEARCHES
