"""`gleansr evaluate` of a bank."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gleansr.checkpoints import native
from gleansr.checkpoints.native import About
from gleansr.errors import RequestError
from gleansr.evaluation.banks import evaluate_bank
from gleansr.evaluation.ground_truth import EvaluationTask, GroundTruth
from gleansr.evaluation.metric_suite import MetricSuite
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config

CONFIG = StyleGAN2Config((8, 8, 8, 8), code_dim=8, mapping_layers=2)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a bank of 32 px and random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    native.save(path, {"generator": StyleGAN2(CONFIG)}, About("bank"))
    return path


@pytest.fixture(scope="module")
def drawn(bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it draws of the codes of seed 0, as files."""
    model = native.read(bank).build(None, bank)
    folder = tmp_path_factory.mktemp("drawn")
    with torch.inference_mode():
        images = model(torch.randn(20, 8, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    for i, image in enumerate(((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_what_it_draws_is_nearest_to_itself(bank, drawn, noise, tmp_path, command):
    status, said = command("evaluate", bank, drawn, "--device", "cpu", "--json", tmp_path / "e.json")
    assert status == 0, said
    report = json.loads((tmp_path / "e.json").read_text())["methods"][0]
    assert (report["samples"], report["pictures"]) == (20, 20)
    assert abs(report["frechet"]["squeezenet_frechet"]) < 1e-3  # the same codes, the same images
    assert report["apart"] == pytest.approx(report["truths_apart"], rel=1e-4)
    assert report["frechet_of_truths"]["squeezenet_frechet"] > 1
    assert f"| 20 samples | 0.0 | {report['apart']:.2f} |" in said.replace("-0.0", "0.0")
    status, said = command("evaluate", bank, noise, "--device", "cpu", "--samples", 7, "--json", tmp_path / "f.json")
    far = json.loads((tmp_path / "f.json").read_text())["methods"][0]
    assert (far["samples"], far["pictures"]) == (7, 6)
    assert far["frechet"]["squeezenet_frechet"] > 10


def test_one_image_for_all_latents_is_seen(bank, drawn):
    model = native.read(bank).build(None, bank)
    assert isinstance(model, StyleGAN2)
    for parameter in model.mapping.parameters():
        parameter.data.zero_()
    gts = GroundTruth(str(drawn), EvaluationTask(32, 2))
    report = evaluate_bank(model, gts, MetricSuite(["squeezenet_frechet"]), samples=20)
    assert report.apart < 1e-3 < report.gts_apart
    assert report.frechet["squeezenet_frechet"] > 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--samples", 1), "at least 2 samples"),
        (("--limit", 3), "4 ground truths"),
        (("--degradation", "real"), "is a bank, which enlarges no images"),
        (("--size", 32), "is a bank, which enlarges no images"),
    ],
)
def test_what_makes_no_sense_is_refused(bank, drawn, command, options, error):
    status, said = command("evaluate", bank, drawn, "--device", "cpu", *options)
    assert (status, error in said) == (2, True), said


def test_other_models_draw_no_samples(drawn, tiny_model, command):
    status, said = command("evaluate", tiny_model, drawn, "--device", "cpu", "--samples", 5)
    assert (status, "--samples is for banks" in said) == (2, True), said


def test_another_size_is_refused(bank, drawn):
    model = native.read(bank).build(None, bank)
    assert isinstance(model, StyleGAN2)
    with pytest.raises(RequestError, match="generates 32 px, but the ground truths have 16"):
        evaluate_bank(model, GroundTruth(str(drawn), EvaluationTask(16, 2)), MetricSuite(["squeezenet_frechet"]), samples=4)
