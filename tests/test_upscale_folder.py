"""gleansr.upscale_folder: the command's folder run as one function."""

from pathlib import Path

import pytest
from PIL import Image

import gleansr
from gleansr.cli import main
from gleansr.errors import RequestError
from gleansr.jobs import JobResult
from gleansr.jobs.folder import describe_run


@pytest.fixture
def folder(cat: Image.Image, tmp_path: Path) -> Path:
    """Three cats, one in a subfolder, a video, and a broken image."""
    folder = tmp_path / "cats"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "more/c.png"):
        cat.resize((8, 8)).save(folder / name)
    (folder / "clip.mp4").write_bytes(b"a video")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def test_it_mirrors_the_folder_and_says_what_it_did(folder: Path, tiny_model: Path, tmp_path: Path):
    results: list[object] = []
    summary = gleansr.upscale_folder(folder, tmp_path / "large", model=tiny_model, device="cpu", progress=results.append)
    assert (summary.done, summary.skipped, summary.scale, summary.destination) == (3, 0, 4, tmp_path / "large")
    assert list(summary.failures) == [str(folder / "broken.png")]
    assert sum(summary.left_out.values()) == 1
    assert len(results) == 4
    assert all(isinstance(result, JobResult) for result in results)
    expected = gleansr.load(tiny_model, device="cpu")(folder / "more/c.png")
    with Image.open(tmp_path / "large/more/c.png") as image:
        assert image.tobytes() == expected.tobytes()
    assert str(summary) == f"3 images → {tmp_path / 'large'} (4x, tiny); 1 failed"


def test_it_resumes_what_it_and_the_command_did(folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "broken.png").unlink()
    first = gleansr.upscale_folder(folder, model=tiny_model, device="cpu")
    assert (first.done, first.destination) == (3, folder.with_name("cats_4x"))
    main(["upscale", str(folder), "--model", str(tiny_model), "--device", "cpu"])
    assert "Nothing to do: all 3 images" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(folder / "d.png")
    main(["upscale", str(folder), "--model", str(tiny_model), "--device", "cpu"])
    again = gleansr.upscale_folder(folder, model=tiny_model, device="cpu")
    assert (again.done, again.skipped) == (0, 4)
    assert str(again) == f"Nothing to do: all 4 images are already in {folder.with_name('cats_4x')}"
    other = gleansr.upscale_folder(folder, model=tiny_model, device="cpu", quality=80)
    assert other.done == 4


def test_a_self_ensemble_is_asked_for_alike_and_remembered(folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "broken.png").unlink()
    options = ("--model", str(tiny_model), "--device", "cpu")
    first = gleansr.upscale_folder(folder, model=tiny_model, device="cpu", self_ensemble=True)
    assert first.done == 3
    main(["upscale", str(folder), *options, "--self-ensemble", "on"])
    assert "Nothing to do: all 3 images" in capsys.readouterr().err
    both = gleansr.load(tiny_model, device="cpu", self_ensemble=True)(folder / "a.png")
    with Image.open(folder.with_name("cats_4x") / "a.png") as image:
        assert image.tobytes() == both.tobytes()
    assert gleansr.upscale(folder / "a.png", model=tiny_model, device="cpu", self_ensemble=True).tobytes() == both.tobytes()
    main(["upscale", str(folder), *options, "--self-ensemble", "off"])
    with Image.open(folder.with_name("cats_4x") / "a.png") as image:
        once = image.tobytes()
    assert once != both.tobytes()
    assert once == gleansr.load(tiny_model, device="cpu")(folder / "a.png").tobytes()
    with pytest.raises(SystemExit) as ended:
        main(["upscale", str(folder / "a.png"), "--method", "bicubic", "--self-ensemble", "on"])
    assert ended.value.code == 2
    assert "--self-ensemble is for networks given with --model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 0}, "quality must be 1 to 100"),
        ({"back_projection": 2.0}, "back_projection must be 0 to 1"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"fit": "squeeze"}, "fit is 'squeeze'"),
        ({"fit": "pad", "scale": 2}, "with --fit, tiny enlarges 4 times"),
    ],
)
def test_wrong_options_write_nothing(folder: Path, tiny_model: Path, options: dict, message: str):
    with pytest.raises(RequestError, match=message):
        gleansr.upscale_folder(folder, model=tiny_model, device="cpu", **options)
    assert not folder.with_name("cats_4x").exists()


def test_one_image_is_for_load(folder: Path, tiny_model: Path):
    with pytest.raises(RequestError, match="is not a folder"):
        gleansr.upscale_folder(folder / "a.png", model=tiny_model)


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ((3, 0, 2), "3 images → out (4x, tiny) in 1 s; 2 done before"),
        ((0, 1, 2), "No image was upscaled (4x, tiny); 1 failed; 2 done before"),
        ((0, 0, 1), "Nothing to do: the image is already in out"),
    ],
)
def test_a_run_is_one_line(counts: tuple[int, int, int], line: str):
    assert describe_run(*counts, "out", "4x, tiny", pace=" in 1 s") == line


def test_a_run_that_was_stopped_while_it_skipped_has_something_to_do():
    assert describe_run(0, 0, 2, "out", "4x, tiny", missing=5) == "No image was upscaled (4x, tiny); 2 done before; 5 not begun"


def test_an_upscaler_says_what_it_is(tiny_model: Path):
    assert repr(gleansr.load(tiny_model, device="cpu")) == "<Upscaler tiny: GLEAN, 8 px to 32 px, 4x, blobs, cpu>"
