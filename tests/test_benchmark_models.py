"""`python -m benchmarks.models`: the tables of docs/results.md."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gallery, models


def entry(name: str, category: str, degradation: str, psnr: float) -> dict:
    base = {"psnr": 20.0, "ssim": 0.5, "squeezenet_distance": 4.0, "mobilenet_distance": 5.0, "mobilenet_frechet": 200.0}
    own = {"psnr": psnr, "ssim": 0.6, "squeezenet_distance": 2.0, "mobilenet_distance": 4.0, "mobilenet_frechet": 50.0}
    return {
        "model": name,
        "category": category,
        "degradation": degradation,
        "scale": 8,
        "pictures": 3,
        "bicubic": base,
        "means": own,
        "above_bicubic": 2 / 3,
        "spectrum": {"brightness": -0.5, "colour": 1.0},
        "sha256": models.sha256_of(models.zoo.model_path(name)),
    }


def test_a_table_has_what_is_gained_over_bicubic():
    figures = [
        entry("cats-8x", "cats", "clean", 21.25),
        entry("cats-8x", "cats", "real", 20.5),
        entry("plain-cats-8x", "cars", "clean", 19.0),
    ]
    lines = list(models.rows(figures, "clean"))
    assert lines[2:] == [
        "| cats-8x | 3 | +1.25 dB (21.25) | 0.600 (0.500) | 0.50 | 0.80 | 0.25 | 67 % | -0.5, +1.0 dB |",
        "| plain-cats-8x on cars | 3 | -1.00 dB (19.00) | 0.600 (0.500) | 0.50 | 0.80 | 0.25 | 67 % | -0.5, +1.0 dB |",
    ]
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")


def test_a_grid_and_hatching_stand_out_of_the_spectrum():
    torch.manual_seed(0)
    gt = torch.rand(4, 3, 64, 64) - 0.5
    assert models.spectrum(gt, gt) == {"brightness": 0.0, "colour": 0.0}
    assert models.spectrum(0.5 * gt, gt)["brightness"] == pytest.approx(-6, abs=0.5)
    stripes = 0.5 * torch.cos(torch.arange(64) * 2 * torch.pi / 4).expand(64, 64)
    grey = models.spectrum(0.5 * gt + stripes, gt)
    assert grey["brightness"] > 6
    assert grey["colour"] < 0
    coloured = models.spectrum(0.5 * gt + stripes * torch.tensor([1.0, -1, 0])[:, None, None], gt)
    assert coloured["colour"] > 6
    assert coloured["brightness"] < 0


def test_what_was_measured_of_the_same_file_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked = []

    def evaluate_model(name: str, category: str, path: Path, degradation: str, _: object) -> dict:
        asked.append((name, category, path.name, degradation))
        return entry(name, category, degradation, 21.0)

    monkeypatch.setattr(models, "evaluate_model", evaluate_model)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "val.zip").touch()
    file = tmp_path / "figures.json"
    arguments = [str(tmp_path), "--mobilenet", "none.pth", "--models", "cats-8x", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["models", *arguments])
    models.main()
    assert asked == [("cats-8x", "cats", "val.zip", "clean"), ("cats-8x", "cats", "val.zip", "real")]
    assert capsys.readouterr().out.count("| cats-8x | 3 | +1.00 dB") == 2
    models.main()
    assert len(asked) == 2
    kept = json.loads(file.read_text())
    kept[0]["sha256"] = "another file"
    file.write_text(json.dumps(kept))
    models.main()
    assert asked[2:] == [("cats-8x", "cats", "val.zip", "clean")]
    assert len(json.loads(file.read_text())) == 2


def test_the_gallery_shows_clean_and_real_images_of_each_model(tmp_path: Path):
    image = gallery.sheet(["faces-16x"], 0)  # the photo alone
    assert image.size == (2 * 4 * 256 + 3 * gallery.GAP, gallery.HEADER + 256 + gallery.GAP)
    clean, real = (np.asarray(image)[gallery.HEADER :, left : left + 4 * 256] for left in (gallery.GAP, 2 * gallery.GAP + 4 * 256))
    gts = [half[:256, 3 * 256 :] for half in (clean, real)]
    with Image.open(gallery.EXAMPLES / "astronaut-face-256.png") as photo:
        assert all(np.array_equal(gt, np.asarray(photo.convert("RGB"))) for gt in gts)
    assert not np.array_equal(clean[:256, :256], real[:256, :256])
