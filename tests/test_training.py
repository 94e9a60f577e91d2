"""Losses against hand-computed values, and tiny runs of both loops: they learn, go on where they stopped, and leave the bank alone."""

import dataclasses
import functools
import json
import math
import os
import signal
import zipfile
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from made_images import smooth_images
from PIL import Image

import gleansr
from gleansr.checkpoints import native
from gleansr.checkpoints.bundled import efficientnet, squeezenet
from gleansr.errors import CheckpointError, GleansrError, RequestError
from gleansr.files import lock_folder
from gleansr.models.features import VGG16
from gleansr.models.glean import GLEAN, lighten
from gleansr.models.stylegan import StyleGAN, StyleGANConfig, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator
from gleansr.training import losses
from gleansr.training.bank import train_bank
from gleansr.training.checkpoint import Checkpoints, TrainingStoppedError
from gleansr.training.config import AboutConfig, BankRecipe, DataConfig, GLEANNetworkConfig, NetworkRecipe, RunConfig
from gleansr.training.devices import find_devices, launch
from gleansr.training.enlarge import schedule, train_network
from gleansr.training.log import Log, Meter, is_due
from gleansr.training.networks import PlainNetworkConfig
from gleansr.training.parts import build, load_teacher, start_from
from gleansr.training.plan import network_plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A zip archive of six smooth images of 20x16."""
    path = smooth_images(tmp_path_factory.mktemp("data") / "images.zip", (5, 4), (20, 16))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "no image")
    return path


def bank_recipe(dataset: str, **changes) -> BankRecipe:
    values = {
        "about": AboutConfig("tiny-bank", "blobs", "CC0-1.0", "nobody"),
        "network": StyleGAN2Config((8, 8, 4), code_dim=8, mapping_layers=2),
        "run": RunConfig(iterations=4, batch_size=4, checkpoint_every=8, log_every=4, tensorboard=False),
        "data": DataConfig(train=(dataset,), small="enlarge"),
        "r1_every": 2,
        "path_length_every": 2,
    }
    return BankRecipe(**(values | changes))


@pytest.fixture(scope="module")
def bank(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(train_bank(bank_recipe(dataset), tmp_path_factory.mktemp("bank"), CPU))


def small_network(in_size: int = 4, light: bool = False) -> GLEANNetworkConfig:
    return GLEANNetworkConfig(in_size, out_size=16, n_rrdb=1, features=4, growth=3, out_features=4, light=light)


def glean_recipe(dataset: str, bank_file: str, **changes) -> NetworkRecipe:
    values = {
        "about": AboutConfig("tiny-glean", "blobs", "CC0-1.0", "nobody"),
        "network": small_network(),
        "run": RunConfig(iterations=4, batch_size=4, checkpoint_every=8, log_every=4, tensorboard=False),
        "data": DataConfig(train=(dataset,), validation=(dataset,), n_validation=3, small="enlarge"),
        "bank_file": bank_file,
        "lr": 1e-3,
        "ema_half_life": 8,
    }
    return NetworkRecipe(**(values | changes))


# ------------------------------------------------------------------------------------------------------------------ losses


def test_equations_by_hand():
    prediction, gt = torch.zeros(1, 3, 1, 2), torch.tensor([[[[0.5, 0]], [[0, 1]], [[0, 0]]]])
    mse = losses.equation1_mse(prediction, gt)
    assert math.isclose(float(mse), (0.25 + 1) / 6, rel_tol=1e-6)
    fake, real = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [-1.0]])
    d_fake, d_real = [[1 / (1 + math.exp(-float(logit))) for logit in logits] for logits in (fake, real)]
    printed = sum(math.log(1 - d) for d in d_fake) / 2
    saturating = losses.equation3_adversarial(fake, "saturating")
    assert math.isclose(float(saturating), printed, rel_tol=1e-6)
    other = -sum(math.log(d) for d in d_fake) / 2
    assert math.isclose(float(losses.equation3_adversarial(fake, "non-saturating")), other, rel_tol=1e-6)
    whole = losses.equation4_objective(mse, torch.tensor(3.0), saturating, 1e-2, 2e-2)
    assert math.isclose(float(whole), 1.25 / 6 + 0.01 * 3 + 0.02 * printed, rel_tol=1e-6)
    assert math.isclose(float(losses.equation4_objective(mse, torch.tensor(3.0), None, 1e-2, 2e-2)), 1.25 / 6 + 0.03, rel_tol=1e-6)
    maximised = printed + sum(math.log(d) for d in d_real) / 2
    assert math.isclose(float(losses.equation5_discriminator(fake, real)), -maximised, rel_tol=1e-6)


def test_both_forms_of_equation_3_pull_the_same_way_but_differently_hard():
    logits = torch.tensor([[-6.0]], requires_grad=True)  # the discriminator is sure that it is a result
    gradients = {}
    for form in ("saturating", "non-saturating"):
        (gradients[form],) = torch.autograd.grad(losses.equation3_adversarial(logits, form).sum(), logits)
    assert float(gradients["non-saturating"]) < 100 * float(gradients["saturating"]) < 0


@pytest.mark.parametrize("network", ["squeezenet", "efficientnet", "vgg16"])
def test_equation_2_is_the_distance_of_features_and_reaches_the_result_only(network: str):
    torch.manual_seed(0)
    features = {"squeezenet": squeezenet, "efficientnet": efficientnet, "vgg16": lambda: VGG16().requires_grad_(False)}[network]()
    gt = torch.rand(2, 3, 32, 32).mul(2).sub(1).requires_grad_()
    result = (gt.detach() + 0.1 * torch.randn_like(gt)).requires_grad_()
    loss = losses.equation2_perceptual(features, result, gt)
    loss.backward()
    assert float(loss.detach()) > 0
    assert gt.grad is None
    assert result.grad is not None
    assert result.grad.abs().sum() > 0
    assert float(losses.equation2_perceptual(features, gt, gt).detach()) < 1e-5
    if isinstance(features, VGG16):
        with torch.no_grad():
            by_hand = (features(result) - features(gt)).square().sum() / features(gt).numel()
        assert torch.allclose(loss, by_hand)


def test_views_show_result_and_ground_truth_alike_and_all_of_the_image():
    rows, columns = torch.arange(40.0)[:, None].expand(40, 56), torch.arange(56.0).expand(40, 56)
    image = torch.stack([rows, columns, rows * 56 + columns]).expand(2, 3, 40, 56)
    sizes, corners = set(), set()
    for seed in range(200):
        torch.manual_seed(seed)
        a, b = losses.random_view(image, -image)
        assert torch.equal(a, -b)
        assert torch.equal(a[:, 2], a[:, 0] * 56 + a[:, 1])  # pixels stay whole
        (a_rows, _), (a_columns, _) = (torch.unique(a[0, channel], return_counts=True) for channel in (0, 1))
        assert (len(a_rows), len(a_columns)) == (24, 40)
        sizes.add(tuple(a.shape[-2:]))
        corners.add((float(a_rows[0]), float(a_columns[0]), *(bool(axis.diff()[0] > 0) for axis in (a[0, 2, 0], a[0, 2, :, 0]))))
    assert sizes == {(24, 40), (40, 24)}
    assert {top for top, *_ in corners} == {left for _, left, *_ in corners} == set(range(17))
    assert len({corner[2:] for corner in corners}) == 4


def test_equation_2_of_views_depends_on_no_offset():
    torch.manual_seed(0)
    features, gt = squeezenet(), torch.rand(1, 3, 64, 64).mul(2).sub(1)
    result = (gt + 0.1 * torch.randn_like(gt)).requires_grad_()
    seen = torch.zeros(64, 64, dtype=torch.bool)
    distances = set()
    for seed in range(24):
        torch.manual_seed(seed)
        result.grad = None
        distance = losses.equation2_perceptual(features, result, gt, views=True)
        distance.backward()
        assert result.grad is not None
        seen |= result.grad.abs().sum((0, 1)) > 0
        distances.add(float(distance.detach()))
        torch.manual_seed(seed)
        assert float(losses.equation2_perceptual(features, result, gt, views=True).detach()) == distance
    assert seen[8:-8, 8:-8].all()
    assert len(distances) > 16


def test_each_iteration_takes_one_of_the_perceptual_networks():
    networks = [squeezenet(), efficientnet()]
    torch.manual_seed(0)
    taken = [networks.index(losses.one_of(networks)) for _ in range(400)]
    assert 150 < sum(taken) < 250
    torch.manual_seed(0)
    assert taken == [networks.index(losses.one_of(networks)) for _ in range(400)]
    state = torch.get_rng_state()
    assert losses.one_of(networks[:1]) is networks[0]
    assert torch.equal(torch.get_rng_state(), state)  # recipes with one network train as they did


def test_lattice_loss_sees_what_repeats_and_nothing_else():
    gt = torch.rand(2, 3, 64, 64) * 2 - 1
    pattern = torch.randn(4, 4)
    pattern = (pattern - pattern.mean()).repeat(16, 16)
    grid = losses.lattice_loss(gt + pattern, gt, 4)
    assert torch.allclose(grid, pattern.square().mean(), rtol=1e-4)
    assert float(losses.lattice_loss(gt + 0.3, gt, 4)) < 1e-10
    noise = torch.randn_like(gt)
    assert float(losses.lattice_loss(gt + noise, gt, 4)) < 0.03 * float(noise.square().mean())


def test_checkerboard_loss_sees_gradients_that_depend_on_the_offset():
    torch.manual_seed(0)
    image = torch.randn(2, 3, 96, 128) * 0.1
    assert float(losses.checkerboard_loss(image, 8)) < 2e-3
    strength = torch.ones(8)
    strength[1] = 1.6
    for rows in (False, True):  # noise that is stronger in every eighth column, or row: its mean is the same everywhere
        factor = strength.repeat(12)[:, None] if rows else strength.repeat(16)
        woven = (image * factor).requires_grad_()
        loss = losses.checkerboard_loss(woven, 8)
        assert 5e-3 < float(loss.detach()) < 0.1
        (gradient,) = torch.autograd.grad(loss, woven)
        assert float((gradient * (woven.detach() - image)).sum()) > 0  # less of the excess is what it asks for
    gt = torch.zeros_like(image)
    assert float(losses.lattice_loss(woven.detach(), gt, 8)) < 1.2 * float(losses.lattice_loss(image, gt, 8))  # which cannot see it
    assert math.isfinite(float(losses.checkerboard_loss(gt, 8)))


def test_spectrum_loss_sees_hatching_and_forgives_softness():
    torch.manual_seed(0)
    gt = torch.rand(2, 3, 192, 192) * 2 - 1
    assert float(losses.spectrum_loss(gt, gt)) == 0
    assert float(losses.spectrum_loss(gt * 0.5, gt)) == 0
    assert float(losses.spectrum_loss(gt.flip(0), gt)) < 1e-3  # another image of the same texture
    stripes = torch.sin(torch.arange(192) * 1.35)[:, None].expand(192, 192)
    for colour in ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (-0.5, -0.5, 1.0)):  # the last two leave brightness as it is
        pattern = torch.tensor(colour)[:, None, None] * stripes
        hatched = (gt + 0.5 * pattern).requires_grad_()
        loss = losses.spectrum_loss(hatched, gt)
        assert 0.002 < float(loss.detach()) < 0.2  # a few frequencies of many
        (gradient,) = torch.autograd.grad(loss, hatched)
        assert float((gradient * pattern).sum()) > 0  # less of the stripes is what it asks for


def test_r1_is_the_squared_gradient():
    discriminator = StyleGAN2Discriminator(StyleGAN2Config((4, 4)))
    real = torch.randn(2, 3, 8, 8)
    inputs = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(inputs).sum(), inputs)
    expected = gradient.square().sum() / 2
    penalty = losses.r1_penalty(discriminator, real)
    assert torch.allclose(penalty, expected, rtol=1e-4)
    penalty.backward()
    assert all(p.grad is not None for name, p in discriminator.named_parameters() if name.endswith("weight"))


def test_path_length_mean_moves_by_the_decay():
    bank = StyleGAN2(StyleGAN2Config((4, 4), code_dim=6, mapping_layers=1))
    latents = torch.randn(3, 4, 6, requires_grad=True)
    penalty, mean = losses.path_length_penalty(bank, latents, torch.zeros(()))
    assert 0 < float(mean) < 1
    penalty.backward()
    assert bank.get_parameter("synthesis.layers.0.conv.weight").grad is not None
    assert float(penalty.detach()) > 0


# ------------------------------------------------------------------------------------------------------------------- loops


def glean(recipe: NetworkRecipe, output: Path, progress=None, resume: str = "auto") -> Path:
    """Trains in this process, on the CPU."""
    return train_network(recipe, output, launch("cpu", 1), progress, resume)


def log_lines(folder: Path) -> list[dict]:
    """The lines of a log that tell of steps."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "seconds" in line]


def test_bank_file_holds_both_networks_and_its_facts(bank: str):
    checkpoint = native.read(bank)
    generator = checkpoint.build("generator", bank)
    assert isinstance(generator, StyleGAN2)
    assert generator.w_avg is not None
    assert torch.allclose(generator.w_avg, generator.estimate_w_avg(), atol=1e-6)
    assert isinstance(checkpoint.build("discriminator", bank), StyleGAN2Discriminator)
    assert checkpoint.about.licence == "CC0-1.0"
    assert checkpoint.about.training["images"] == 16
    assert "train" not in checkpoint.about.training["recipe"]["data"]
    assert str(Path(bank).parent) not in json.dumps(checkpoint.about.training)
    folder = Path(bank).parent
    lines = log_lines(folder)
    assert [line["images"] for line in lines] == [4, 8, 12, 16]
    assert {"d_loss", "g_loss", "r1", "path_length", "augment_p"} <= set(lines[0])
    assert _size(folder / "samples" / "000000016.png") == (8 * 16, 3 * 16)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return {f"{part}.{n}": t for part, network in native.read(path).networks.items() for n, t in network.tensors.items()}


def test_an_interrupted_bank_run_ends_as_an_uninterrupted_one(dataset: str, bank: str, tmp_path: Path):
    train_bank(
        bank_recipe(dataset, run=RunConfig(iterations=2, batch_size=4, checkpoint_every=8, log_every=4, tensorboard=False)), tmp_path, CPU
    )
    path = train_bank(bank_recipe(dataset), tmp_path, CPU)
    whole, resumed = _tensors(Path(bank)), _tensors(path)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_run_of_another_recipe_is_refused(dataset: str, bank: str):
    with pytest.raises(CheckpointError, match="another recipe"):
        train_bank(bank_recipe(dataset, lr=0.1), Path(bank).parent, CPU)


def test_a_bank_grows_from_a_smaller_one(dataset: str, bank: str, tmp_path: Path):
    run = RunConfig(iterations=1, batch_size=4, checkpoint_every=4, log_every=4, tensorboard=False)
    network = StyleGAN2Config((8, 8, 4, 4), code_dim=8, mapping_layers=2)
    path = train_bank(bank_recipe(dataset, network=network, run=run, start=bank, lr=0.0), tmp_path, CPU)
    small, large = _tensors(Path(bank)), _tensors(path)
    assert native.read(path).about.training["recipe"]["start"] == "tiny-bank.safetensors"
    assert torch.equal(small["generator.synthesis.layers.4.conv.weight"], large["generator.synthesis.layers.4.conv.weight"])
    assert torch.equal(small["discriminator.blocks.1.conv1.weight"], large["discriminator.blocks.2.conv1.weight"])
    assert torch.equal(small["discriminator.out.weight"], large["discriminator.out.weight"])
    other = StyleGAN2Config((8, 6, 4, 4), code_dim=8, mapping_layers=2)
    with pytest.raises(RequestError, match="cannot grow into"):
        train_bank(bank_recipe(dataset, network=other, run=run, start=bank), tmp_path / "other", CPU)


def test_a_bank_that_stays_as_it_is_gets_a_discriminator(dataset: str, bank: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    alone = native.read(bank)
    networks = {"generator": alone.networks["generator"]}
    native.write(tmp_path / "alone.safetensors", dataclasses.replace(alone, networks=networks))
    changes = {"start": str(tmp_path / "alone.safetensors"), "lr": 0.0, "discriminator_lr": 0.002}
    path = train_bank(bank_recipe(dataset, **changes), tmp_path / "run", CPU)
    assert "has no discriminator; training starts with a new one" in caplog.text
    before, after = _tensors(Path(bank)), _tensors(path)
    kept = [name for name in after if name.startswith("generator.") and "w_avg" not in name]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert not torch.equal(before["discriminator.out.weight"], after["discriminator.out.weight"])
    assert "g_loss" not in log_lines(tmp_path / "run")[-1]


def test_projected_discriminator_trains_the_bank_and_is_not_kept(dataset: str, tmp_path: Path):
    run = RunConfig(iterations=2, batch_size=4, checkpoint_every=8, log_every=4, precision="bfloat16", tensorboard=False)
    network = StyleGAN2Config((8, 8, 8, 4), code_dim=8, mapping_layers=2)
    path = train_bank(bank_recipe(dataset, discriminator="projected", network=network, run=run), tmp_path, CPU)
    assert set(native.read(path).networks) == {"generator"}


def test_an_encoder_learns_grows_and_resumes(dataset: str, tmp_path: Path):
    def run(iterations: int) -> RunConfig:
        return RunConfig(iterations=iterations, batch_size=4, checkpoint_every=8, log_every=4, tensorboard=False)

    changes = {"discriminator": "projected", "reconstruction_weight": 1.0, "path_length_weight": 0.0}
    changes["network"] = StyleGAN2Config((8, 8, 8, 8, 4), code_dim=8, mapping_layers=2)
    whole = train_bank(bank_recipe(dataset, run=run(4), **changes), tmp_path / "whole", CPU)
    train_bank(bank_recipe(dataset, run=run(2), **changes), tmp_path / "stopped", CPU)
    resumed = train_bank(bank_recipe(dataset, run=run(4), **changes), tmp_path / "stopped", CPU)
    small = _tensors(whole)
    assert set(native.read(whole).networks) == {"generator", "encoder"}
    assert all(torch.equal(tensor, small[name]) for name, tensor in _tensors(resumed).items())
    assert {"reconstruction", "codes"} <= log_lines(tmp_path / "whole")[-1].keys()
    assert native.read(whole).build("encoder", whole)(torch.zeros(2, 3, 64, 64)).shape == (2, 8)

    changes |= {"network": StyleGAN2Config((8, 8, 8, 8, 4, 4), code_dim=8, mapping_layers=2), "lr": 1e-12}
    large = _tensors(train_bank(bank_recipe(dataset, run=run(1), start=str(whole), **changes), tmp_path / "large", CPU))
    for name in ("encoder.from_rgb.weight", "encoder.blocks.3.conv1.weight", "encoder.out.weight"):  # it sees 64 px there too
        assert torch.allclose(large[name], small[name], atol=1e-6), name


def test_sliced_wasserstein_is_of_distributions_along_directions():
    a, b = torch.randn(2, 4000, 3).unbind()
    assert losses.sliced_wasserstein(a, a[torch.randperm(4000)]).item() == pytest.approx(0, abs=1e-10)
    line = losses.sliced_wasserstein(a[:, :1], b[:, :1] * 2 + 1)  # one dimension: all directions are the same
    assert line.item() == pytest.approx((a[:, 0].sort().values - (b[:, 0] * 2 + 1).sort().values).square().mean().item(), rel=1e-4)
    shift = torch.tensor([3.0, 0.0, 4.0])  # 5 long; mean squared cosine of random directions: 1 / 3
    assert losses.sliced_wasserstein(a[:100], a[:100] + shift, directions=5000).item() == pytest.approx(25 / 3, rel=0.05)


def test_glean_learns_and_leaves_the_bank_alone(dataset: str, bank: str, tmp_path: Path):
    run = RunConfig(iterations=60, batch_size=4, checkpoint_every=80, log_every=40, tensorboard=False)
    path = glean(glean_recipe(dataset, bank, run=run, adversarial_from=80, lr=3e-3), tmp_path)
    lines = log_lines(tmp_path)
    assert lines[-1]["mse"] < 0.8 * lines[0]["mse"]
    assert "adversarial" not in lines[0]
    assert {"adversarial", "discriminator", "psnr", "bicubic_psnr", "feature_distance"} <= set(lines[-1])
    model = native.read(path).build(None, path)
    assert isinstance(model, GLEAN)
    trained = native.read(bank).networks["generator"].tensors
    for name, tensor in model.bank.state_dict().items():
        assert torch.equal(tensor, trained[name]), name
    assert _size(tmp_path / "samples" / "000000240.png") == (4 * 16, 3 * 16)
    assert native.read(path).about.training["recipe"]["bank_file"] == "tiny-bank.safetensors"


def test_an_interrupted_glean_run_ends_as_an_uninterrupted_one(dataset: str, bank: str, tmp_path: Path):
    whole = glean(glean_recipe(dataset, bank), tmp_path / "whole")
    stopped = False

    def stop(images: int, line: dict) -> None:
        nonlocal stopped
        if images == 12 and not stopped:
            stopped = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        glean(glean_recipe(dataset, bank), tmp_path / "cut", stop)
    cut = glean(glean_recipe(dataset, bank), tmp_path / "cut", stop)
    for name, tensor in _tensors(whole).items():
        assert torch.equal(tensor, _tensors(cut)[name]), name
    for run in ("whole", "cut"):
        assert [line["images"] for line in log_lines(tmp_path / run)] == [4, 8, 12, 16]


def test_no_run_resumes_while_another_may_still_write(dataset: str, bank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder is locked before its newest checkpoint is looked for: a process that was told to stop may yet write a newer one."""
    looked = []
    load = Checkpoints.load

    def locked(checkpoints: Checkpoints, *arguments: Any) -> Any:
        with pytest.raises(RequestError, match="another process"), lock_folder(checkpoints.folder.parent, "training"):
            raise AssertionError("the folder is not locked")
        looked.append(checkpoints.folder.parent.name)
        return load(checkpoints, *arguments)

    monkeypatch.setattr(Checkpoints, "load", locked)
    glean(glean_recipe(dataset, bank), tmp_path / "glean")
    train_bank(bank_recipe(dataset), tmp_path / "bank", CPU)
    assert looked == ["glean", "bank"]
    with pytest.raises(RequestError):
        glean(glean_recipe(dataset, bank, bank="stylegan"), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_folder_belongs_to_one_run_at_a_time(dataset: str, bank: str, tmp_path: Path):
    glean(glean_recipe(dataset, bank), tmp_path / "glean")
    train_bank(bank_recipe(dataset), tmp_path / "bank", CPU)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with lock_folder(tmp_path / "glean", "busy"), pytest.raises(RequestError, match="glean: another process is training here"):
        glean(glean_recipe(dataset, bank), tmp_path / "glean")
    with lock_folder(tmp_path / "bank", "busy"), pytest.raises(RequestError, match="bank: another process is training here"):
        train_bank(bank_recipe(dataset), tmp_path / "bank", CPU)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_glean_wants_a_whole_bank(dataset: str, bank: str, tmp_path: Path):
    with pytest.raises(RequestError, match="--bank"):
        glean(glean_recipe(dataset, ""), tmp_path)
    checkpoint = native.read(bank)
    del checkpoint.networks["generator"].tensors["synthesis.layers.1.conv.weight"]
    broken = tmp_path / "broken.safetensors"
    native.write(broken, checkpoint)
    with pytest.raises(CheckpointError, match=r"missing synthesis.layers.1.conv.weight"):
        glean(glean_recipe(dataset, str(broken)), tmp_path)


def test_cosine_schedule():
    assert schedule(0, 100, 0) == 1
    assert math.isclose(schedule(50, 100, 0), 0.5)
    assert schedule(100, 100, 0) < 1e-9
    assert schedule(0, 100, 9) == pytest.approx(0.1)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "states", keep=2)
    checkpoints.save({"images": 2, "recipe": {}})
    meter = Meter(Log(tmp_path / "log.jsonl"), batch_size=2)
    for images, mse in ((4, 1.0), (6, math.nan), (8, math.inf), (10, 3.0)):
        meter.add(images, {"mse": torch.tensor(mse), "perceptual": torch.tensor(0.5)})
    with pytest.raises(GleansrError, match=r"step 3 \(6 images\): mse nan, perceptual 0.5; the last good checkpoint is .*000000002.pt"):
        meter.check(checkpoints)
    with pytest.raises(GleansrError, match="not finite"):
        meter.write(10, checkpoints)


def test_means_are_over_the_steps_that_had_the_loss(tmp_path: Path):
    meter = Meter(Log(tmp_path / "log.jsonl"), batch_size=2)
    for number in range(8):
        meter.add(2 * number + 2, {"mse": torch.tensor(float(number))} | ({} if number % 4 else {"r1": torch.tensor(3.0 + number)}))
    line = meter.write(16, Checkpoints(tmp_path, keep=1)) or {}
    assert (line["mse"], line["r1"]) == (3.5, 5.0)
    meter.add(18, {"mse": torch.tensor(1.0)})
    line = meter.write(18, Checkpoints(tmp_path, keep=1)) or {}
    assert line["mse"] == 1
    assert "r1" not in line


class TwoAlike:
    """Stands for the Fabric of a run of two processes that measure the same."""

    world_size, device = 2, CPU

    def all_reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op in ("max", "mean")
        return tensor


def test_processes_agree_on_a_signal_in_time_whatever_the_speed_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each window between two lines of the log has its own speed, so the steps between two agreements change with every line."""
    now = 0.0
    monkeypatch.setattr("gleansr.training.log.time.monotonic", lambda: now)
    meter = Meter(Log(tmp_path / "log.jsonl"), 8, TwoAlike())
    checkpoints = Checkpoints(tmp_path / "states", keep=1)
    asked: list[float] = []
    for step in range(1, 2000):
        now += 0.1 + 0.01 * (step // 10 % 7)  # windows of ten steps
        meter.add(8 * step, {"mse": torch.tensor(1.0)})
        if meter.agree_on_stop("SIGTERM"):
            asked.append(now)
        if step % 10 == 0:
            meter.write(8 * step, checkpoints)
    gaps = np.diff([0.0, *asked, now])
    assert max(gaps) < 2 * Meter.AGREE_EVERY
    assert min(gaps[20:-1]) > Meter.AGREE_EVERY / 4


def test_a_loss_of_some_steps_that_is_not_finite_is_named(tmp_path: Path):
    meter = Meter(Log(tmp_path / "log.jsonl"), batch_size=2)
    meter.add(2, {"mse": torch.tensor(1.0), "r1": torch.tensor(math.inf)})
    meter.add(4, {"mse": torch.tensor(math.nan)})
    with pytest.raises(GleansrError, match=r"step 1 \(2 images\): mse 1, r1 inf; no checkpoint was saved yet; .*begin a run") as raised:
        meter.check(Checkpoints(tmp_path / "states", keep=1))
    assert "from it" not in str(raised.value)


def test_a_resumed_log_drops_what_is_done_again_and_half_a_line(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"images": 4}\n{"images": 8}\n{"images": 12}\n{"ima')
    Log(path, 8)
    assert path.read_text() == '{"images": 4}\n{"images": 8}\n'


def test_is_due():
    assert [images for images in range(4, 41, 4) if is_due(images, 4, 10)] == [12, 20, 32, 40]


# ------------------------------------------------------------------------------------------------- checkpoints, signals, devices


def _state(images: int, **recipe) -> dict:
    whole = {"data": {"flip": True}, "run": {"seed": 0}, "lr": 1.0} | recipe
    return {"images": images, "recipe": whole, "weights": torch.full((4,), float(images))}


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for images, score in ((4, 3.0), (8, 1.0), (12, 2.0), (16, None)):
        checkpoints.save(_state(images), score)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000012.pt", "000000016.pt", "best.json", "best.pt"]
    assert torch.load(tmp_path / "best.pt")["images"] == 8
    loaded = checkpoints.load(_state(0)["recipe"], CPU)
    assert loaded is not None
    assert torch.equal(loaded["weights"], torch.full((4,), 16.0))
    from_best = checkpoints.load(_state(0)["recipe"], CPU, str(tmp_path / "best.pt"))
    assert from_best is not None
    assert from_best["images"] == 8


def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for images in (4, 8):
        checkpoints.save(_state(images))
    (tmp_path / "000000008.pt").write_bytes(b"half a file")
    loaded = checkpoints.load(_state(0)["recipe"], CPU)
    assert loaded is not None
    assert loaded["images"] == 4
    (tmp_path / "000000004.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.load(_state(0)["recipe"], CPU)


def test_resume_never_refuses_a_folder_with_checkpoints(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.load(_state(0)["recipe"], CPU, "never") is None
    checkpoints.save(_state(4))
    with pytest.raises(RequestError, match="holds the checkpoints of a run"):
        checkpoints.load(_state(0)["recipe"], CPU, "never")
    with pytest.raises(CheckpointError, match=r"another recipe: lr was 1\.0 and is 2\.0; .*choose another --output"):
        checkpoints.load(_state(0, lr=2.0)["recipe"], CPU)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path):
    resource = pytest.importorskip("resource")
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(_state(4))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may grow beyond
        with pytest.raises(GleansrError, match=r"cannot be saved \(File too large\); the last good checkpoint is .*000000004\.pt"):
            checkpoints.save(_state(8) | {"more": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["000000004.pt"]
    loaded = checkpoints.load(_state(0)["recipe"], CPU)
    assert loaded is not None
    assert loaded["images"] == 4


@pytest.mark.parametrize(("name", "perceptual"), [("SIGTERM", "squeezenet"), ("SIGINT", "alternating")])
def test_a_signal_saves_a_checkpoint_and_the_run_resumes_to_the_same_end(
    dataset: str, bank: str, tmp_path: Path, name: str, perceptual: Literal["squeezenet", "alternating"]
):
    run = RunConfig(iterations=4, batch_size=4, checkpoint_every=16, log_every=4, tensorboard=False)
    recipe = glean_recipe(dataset, bank, run=run, perceptual=perceptual)
    whole = glean(recipe, tmp_path / "whole")

    def ask(images: int, line: dict) -> None:
        if images == 8:
            os.kill(os.getpid(), signal.Signals[name])

    with pytest.raises(TrainingStoppedError, match=f"stopped by {name}; the last good checkpoint is .*000000012.pt") as stopped:
        glean(recipe, tmp_path / "cut", ask)
    assert stopped.value.exit_code == 128 + signal.Signals[name]
    so_far = tmp_path / "cut" / "tiny-glean.safetensors"
    assert f"the model so far {so_far}" in str(stopped.value)
    averaged = torch.load(tmp_path / "cut" / "states" / "000000012.pt", weights_only=True)["averaged"]
    assert averaged.keys() == {part.removeprefix("generator.") for part in _tensors(so_far)}
    assert all(torch.equal(tensor, averaged[part.removeprefix("generator.")]) for part, tensor in _tensors(so_far).items())
    cut = glean(recipe, tmp_path / "cut")
    for tensor_name, tensor in _tensors(whole).items():
        assert torch.equal(tensor, _tensors(cut)[tensor_name]), tensor_name


def test_the_model_of_the_best_checkpoint_is_kept(dataset: str, bank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    distances = iter([3.0, 1.0, 2.0])

    def validate(*_: object) -> dict[str, float]:
        return {"feature_distance": next(distances)}

    monkeypatch.setattr("gleansr.training.enlarge.validate", validate)
    run = RunConfig(iterations=6, batch_size=4, checkpoint_every=8, log_every=8, tensorboard=False)
    last = glean(glean_recipe(dataset, bank, run=run), tmp_path)
    best = native.read(tmp_path / "tiny-glean-best.safetensors").about
    assert (best.name, best.training["images"], best.training["figures"]) == ("tiny-glean", 16, {"feature_distance": 1.0})
    assert native.read(last).about.training["images"] == 24
    state = torch.load(tmp_path / "states" / "best.pt", weights_only=True)
    assert state["images"] == 16
    of_best = _tensors(tmp_path / "tiny-glean-best.safetensors")
    assert all(torch.equal(tensor, state["averaged"][part.removeprefix("generator.")]) for part, tensor in of_best.items())
    # A run that is killed between a best checkpoint and its model writes the model when it resumes.
    (tmp_path / "tiny-glean-best.safetensors").unlink()
    (tmp_path / "states" / "000000024.pt").unlink()
    distances = iter([2.0])
    glean(glean_recipe(dataset, bank, run=run), tmp_path)
    again = _tensors(tmp_path / "tiny-glean-best.safetensors")
    assert all(torch.equal(tensor, again[part]) for part, tensor in of_best.items())


def test_a_bank_that_does_not_fit_is_refused_with_both_numbers(dataset: str, bank: str, tmp_path: Path):
    network = GLEANNetworkConfig(in_size=8, out_size=32, n_rrdb=1, features=4, growth=3)
    with pytest.raises(RequestError, match=r"generates 16 px, but network\.out_size is 32"):
        glean(glean_recipe(dataset, bank, network=network), tmp_path)
    with pytest.raises(CheckpointError, match="holds stylegan2, but the recipe takes bank = stylegan;"):
        glean(glean_recipe(dataset, bank, bank="stylegan"), tmp_path)


def test_a_finished_run_writes_its_model_again_and_another_bank_is_refused(dataset: str, bank: str, tmp_path: Path):
    path = glean(glean_recipe(dataset, bank), tmp_path)
    before = native.read(path)
    path.unlink()
    glean(glean_recipe(dataset, bank), tmp_path)
    assert native.read(path).about == before.about
    assert all(torch.equal(tensor, _tensors(path)[f"generator.{name}"]) for name, tensor in before.networks["generator"].tensors.items())
    checkpoint = native.read(bank)
    checkpoint.networks["generator"].tensors["synthesis.layers.1.bias"] += 1
    native.write(tmp_path / "other.safetensors", checkpoint)
    with pytest.raises(CheckpointError, match=r"another bank than .*other\.safetensors \(synthesis\.layers\.1\.bias differs"):
        glean(glean_recipe(dataset, str(tmp_path / "other.safetensors")), tmp_path)


def test_a_glean_starts_from_another_scale(dataset: str, bank: str, tmp_path: Path):
    small = glean(glean_recipe(dataset, bank), tmp_path / "4")
    network = small_network(in_size=8)
    run = RunConfig(iterations=1, batch_size=4, checkpoint_every=4, log_every=4, tensorboard=False)
    path = glean(glean_recipe(dataset, bank, network=network, run=run, lr=0.0, start=str(small)), tmp_path / "8")
    old, new = _tensors(small), _tensors(path)
    for name in ("encoder.trunk.first.weight", "encoder.code.weight", "decoder.out.weight", "fusion_out.0.weight"):
        assert torch.equal(old[f"generator.{name}"], new[f"generator.{name}"]), name
    assert old["generator.decoder.up.1.conv.weight"].shape != new["generator.decoder.up.0.conv.weight"].shape
    first = json.loads((tmp_path / "8" / "log.jsonl").read_text().splitlines()[0])
    assert "encoder.down.0.0.weight" in first["new_layers"]
    assert "encoder.tail.weight" not in first["new_layers"]


def test_the_bank_of_a_glean_serves_another(dataset: str, bank: str, tmp_path: Path):
    small = glean(glean_recipe(dataset, bank), tmp_path / "4")
    network = small_network(in_size=8)
    run = RunConfig(iterations=1, batch_size=4, checkpoint_every=4, log_every=4, tensorboard=False)
    path = glean(glean_recipe(dataset, str(small), network=network, run=run), tmp_path / "8")
    old, new = _tensors(small), _tensors(path)
    for name in old:
        if name.startswith("generator.bank."):
            assert torch.equal(old[name], new[name]), name


@pytest.mark.parametrize("light", [False, True])
def test_latents_begin_at_the_mean_of_the_bank(dataset: str, bank: str, light: bool):
    recipe = glean_recipe(dataset, bank)
    if light:
        recipe = dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, light=True))
    model, _ = build(dataclasses.replace(recipe, mean_latents=True))
    assert isinstance(model, GLEAN)
    generator = native.read(bank).build("generator", Path(bank))
    assert isinstance(generator, StyleGAN2)
    mean = generator.w_avg
    assert mean is not None
    bias = model.encoder.get_parameter("code.1.bias" if light else "code.bias")
    assert torch.equal(bias.view(-1, len(mean)), mean.expand(len(bias) // len(mean), -1))
    assert float(mean.abs().max()) > 0
    build(dataclasses.replace(recipe, bank="none", mean_latents=True))  # no effect


@pytest.mark.parametrize("light", [False, True])
def test_a_wide_network_starts_as_the_narrower_one_that_it_is_given(dataset: str, bank: str, tmp_path: Path, light: bool):
    def network(features: int, growth: int) -> GLEAN:
        sizes = dataclasses.replace(small_network(light=light), features=features, growth=growth)
        model, _ = build(glean_recipe(dataset, bank, network=sizes))
        return cast("GLEAN", model)

    narrow = network(8, 4)
    with torch.no_grad():
        for parameter in narrow.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    native.save(tmp_path / "narrow.safetensors", {"generator": narrow}, native.About("narrow"))
    wide = network(12, 7)
    assert start_from(str(tmp_path / "narrow.safetensors"), wide) == []
    lr = torch.rand(2, 3, 4, 4) * 2 - 1
    sr = wide(lr)
    torch.testing.assert_close(sr, narrow(lr), atol=1e-5, rtol=1e-4)
    sr.square().mean().backward()
    reads = wide.encoder.get_parameter("trunk.body.0.blocks.0.convs.1.weight")  # of the input's 12 channels and the 7 that grew
    assert not reads[:4, [8, 19 - 1]].any(), "old outputs read new inputs"
    assert reads.grad is not None
    assert reads.grad[:4, [8, 19 - 1]].any(), "what is new cannot be learnt"
    fewer = start_from(str(tmp_path / "narrow.safetensors"), network(4, 4))
    assert "encoder.trunk.first.weight" in fewer
    mixed = start_from(str(tmp_path / "narrow.safetensors"), network(6, 9))  # 12 inputs of old ones fit into 15, but not 8 of them into 6
    assert "encoder.trunk.body.0.blocks.0.convs.1.weight" in mixed


def test_a_start_may_leave_layers_out(dataset: str, bank: str, tmp_path: Path):
    recipe = dataclasses.replace(glean_recipe(dataset, bank), mean_latents=True)
    trained, _ = build(recipe)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    native.save(tmp_path / "start.safetensors", {"generator": trained}, native.About("start"))
    model, _ = build(recipe)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    untrained = start_from(str(tmp_path / "start.safetensors"), model, ("encoder.code",))
    assert sorted(untrained) == ["encoder.code.bias", "encoder.code.weight"]
    for name, tensor in model.state_dict().items():
        expected = fresh if name.startswith(("encoder.code", "bank.")) else trained.state_dict()
        assert torch.equal(tensor, expected[name]), name
    with pytest.raises(RequestError, match=r"no layer's name begins with 'encoder\.codes'"):
        start_from(str(tmp_path / "start.safetensors"), model, ("encoder.codes",))
    with pytest.raises(ValueError, match="give start too"):
        dataclasses.replace(recipe, start_exclude=("encoder.code",))


def test_the_same_decoder_trains_without_a_bank(dataset: str, bank: str, tmp_path: Path):
    path = glean(glean_recipe(dataset, bank, bank="none"), tmp_path)
    model = native.read(path).build(None, path)
    assert isinstance(model, GLEAN)
    assert not [name for name in model.state_dict() if name.startswith("bank.")]


def test_the_spectrum_loss_uses_some_images_of_a_batch(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spectrum(result: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        seen.append((result.detach().clone(), gt.detach().clone()))
        return result.float().mean()

    monkeypatch.setattr("gleansr.training.losses.spectrum_loss", spectrum)

    def trained(name: str, **changes) -> list[tuple[torch.Tensor, torch.Tensor]]:
        seen.clear()
        plain = {"network": PlainNetworkConfig(8, 32, features=4, n_blocks=1), "perceptual_weight": 0.0, "adversarial_weight": 0.0}
        data = DataConfig(train=(dataset,), small="enlarge")
        run = RunConfig(iterations=2, batch_size=4, checkpoint_every=100, log_every=100, tensorboard=False)
        recipe = glean_recipe(dataset, "", data=data, run=run, ema_half_life=0, spectrum_weight=2.0, **plain, **changes)
        glean(recipe, tmp_path / name)
        return list(seen)

    of_all, of_two = trained("all"), trained("two", spectrum_images=2)
    assert [len(gt) for _, gt in of_all] == [4, 4]
    assert [len(gt) for _, gt in of_two] == [2, 2]
    assert of_two[0][0].equal(of_all[0][0][:2])
    assert of_two[0][1].equal(of_all[0][1][:2])


def test_a_light_glean_learns_from_the_full_one(dataset: str, bank: str, tmp_path: Path):
    full = str(glean(glean_recipe(dataset, bank), tmp_path / "full"))
    of_light = {"network": small_network(light=True), "start": full, "teacher": full, "adversarial_weight": 0.0, "perceptual_weight": 0.0}
    recipe = glean_recipe(dataset, full, **of_light)
    path = glean(recipe, tmp_path / "light")
    student, teacher = (cast("GLEAN", gleansr.load_model(p)) for p in (path, full))
    assert student.config == lighten(teacher.config)
    theirs = teacher.bank.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in student.bank.state_dict().items())
    first = json.loads((tmp_path / "light" / "log.jsonl").read_text().splitlines()[0])
    assert "encoder.trunk.first.weight" not in first["new_layers"]
    # With no weight on the ground-truth images, what it comes nearer to is the teacher.
    errors = [line["mse"] for line in log_lines(tmp_path / "light") if "mse" in line]
    assert errors[-1] < errors[0]
    assert any("is against its results" in step for step in network_plan(recipe)["step"])
    with pytest.raises(CheckpointError, match="holds only a part of its bank"):
        glean(glean_recipe(dataset, str(path)), tmp_path / "around a light one")


def test_a_teacher_must_have_the_same_sizes(dataset: str, bank: str, tmp_path: Path):
    full = str(glean(glean_recipe(dataset, bank), tmp_path))
    recipe = glean_recipe(dataset, bank, network=small_network(in_size=8), teacher=full)
    with pytest.raises(RequestError, match="must upscale 8 -> 16 as the recipe does, but its scale is 4"):
        load_teacher(recipe, CPU)
    assert load_teacher(glean_recipe(dataset, bank), CPU) is None
    taught = load_teacher(glean_recipe(dataset, bank, teacher=full), CPU)
    assert taught is not None
    lr = torch.rand(2, 3, 4, 4) * 2 - 1
    with torch.inference_mode():
        expected = gleansr.load_model(full)(lr)
    assert torch.allclose(taught(lr), expected, atol=1e-5)
    assert not taught(lr).is_inference()


def test_a_share_of_a_loss_is_against_the_teacher():
    gt, taught = torch.zeros(2), torch.ones(2)

    def loss(target: torch.Tensor) -> torch.Tensor:
        return (target + 1).mean()

    assert [float(losses.blend_targets(loss, gt, taught, share)) for share in (0, 0.25, 1)] == [1, 1.25, 2]
    assert losses.blend_targets(loss, gt, None, 1.0) == 1


def test_devices(monkeypatch: pytest.MonkeyPatch):
    run = RunConfig(iterations=1, batch_size=8, devices=2)
    assert find_devices(run, "cpu")[:3] == ("cpu", 1, 1)
    assert "the recipe has 2 devices, this run 1" in find_devices(run, "cpu")[3]
    assert find_devices(run, "cpu", devices=4, nodes=2)[:3] == ("cpu", 4, 2)
    with pytest.raises(RequestError, match="a batch of 8 cannot be shared evenly by 3"):
        find_devices(run, "cpu", devices=3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_devices(run)[:3] == ("cuda", 1, 1)
    assert find_devices(run, "cuda:0")[1] == [0]
    with pytest.raises(RequestError, match="8 devices were requested, but 1 are available"):
        find_devices(run, devices=8)
    with pytest.raises(RequestError, match="'cuda:3' is not available"):
        find_devices(run, "cuda:3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert find_devices(run, "cpu")[:3] == ("cpu", 2, 2)


def test_glean_around_a_stylegan_and_its_discriminator(dataset: str, tmp_path: Path):
    torch.manual_seed(0)
    config = StyleGANConfig((8, 8, 4), code_dim=8, mapping_layers=1)
    networks = {"generator": StyleGAN(config), "discriminator": StyleGANDiscriminator(config)}
    native.save(tmp_path / "bank.safetensors", networks, native.About("bank"))
    recipe = glean_recipe(dataset, str(tmp_path / "bank.safetensors"), bank="stylegan", lr=1e-4)
    path = glean(recipe, tmp_path / "run")
    model = native.read(path).build(None, path)
    assert isinstance(model, GLEAN)
    for name, tensor in networks["generator"].state_dict().items():
        assert torch.equal(model.bank.state_dict()[name], tensor), name
    state = torch.load(tmp_path / "run" / "states" / "000000016.pt", weights_only=True)
    trained, given = state["discriminator"], networks["discriminator"].state_dict()
    # Four steps of Adam away from the bank's own, not from anew.
    assert all(float((trained[name] - given[name]).abs().max()) <= 5e-4 for name in given)
    assert any(not torch.equal(trained[name], given[name]) for name in given)
    assert network_plan(recipe)["parameters"]["discriminator"] == sum(t.numel() for t in given.values())


def test_tensorboard_gets_figures_and_samples(dataset: str, bank: str, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunConfig(iterations=2, batch_size=4, checkpoint_every=8, log_every=4)
    glean(glean_recipe(dataset, bank, run=run), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"mse", "perceptual", "psnr", "bicubic_psnr", "images_per_second", "steps_without_waiting"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("mse")] == [4, 8]
    (sheet,) = events.Images("samples")
    assert (sheet.width, sheet.height) == (4 * 16, 3 * 16)


def test_compiled_networks_train_alike(dataset: str, bank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Traced and differentiated as torch.compile does, but run by eager kernels: generating code would take minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    losses_of = {}
    for compiled in (False, True):
        run = RunConfig(iterations=2, batch_size=4, checkpoint_every=8, log_every=4, tensorboard=False, compile=compiled)
        glean(glean_recipe(dataset, bank, run=run), tmp_path / str(compiled))
        losses_of[compiled] = [
            [line[name] for name in ("mse", "perceptual", "discriminator")] for line in log_lines(tmp_path / str(compiled))
        ]
    assert np.allclose(losses_of[False], losses_of[True], rtol=1e-4)
