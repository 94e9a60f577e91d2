"""Prepared sets: the images are what the formula says, every data set's structure is read, and no accident spoils a set."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from scipy.io import savemat

from gleansr.cli import main
from gleansr.data import datasets
from gleansr.data import prepare as module
from gleansr.data.datasets import KINDS, CropBox, open_dataset, read_list
from gleansr.data.fit import SmallError, fit
from gleansr.data.prepare import plan, prepare
from gleansr.data.prepared import MANIFEST, RECORDS
from gleansr.data.sources import open_source, pairs_of
from gleansr.errors import ImageError, RequestError
from gleansr.images.resize import degrade, resize


@pytest.fixture
def run(command: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """Runs `gleansr data prepare`; see `command`."""
    return partial(command, "data", "prepare")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.array(image)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)


def by_formula(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The official preparation: [0, 1], resize, clip, round half to even."""
    return np.rint(np.clip(resize(pixels / 255, size=(rows, columns)), 0, 1) * 255).astype(np.uint8)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images of 24x20 and more, two of one name, one in a folder, one with a blank and an umlaut."""
    root = tmp_path / "photos"
    for i, name in enumerate(["a.png", "a.bmp", "b.tif", "c d.png", "sub/a.png", "ü.webp", "z.png"]):
        save(root / name, noise(20 + i, 24, i))
    return root


# ------------------------------------------------------------------------------------------------------------ the images


@pytest.mark.parametrize(("height", "width"), [(37, 53), (16, 40), (9, 7)])
def test_squash_scales_both_axes_by_the_formula(height: int, width: int):
    pixels = noise(height, width)
    assert np.array_equal(fit(tensor(pixels), 16, "squash", "enlarge").permute(1, 2, 0).numpy(), by_formula(pixels, 16, 16))


@pytest.mark.parametrize("factor", [2, 6, 10, 14])
def test_exact_halves_are_rounded_to_even_and_not_by_noise(factor: int):
    for lr, even in ((20, 20), (21, 22), (200, 200), (201, 202)):
        pixels = np.full((16 * factor, 16 * factor, 3), lr, np.uint8)
        pixels[:, 1::2] += 1
        result = fit(tensor(pixels), 16, "squash", "skip")
        assert result[:, :, 2:-2].unique().tolist() == [even]


@pytest.mark.parametrize("aspect", ["squash", "crop", "pad"])
def test_a_image_of_the_size_keeps_its_values(aspect):
    pixels = noise(16, 16)
    assert np.array_equal(fit(tensor(pixels), 16, aspect, "skip").permute(1, 2, 0).numpy(), pixels)


def test_crop_takes_the_centre_square():
    pixels = noise(41, 20)
    assert np.array_equal(fit(tensor(pixels), 16, "crop", "skip").permute(1, 2, 0).numpy(), by_formula(pixels[10:30], 16, 16))


def test_pad_keeps_everything_between_black():
    pixels = noise(40, 20)
    result = fit(tensor(pixels), 16, "pad", "skip").permute(1, 2, 0).numpy()
    assert np.array_equal(result[:, 4:12], by_formula(pixels, 16, 8))
    assert not result[:, :4].any()
    assert not result[:, 12:].any()


@pytest.mark.parametrize(("height", "width", "part"), [(48, 80, np.s_[:, 8:72]), (90, 80, np.s_[15:75]), (60, 80, np.s_[:])])
def test_bars_lie_as_in_the_car_networks_images(height: int, width: int, part):
    pixels = noise(height, width)
    result = fit(tensor(pixels), 32, "bars", "skip").permute(1, 2, 0).numpy()
    assert np.array_equal(result[4:28], by_formula(pixels[part], 24, 32))
    assert not result[:4].any()
    assert not result[28:].any()


@pytest.mark.parametrize(
    ("aspect", "height", "width", "small"),
    [
        ("squash", 16, 15, True),
        ("squash", 16, 16, False),
        ("crop", 15, 99, True),
        ("pad", 16, 3, False),
        ("pad", 15, 15, True),
        ("bars", 12, 16, False),
        ("bars", 12, 15, True),
        ("bars", 11, 99, True),
    ],
)
def test_small_is_what_would_have_to_be_enlarged(aspect, height: int, width: int, small: bool):
    pixels = tensor(noise(height, width))
    assert fit(pixels, 16, aspect, "enlarge").shape == (3, 16, 16)
    if small:
        with pytest.raises(SmallError, match=f"{width}x{height} is too small"):
            fit(pixels, 16, aspect, "skip")
    else:
        assert fit(pixels, 16, aspect, "skip").shape == (3, 16, 16)


def test_a_box_is_moved_inside_and_a_square_stays_square():
    assert CropBox(2, 3, 4, 5).within(20, 20) == (slice(3, 8), slice(2, 6))
    assert CropBox(-3, 18, 6, 4).within(20, 20) == (slice(16, 20), slice(0, 6))
    assert CropBox(-5, -5, 30, 30).within(12, 20) == (slice(0, 12), slice(4, 16))
    assert CropBox(-5, 0, 30, 8).within(12, 20) == (slice(0, 8), slice(0, 20))
    for box in (CropBox(20, 0, 5, 5), CropBox(0, -9, 5, 8), CropBox(3, 3, -1, 5)):
        with pytest.raises(ImageError, match="its annotation"):
            box.within(20, 20)


# ----------------------------------------------------------------------------------------------------------------- the set


def test_a_set_holds_every_image_once_with_its_pair(run, photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    status, said = run("folder", photos, out, "--size", 16, "--scales", "4,2")
    assert status == 0, said
    assert f"7 images in {out}" in said
    originals = ["a.bmp", "a.png", "b.tif", "c d.png", "sub/a.png", "z.png", "ü.webp"]
    names = ["a.png", "a.png.png", "b.png", "c d.png", "sub/a.png", "z.png", "ü.png"]
    assert list(open_source(out).names) == names
    for name, original in zip(names, originals, strict=True):
        with Image.open(photos / original) as image:
            pixels = tensor(np.array(image.convert("RGB")))
        sr = load(out / "hr" / name)
        assert np.array_equal(sr, fit(pixels, 16, "crop", "skip").permute(1, 2, 0).numpy())
        images = torch.from_numpy(sr).permute(2, 0, 1)[None].float() / 127.5 - 1  # as training does it on the fly
        for scale in (2, 4):
            lr = tensor(load(out / f"x{scale}" / name)) * 2 - 1
            assert torch.allclose(lr, degrade(images, scale)[0], atol=1e-6)  # steps are 8e-3
    for scale in (2, 4):
        lr_spec = out / f"x{scale}"
        assert pairs_of(open_source(out), open_source(lr_spec), str(out), str(lr_spec)) == [(i, i) for i in range(7)]


def test_the_manifest_vouches_for_every_file(photos: Path, tmp_path: Path):
    (photos / "bad.png").write_text("text")
    save(photos / "tiny.png", noise(3, 3))
    out = tmp_path / "out"
    result = prepare(plan("folder", str(photos), size=16, scales=[2]), out)
    assert (result.written, result.reused, result.skipped) == (7, 0, {"small": 1, "unreadable": 1})
    manifest = json.loads((out / MANIFEST).read_text())
    records = (out / RECORDS).read_bytes()
    assert manifest["complete"]
    assert manifest["counts"] == {"read": 9, "written": 7, "skipped": {"small": 1, "unreadable": 1}}
    assert manifest["records_sha256"] == hashlib.sha256(records).hexdigest()
    lines = [json.loads(line) for line in records.splitlines()]
    assert len(lines) == 9
    assert {line["name"]: line["reason"].partition("; supported")[0] for line in lines if "skipped" in line} == {
        "bad.png": "is not an image of a known kind",
        "tiny.png": "3x3 is too small for 16x16; use --small enlarge to include it",
    }
    stated = {file: facts["sha256"] for line in lines for file, facts in line.get("files", {}).items()}
    found = {name: hashlib.sha256(data).hexdigest() for name, data in contents(out).items() if name.startswith(("hr/", "x2/"))}
    assert stated == found
    assert len(found) == 14


def test_transparency_becomes_black_and_webp_is_lossless(tmp_path: Path):
    pixels = np.dstack([noise(16, 16), np.tile(np.array([0, 255], np.uint8), (16, 8))])
    save(tmp_path / "in" / "a.png", pixels)
    for kind in ("png", "webp"):
        prepare(plan("folder", str(tmp_path / "in"), size=16, file_format=kind), tmp_path / kind)
    expected = pixels[..., :3] * (pixels[..., 3:] == 255)
    assert np.array_equal(load(tmp_path / "png" / "hr" / "a.png"), expected)
    assert np.array_equal(load(tmp_path / "webp" / "hr" / "a.webp"), expected)


def test_hostile_names_stay_inside_and_visible(tmp_path: Path):
    image = io.BytesIO()
    Image.fromarray(noise(16, 16)).save(image, "WEBP", lossless=True)
    keys = [b"../up", b".hidden", b"/root/x", b"nul\0", b"\xff\xfe", b"A", b"a", b"x" * 40]
    with lmdb.open(str(tmp_path / "in"), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for key in keys:
            transaction.put(key, image.getvalue())
    assert prepare(plan("lsun", str(tmp_path / "in"), size=16), tmp_path / "out").written == 8
    assert len(open_source(tmp_path / "out")) == 8
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


# -------------------------------------------------------------------------------------------------------------- accidents

SLOW = """
import sys, time
from pathlib import Path
from gleansr.data.prepare import plan, prepare
if __name__ == "__main__":
    prepare(plan("folder", sys.argv[1], size=8, scales=[2]), Path(sys.argv[2]), workers=2, progress=lambda *_: time.sleep(0.2))
"""


def processes(mark: str) -> list[str]:
    """The living processes that inherited this environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_killed_run_resumes_to_the_same_set(tmp_path: Path):
    for i in range(30):
        save(tmp_path / "in" / f"{i:02}.png", noise(10, 12, i))
    (tmp_path / "in" / "bad.png").write_text("text")
    (tmp_path / "slow.py").write_text(SLOW)
    out, records, mark = tmp_path / "out", tmp_path / "out" / RECORDS, f"{os.getpid()}-{time.time_ns()}"
    command = [sys.executable, tmp_path / "slow.py", tmp_path / "in", out]
    process = subprocess.Popen(command, env=os.environ | {"GLEANSR_TEST": mark})
    while process.poll() is None and (not records.exists() or records.read_bytes().count(b"\n") < 3):
        time.sleep(0.02)
    assert len(processes(mark)) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while processes(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes(mark) == []  # the workers have noticed

    with pytest.raises(RequestError, match="its preparation was stopped"):
        open_source(out)
    with records.open("a") as file:
        file.write('{"name": "07.p')  # as a kill in the middle of a line would leave it
    (out / "hr" / ".07.png.abc.part").write_bytes(b"half")
    preparation = plan("folder", str(tmp_path / "in"), size=8, scales=[2])
    result = prepare(preparation, out)
    assert result.written == 30
    assert 3 <= result.reused < 30
    prepare(preparation, tmp_path / "whole", workers=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_damaged_files_are_made_again_and_unknown_files_removed(photos: Path, tmp_path: Path):
    out, preparation = tmp_path / "out", plan("folder", str(photos), size=16, scales=[2])
    prepare(preparation, out)
    whole = contents(out)
    (out / "hr" / "a.png").unlink()
    (out / "x2" / "b.png").write_bytes(b"cut")
    assert prepare(preparation, out).reused == 5
    assert contents(out) == whole
    (photos / "z.png").unlink()
    save(photos / "y.png", noise(20, 20))
    assert prepare(preparation, out).reused == 6
    assert set(contents(out)) == {name.replace("z.png", "y.png") for name in whole}
    assert len(open_source(out)) == 7


def test_ctrl_c_stops_and_the_same_command_resumes(photos: Path, tmp_path: Path):
    def press(done: int, total: int, record: object) -> None:
        if done == 3:
            raise KeyboardInterrupt

    preparation = plan("folder", str(photos), size=16)
    with pytest.raises(KeyboardInterrupt):
        prepare(preparation, tmp_path / "out", progress=press)
    assert prepare(preparation, tmp_path / "out").reused == 3
    prepare(preparation, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_other_options_are_refused_and_overwriting_leaves_nothing_behind(run, photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run("folder", photos, out, "--size", 16, "--scales", 2)[0] == 0
    before = contents(out)
    status, said = run("folder", photos, out, "--size", 8, "--format", "webp")
    assert status == 2
    assert "size 16, not 8, format 'png', not 'webp'" in said
    assert "--overwrite" in said
    assert contents(out) == before
    assert run("folder", photos, out, "--size", 8, "--format", "webp", "--overwrite")[0] == 0
    assert len(open_source(out)) == 7
    assert all(name.endswith((".webp", MANIFEST, RECORDS)) for name in contents(out))


def test_foreign_folders_are_not_touched(run, photos: Path, tmp_path: Path):
    before = contents(photos)
    for source, out, words in (
        (photos / "sub", photos, "lies in"),
        (photos, photos / "out", "lies in"),
        (photos / "sub", tmp_path / "other", "nor a set of"),
    ):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "mine.txt").write_text("x")
        status, said = run("folder", source, out, "--size", 16, "--overwrite")
        assert status == 2
        assert words in said
        assert len(said.strip().splitlines()) == 1
    assert contents(photos) == before
    assert list(contents(tmp_path / "other")) == ["mine.txt"]
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(RequestError, match="another process"):
        prepare(plan("folder", str(photos), size=16), tmp_path / "out")


def test_a_full_disk_is_one_line(run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "z.png" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    status, said = run("folder", photos, tmp_path / "out", "--size", 16)
    assert status == 1
    assert "cannot be written to: No space left on device" in said
    assert len(said.strip().splitlines()) == 1
    monkeypatch.undo()
    assert prepare(plan("folder", str(photos), size=16), tmp_path / "out").reused > 0


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write to")
def test_an_unwritable_place_is_one_line(run, photos: Path):
    status, said = run("folder", photos, "/proc/out", "--size", 16)
    assert status == 1
    assert "/proc/out: cannot be written to" in said
    assert len(said.strip().splitlines()) == 1


def test_bad_images_are_named_counted_and_strict_stops_at_the_first(run, photos: Path, tmp_path: Path):
    (photos / "b.png").write_bytes((photos / "z.png").read_bytes()[:400])
    save(photos / "tiny.png", noise(3, 3))
    status, said = run("folder", photos, tmp_path / "out", "--size", 16)
    assert status == 0
    assert "gleansr: b.png: cannot be read" in said
    assert "7 images in" in said
    assert "2 left out (1 small, 1 unreadable)" in said
    status, said = run("folder", photos, tmp_path / "strict", "--size", 16, "--strict")
    assert status == 1
    assert said.startswith("gleansr: b.png: cannot be read")
    assert len(said.strip().splitlines()) == 1
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("text")
    status, said = run("folder", tmp_path / "bad", tmp_path / "none", "--size", 16)
    assert status == 1
    assert "0 images in" in said


def test_wrong_requests_exit_2_in_one_line(run, photos: Path, tmp_path: Path):
    (tmp_path / "empty.txt").write_text("\n \n")
    for arguments, words in {
        ("dogs", photos, "out"): "expected one of ffhq",
        ("folder", photos, "out"): "--size 256",
        ("cars", photos, "out", "--size", 20): "multiple of 8",
        ("folder", photos, "out", "--size", 16, "--scales", "3"): "divisors of the size 16",
        ("folder", photos, "out", "--size", 16, "--scales", "x"): "such as 8,16",
        ("folder", photos, "out", "--size", 16, "--crop", "head"): "--crop head",
        ("cat", photos, "out", "--crop", "box"): "choose from none and head",
        ("folder", photos, "out", "--size", 16, "--workers", 0): "--workers",
        ("folder", tmp_path / "none", "out", "--size", 16): "no such file or folder",
        ("folder", photos, "out", "--size", 16, "--list", tmp_path / "none.txt"): "none.txt: cannot be read",
        ("folder", photos, "out", "--size", 16, "--list", tmp_path / "empty.txt"): "empty list",
        ("cars", photos, "out", "--crop", "box"): "cars_annos.mat",
    }.items():
        status, said = run(*(tmp_path / "out" if argument == "out" else argument for argument in arguments))
        assert status == 2, (arguments, said)
        assert words in said, (arguments, said)
        assert len(said.strip().splitlines()) == 1, said
    status, said = run("folder", photos)
    assert status == 2
    assert "Missing from gleansr data prepare" in said
    assert not (tmp_path / "out").exists()


def test_kinds_are_listed_with_their_origin_and_licence(capsys: pytest.CaptureFixture[str]):
    main(["data", "kinds"])
    said = capsys.readouterr().out
    for kind in KINDS:
        assert kind.name in said
        assert kind.origin in said
        assert kind.licence in said


# --------------------------------------------------------------------------------------------------------- the data sets


def test_ffhq_keeps_its_thousands_and_official_lists_choose(run, tmp_path: Path):
    for i in (0, 999, 1000, 1001):
        save(tmp_path / "ffhq" / f"{i // 1000 * 1000:05}" / f"{i:05}.png", noise(16, 16, i))
    meta = tmp_path / "meta.txt"
    meta.write_text("00000.png (1024,1024,3)\n01001.png (1024,1024,3)\n70000.png (1024,1024,3)")
    status, said = run("ffhq", tmp_path / "ffhq", tmp_path / "out", "--size", 16, "--list", meta)
    assert status == 0, said
    assert f"gleansr: 70000.png: is not in {tmp_path / 'ffhq'}" in said
    assert "2 images in" in said
    assert "1 left out (1 missing)" in said
    assert list(open_source(tmp_path / "out").names) == ["00000/00000.png", "01000/01001.png"]
    assert np.array_equal(load(tmp_path / "out/hr/01000/01001.png"), noise(16, 16, 1001))


def test_lists_name_images_in_several_ways(tmp_path: Path):
    for name in ("a/1.png", "b/1.png", "b/2.jpg", "c d.png", "e.png", "e.jpg"):
        save(tmp_path / "in" / name, noise(4, 4))
    source, names = open_source(tmp_path / "in"), tmp_path / "names.txt"

    def chosen(*lines: str) -> list[str]:
        names.write_text("\n".join(lines), encoding="utf-8-sig")
        dataset = open_dataset(source, str(tmp_path), names=read_list(names))
        return [*dataset.names, *(f"no {name}" for name in dataset.missing)]

    assert chosen("b/1.png (4,4,3)") == ["b/1.png"]
    assert chosen("2.png", "", "2.png") == ["b/2.jpg"]
    assert chosen("c d.png (4,4,3)", "e.jpg something") == ["c d.png", "e.jpg"]
    assert chosen("c d") == ["c d.png"]
    assert chosen("c/1.png", "e.png", "e.jpg") == ["e.jpg", "e.png", "no c/1.png"]
    for line in ("1.png", "e"):
        with pytest.raises(RequestError, match=r"may be .* or "):
            chosen(line)


def test_lsun_is_read_from_its_lmdb_and_squashed(tmp_path: Path):
    keys = [hashlib.sha1(bytes([i])).hexdigest() for i in range(4)]  # noqa: S324
    with lmdb.open(str(tmp_path / "cat"), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for i, key in enumerate(keys):
            image = io.BytesIO()
            Image.fromarray(noise(32, 20 + i, i)).save(image, "WEBP", lossless=True)
            transaction.put(key.encode(), image.getvalue())
    names = tmp_path / "meta.txt"
    names.write_text(f"{keys[0]}.png (256,256,3)\n{keys[3]}\n")
    prepare(plan("lsun", str(tmp_path / "cat"), size=16, names=names), tmp_path / "out")
    assert set(open_source(tmp_path / "out").names) == {f"{keys[0]}.png", f"{keys[3]}.png"}
    assert np.array_equal(load(tmp_path / "out" / "hr" / f"{keys[3]}.png"), by_formula(noise(32, 23, 3), 16, 16))


def test_cats_are_cut_by_their_landmarks(run, tmp_path: Path):
    root = tmp_path / "CAT"
    landmarks = {  # eyes, mouth, ears
        "CAT_00/00000001_000": (40, 50, 60, 50, 50, 70, 30, 40, 35, 30, 40, 40, 60, 40, 65, 30, 70, 40),
        "CAT_00/00000003_015": None,  # in the release its file is called 00000003_019.jpg.2.cat
        "CAT_01/00000100_002": (5, 4, 15, 4, 10, 20, 0, 0, 2, -4, 6, 0, 14, 0, 18, -4, 20, 0),
        "CAT_01/00000100_003": "9 1 2 3",
    }
    for i, (name, points) in enumerate(landmarks.items()):
        save(root / f"{name}.png", noise(100, 120, i))
        (root / f"{name}.png").rename(root / f"{name}.jpg")  # read by contents; lossless, so that pixels can be compared
        if points:
            text = points if isinstance(points, str) else f"9 {' '.join(map(str, points))} "
            (root / f"{name}.jpg.cat").write_text(text)
    (root / "CAT_00" / "00000003_019.jpg.2.cat").write_text("9 1 2")
    status, said = run("cat", root, tmp_path / "whole", "--size", 16)
    assert status == 0
    assert "4 images in" in said
    assert np.array_equal(load(tmp_path / "whole/hr/CAT_00/00000001_000.png"), by_formula(noise(100, 120, 0), 16, 16))
    status, said = run("cat", root, tmp_path / "heads", "--size", 16, "--crop", "head")
    assert status == 0
    assert "2 images in" in said
    assert "CAT_00/00000003_015.jpg: has no landmark file 00000003_015.jpg.cat" in said
    assert "CAT_01/00000100_003.jpg: 00000100_003.jpg.cat holds 3 numbers after 9" in said
    # The landmarks span 40 by 40 around (50, 50), so that the square has a side of 56.
    assert np.array_equal(load(tmp_path / "heads/hr/CAT_00/00000001_000.png"), by_formula(noise(100, 120, 0)[22:78, 22:78], 16, 16))
    # 20 by 24 around (10, 8): a side of 34, moved down and right into the image.
    assert np.array_equal(load(tmp_path / "heads/hr/CAT_01/00000100_002.png"), by_formula(noise(100, 120, 2)[0:34, 0:34], 16, 16))
    with zipfile.ZipFile(tmp_path / "cat.zip", "w") as archive:
        archive.write(root / "CAT_00" / "00000001_000.jpg", "a.jpg")
    status, said = run("cat", tmp_path / "cat.zip", tmp_path / "zip", "--size", 16, "--crop", "head")
    assert status == 2
    assert "unpack the archive" in said


def annotations(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = [(key, object) for key in rows[0]]
    savemat(path, {"annotations": np.array([tuple(row.values()) for row in rows], dtype=fields)[None]})


def corners(x1: int, y1: int, x2: int, y2: int) -> dict[str, object]:
    return {"bbox_x1": x1, "bbox_y1": y1, "bbox_x2": x2, "bbox_y2": y2, "class": 7}


@pytest.mark.parametrize("rows", [1, 2])
def test_cars_are_cut_by_either_layout_of_boxes(run, tmp_path: Path, rows: int):
    expected = noise(60, 80)[10:40, 4:44]  # 1-based and inclusive: x 5 to 44, y 11 to 40
    box = corners(5, 11, 44, 40)
    old, new = tmp_path / "old", tmp_path / "new"
    save(old / "car_ims" / "000001.png", noise(60, 80))
    save(old / "car_ims" / "000003.png", noise(60, 80))
    all_rows = [{"relative_im_path": f"car_ims/{i:06}.png", **box, "test": 0} for i in (1, 2)]
    annotations(old / "cars_annos.mat", all_rows[:rows])
    status, said = run("cars", old, tmp_path / "out", "--size", 32, "--crop", "box")
    assert status == 0, said
    assert "car_ims/000003.png: has no bounding box in cars_annos.mat" in said
    result = load(tmp_path / "out" / "hr" / "car_ims" / "000001.png")
    assert np.array_equal(result[4:28], by_formula(expected, 24, 32))

    for part, other in (("train", corners(1, 1, 80, 60)), ("test", box)):
        save(new / f"cars_{part}" / "00001.png", noise(60, 80))
        annotations(new / "devkit" / f"cars_{part}_annos.mat", [{**other, "fname": f"{i:05}.png"} for i in (1, 2)][:rows])
    for source, name in ((new, "cars_test/00001.png"), (new / "cars_test", "00001.png")):
        out = tmp_path / f"out-{source.name}"
        assert run("cars", source, out, "--size", 32, "--crop", "box")[0] == 0
        assert np.array_equal(load(out / "hr" / name)[4:28], by_formula(expected, 24, 32))
    assert np.array_equal(load(tmp_path / "out-new/hr/cars_train/00001.png")[4:28], by_formula(noise(60, 80), 24, 32))


def test_damaged_or_missing_annotations_are_refused(run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (photos / "cars_annos.mat").write_bytes(os.urandom(500))
    arguments = ("cars", photos, tmp_path / "out", "--size", 16, "--crop", "box")
    status, said = run(*arguments)
    assert status == 2
    assert "is not an annotation file" in said
    monkeypatch.setitem(sys.modules, "scipy", None)
    status, said = run(*arguments)
    assert status == 2
    assert "pip install 'gleansr[train]'" in said


DYING = """
import os, signal
os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_reader_that_a_damaged_file_kills_is_one_message(run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As SciPy's is by some; which ones depends on its version."""
    (photos / "cars_annos.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM")
    monkeypatch.setattr(datasets, "_READER", DYING)
    status, said = run("cars", photos, tmp_path / "out", "--size", 16, "--crop", "box")
    assert status == 2
    assert "cars_annos.mat: is damaged (its reader was killed by SIGSEGV); fetch it again" in " ".join(said.split())


def test_annotations_of_another_matlab_are_refused(run, photos: Path, tmp_path: Path):
    (photos / "cars_annos.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM" + bytes(500))
    status, said = run("cars", photos, tmp_path / "out", "--size", 16, "--crop", "box")
    assert (status, "option -v7" in " ".join(said.split())) == (2, True)


def test_tasks_are_taken_as_they_are_needed():
    """Images are not listed or read ahead of the work."""
    taken: list[int] = []
    tasks = (taken.append(i) or i for i in range(1000))
    results = module._results(lambda task: {"name": str(task)}, tasks, [{"name": "first"}], workers=1)
    assert [next(results)["name"] for _ in range(4)] == ["first", "0", "1", "2"]
    assert taken == [0, 1, 2]
