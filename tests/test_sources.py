"""Sources of training images: one contract for every kind of place, what is refused, and what travels over the network."""

import io
import json
import multiprocessing
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lmdb
import pytest

from gleansr.data import shards, sources
from gleansr.data.lmdbs import values
from gleansr.data.shards import expand
from gleansr.data.sources import open_source, pairs_of
from gleansr.errors import DownloadError, ImageError, RequestError

CONTENTS = {
    name: os.urandom(size) for name, size in {"b c.png": 300, "a.JPG": 70_000, "sub/ü.webp": 1, "sub/a.jpg": 10, "z.jpeg": 0}.items()
}


def folder_of(path: Path, contents: Mapping[str, bytes]) -> Path:
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def zip_of(path: Path, contents: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def tar_of(path: Path, contents: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def lmdb_of(path: Path, contents: Mapping[str, bytes]) -> Path:
    with lmdb.open(str(path), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for name, data in contents.items():
            transaction.put(name.encode(), data)
    return path


MAKERS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "folder": folder_of,
    "zip": zip_of,
    "deflated": partial(zip_of, method=zipfile.ZIP_DEFLATED),
    "tar": tar_of,
    "lmdb": lmdb_of,
}


@pytest.fixture(params=MAKERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of each kind with `CONTENTS` and, where other things may lie beside images, a text."""
    extra = {} if request.param == "lmdb" else {"readme.txt": b"no image", ".hidden.png": b"x", "__MACOSX/._a.png": b"x"}
    return str(MAKERS[request.param](tmp_path / f"place-{request.param}", CONTENTS | extra))


def read_all(source: sources.Source) -> dict[str, bytes]:
    return {name: source.read(i) for i, name in enumerate(source.names)}


def test_names_are_sorted_and_contents_are_theirs(place: str):
    source = open_source(place)
    assert len(source) == len(CONTENTS)
    assert list(source.names) == sorted(CONTENTS)
    assert read_all(source) == CONTENTS
    assert source.read(-1) == CONTENTS["z.jpeg"]
    for i, name in enumerate(source.names):
        assert source.label(i).endswith(name)
        assert source.label(i).startswith(place)


def test_a_source_is_read_by_threads_forks_and_copies(place: str):
    source = open_source(place)
    assert read_all(source) == CONTENTS  # whatever is opened at the first reading is open now
    copy = pickle.loads(pickle.dumps(source))
    assert read_all(copy) == CONTENTS
    item = pickle.loads(pickle.dumps(source.item(1)))
    assert item.read() == source.read(1)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: source.read(i % 5), range(200))) == [source.read(i % 5) for i in range(200)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_processes_read_what_their_parent_has_open(place: str):
    source = open_source(place)
    assert read_all(source) == CONTENTS
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(source.read, range(5)) == [source.read(i) for i in range(5)]
        assert read_all(source) == CONTENTS


def test_a_process_that_knows_nothing_reads_them_all(tmp_path: Path):
    opened = [open_source(str(make(tmp_path / name, CONTENTS))) for name, make in MAKERS.items()]
    (tmp_path / "sources.pickle").write_bytes(pickle.dumps(opened))
    script = "import pickle, sys; [s.read(i) for s in pickle.load(open(sys.argv[1], 'rb')) for i in range(len(s))]; print('read')"
    process = subprocess.run([sys.executable, "-c", script, tmp_path / "sources.pickle"], capture_output=True, text=True, check=False)
    assert process.stdout == "read\n", process.stderr


def test_what_vanishes_or_changes_is_a_image_error(place: str, tmp_path: Path):
    source = open_source(place)
    if isinstance(source, sources.FolderSource):
        (Path(place) / "z.jpeg").unlink()
        with pytest.raises(ImageError, match=r"^cannot be read: No such file"):
            source.read(4)
        return
    file = Path(place) / "data.mdb" if isinstance(source, sources.LMDBSource) else Path(place)
    file.write_bytes(b"\0" * 50)
    with pytest.raises(ImageError, match="has changed since it was listed"):
        source.read(0)


# ------------------------------------------------------------------------------------------------------------------- LMDB


def filled(folder: Path, seed: int, count: int, longest: int) -> dict[bytes, bytes]:
    """Writes an LMDB of many pages, of which some were freed again, and returns what the library says is in it."""
    rng = random.Random(seed)  # noqa: S311
    with lmdb.open(str(folder), map_size=1 << 26) as environment:
        with environment.begin(write=True) as transaction:
            for _ in range(count):
                transaction.put(rng.randbytes(rng.randint(1, 60)), rng.randbytes(rng.randint(0, longest)))
        with environment.begin(write=True) as transaction:
            for key in [key for i, key in enumerate(transaction.cursor().iternext(values=False)) if i % 3 == 1]:
                transaction.delete(key)
        with environment.begin() as transaction:
            return dict(transaction.cursor())


@pytest.mark.parametrize(("count", "longest"), [(0, 1), (1, 9), (3000, 300), (60, 20_000), (2, 500_000)])
def test_values_lie_where_the_library_finds_them(count: int, longest: int, tmp_path: Path):
    wanted = filled(tmp_path, count, count, longest)
    data = (tmp_path / "data.mdb").read_bytes()
    assert {value.key: data[value.offset : value.offset + value.size] for value in values(tmp_path / "data.mdb")} == wanted


def test_an_lmdb_with_damage_anywhere_is_read_or_refused(tmp_path: Path):
    """Whatever its bytes are: by the library many of these would be read beyond the file's end, which kills the process."""
    filled(tmp_path, 7, 150, 6000)
    file = tmp_path / "data.mdb"
    whole, rng, refused = file.read_bytes(), random.Random(7), 0  # noqa: S311
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            page = rng.randrange(len(damaged) // 4096) * 4096
            place = rng.choice([rng.randrange(16, 160), page + rng.randrange(200), rng.randrange(len(damaged))])
            damaged[place] = rng.choice([0, 1, 255, rng.randrange(256)])
        file.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            found = values(file)
        except RequestError as error:
            refused += 1
            assert str(file) in str(error)  # noqa: PT017
        else:
            assert all(0 <= value.offset <= value.offset + value.size <= file.stat().st_size for value in found)
    assert refused > 100


def test_an_lmdb_of_databases_is_refused(tmp_path: Path):
    with lmdb.open(str(tmp_path), map_size=1 << 22, max_dbs=1) as environment:
        environment.open_db(b"within")
    with pytest.raises(RequestError, match="nested databases"):
        open_source(tmp_path)


def test_an_lmdb_whose_tree_leads_back_is_refused(tmp_path: Path):
    """Pages that are met again would be listed without end."""
    filled(tmp_path, 3, 3000, 300)
    file = tmp_path / "data.mdb"
    data = bytearray(file.read_bytes())
    _, page = max((struct.unpack_from("<Q", data, at + 144)[0], struct.unpack_from("<Q", data, at + 128)[0]) for at in (0, 4096))
    pointer = struct.unpack_from("<H", data, page * 4096 + 16)[0]
    struct.pack_into("<2H", data, page * 4096 + pointer, page & 0xFFFF, page >> 16)
    file.write_bytes(data)
    with pytest.raises(RequestError, match="is damaged: its page"):
        values(file)


# --------------------------------------------------------------------------------------------------------------- archives


def lying(path: Path, contents: bytes, stated: int) -> Path:
    """A zip with one deflated member whose size is said to be another."""
    zip_of(path, {"a.png": contents}, zipfile.ZIP_DEFLATED)
    data, true, false = path.read_bytes(), struct.pack("<I", len(contents)), struct.pack("<I", stated)
    path.write_bytes(data.replace(true, false))
    return path


@pytest.mark.parametrize("stated", [1000, 2**30, 2**30 + 1, 0])
def test_a_small_member_that_unpacks_to_gigabytes_does_not_fill_the_memory(stated: int, tmp_path: Path):
    path = lying(tmp_path / "a.zip", bytes(64 * 2**20 + 12_345), stated)
    source = open_source(path)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"does not have the [\d,]+ bytes|but at most [\d,]+ are read"):
            source.read(0)
        assert tracemalloc.get_traced_memory()[1] < (300 if stated == 2**30 else 2) * 2**20  # what is there is made, not what is stated
    finally:
        tracemalloc.stop()


def test_members_beyond_an_archive_s_end_are_refused(tmp_path: Path):
    path = zip_of(tmp_path / "a.zip", {"a.png": b"x" * 1234})
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    path.write_bytes(data[:at] + data[at:].replace(struct.pack("<2I", 1234, 1234), struct.pack("<2I", 0x7FFFFFFF, 0x7FFFFFFF), 1))
    with pytest.raises(RequestError, match=r"a\.zip: cannot be read as a zip or tar archive: a\.png lies beyond its end"):
        open_source(path)


def test_a_spoilt_member_of_a_zip_is_noticed(tmp_path: Path):
    path = zip_of(tmp_path / "a.zip", {"a.png": b"picture" * 9})
    path.write_bytes(path.read_bytes().replace(b"picture", b"pictuRe", 1))
    with pytest.raises(ImageError, match="checksum"):
        open_source(str(path)).read(0)


# ---------------------------------------------------------------------------------------------------------------- folders


def test_links_are_followed_once(tmp_path: Path):
    folder_of(tmp_path / "elsewhere", {"x.png": b"x"})
    root = folder_of(tmp_path / "root", {"a/y.png": b"y", ".git/z.png": b"z"})
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "again").symlink_to(root / "a" / "up")
    assert list(open_source(root).names) == ["a/y.png", "linked/x.png"]


def test_refusals_say_what_is_there(tmp_path: Path):
    texts = folder_of(tmp_path / "texts", {"notes.txt": b"x", "more/data.bin": b"x"})
    (tmp_path / "empty").mkdir()
    junk = folder_of(tmp_path, {"junk.tar": os.urandom(2000)}) / "junk.tar"
    cut = tar_of(tmp_path / "cut.tar", {"a.png": b"x" * 9000, "b.png": b"x" * 9000})
    os.truncate(cut, 15_000)
    mdb = folder_of(tmp_path / "mdb", {"data.mdb": os.urandom(10_000)})
    short = lmdb_of(tmp_path / "short", {f"{i}": b"x" * 5000 for i in range(9)})
    os.truncate(short / "data.mdb", 20_000)
    for spec, words in {
        tmp_path / "none": "no such file or folder",
        texts: "only more/data.bin, notes.txt",
        tmp_path / "empty": "empty folder",
        junk: "cannot be read as a zip or tar archive",
        cut: "unexpected end of data",
        tar_of(tmp_path / "small.tar", {"a.png": b"x"}, "w:gz"): "decompress it",
        tar_of(tmp_path / "texts.tar", {"a.txt": b"x"}): "no images in it",
        zip_of(tmp_path / "packed.zip", {"a.png": b"x"}, zipfile.ZIP_LZMA): "create a stored archive",
        mdb: "cannot be read as an LMDB",
        short: "is cut off",
        f"{tmp_path}/s-{{0..2}}.tar": "3 of 3 files of",
        "gopher://host/a.tar": "expected http://",
        "s3://bucket/a.tar": "pip install s3fs",
    }.items():
        with pytest.raises(RequestError) as refusal:
            open_source(spec)
        assert words in str(refusal.value)
        assert str(spec).split("{", maxsplit=1)[0] in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_an_unreadable_folder_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder_of(tmp_path, {"a/b.png": b"", "c.png": b""})
    scandir = os.scandir

    def denied(path: str):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(RequestError, match="a: cannot be read: Permission denied"):
        open_source(tmp_path)


# ----------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize(
    "pattern",
    [
        "a",
        "{a,b}",
        "x{8..11}y",
        "{0008..0011}.tar",
        "{3..1}",
        "{a,b}-{0..1}",
        "{a,b{1,2}}",
        "a{b}c",
        "{x",
        "a{,b}",
        "{00..2}{,z}",
        "{1..010}",
    ],
)
def test_braces_mean_what_they_mean_to_a_shell(pattern: str):
    shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)  # noqa: S607
    assert expand(pattern) == shell.stdout.splitlines()


def test_a_slip_of_the_pen_does_not_fill_the_memory():
    for pattern in ("{0..999999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(RequestError, match="stands for more than"):
            expand(pattern)


def test_of_a_sample_the_first_image_counts(tmp_path: Path):
    members = {
        "000.json": b"{}",
        "000.jpg": b"cat 0",
        "000.seg.png": b"mask 0",
        "./001.cls": b"1",
        "./001.webp": b"cat 1",
        "d/000.jpg": b"cat 2",
    }
    assert read_all(open_source(tar_of(tmp_path / "s.tar", members))) == {"000.jpg": b"cat 0", "001.webp": b"cat 1", "d/000.jpg": b"cat 2"}


def test_shards_are_one_source_whatever_their_numbering(tmp_path: Path):
    for name, contents in {"s-00": {"0.jpg": b"a", "1.jpg": b"b"}, "s-01": {"2.jpg": b"c"}, "s-02": {"1.jpg": b"d"}}.items():
        tar_of(tmp_path / f"{name}.tar", contents)
    assert read_all(open_source(f"{tmp_path}/s-{{00..01}}.tar")) == {"0.jpg": b"a", "1.jpg": b"b", "2.jpg": b"c"}
    source = open_source(f"{tmp_path}/s-{{00..02}}.tar")
    assert read_all(source) == {"s-00/0.jpg": b"a", "s-00/1.jpg": b"b", "s-01/2.jpg": b"c", "s-02/1.jpg": b"d"}
    assert source.label(3) == f"{tmp_path}/s-02.tar: s-02/1.jpg"
    (tmp_path / "s-01.tar").unlink()
    with pytest.raises(RequestError, match=r"s-01\.tar: no such file or folder, 1 of 3 files"):
        open_source(f"{tmp_path}/s-{{00..02}}.tar")


class Handler(SimpleHTTPRequestHandler):
    """Serves the server's folder, unless it is told to fail first."""

    server: "Server"

    def do_GET(self) -> None:
        with self.server.counting:
            self.server.requests += 1
            failing = self.server.failures > 0
            self.server.failures -= 1
        if failing:
            self.send_response(200)
            self.send_header("Content-Length", "10000")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Of a folder, on this machine."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.requests = self.failures = 0
        self.counting = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GLEANSR_OFFLINE", raising=False)
    monkeypatch.setattr(shards, "sleep", float)
    root = tmp_path / "served"
    root.mkdir()
    for i in range(3):
        tar_of(root / f"s-{i}.tar", {f"{i}.jpg": bytes([i]) * 5000})
    with Server(root) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_remote_shards_are_fetched_once(server: Server, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    source = open_source(f"{server.url}/s-{{0..2}}.tar?token=secret", lambda done, total: seen.append((done, total)))
    assert read_all(source) == {f"{i}.jpg": bytes([i]) * 5000 for i in range(3)}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert source.label(1) == f"{server.url}/s-1.tar: 1.jpg"
    assert server.requests == 3
    with ThreadPoolExecutor(4) as pool:
        assert [s.names for s in pool.map(open_source, [f"{server.url}/s-{{0..2}}.tar?token=secret"] * 4)] == [source.names] * 4
    assert server.requests == 3
    assert not list((tmp_path / "home").rglob("*.part"))


def test_many_that_want_one_shard_fetch_it_once(server: Server):
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(open_source, [f"{server.url}/s-0.tar"] * 6))
    assert all(s.read(0) == bytes(5000) for s in opened)
    assert server.requests == 1


def test_a_broken_line_is_tried_again(server: Server, tmp_path: Path):
    server.failures = 2
    assert read_all(open_source(f"{server.url}/s-0.tar")) == {"0.jpg": bytes(5000)}
    assert server.requests == 3
    server.failures = 99
    with pytest.raises(DownloadError, match=r"s-1\.tar: .*run the same command again"):
        open_source(f"{server.url}/s-1.tar?token=secret")
    assert not list((tmp_path / "home").rglob("*s-1.tar*.part"))


def test_remote_refusals(server: Server, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RequestError, match=r"s-9\.tar: no such file"):
        open_source(f"{server.url}/s-9.tar")
    monkeypatch.setenv("GLEANSR_OFFLINE", "1")
    with pytest.raises(RequestError, match="downloads are switched off"):
        open_source(f"{server.url}/s-0.tar")
    monkeypatch.delenv("GLEANSR_OFFLINE")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(RequestError, match=r"pip install 'gleansr\[train\]'"):
        open_source(f"{server.url}/s-0.tar")


# ------------------------------------------------------------------------------------------------------------------ pairs


def test_pairs_match_by_name_without_suffix(tmp_path: Path):
    gt = zip_of(tmp_path / "high.zip", {"b/2.jpg": b"", "1.jpg": b"", "b/1.jpg": b""})
    lr = folder_of(tmp_path / "low", {"1.png": b"", "b/2.png": b"", "b/1.webp": b""})
    pairs = pairs_of(open_source(str(gt)), open_source(str(lr)), str(gt), str(lr))
    names = [(open_source(gt).names[i], open_source(lr).names[j]) for i, j in pairs]
    assert names == [("1.jpg", "1.png"), ("b/1.jpg", "b/1.webp"), ("b/2.jpg", "b/2.png")]
    (lr / "1.png").unlink()
    (lr / "b" / "3.png").write_bytes(b"")
    with pytest.raises(RequestError, match=r"1 of .*high\.zip have no partner .* such as 1; 1 of .*low have no partner .* such as b/3$"):
        pairs_of(open_source(str(gt)), open_source(str(lr)), str(gt), str(lr))
    (lr / "b" / "2.jpg").write_bytes(b"")
    with pytest.raises(RequestError, match=r"b/2\.jpg and b/2\.png differ in their suffix only"):
        pairs_of(open_source(str(gt)), open_source(str(lr)), str(gt), str(lr))


def test_another_programs_manifest_makes_no_prepared_set(tmp_path: Path):
    folder_of(tmp_path, {"manifest.json": json.dumps({"format": "other"}).encode(), "x8/a.png": b""})
    assert list(open_source(tmp_path).names) == ["x8/a.png"]
    (tmp_path / "manifest.json").write_text("[]")
    assert list(open_source(tmp_path).names) == ["x8/a.png"]


@pytest.mark.parametrize("spec", ["", "a\0b"])
def test_names_that_no_folder_has(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"is not the name of a folder or file; give \. for the current folder"):
        open_source(spec)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_called_images_are_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    source = open_source(tmp_path)
    for index in range(2):
        with pytest.raises(ImageError, match="is a folder, a pipe or a device, not a file"):
            source.read(index)


def test_an_image_in_the_place_of_its_folder_is_told(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"x" * 1000)
    with pytest.raises(RequestError, match="it is an image: give its folder"):
        open_source(tmp_path / "a.png")
