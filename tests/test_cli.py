"""The command line as a user meets it: what it writes, says and exits with, and that it never leaves half a file."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gleansr.cli import main
from gleansr.inference.upscaler import Upscaler


@pytest.fixture
def run(command: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """See `command`."""
    return command


@pytest.fixture
def folder(cat: Image.Image, tmp_path: Path) -> Path:
    """pictures/a.png, pictures/a.jpg, pictures/sub/b.webp and a text file."""
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    cat.save(root / "a.png")
    cat.save(root / "a.jpg")
    cat.save(root / "sub" / "b.webp")
    (root / "notes.txt").write_text("no image")
    return root


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def files(folder: Path) -> list[str]:
    """All files below a folder but the lock."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def test_one_image(run, tiny_model: Path, folder: Path):
    status, said = run("upscale", folder / "a.png", "-o", folder / "out.png", "--model", tiny_model)
    assert status == 0, said
    assert size_of(folder / "out.png") == (256, 256)
    assert "64\N{MULTIPLICATION SIGN}64 → 256\N{MULTIPLICATION SIGN}256, tiny" in said
    status, said = run("upscale", folder / "a.png", "-m", tiny_model, "--fit", "pad")
    assert (status, "64x64 is larger than what tiny makes, 32x32; leave --fit out" in said) == (1, True), said
    status, said = run("upscale", folder / "a.png", "-m", tiny_model)
    assert status == 0
    assert (folder / "a_4x.png").exists()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_formats_carry_the_mark(run, tiny_model: Path, folder: Path, suffix: str):
    out = folder / f"out{suffix}"
    assert run("upscale", folder / "a.png", "-o", out, "-m", tiny_model)[0] == 0
    data = out.read_bytes()
    assert b"compositeWithTrainedAlgorithmicMedia" in data
    assert b"gleansr" in data


def test_a_folder_is_mirrored_and_names_do_not_collide(run, tiny_model: Path, folder: Path, tmp_path: Path):
    status, said = run("upscale", folder, "-o", tmp_path / "out", "-m", tiny_model, "--batch-size", 2)
    assert status == 0, said
    assert files(tmp_path / "out") == ["a.jpg.png", "a.png", "gleansr.jsonl", "sub/b.png"]
    assert "3 images → " in said
    assert run("upscale", folder, "-m", tiny_model)[0] == 0
    assert files(tmp_path / "pictures_4x") == files(tmp_path / "out")


def test_images_of_one_name_do_not_replace_each_other(run, tiny_model: Path, folder: Path, cat: Image.Image, tmp_path: Path):
    for name in "xyz":
        (tmp_path / name).mkdir()
        cat.save(tmp_path / name / "a.png")
    inputs = [tmp_path / name / "a.png" for name in "xyz"]
    assert run("upscale", *inputs, "-o", tmp_path / "out", "-m", tiny_model, "--overwrite")[0] == 0
    assert files(tmp_path / "out") == ["a.png", "a.png.png", "a_2.png", "gleansr.jsonl"]


def test_one_bad_file_does_not_stop_the_others(run, tiny_model: Path, folder: Path, tmp_path: Path):
    (folder / "bad.png").write_text("text")
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    status, said = run("upscale", folder, folder / "missing.png", "-o", tmp_path / "out", "-m", tiny_model)
    assert status == 1
    assert files(tmp_path / "out") == ["a.jpg.png", "a.png", "gleansr.jsonl", "sub/b.png"]
    assert "3 images → " in said
    assert "3 failed" in said
    for name in ("bad.png", "cut.jpg", "missing.png"):
        assert sum(f"gleansr: {folder / name}: " in line for line in said.splitlines()) == 1, said


def test_existing_results_are_kept_unless_told(run, tiny_model: Path, folder: Path):
    out = folder / "out.png"
    out.write_text("precious")
    status, said = run("upscale", folder / "a.png", "-o", out, "-m", tiny_model)
    assert status == 1
    assert "exists" in said
    assert out.read_text() == "precious"
    assert run("upscale", folder / "a.png", "-o", out, "-m", tiny_model, "--overwrite")[0] == 0
    assert size_of(out) == (256, 256)


def test_no_command_replaces_an_input(run, tiny_model: Path, folder: Path):
    """Also with --overwrite, and by another name of the file."""
    a, b, c = folder / "a.png", folder / "a.jpg", folder / "c.png"
    c.write_bytes(a.read_bytes())
    (folder / "link.png").symlink_to("a.png")
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    model = tiny_model.read_bytes()
    for arguments in (
        ("upscale", a, "-o", a, "-m", tiny_model),
        ("upscale", folder / "link.png", "-o", a, "-m", tiny_model),
        ("upscale", a, c, "-o", folder, "-m", tiny_model),
        ("retouch", a, "-o", folder / "sub" / ".." / "a.png", "-m", tiny_model),
        ("retouch", a, "--original", c, "-o", c, "-m", tiny_model),
        ("retouch", a, "--mask", c, "-o", c, "-m", tiny_model),
        ("retouch", a, "--original", c, "-o", folder / "new.png", "--save-mask", c, "-m", tiny_model),
        ("retouch", a, "--original", b, "-o", folder / "new.png", "--save-mask", folder / "new.png", "-m", tiny_model),
        ("models", "convert", tiny_model, "-o", tiny_model),
        ("figure", 1, folder, "-o", c),
    ):
        status, said = run(*arguments, "--overwrite")
        assert status in (1, 2), arguments
        assert "is an input" in said or "give the mask another name" in said or "never replaced" in said, said
        assert "Traceback" not in said
        assert {name: (folder / name).read_bytes() for name in files(folder) if name != "gleansr.jsonl"} == before, arguments
    assert tiny_model.read_bytes() == model


def test_wrong_requests_exit_2_in_one_line_and_write_nothing(run, tiny_model: Path, folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("x")
    (tmp_path / "junk.pth").write_bytes(os.urandom(1000))
    before = files(tmp_path)
    cat = folder / "a.png"
    for arguments, words in {
        (cat, "-m", "cats-9x"): "did you mean 'cats-8x'?",
        (cat, "-m", tmp_path / "none.pth"): "no such file",
        (cat, "-m", tmp_path / "junk.pth"): "junk.pth",
        (cat, "-m", cat): "a.png",
        (cat, "-m", tiny_model, "--device", "cuda:99"): "--device cpu",
        (cat, "-m", tiny_model, "--batch-size", 0): "--batch-size",
        (cat, "-m", tiny_model, "--quality", 101): "--quality",
        (cat, "-m", tiny_model, "-o", tmp_path / "out.xyz"): ".png",
        (cat, cat, "-m", tiny_model, "-o", tmp_path / "out.png"): "give a folder",
        (tmp_path / "empty", "-m", tiny_model): "empty folder",
        (tmp_path / "texts", "-m", tiny_model): "notes.txt",
        (cat, "-m", "glean-cats-8x", "--offline"): "manually",
    }.items():
        status, said = run("upscale", *arguments)
        assert status == 2, (arguments, said)
        assert words in said, (arguments, said)
        assert len(said.strip().splitlines()) == 1, said
        assert "Traceback" not in said
    assert files(tmp_path) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write to")
def test_an_unwritable_folder(run, tiny_model: Path, folder: Path):
    status, said = run("upscale", folder / "a.png", "-o", "/proc/out.png", "-m", tiny_model)
    assert status == 1
    assert "cannot be written" in said
    assert len(said.strip().splitlines()) == 1
    assert run("upscale", folder, "-o", "/proc/out", "-m", tiny_model)[0] == 1
    status, said = run("models", "convert", tiny_model, "-o", "/proc/out.safetensors")
    assert status == 1
    assert "/proc/out.safetensors: cannot be written (" in said


def test_an_output_below_a_file(run, tiny_model: Path, folder: Path):
    status, said = run("upscale", folder / "a.png", "-o", folder / "a.jpg" / "out", "-m", tiny_model)
    assert status == 1
    assert "cannot be created" in said
    assert len(said.strip().splitlines()) == 1


def test_a_folder_is_not_made_for_nothing(run, tiny_model: Path, tmp_path: Path):
    assert run("upscale", tmp_path / "missing.png", "-o", tmp_path / "new" / "folder", "-m", tiny_model)[0] == 1
    assert files(tmp_path) == []
    assert not (tmp_path / "new").exists()


def test_debug_shows_the_traceback(tiny_model: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="empty folder"):
        main(["upscale", str(tmp_path), "--model", str(tiny_model), "--debug"])


def test_a_fault_of_the_program_is_not_one_of_an_image(
    run, tiny_model: Path, cat: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It stops the job, with a status of its own and where it was."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        cat.resize((8, 8)).save(tmp_path / "in" / f"{i}.png")

    def faulty(self: Upscaler, *_: object) -> None:
        raise TypeError("an object that is none")

    monkeypatch.setattr(Upscaler, "finish", faulty)
    arguments = ("upscale", tmp_path / "in", "-o", tmp_path / "out", "-m", tiny_model)
    status, said = run(*arguments)
    assert status == 70
    assert (
        "gleansr: internal error: TypeError: an object that is none; this is a fault of gleansr, not of your files: please report it"
        in said
    )
    assert "Traceback" not in said
    status, said = run(*arguments, "--debug")
    assert status == 70
    assert 'raise TypeError("an object that is none")' in said


@pytest.mark.parametrize(("error", "status"), [(MemoryError(), 1), (OSError(28, "No space left on device", "x"), 1), (KeyError("x"), 70)])
def test_what_a_command_raises_has_a_message(run, error: Exception, status: int, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("gleansr.doctor.examine", fails)
    found, said = run("doctor")
    assert (found, "Traceback" in said) == (status, False)
    assert type(error).__name__ in said or "x: No space left on device" in said


def test_models_list_info_and_convert(run, tiny_model: Path, tmp_path: Path):
    status, said = run("models")
    assert status == 0
    assert "cats-8x" in said
    status, said = run("models", "info", tiny_model)
    assert status == 0
    assert "generator: glean," in said
    assert '"in_size": 8' in said
    assert "CC0-1.0" in said
    out = tmp_path / "half.safetensors"
    assert run("models", "convert", tiny_model, "-o", out, "--dtype", "bfloat16")[0] == 0
    assert out.stat().st_size < 0.7 * tiny_model.stat().st_size
    assert run("models", "info", out)[0] == 0
    assert run("models", "convert", tiny_model, "-o", out)[0] == 2  # exists
    assert run("models", "convert", tiny_model, "-o", tmp_path / "eight.safetensors", "--dtype", "int8")[0] == 0
    assert run("models", "info", tmp_path / "eight.safetensors")[0] == 0
    both = tmp_path / "both.safetensors"
    assert run("models", "convert", tiny_model, "-o", both, "--self-ensemble", "on")[0] == 0
    assert "self_ensemble: True" in run("models", "info", both)[1]
    assert run("models", "convert", both, "-o", tmp_path / "same.safetensors")[0] == 0
    assert "self_ensemble: True" in run("models", "info", tmp_path / "same.safetensors")[1]
    assert run("models", "convert", both, "-o", both, "--self-ensemble", "off", "--overwrite")[0] == 2  # an input
    assert run("models", "convert", both, "-o", tmp_path / "one.safetensors", "--self-ensemble", "off")[0] == 0
    assert "self_ensemble" not in run("models", "info", tmp_path / "one.safetensors")[1]
    assert run("models", "convert", tiny_model, "-o", tmp_path / "x.pth")[0] == 2
    assert run("models", "info")[0] == 2


def test_training_from_the_command_line(run, folder: Path, tmp_path: Path):
    bank = tmp_path / "bank.toml"
    bank.write_text(
        '[about]\nname = "b"\n[network]\nchannels = [4, 4, 4]\ncode_dim = 4\nmapping_layers = 1\n'
        "[run]\niterations = 2\nbatch_size = 2\nlog_every = 2\n"
    )
    glean = tmp_path / "glean.toml"
    glean.write_text(
        '[about]\nname = "g"\n[network]\nin_size = 4\nout_size = 16\nn_rrdb = 1\nfeatures = 4\n[run]\niterations = 2\nbatch_size = 2\n'
    )
    status, said = run("train-bank", bank, "-o", tmp_path / "runs", "--data", folder, "--option", "lr=0.001", "--device", "cpu")
    assert status == 0, said
    assert f"finished: {tmp_path / 'runs' / 'b.safetensors'}\n" in said
    status, said = run(
        *("train-bank", bank, "-o", tmp_path / "runs", "--data", folder, "--option", "lr=0.001", "run.iterations=3", "--device", "cpu")
    )
    assert "b.safetensors; resumed at image 4 of 6" in said
    status, said = run("train", glean, "--output", tmp_path / "runs2", "--data", folder, "--bank", tmp_path / "runs" / "b.safetensors")
    assert status == 0, said
    status, said = run("train", glean, "--output", tmp_path / "runs2", "--data", folder, "--bank", tmp_path / "runs" / "b.safetensors")
    assert "g.safetensors; all 4 images had been seen before, so nothing was trained" in said
    status, said = run("train", "cats-8x-compat", "--dry-run")
    assert status == 2
    assert "no recipe is named 'cats-8x-compat', did you mean cats-8x-compact?" in said
    assert run("upscale", folder / "a.png", "-o", tmp_path / "o.png", "-m", tmp_path / "runs2" / "g.safetensors")[0] == 0
    status, said = run("train", glean, "-o", tmp_path / "runs3", "--dry-run", "--option", "lr=0.5")
    assert status == 0
    plan = json.loads(said)
    assert plan["recipe"]["lr"] == 0.5
    assert plan["images"] == 4
    assert plan["parameters"]["bank and other frozen"] > 10_000_000  # no bank is given: the published one
    assert sum(list(plan["memory per device, MiB (estimate)"].values())[:2]) == plan["memory per device, MiB (estimate)"]["sum"] > 0
    assert len(plan["step"]) == 6
    status, said = run("train", glean, "--dry-run", "--bank", tmp_path / "runs" / "b.safetensors")
    assert json.loads(said)["bank"]["channels"] == [4, 4, 4]
    status, said = run("train-bank", bank, "--dry-run")
    assert json.loads(said)["parameters"]["generator"] > 0
    assert not (tmp_path / "runs3").exists()
    status, said = run("train", glean, "-o", tmp_path / "runs3", "--option", "lrr=0.5")
    assert status == 2
    assert "did you mean lr?" in said
    status, said = run("train", glean, "--bank", tmp_path / "runs" / "b.safetensors", "--data", folder)
    assert status == 2
    assert "--output" in said


def test_python_m_gleansr():
    done = subprocess.run([sys.executable, "-m", "gleansr", "upscale", "--help"], capture_output=True, text=True, check=True)
    for option in ("--output", "-o", "--model", "--fit", "--device", "--precision", "--batch-size", "--overwrite"):
        assert option in done.stdout


def test_results_equal_those_of_the_python_interface(run, tiny_model: Path, folder: Path, cat: Image.Image):
    import gleansr

    assert run("upscale", folder / "a.png", "-o", folder / "out.png", "-m", tiny_model, "--device", "cpu")[0] == 0
    expected = gleansr.upscale(folder / "a.png", model=tiny_model, device="cpu")
    with Image.open(folder / "out.png") as image:
        assert np.array_equal(np.array(image), np.array(expected))
    cat.resize((8, 8)).save(folder / "small.png")
    assert run("upscale", folder / "small.png", "-o", folder / "out.png", "-m", tiny_model, "--device", "cpu", "--overwrite")[0] == 0
    expected = gleansr.load(tiny_model, device="cpu")(folder / "small.png")
    with Image.open(folder / "out.png") as image:
        assert np.array_equal(np.array(image), np.array(expected))
