"""The scripts of examples/, each with small images or a tiny model."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import gleansr
from gleansr.checkpoints import native
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config

EXAMPLES = Path(__file__).parents[1] / "examples"
CAT = EXAMPLES / "chelsea-32.png"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script of examples/ in an empty folder, as `python NAME ARGUMENTS`; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: Any) -> str:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def flowers(example: Callable[..., str], train: int, test: int = 0) -> None:
    assert example("flowers.py", "flowers", "--train", train, "--test", test) == f"{train} + {test} flowers → flowers\n"


def test_upscale_image(example: Callable[..., str]):
    assert "cats-8x" in example("upscale_image.py", CAT, "large.png")
    with Image.open("large.png") as large:
        assert large.size == (256, 256)


def test_upscale_folder(example: Callable[..., str]):
    Path("small").mkdir()
    Path("small", "cat.png").write_bytes(CAT.read_bytes())
    Path("small", "broken.png").write_bytes(CAT.read_bytes()[:500])
    first = example("upscale_folder.py", "small", "large")
    assert "1 image → large" in first
    assert "broken.png: " in first
    assert "1 done before" in example("upscale_folder.py", "small", "large")


def test_retouch(example: Callable[..., str]):
    with Image.open(EXAMPLES / "chelsea-256.png") as image:
        original = image.convert("RGB")
    edited = original.copy()
    edited.paste(edited.crop((80, 60, 110, 90)).resize((45, 45)), (72, 52))
    edited.save("edited.png")
    original.save("original.png")
    assert "refined.png: " in example("retouch.py", "edited.png", "original.png", "refined.png")
    with Image.open("refined.png") as refined:
        assert refined.getpixel((2, 250)) == original.getpixel((2, 250))
        assert refined.getpixel((94, 74)) != original.getpixel((94, 74))


def test_evaluate(example: Callable[..., str], tiny_model: Path):
    flowers(example, 2)
    lines = example("evaluate.py", tiny_model, "flowers/train").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["bicubic, model", "bicubic, bicubic", "real, model", "real, bicubic"]
    assert all("psnr" in line and "squeezenet_distance" in line for line in lines)


def test_train(example: Callable[..., str]):
    flowers(example, 3)
    torch.manual_seed(0)
    bank = StyleGAN2(StyleGAN2Config((8, 8, 6, 4, 4), code_dim=8, mapping_layers=1))
    native.save(Path("bank.safetensors"), {"generator": bank}, native.About("tiny-bank", "flowers", "CC0-1.0", "nobody"))
    sizes = ["network.in_size=8", "network.out_size=64"]
    narrow = ["network.n_rrdb=3", "network.features=4", "network.growth=3", "network.out_features=4"]
    short = ["run.iterations=2", "run.batch_size=2", "run.precision=float32", "run.tensorboard=false", "data.workers=0"]
    assert example("train.py", "flowers/train", "bank.safetensors", "runs", *sizes, *narrow, *short) == "runs/mine.safetensors\n"
    assert gleansr.load("runs/mine.safetensors")(CAT).size == (64, 64)


def test_a_flower_depends_on_its_seed_alone(example: Callable[..., str]):
    flowers(example, 1, 1)
    with Image.open("flowers/train/00000.png") as train, Image.open("flowers/test/10000.png") as test:
        assert train.size == test.size == (256, 256)
        assert train.tobytes() != test.tobytes()
    drawn = runpy.run_path(str(EXAMPLES / "flowers.py"))["flower"]
    assert drawn(3, 64).tobytes() == drawn(3, 64).tobytes()
