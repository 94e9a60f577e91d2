"""What of clusters needs no cluster: addresses, lists, plans, manifests in stores, and how a cluster is sought."""

import errno
import json
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pytest
from PIL import Image

import gleansr
from gleansr import cluster
from gleansr import jobs as folders
from gleansr.cli import main
from gleansr.cluster import ClusterConfig, connection, upscale_on_cluster
from gleansr.cluster.manifest import StoredManifest
from gleansr.cluster.portions import KnownResult, Portion, portions
from gleansr.cluster.rounds import Fleet, Rounds
from gleansr.cluster.urls import CachedStorage, RemoteStorage, file_state, file_system
from gleansr.cluster.worker import RayWorker, WorkerConfig, pack_portions, unpack_results
from gleansr.data.sources import open_source
from gleansr.errors import GleansrError, ImageError, RequestError
from gleansr.files import sha256_of
from gleansr.inference.tasks import Enlarge
from gleansr.jobs import FileState, Job, JobResult, OutputError, UnreadableFolder, Work
from gleansr.stores import SCHEMES, check_address, is_url, normalize


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty folder in memory, which stands for one in an object store."""
    monkeypatch.setitem(SCHEMES, "memory", "")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield "memory://store"
    memory.store.clear()


@pytest.fixture
def work(tiny_model: Path) -> Work:
    return Work(Enlarge(gleansr.load(tiny_model)), 2, sha256_of(tiny_model))


@pytest.fixture
def fill(store: str, tmp_path: Path) -> Callable[[list[str]], Path]:
    """Writes the same images to a folder, which is returned, and to the store's folder `in`."""

    def write(names: list[str]) -> Path:
        rng = np.random.default_rng(0)
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
            fsspec.filesystem("memory").pipe_file(f"/store/in/{name}", path.read_bytes())
        return tmp_path / "in"

    return write


# ------------------------------------------------------------------------------------------------------------ addresses


def test_addresses_survive_a_path():
    for url in ("s3://bucket/a/b.png", "gs://b", "http://host:80/x", "memory://a"):
        assert is_url(url)
        assert normalize(url) == normalize(Path(url)) == url
    assert normalize("file:///a/b") == normalize(Path("file:///a/b")) == "/a/b"
    for path in ("a/b", "/a:b/c", "c:", "C:/a", "C:\\a", "a:b", "./s3:/x"):
        assert not is_url(path)
        assert normalize(path) == path


ELSEWHERE = [
    "file:///etc/passwd", "local:///etc/passwd", "ssh://host/a", "sftp://host/a", "github://a:b@/c", "ftp://host/a", "memory://a", "data:x",
    "zip://a.png::file:///etc/x.zip", "simplecache::https://host/a", "https://host/a::file:///b", "HTTP://host/a", "s3:/a", "", "nonsense://a",
]  # fmt: skip


@pytest.mark.parametrize("url", ELSEWHERE)
def test_addresses_lead_to_web_servers_and_object_stores_only(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fsspec, "url_to_fs", pytest.fail)
    monkeypatch.setattr(fsspec.core, "url_to_fs", pytest.fail)
    with pytest.raises(RequestError, match="expected http://, https://, s3:// or gs://"):
        check_address(url)
    if "://" in url:
        for use in (open_source, file_system):
            with pytest.raises(RequestError, match="expected http://, https://, s3:// or gs://"):
                use(url)


def test_a_path_is_no_address_whatever_it_holds(tmp_path: Path):
    path = str(tmp_path / "simplecache::memory:" / "a")
    system, name = file_system(path)
    assert (system.protocol, name) == (("file", "local"), path)


def test_addresses_that_are_allowed():
    assert [check_address(url) for url in ("https://host/a?b=s3://c", "http://host:80", "s3://bucket/a", "gs://b")] == [
        "https",
        "http",
        "s3",
        "gs",
    ]


def test_storage_reads_what_it_wrote(store: str, tmp_path: Path):
    storage = RemoteStorage()
    for path in (str(tmp_path / "a" / "b.png"), f"{store}/a/b.png"):
        assert storage.state(path) is None
        storage.write(path, b"123")
        assert (state := storage.state(path))
        assert state.size == 3
        assert storage.read(path) == b"123"
        with pytest.raises(ImageError, match=r"c\.png: cannot be read"):
            storage.read(path.replace("b.png", "c.png"))
    with pytest.raises(ImageError, match=r"addresses of this kind are not supported"):
        storage.read("nonsense://a/b.png")


def test_what_cannot_be_written_is_told_and_not_that_there_is_nothing_to_remove(store: str, monkeypatch: pytest.MonkeyPatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", full)
    with pytest.raises(OutputError, match="No space left on device"):
        RemoteStorage().write(f"{store}/a.png", b"x")


def test_states_are_equal_exactly_if_nothing_changed():
    for old, new in (
        ({"size": 3, "LastModified": "2026-01-02T03:04:05+00:00"}, {"size": 3, "LastModified": "2026-01-02T03:04:06+00:00"}),
        ({"size": 3, "mtime": 5.0}, {"size": 4, "mtime": 5.0}),
        ({"size": 3, "ETag": "a"}, {"size": 3, "ETag": "b"}),
    ):
        assert file_state(old) == file_state(dict(old)) != file_state(new)
    assert file_state({"size": 3, "LastModified": "2026-01-02T03:04:05.25Z"}) == file_state(
        {"size": 3, "LastModified": "2026-01-02T03:04:05Z"}
    )
    assert file_state({"size": 3}) != file_state({"size": 3})  # nothing is known: the contents are compared
    assert file_state({"size": None, "mtime": 1}) is None
    assert file_state({"size": 0, "mtime": 1, "type": "directory"}) is None


def test_a_folder_is_listed_once(store: str, monkeypatch: pytest.MonkeyPatch):
    memory = fsspec.filesystem("memory")
    for i in range(3):
        memory.pipe_file(f"/store/{i}.png", b"x" * i)
    calls: list[str] = []
    monkeypatch.setattr(memory, "ls", lambda path, detail: calls.append(path) or type(memory).ls(memory, path, detail=detail))
    monkeypatch.setattr("gleansr.cluster.urls.file_system", lambda url: (memory, "/" + url.partition("://")[2]))
    listed = CachedStorage()
    states = [listed.state(f"{store}/{i}.png") for i in range(4)]
    assert [state and state.size for state in states] == [0, 1, 2, None]
    assert calls == ["/store"]
    assert listed.state(f"{store}/nowhere/a.png") is None


# ------------------------------------------------------------------------------------------------------------ lists


def test_a_store_is_walked_as_a_folder(fill: Callable[[list[str]], Path], store: str, tmp_path: Path):
    names = ["b.png", "b.jpg", "a/x.webp", "a/b/c/d.png", "a-b.png", "a/.hidden.png", ".h/x.png", "a/Ä 1.png", "a/x.png"]
    root = fill(names)
    (root / "notes.txt").write_text("")
    (root / "old").mkdir()
    for name in ("old/gleansr.jsonl", "old/x.png"):
        (root / name).write_text("")
        fsspec.filesystem("memory").pipe_file(f"/store/in/{name}", b"")
    [local] = folders.destinations([root], tmp_path / "out", "")
    [place] = cluster.destinations([f"{store}/in"], Path(f"{store}/out"), "")
    assert isinstance(place, cluster.RemoteDestination)
    assert place.manifest == f"{store}/out/gleansr.jsonl"
    expected = [job for job in folders.walk(local) if isinstance(job, Job)]
    found = [job for job in cluster.walk(place) if isinstance(job, Job)]
    assert [job.source.partition("/in/")[2] for job in found] == [job.source.partition("/in/")[2] for job in expected]
    assert [job.target_key for job in found] == [job.target_key for job in expected]
    assert [job.target for job in found] == [f"{store}/out/{job.target_key}" for job in found]
    assert [job.source_key for job in found] == [job.source for job in found]
    assert cluster.count(place).images == len(found) == 7


def test_several_inputs_share_a_tree(fill: Callable[[list[str]], Path], store: str, tmp_path: Path):
    root = fill(["s/a.png"])
    [place] = cluster.destinations([f"{store}/in", root / "s" / "a.png", root], tmp_path / "out", "", manifest=tmp_path / "list.jsonl")
    jobs = [job for job in cluster.walk(place) if isinstance(job, Job)]
    assert [(job.source, job.target_key) for job in jobs] == [
        (str(root / "s" / "a.png"), str(tmp_path / "out" / "a.png")),  # whole, where the manifest lies elsewhere
        (f"{store}/in/s/a.png", str(tmp_path / "out" / "s" / "a.png")),
        (str(root / "s" / "a.png"), str(tmp_path / "out" / "s" / "a.png.png")),
    ]


def test_no_result_in_a_store_replaces_an_input(store: str, work: Work, tmp_path: Path):
    for name in ("results/sub/a.png", "x/sub/a.png", "x/sub/b.png"):
        RemoteStorage().write(f"{store}/{name}", b"precious")
    place = cluster.RemoteDestination.of([f"{store}/x", f"{store}/results/sub"], f"{store}/results")
    jobs = [job for job in cluster.walk(place) if isinstance(job, Job)]
    assert {job.target.removeprefix(f"{store}/results/"): job.replaces for job in jobs} == {
        "a.png": "anything",
        "sub/a.png": "nothing",
        "sub/b.png": "nothing",
    }
    planned = list(portions(jobs, replace(work, overwrite=True, storage=RemoteStorage()), [None], 8))
    [refused] = [one for one in planned if isinstance(one, JobResult)]
    assert "results/sub/a.png is an input and is never replaced" in str(refused.error)


def test_what_cannot_be_listed(store: str, tmp_path: Path):
    with pytest.raises(RequestError, match="no such folder"):
        cluster.destinations([f"{store}/nowhere"], tmp_path, "")
    with pytest.raises(RequestError, match="require a results folder"):
        cluster.destinations([f"{store}/in"], None, "")
    with pytest.raises(RequestError, match="addresses of this kind are not supported"):
        cluster.destinations(["nonsense://in"], tmp_path, "")
    with pytest.raises(RequestError, match="no such file or folder"):
        cluster.destinations([tmp_path / "missing"], f"{store}/out", "")
    fsspec.filesystem("memory").pipe_file("/store/empty/a.txt", b"")
    with pytest.raises(RequestError, match="no images found"):
        cluster.count(cluster.destinations([f"{store}/empty"], f"{store}/out", "")[0])
    place = cluster.RemoteDestination(str(tmp_path), ("nonsense://in",), frozenset({"nonsense://in"}), tmp_path / "gleansr.jsonl")
    [unlisted] = cluster.walk(place)
    assert isinstance(unlisted, UnreadableFolder)
    assert "addresses of this kind are not supported" in unlisted.reason


# ------------------------------------------------------------------------------------------------------------ plans


def test_portions_are_small_and_whole():
    jobs = [
        (Job(f"/in/{i:05d}\udcff.jpg", f"/out/{i:05d}.png", f"../in/{i}", f"{i}.png", i % 2), KnownResult(b"x" * 16 if i % 3 else None))
        for i in range(64)
    ]
    portion = Portion.of(jobs)
    assert portion.jobs() == jobs
    assert len(Portion.of([(job, KnownResult()) for job, _ in jobs]).packed) < 64 * 40


def test_a_plan_skips_what_is_done_and_refuses_what_is_not_ours(fill: Callable[[list[str]], Path], work: Work, tmp_path: Path):
    root = fill([f"{i}.png" for i in range(7)])
    [place] = folders.destinations([root], tmp_path / "out", "")
    assert place.manifest
    with closing(folders.Manifest(place.manifest)) as manifest:
        first = [job for job in folders.walk(place) if isinstance(job, Job)][:3]
        list(folders.run(first, work, [manifest]))
    (tmp_path / "out" / "4.png").write_bytes(b"of somebody else")
    (root / "1.png").write_bytes((root / "1.png").read_bytes())  # the same again, at another time
    with closing(folders.Manifest(place.manifest)) as manifest:
        planned = list(portions(folders.walk(place), work, [manifest], 2))
    told = [one for one in planned if isinstance(one, JobResult)]
    assert [(one.job.target_key, one.status) for one in told] == [("0.png", "skipped"), ("2.png", "skipped"), ("4.png", "failed")]
    assert "--overwrite" in str(told[2].error)
    jobs = [job for one in planned if isinstance(one, Portion) for job in one.jobs()]
    assert [(job.target_key, known.sha256 is not None) for job, known in jobs] == [
        ("1.png", True),
        ("3.png", False),
        ("5.png", False),
        ("6.png", False),
    ]
    lines = [json.loads(line) for line in place.manifest.read_text().splitlines()]
    begun = [target for line in lines[-3:] for target in line.get("targets", ())]
    assert begun == ["3.png", "5.png", "6.png"]  # not what may turn out to be done


# ------------------------------------------------------------------------------------------------------------ workers


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RayWorker]:
    """A worker in this process, as Ray would make it."""
    context = SimpleNamespace(was_current_actor_reconstructed=False)
    fake = SimpleNamespace(get=lambda reference: reference, get_runtime_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray", fake)

    class Tally:
        """Answers as a process would that counts."""

        def __init__(self, begun: int, starting: int):
            self.begin = SimpleNamespace(remote=lambda *_: begun)
            self.starting = SimpleNamespace(remote=lambda *_: starting)
            self.started = SimpleNamespace(remote=lambda *_: None)
            self.stopped = SimpleNamespace(remote=lambda *_: False)

    def make(work: Work | bytes, begun: int = 0, starting: int = 1, **setting: Any) -> RayWorker:
        data = work if isinstance(work, bytes) else pickle.dumps(work)
        return RayWorker([data], Tally(begun, starting), WorkerConfig(**setting))

    return make


def done(worker: RayWorker, jobs: list[Job]) -> tuple[list[tuple[int, JobResult]], GleansrError | None, str]:
    rows = pyarrow.table(
        {"number": [5], "jobs": pyarrow.array([pack_portions([Portion.of([(job, KnownResult()) for job in jobs])])], pyarrow.binary())}
    )
    made = worker(rows)
    assert made["number"].to_pylist() == [5]
    return unpack_results(made["outcomes"].to_pylist()[0], jobs)


def test_a_worker_reads_and_writes_in_a_store(fill: Callable[[list[str]], Path], worker: Callable[..., RayWorker], work: Work, store: str):
    root = fill(["a.png", "s/b.png"])
    place = cluster.RemoteDestination(f"{store}/out", (f"{store}/in",), frozenset({f"{store}/in"}), f"{store}/out/gleansr.jsonl")
    jobs = [job for job in cluster.walk(place) if isinstance(job, Job)]
    outcomes, stop, note = done(worker(work), jobs)
    assert (stop, note) == (None, "")
    assert sorted((number, one.status, one.job) for number, one in outcomes) == [(0, "done", jobs[0]), (1, "done", jobs[1])]
    for job in jobs:
        expected = root.parent / "expected.png"
        local = Job(str(root / job.target_key), str(expected), "", "", 0)
        [outcome] = folders.process([local], work)
        assert outcome.status == "done"
        assert outcome.summary in [one.summary for _, one in outcomes if one.job == job]
        assert RemoteStorage().read(job.target) == expected.read_bytes()
        expected.unlink()


def test_a_worker_that_cannot_work_says_so(worker: Callable[..., RayWorker], work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gleansr.cluster.worker._SHARED_SECONDS", 0.1)
    for one, reason in (
        (worker(work, version="gleansr 0.0.0"), "install the same version"),
        (worker(work, witnesses=(str(tmp_path / "nowhere"),)), "all machines must share"),
        (worker(work, starting=9, workers=2), "workers die while they load the model"),
        (worker(b"no pickle"), "cannot start: "),
    ):
        outcomes, stop, _ = done(one, [Job("a", "b", "a", "b")])
        assert not outcomes
        assert isinstance(stop, RequestError)
        assert reason in str(stop)


def test_a_portion_that_was_begun_too_often_is_given_up(worker: Callable[..., RayWorker], work: Work, tmp_path: Path):
    jobs = [Job(str(tmp_path / "a.png"), str(tmp_path / "b.png"), "a", "b")]
    assert done(worker(work, begun=2, tries=2), jobs) == ([], None, "")
    [(_, outcome)], _, _ = done(worker(work, begun=1, tries=2), jobs)
    assert outcome.status == "failed"


def test_what_a_killed_worker_left_is_removed(
    fill: Callable[[list[str]], Path], worker: Callable[..., RayWorker], work: Work, tmp_path: Path
):
    root, out = fill(["a.png"]), tmp_path / "out"
    out.mkdir()
    left, others = out / ".a.png.0123abcd.part", [out / ".b.png.0123abcd.part", out / ".a.png.0123.part"]
    for path in (left, *others):
        path.write_bytes(b"half")
    jobs = [Job(str(root / "a.png"), str(out / "a.png"), "a", "a")]
    done(worker(work), jobs)
    assert left.exists()  # it may be of another worker that lives
    done(worker(work, again=True), jobs)
    assert not left.exists()
    assert all(path.exists() for path in others)


def test_rounds_end_where_all_images_kill(monkeypatch: pytest.MonkeyPatch):
    ray = SimpleNamespace()
    monkeypatch.setattr("gleansr.cluster.rounds.run_counter", lambda _: None)
    monkeypatch.setattr(Rounds, "_dataset", lambda *_: None)
    monkeypatch.setattr(Rounds, "_rows", lambda *_: (_ for _ in ()))
    rounds = Rounds(ray, Fleet(2, 1, False), ClusterConfig(), None, WorkerConfig(), lambda: False)  # pyright: ignore[reportArgumentType]
    few = [Portion.of([(Job(str(i), "", "", str(i)), KnownResult()) for i in range(5)])]
    assert [outcome.status for outcome in rounds(few)] == ["failed"] * 5
    many = [Portion.of([(Job(str(i), "", "", str(i)), KnownResult()) for i in range(200)])]
    with pytest.raises(GleansrError, match="die with any image"):
        list(rounds(many))


def test_as_many_workers_as_there_is_room_for():
    def nodes(*resources: dict[str, float]) -> Any:
        return SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": one} for one in resources] + [{"Alive": False, "Resources": {}}])

    two = nodes({"CPU": 7.0}, {"CPU": 4.0}, {})
    assert Fleet.of(two, ClusterConfig(), gpu=True) == Fleet(11, 1, False)
    assert Fleet.of(two, ClusterConfig(cores=4), gpu=True) == Fleet(2, 4, False)
    assert Fleet.of(two, ClusterConfig(workers=20), gpu=False) == Fleet(20, 1, False)
    with pytest.raises(GleansrError, match="no machine of the cluster has 8 cores"):
        Fleet.of(two, ClusterConfig(cores=8), gpu=False)
    graphics = nodes({"CPU": 16.0, "GPU": 4.0}, {"CPU": 64.0, "GPU": 2.0}, {"CPU": 8.0})
    assert Fleet.of(graphics, ClusterConfig(), gpu=True) == Fleet(6, 4, True)
    assert Fleet.of(graphics, ClusterConfig(), gpu=False) == Fleet(88, 1, False)


# ------------------------------------------------------------------------------------------------------------ manifests


def test_a_manifest_in_a_store_is_kept_in_parts(store: str):
    url = f"{store}/out/gleansr.jsonl"
    job = Job("a", "b", "a.png", "a.png")
    entry = {
        "status": "done",
        "source": "a.png",
        "target": "a.png",
        "bytes": 1,
        "mtime_ns": 2,
        "sha256": "00" * 32,
        "model_sha256": None,
        "options": {},
    }
    with closing(cluster.open_manifest(url)) as manifest:
        manifest.begin([job])
        assert isinstance(manifest, StoredManifest)
        manifest.upload()
        manifest.add(entry)
        copy = manifest.file
    assert not copy.exists()
    memory = fsspec.filesystem("memory")
    parts = sorted(memory.ls("/store/out/gleansr.jsonl", detail=False))
    assert [part.rpartition("/")[2][:8] for part in parts] == ["00000000", "00000001"]
    lines = b"".join(memory.cat_file(part) for part in parts).splitlines()
    assert [json.loads(line).get("status") for line in lines] == [None, "begun", "done"]
    with closing(cluster.open_manifest(url)) as manifest:
        recorded = manifest.index.get("a.png")
        assert recorded
        assert FileState(recorded.size, recorded.mtime_ns) == FileState(1, 2)
        manifest.add({"status": "failed", "source": "c.png", "target": "c.png", "error": "no"})
    assert len(memory.ls("/store/out/gleansr.jsonl", detail=False)) == 3


def test_parts_come_in_time(store: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gleansr.cluster.manifest._SECONDS", -1.0)  # each line is due
    memory = fsspec.filesystem("memory")
    with closing(cluster.open_manifest(f"{store}/m.jsonl")) as manifest:
        for i in range(3):
            manifest.begin([Job("", "", "", f"{i}.png")])
        assert len(memory.ls("/store/m.jsonl", detail=False)) == 3


# ------------------------------------------------------------------------------------------------------------ clusters


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces Ray by a module without a cluster, with this `init`."""

    def replace_ray(init: Callable[..., object] = pytest.fail) -> None:
        fake = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: None, data=None)
        monkeypatch.setitem(sys.modules, "ray", fake)
        monkeypatch.setitem(sys.modules, "ray.data", SimpleNamespace())

    return replace_ray


@pytest.fixture
def closed() -> str:
    """The address of a port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of a port that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_without_a_cluster_is_refused(closed: str, no_ray: Callable[..., None], work: Work, monkeypatch: pytest.MonkeyPatch):
    no_ray()
    for address, reason in (
        (closed, "Connection refused"),
        (f"ray://{closed}", "run gleansr on a machine of the cluster"),
        ("nowhere.invalid:6379", ""),
        ("http://host:1", "an address is HOST:PORT"),
        ("host:port", "an address is HOST:PORT"),
        ("host", "an address is HOST:PORT"),
    ):
        with pytest.raises(RequestError, match="no Ray cluster can be used at") as error:
            list(upscale_on_cluster([], work, [], cluster=ClusterConfig(address)))
        assert reason in str(error.value)
    monkeypatch.setenv("RAY_ADDRESS", closed)
    with pytest.raises(RequestError, match="of the environment variable RAY_ADDRESS"):
        connection.resolve_address(None)


def test_joining_ends_in_time_or_with_the_reason_that_ray_gives(
    listening: str, no_ray: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    """Ray itself would wait for minutes where a server is not Ray."""
    monkeypatch.setattr(connection, "_JOIN_SECONDS", 0.01)
    ended = threading.Event()
    no_ray(lambda *_, **__: ended.wait())
    with pytest.raises(RequestError, match=f"the Ray cluster at {listening} cannot be used: joining it took more than"):
        connection.connect(listening).__enter__()
    ended.set()

    def reject(*_: object, **__: object) -> None:
        raise RuntimeError("\nno such node\nat all")

    monkeypatch.setattr(connection, "_JOIN_SECONDS", 60)
    no_ray(reject)
    with pytest.raises(RequestError, match=f"the Ray cluster at {listening} cannot be used: no such node; if it requires a token"):
        connection.connect(listening).__enter__()


def test_the_signal_handler_that_ray_replaces_is_restored(no_ray: Callable[..., None]):
    no_ray(lambda *_, **__: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    before = signal.getsignal(signal.SIGTERM)
    with connection.connect("local"):
        assert signal.getsignal(signal.SIGTERM) is before


def test_the_cluster_of_this_machine_is_found_if_it_answers(closed: str, listening: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert connection.resolve_address(None) == "local"
    with pytest.raises(RequestError, match="no Ray cluster runs on this machine"):
        connection.resolve_address("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(listening)
    assert connection.resolve_address(None) == "auto"
    (tmp_path / "ray" / "ray_current_cluster").write_text(closed)  # of one that has ended
    assert connection.resolve_address(None) == "local"


def test_auto_is_the_cluster_of_this_machine_whatever_the_environment_says(
    closed: str, listening: str, no_ray: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", closed)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(listening)
    joined = []
    no_ray(lambda address, **_: joined.append((address, os.environ.get("RAY_ADDRESS"))))
    with connection.connect("auto"):
        assert os.environ["RAY_ADDRESS"] == closed
    assert joined == [("auto", None)]


def test_without_ray(work: Work, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install 'gleansr\[ray\]'"):
        next(upscale_on_cluster([], work, []))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{}", "--ray-cores", "2"], "give --ray too"),
        (["s3://bucket/folder", "-o", "x"], "s3://bucket/folder: images and results with addresses are for clusters: give --ray too"),
        (["{}", "-o", "s3://bucket/folder"], "s3://bucket/folder: images and results with addresses are for clusters"),
        (["{}", "--ray", "headnode"], "--ray headnode: neither the address of a cluster"),
        (["--ray", "{}", "--device", "cuda:1"], "with --ray it is auto"),
        (["--ray", "{}", "--ray-workers", "0"], "workers of a cluster must be 1 or more"),
        (["--ray", "localhost:1"], "give at least one image, folder or video"),
        (["--ray", "memory://store", "-o", "memory://store"], "results need a folder of their own"),
        (["memory://store/in", "--ray"], "require a results folder"),
    ],
)
def test_wrong_requests_get_one_line(
    arguments: list[str], reason: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(["upscale", "--model", str(tiny_model), *[argument.format(tmp_path) for argument in arguments]])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert reason in told
    assert told.count("\n") == 1


def test_wrong_numbers_are_refused():
    for name in ("workers", "cores", "tries"):
        with pytest.raises(RequestError, match=f"{name} of a cluster must be 1 or more, not 0"):
            ClusterConfig(**{name: 0})  # pyright: ignore[reportArgumentType]
