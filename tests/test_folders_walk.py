"""What is read and where its result goes, and what is remembered of it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gleansr.errors import RequestError
from gleansr.files import leftovers, lock_folder, printable, replacing
from gleansr.images import readers
from gleansr.images.readers import readable_suffixes
from gleansr.jobs import Destination, Index, Job, Manifest, OutputError, UnreadableFolder, count, destinations, fingerprint, walk


def put(root: Path, *names: str) -> Path:
    """Empty files with these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def jobs(place: Destination, **options: Any) -> list[Job]:
    found = list(walk(place, **options))
    assert not [one for one in found if isinstance(one, UnreadableFolder)]
    return [one for one in found if isinstance(one, Job)]


def targets(place: Destination) -> dict[str, str]:
    """Of each source, relative to the folder above all."""
    return {job.source_key: job.target_key for job in jobs(place)}


def place(root: Path, *inputs: str) -> Destination:
    (found,) = destinations([root / name for name in inputs], root / "out", "_8x")
    return found


# What is read


def test_a_tree_is_mirrored_in_order(tmp_path: Path):
    put(tmp_path / "in", "b.jpg", "a.png", "sub/x.webp", "sub/deep/y.tif", "A/z.bmp", "notes.txt", "sub/readme")
    found = jobs(place(tmp_path, "in"))
    assert [job.target_key for job in found] == ["a.png", "b.png", "A/z.png", "sub/x.png", "sub/deep/y.png"]
    assert [job.source_key for job in found] == ["../in/a.png", "../in/b.jpg", "../in/A/z.bmp", "../in/sub/x.webp", "../in/sub/deep/y.tif"]
    for job in found:
        assert Path(job.source).is_file()
        assert Path(job.target) == tmp_path / "out" / job.target_key
    assert count(place(tmp_path, "in")).images == len(found)


def test_it_is_lazy(tmp_path: Path):
    put(tmp_path / "in", "a.png", "b/c.png")
    found = walk(place(tmp_path, "in"))
    assert next(found)
    put(tmp_path / "in", "b/d.png")  # this folder was not looked at yet
    assert len(list(found)) == 2


def test_hidden_files_results_and_links_to_folders_are_left_out(tmp_path: Path):
    put(tmp_path / "in", "a.png", ".a.png", ".hidden/b.png", "earlier/gleansr.jsonl", "earlier/c.png", "out/d.png", "sub/e.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "sub" / "up.png").symlink_to("..")
    (tmp_path / "in" / "f.png").symlink_to("sub/e.png")
    (tmp_path / "in" / "g.png").symlink_to("g.png")  # which leads nowhere: reading it tells
    (inside,) = destinations([tmp_path / "in"], tmp_path / "in" / "out", "_8x")
    assert [job.target_key for job in jobs(inside)] == ["a.png", "f.png", "g.png", "sub/e.png"]
    counted = count(inside)
    assert (counted.images, counted.links, counted.results) == (4, 2, 1)


def test_a_linked_folder_that_is_given_is_read(tmp_path: Path):
    put(tmp_path / "real", "a.png")
    (tmp_path / "in").symlink_to("real")
    assert list(targets(place(tmp_path, "in"))) == ["../in/a.png"]


def test_results_beside_their_images_are_left_out(tmp_path: Path):
    put(tmp_path / "in", "a.jpg", "icon.png", "lone_8x.png")
    (tmp_path / "in" / "a_8x.png").write_bytes(b"\x89PNG....tEXtSoftware\0gleansr 0.1.0 (model cats-8x)")
    (tmp_path / "in" / "icon_2x.png").write_bytes(b"\x89PNG somebody's own")
    assert [job.target_key for job in jobs(place(tmp_path, "in"))] == ["a.png", "icon.png", "icon_2x.png", "lone_8x.png"]


def test_what_is_ours_is_no_input_where_results_lie_among_the_images(tmp_path: Path):
    put(tmp_path / "in", "a.jpg", "a_was_made.png", "of_somebody.png", "sub/b.png")
    for name in ("a_was_made.png", "sub/b.png"):
        (tmp_path / "in" / name).write_bytes(b"\x89PNG....tEXtSoftware\0gleansr 0.1.0 (model cats-8x)")
    (within,) = destinations([tmp_path / "in"], tmp_path / "in", "_8x")
    ours = {"a_was_made.png", "of_somebody.png", "sub/b.png"}
    assert [job.source_key for job in jobs(within, is_result=ours.__contains__)] == ["a.jpg", "of_somebody.png"]
    assert count(within, ours.__contains__).images == 2


def test_no_result_replaces_an_input(tmp_path: Path):
    put(tmp_path / "in", "a.png", "b.jpg", "sub/c.png", "out/d.png", "earlier/gleansr.jsonl", "earlier/e.png")
    put(tmp_path / "other", "earlier/e.png", "out/d.png", "sub/c.png")
    (into_itself,) = destinations([tmp_path / "in"], tmp_path / "in", "_8x")
    assert {job.target_key: job.replaces for job in jobs(into_itself)} == dict.fromkeys(
        ["a.png", "b.png", "out/d.png", "sub/c.png"], "results"
    )
    (below,) = destinations([tmp_path / "in"], tmp_path / "in" / "out", "_8x")
    assert {job.replaces for job in jobs(below)} == {"anything"}  # a folder of results is not read
    (tmp_path / "link").symlink_to("in", target_is_directory=True)
    (linked,) = destinations([tmp_path / "other", tmp_path / "in"], tmp_path / "link", "_8x")
    assert {job.target_key: job.replaces for job in jobs(linked) if "/" in job.target_key} == {
        "earlier/e.png": "anything",
        "out/d.png": "results",
        "out/d.png.png": "results",
        "sub/c.png": "results",
        "sub/c.png.png": "results",
    }


def test_no_result_replaces_a_image_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, "a.png", "a_8x.png", "sub/b.png", "sub_8x/b.png")
    (beside,) = destinations([tmp_path / "a.png", tmp_path / "a_8x.png"], None, "_8x")
    assert {job.target_key: job.replaces for job in jobs(beside)} == {
        str(tmp_path / "a_8x.png"): "nothing",
        str(tmp_path / "a_8x_8x.png"): "anything",
    }
    both = destinations([tmp_path / "sub", tmp_path / "sub_8x"], None, "_8x")
    assert [job.replaces for place in both for job in jobs(place)] == ["nothing", "anything"]
    (one,) = destinations([tmp_path / "a.png"], tmp_path / "sub" / ".." / "a.png", "_8x", to_file=True)
    assert [job.replaces for job in jobs(one)] == ["nothing"]
    monkeypatch.chdir(tmp_path)
    (here,) = destinations([Path("a.png")], Path(), "_8x")
    assert [job.replaces for job in jobs(here)] == ["nothing"]


def test_a_folder_that_cannot_be_read_is_told_and_the_rest_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "in", "a.png", "locked/b.png", "sub/c.png")
    scandir = os.scandir

    def denied(path: str) -> Any:
        if str(path).rstrip("/").endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    found = list(walk(place(tmp_path, "in")))
    assert found[1] == UnreadableFolder(str(tmp_path / "in" / "locked"), "Permission denied")
    assert [one.target_key for one in found if isinstance(one, Job)] == ["a.png", "sub/c.png"]
    assert count(place(tmp_path, "in")).images == 2


@pytest.mark.parametrize(("names", "message"), [((), "empty folder"), (("a.txt", "b", "c", "d"), r"only a.txt, b, c and 1 more")])
def test_folders_without_images_are_refused(tmp_path: Path, names: tuple[str, ...], message: str):
    (tmp_path / "in").mkdir()
    put(tmp_path / "in", *names)
    with pytest.raises(RequestError, match=message):
        count(place(tmp_path, "in"))


def test_what_nobody_would_expect_to_be_left_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "in", "a.png", "notes.txt", "b.json", "c.nef", "sub/d.NEF", "e.mp4", "f.heic", "list", ".g.nef", "h.mpo")
    (tmp_path / "in" / "IMG_0001").write_bytes(b"\xff\xd8\xff\xe0" + bytes(20))
    (tmp_path / "in" / "film").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(20) + b"matroska")
    os.mkfifo(tmp_path / "in" / "pipe")
    monkeypatch.setattr(readers, "readable_suffixes", lambda: readable_suffixes() - {".heic", ".heif", ".hif", ".heics", ".heifs"})
    monkeypatch.setattr(sys.modules["gleansr.jobs.walk"], "readable_suffixes", readers.readable_suffixes)
    counted = count(place(tmp_path, "in"))
    assert counted.images == 2
    told = {Path(one.first).name: (one.files, why) for why, one in counted.left_out.items()}
    raw = "camera raw file (Nikon NEF): develop it to a TIFF or JPEG first"
    assert told.pop("c.nef")[1].startswith(raw)
    assert told == {
        "e.mp4": (1, "video (MP4): pass it to `gleansr upscale` in a separate command"),
        "film": (1, "video (Matroska): pass it to `gleansr upscale` in a separate command"),
        "f.heic": (1, "HEIC image: `pip install 'gleansr[heif]'` adds support"),
        "IMG_0001": (1, "JPEG image with another suffix: rename it to NAME.jpg"),
    }
    assert counted.left_out[next(why for why in counted.left_out if why.startswith(raw))].files == 2
    put(tmp_path / "raws", "c.nef", "d.txt")
    with pytest.raises(RequestError, match=r"only c\.nef, d\.txt; .*c\.nef is left out \(camera raw file \(Nikon NEF\): develop"):
        count(place(tmp_path, "raws"))


def test_images_in_the_folder_for_results_are_named_before_its_first_run(tmp_path: Path):
    put(tmp_path / "in", "a.png", "sub/b.png", "sub/c.png", "sub/d.txt")
    (one,) = destinations([tmp_path / "in"], tmp_path / "in" / "sub", "_8x")
    counted = count(one)
    assert counted.images == 1
    ((why, missed),) = counted.left_out.items()
    assert (missed.files, Path(missed.first).name) == (2, "b.png")
    assert "give another one with -o" in why
    (tmp_path / "in" / "sub" / "gleansr.jsonl").touch()  # from then on it is a folder of results
    assert not count(one).left_out


# Names of results


def test_images_of_one_name_get_different_results(tmp_path: Path):
    put(tmp_path / "in", "a.jpg", "a.png", "a.webp", "B.PNG", "b.jpg", "a.jpg.bmp")
    assert targets(place(tmp_path, "in")) == {
        "../in/B.PNG": "B.png",
        "../in/a.jpg": "a.jpg.png",
        "../in/a.jpg.bmp": "a.jpg.bmp.png",
        "../in/a.png": "a.png",
        "../in/a.webp": "a.webp.png",
        "../in/b.jpg": "b.jpg.png",  # also where b.png and B.png are one file
    }


def test_several_inputs_share_a_folder_of_results(tmp_path: Path):
    put(tmp_path, "x/a.png", "y/a.png", "z/a.png", "x/sub/b.png", "y/sub/b.jpg", "a.png")
    found = place(tmp_path, "x", "y", "z/a.png", "a.png", "x")
    assert sorted(targets(found).items()) == [
        ("../a.png", "a.png.png"),
        ("../x/a.png", "a_2.png"),
        ("../x/sub/b.png", "sub/b.png"),
        ("../y/a.png", "a_3.png"),
        ("../y/sub/b.jpg", "sub/b.jpg.png"),
        ("../z/a.png", "a.png"),
    ]


def test_places_without_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, "x/a.png", "y/b.png", "c.png")
    folder, beside = destinations([tmp_path / "x", tmp_path / "c.png", tmp_path / "y" / "b.png"], None, "_8x")[:2]
    assert (folder.root, folder.manifest) == (tmp_path / "x_8x", tmp_path / "x_8x" / "gleansr.jsonl")
    assert beside.manifest is None
    assert [job.target for job in jobs(beside)] == [str(tmp_path / "c_8x.png")]
    monkeypatch.chdir(tmp_path / "x")
    (here,) = destinations([Path()], None, "_8x")
    assert here.root.resolve() == tmp_path / "x_8x"
    assert [job.source for job in jobs(here)] == ["a.png"]
    (named,) = destinations([Path("a.png")], Path("b.png"), "_8x", to_file=True)
    assert jobs(named) == [Job("a.png", "b.png", "a.png", "b.png")]


def test_names_of_any_bytes(tmp_path: Path):
    names = [b"line\nbreak.png", b"\xff\xfe.png", "😀.png".encode(), b"-dash.png", b'"quote\\.png', b"\x1b[31m.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).touch()
    found = jobs(place(tmp_path, "in"))
    assert sorted(os.fsencode(job.target_key) for job in found) == sorted(names)
    for job in found:
        assert Path(job.source).exists()
        assert json.loads(json.dumps(job.target_key)) == job.target_key
        text = printable(job.source)
        assert text.isprintable()
        assert text.encode()


# The manifest


def done(target: str, **changes: Any) -> dict[str, Any]:
    return {
        "status": "done",
        "source": f"../in/{target}",
        "target": target,
        "bytes": 5,
        "mtime_ns": 7,
        "sha256": "ab" * 32,
        "model": "m",
        "model_sha256": "cd" * 32,
        "options": {"fit": "auto", "set": []},
        **changes,
    }


MADE_BY = fingerprint("cd" * 32, {"set": [], "fit": "auto"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results" / "gleansr.jsonl"


@pytest.fixture
def manifest(file: Path) -> Iterator[Manifest]:
    with closing(Manifest(file)) as opened:
        yield opened


def job(target: str) -> Job:
    return Job(f"in/{target}", f"results/{target}", f"../in/{target}", target)


def test_lines_are_read_back(manifest: Manifest, file: Path):
    manifest.begin([job("a.png"), job("b.png"), job("\udcff.png")])
    manifest.add(done("a.png"))
    manifest.add({"status": "failed", "source": "../in/b.png", "target": "b.png", "error": "no"})
    manifest.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["format"] == "gleansr-results/1"
    assert [line["status"] for line in lines[1:]] == ["begun", "done", "failed"]
    with closing(Manifest(file)) as again:
        found = again.index.get("a.png")
        assert found
        assert (found.size, found.mtime_ns, found.sha256, found.made_by) == (5, 7, b"\xab" * 16, MADE_BY)
        assert found.is_of("../in/a.png")
        assert not found.is_of("../in/b.png")
        assert (unfinished := again.index.get("\udcff.png"))
        assert unfinished.made_by is None
        assert not again.is_result("b.png")  # which failed, so that nothing was written
        assert not again.is_result("c.png")
        assert again.index.done(MADE_BY) == 1
        assert again.index.done("another") == 0


def test_the_last_line_of_a_target_counts():
    index = Index()
    for i in range(300):
        index.add(done(f"{i % 100}.png", bytes=i))
    index.add({"status": "failed", "target": "3.png"})  # what was there before still is
    index.finish()
    assert len(index) == 100
    assert [found.size for i in range(100) if (found := index.get(f"{i}.png")) and found.made_by] == list(range(200, 300))
    assert "100.png" not in index


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_last_line_is_ignored_and_the_next_one_is_whole(manifest: Manifest, file: Path, cut: int):
    manifest.add(done("a.png"))
    manifest.add(done("b.png"))
    manifest.close()
    file.write_bytes(file.read_bytes()[:-cut])
    with closing(Manifest(file)) as again:
        assert again.is_result("a.png")
        assert again.is_result("b.png") == (cut == 1)  # only the line break is missing
        again.add(done("c.png"))
    with closing(Manifest(file)) as third:
        assert third.is_result("a.png")
        assert third.is_result("c.png")


def test_a_torn_first_line_begins_anew(manifest: Manifest, file: Path):
    manifest.add(done("a.png"))
    manifest.close()
    file.write_bytes(file.read_bytes()[:9])
    with closing(Manifest(file)) as again:
        again.add(done("b.png"))
    with closing(Manifest(file)) as third:
        assert third.is_result("b.png")


def test_odd_lines_are_ignored(manifest: Manifest, file: Path):
    manifest.add(done("a.png"))
    manifest.close()
    odd = [
        b"[]",
        b"3",
        b"\xff\xfe",
        b"{}",
        b'{"status": "done"}',
        b'{"status": "begun", "targets": 3}',
        json.dumps(done("b.png", bytes=-1)).encode(),
    ]
    file.write_bytes(file.read_bytes() + b"\n".join(odd) + b"\n")
    with closing(Manifest(file)) as again:
        assert again.is_result("a.png")
        assert not again.is_result("b.png")


@pytest.mark.parametrize(
    "contents",
    [
        b"my diary\nof today\n",
        b"my diary, one line",
        b"\x89PNG\r\n\x1a\n"[:4],
        b'{"format":"another',
        b'{"format": "gleansr-results/2"}\n',
        b"\x89PNG\r\n\x1a\nrest",
    ],
)
def test_other_files_are_not_taken_for_manifests(file: Path, contents: bytes):
    file.parent.mkdir()
    file.write_bytes(contents)
    with pytest.raises(RequestError, match="is not a manifest"):
        Manifest(file)
    assert file.read_bytes() == contents
    with lock_folder(file.parent, "testing"):  # it was let go
        pass


def test_one_process_at_a_time(manifest: Manifest, file: Path):
    manifest.begin([job("a.png")])
    with pytest.raises(RequestError, match="another process"):
        Manifest(file)


def test_no_folder_is_made_for_failures_alone(manifest: Manifest, file: Path):
    for i in range(20):
        manifest.add({"status": "failed", "source": "x", "target": f"{i}.png", "error": "no"})
    assert not file.parent.exists()
    manifest.add({"status": "failed", "source": "x", "target": "20.png", "error": "no"})  # too many to keep in memory
    assert len(file.read_text().splitlines()) == 22


def test_what_killed_runs_left_half_written_is_removed(manifest: Manifest, file: Path):
    manifest.begin([job("a.png"), job("sub/b\nc.png"), job("c.png")])
    manifest.add(done("c.png"))
    manifest.close()
    (file.parent / "sub").mkdir()
    left = [file.parent / ".a.png.0123abcd.part", file.parent / "sub" / ".b\nc.png.00000000.part"]
    others = [file.parent / name for name in (".a.png.somebody.part", "a.png.part", ".d.png.0123abcd.part", ".c.png.0123abcd.part")]
    for path in left + others:
        path.touch()
    with closing(Manifest(file)):
        assert [path.exists() for path in left + others] == [False] * 2 + [True] * 4


def test_a_full_disk_is_an_error_that_stops_and_leaves_a_readable_manifest(manifest: Manifest, file: Path, monkeypatch: pytest.MonkeyPatch):
    manifest.add(done("a.png"))
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    with pytest.raises(OutputError, match="No space left"):
        manifest.add(done("b.png"))
    monkeypatch.undo()
    manifest.close()
    with closing(Manifest(file)) as again:
        assert again.is_result("a.png")
        assert not again.is_result("b.png")


# Files


KILLED = """
import os, signal, sys
from gleansr.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_the_file_of_a_killed_process_is_deleted_by_the_next_one(tmp_path: Path):
    path = tmp_path / "a.png"
    killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(leftovers(path)) == 1
    with replacing(path) as temporary:
        assert temporary.read_bytes() == b""
        assert leftovers(path) == [temporary]
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert leftovers(path) == []


def test_two_writers_of_one_file_have_a_file_each(tmp_path: Path):
    path = tmp_path / "a.png"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            assert second != first
            second.write_text("second")
        assert path.read_text() == "second"
        with pytest.raises(KeyError), replacing(path) as third:
            raise KeyError
        assert not third.exists()
        assert first.read_text() == "first"
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["a.png", "é" * 120 + ".png", "n\n.png"])
def test_replacing_long_and_odd_names(tmp_path: Path, name: str):
    path = tmp_path / name
    with replacing(path) as temporary:
        temporary.write_text("x")
        assert leftovers(path) == [temporary]
    assert path.read_text() == "x"
    assert leftovers(path) == []
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.unlink()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["x"]


def test_shown_is_one_printable_line():
    assert printable("a\nb\x1b[0m\udcff\u202e😀é") == "a\\nb\\x1b[0m\\udcff\\u202e😀é"
