"""Folders on a local Ray cluster of two workers: the same files as in folder mode, whatever dies."""

import http.server
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gleansr
from gleansr import cluster
from gleansr import jobs as folders
from gleansr.cli import main
from gleansr.cluster import ClusterConfig, connection, upscale_on_cluster
from gleansr.errors import GleansrError, ImageError
from gleansr.files import sha256_of
from gleansr.inference.tasks import Enlarge
from gleansr.jobs import JobResult, OutputError, UnreadableFolder, Work

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"),
]

COUNT = 24
ALONE = ClusterConfig(workers=1)
"""One worker, where it does not matter how many there are: each takes seconds to start."""


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[Any]:
    """A cluster of two workers with a core each; nothing of it is left at the end."""
    token = secrets.token_hex(8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLEANSR_TEST_CLUSTER", token)  # which all its processes inherit
        patch.delenv("RAY_ADDRESS", raising=False)
        with connection.connect("local", num_cpus=2) as module:
            yield module
    deadline = time.monotonic() + 10
    while left := processes_with(token):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def processes_with(token: str) -> list[int]:
    """Those that have it in their environment, but us (which has it only since it began)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if token.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several kinds in two folders, of which none looks like another, and a damaged one."""
    root = tmp_path_factory.mktemp("cluster") / "pictures"
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = root / f"sub{i % 2}" / f"{i:02d}{['.png', '.jpg', '.webp'][i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((40, 40)).save(path)
    (root / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture
def work(tiny_model: Path) -> Callable[..., Work]:
    """The work of an `Enlarge`, or a task derived from it."""

    def make(kind: Callable[..., Enlarge] = Enlarge, batch_size: int = 1, **options: Any) -> Work:
        return Work(kind(gleansr.load(tiny_model)), batch_size, sha256_of(tiny_model), **options)

    return make


@pytest.fixture(scope="module")
def expected(images: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of folder mode."""
    results = tmp_path_factory.mktemp("expected")
    [place] = folders.destinations([images], results, "")
    work = Work(Enlarge(gleansr.load(tiny_model)), 1, sha256_of(tiny_model))
    assert place.manifest
    with closing(folders.Manifest(place.manifest)) as manifest:
        list(folders.run(folders.walk(place), work, [manifest]))
    return results


def upscaled(
    inputs: Sequence[str | Path],
    output: str | Path,
    work: Work,
    config: ClusterConfig | None = None,
    told: Callable[[JobResult], object] = lambda _: None,
    **options: Any,
) -> list[JobResult]:
    """All outcomes; `told` hears of each as it comes."""
    [place] = cluster.destinations(inputs, output, "")
    assert place.manifest
    outcomes: list[JobResult] = []
    with closing(cluster.open_manifest(place.manifest)) as manifest:
        for outcome in upscale_on_cluster(cluster.walk(place), work, [manifest], cluster=config, **options):
            assert not isinstance(outcome, UnreadableFolder)
            outcomes.append(outcome)
            told(outcome)
    return outcomes


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the manifest and its lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (folders.MANIFEST, ".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def lines(folder: Path, status: str) -> list[dict[str, Any]]:
    """Those of the manifest with that status, by target, without what differs from run to run and from folder to folder."""
    found = [json.loads(line) for line in (folder / folders.MANIFEST).read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key != "seconds"} for line in found if line.get("status") == status]
    for line in kept:
        line["source"] = line["source"] if "://" in line["source"] else os.path.normpath(folder / line["source"])
    return sorted(kept, key=lambda line: line["target"])


def in_expected_way(output: Path, expected: Path) -> bool:
    return tree(output) == tree(expected) and lines(output, "done") == lines(expected, "done")


def test_files_and_manifest_are_those_of_folder_mode(
    work: Callable[..., Work], images: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    output = tmp_path / "results"
    outcomes = upscaled([f"file://{images}"], output, work(batch_size=4))
    assert len(lines(expected, "done")) == COUNT
    assert in_expected_way(output, expected)
    assert sorted(outcome.job.source for outcome in outcomes) == sorted(str(path) for path in images.rglob("*.*"))
    [failure] = [outcome for outcome in outcomes if outcome.status != "done"]
    assert isinstance(failure.error, ImageError)
    assert lines(output, "failed") == lines(expected, "failed")
    # What is done is skipped, without a cluster; what failed is tried again.
    monkeypatch.setattr("gleansr.cluster.upscale.connect", lambda _: pytest.fail("a cluster was sought"))
    again = []
    with pytest.raises(pytest.fail.Exception):
        upscaled([images], output, work(), told=again.append)
    assert [outcome.status for outcome in again] == ["skipped"] * COUNT


def test_the_command(images: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given, results = ["upscale", "--model", str(tiny_model), "--batch-size", "1"], tmp_path / "results"
    runs = [["-o", str(tmp_path / "here")], ["-o", str(results), "--ray"], ["-o", str(results), "--ray", "--ray-workers", "1"]]
    for options in runs:
        with pytest.raises(SystemExit) as ended:
            main([*given, *options, str(images)])
        assert ended.value.code == 1
    assert tree(results) == tree(tmp_path / "here")
    told = capsys.readouterr().err
    assert f"{COUNT} images → " in told
    assert f"{COUNT} done before" in told
    assert "broken.png" in told
    assert "INFO" not in told
    assert "WARNING" not in told


def test_a_killed_worker(work: Callable[..., Work], images: Path, expected: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    results, pids, killed = tmp_path / "results", tmp_path / "pids", tmp_path / "killed"
    pids.mkdir()
    half_written = [results / name.replace("/", "/.").replace(".png", ".png.0123abcd.part") for name in tree(expected)]

    class Waiting(Enlarge):
        def prepare(self, image: Any) -> Any:
            (pids / str(os.getpid())).touch()
            while not killed.exists():
                time.sleep(0.01)
            return super().prepare(image)

    def kill() -> None:
        """Kills a worker once both have an image, leaving files as a process does that is killed while it writes."""
        while len(running := [int(path.name) for path in pids.iterdir()]) < 2:
            time.sleep(0.01)
        for path in half_written:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
        os.kill(running[0], signal.SIGKILL)
        killed.touch()

    threading.Thread(target=kill, daemon=True).start()
    outcomes = upscaled([images], results, work(Waiting))
    assert len(list(pids.iterdir())) == 3  # the third took the place of the first
    assert len(outcomes) == len({outcome.job for outcome in outcomes}) == COUNT + 1
    left = [path for path in half_written if path.exists()]  # of the images that another worker had
    assert len(left) < COUNT
    for path in left:
        path.unlink()
    assert in_expected_way(results, expected)
    assert "died and was restarted" in caplog.text


def test_a_image_that_kills_its_worker_fails_and_the_others_are_done(
    work: Callable[..., Work], images: Path, expected: Path, tmp_path: Path
):
    class Poisoned(Enlarge):
        def prepare(self, image: Any) -> Any:
            if image.name.endswith("07.jpg"):
                os.kill(os.getpid(), 9)
            return super().prepare(image)

    outcomes = upscaled([images], tmp_path, work(Poisoned), ClusterConfig(tries=1))
    assert len(outcomes) == COUNT + 1
    [poison] = [outcome for outcome in outcomes if outcome.error and outcome.job.source.endswith("07.jpg")]
    assert "its worker died each time" in str(poison.error)
    assert tree(tmp_path) == {name: data for name, data in tree(expected).items() if name != "sub1/07.png"}
    assert {Path(line["source"]).name for line in lines(tmp_path, "failed")} == {"07.jpg", "broken.png"}


def test_images_of_a_web_server(work: Callable[..., Work], images: Path, expected: Path, tmp_path: Path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=images))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert cluster.count(cluster.destinations([url], tmp_path, "")[0]).images == COUNT + 1
        outcomes = upscaled([url], tmp_path, work(batch_size=4), ALONE)
    finally:
        server.shutdown()
        server.server_close()
    assert len(outcomes) == COUNT + 1
    assert tree(tmp_path) == tree(expected)
    assert lines(tmp_path, "done")[0]["source"] == f"{url}/sub0/00.png"


def test_a_full_disk_and_workers_that_cannot_work_stop_the_run(work: Callable[..., Work], images: Path, tmp_path: Path):
    class Full(Enlarge):
        def prepare(self, image: Any) -> Any:
            raise OutputError(f"{image.name}: cannot be written: No space left on device")

    class Unknown(Enlarge):
        def __setstate__(self, _: Any) -> None:
            raise ModuleNotFoundError("No module named 'nowhere'")

    with pytest.raises(OutputError, match="No space left"):
        upscaled([images], tmp_path / "full", work(Full), ALONE)
    with pytest.raises(GleansrError, match=r"a worker on .* cannot start: ModuleNotFoundError: No module named 'nowhere'"):
        upscaled([images], tmp_path / "unknown", work(Unknown), ALONE)


def test_stopping_goes_on_later(work: Callable[..., Work], images: Path, expected: Path, tmp_path: Path):
    first: list[JobResult] = []
    upscaled([images], tmp_path, work(), told=first.append, stopped=lambda: bool(first))
    assert 0 < len(first) < COUNT + 1  # the first portions, and those that the workers have then
    upscaled([images], tmp_path, work(), ALONE)
    assert in_expected_way(tmp_path, expected)
