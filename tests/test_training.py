"""Losses against hand-computed values, and tiny runs of both loops: they learn, go on where they stopped, and leave the bank alone."""

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gleansr.checkpoints import native
from gleansr.errors import CheckpointError, GleansrError, PictureError, RequestError
from gleansr.models.glean import GLEAN
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator
from gleansr.training import losses
from gleansr.training.bank import train_bank
from gleansr.training.config import AboutConfig, BankRecipe, DataConfig, GLEANNetworkConfig, GLEANRecipe, RunConfig
from gleansr.training.data import batch_order, load_pictures, training_batch
from gleansr.training.glean import schedule, train_glean
from gleansr.training.state import Log, passed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A zip archive of six smooth pictures of 20x16."""
    path = tmp_path_factory.mktemp("data") / "pictures.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(6):
            image = Image.fromarray(rng.integers(0, 255, (4, 5, 3), np.uint8)).resize((20, 16))
            with archive.open(f"{i}.png", "w") as file:
                image.save(file, "PNG")
        archive.writestr("readme.txt", "no picture")
    return str(path)


def bank_recipe(pictures: str, **changes) -> BankRecipe:
    values = {
        "about": AboutConfig("tiny-bank", "blobs", "CC0-1.0", "nobody"),
        "network": StyleGAN2Config((8, 8, 4), code_dim=8, mapping_layers=2),
        "run": RunConfig(images=16, batch_size=4, checkpoint_every=8, log_every=4),
        "data": DataConfig(train=(pictures,)),
        "r1_every": 2,
        "path_length_every": 2,
    }
    return BankRecipe(**(values | changes))


@pytest.fixture(scope="module")
def bank(pictures: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(train_bank(bank_recipe(pictures), tmp_path_factory.mktemp("bank"), CPU))


def glean_recipe(pictures: str, bank: str, **changes) -> GLEANRecipe:
    values = {
        "about": AboutConfig("tiny-glean", "blobs", "CC0-1.0", "nobody"),
        "network": GLEANNetworkConfig(in_size=4, n_rrdb=1, features=4, growth=3, out_features=4),
        "run": RunConfig(images=16, batch_size=4, checkpoint_every=8, log_every=4),
        "data": DataConfig(train=(pictures,), validation=(pictures,), n_validation=3),
        "bank": bank,
        "lr": 1e-3,
        "ema_half_life": 8,
    }
    return GLEANRecipe(**(values | changes))


# ------------------------------------------------------------------------------------------------------------------ losses


def test_equations_by_hand():
    prediction, truth = torch.zeros(1, 3, 1, 2), torch.tensor([[[[0.5, 0]], [[0, 1]], [[0, 0]]]])
    assert math.isclose(float(losses.mse_loss(prediction, truth)), (0.25 + 1) / 6, rel_tol=1e-6)  # (1)
    fake, real = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [-1.0]])
    d_fake, d_real = [[1 / (1 + math.exp(-float(logit))) for logit in logits] for logits in (fake, real)]
    printed = sum(math.log(1 - d) for d in d_fake) / 2
    assert math.isclose(float(losses.generator_loss(fake, "saturating")), printed, rel_tol=1e-6)  # (3)
    other = -sum(math.log(d) for d in d_fake) / 2
    assert math.isclose(float(losses.generator_loss(fake, "non-saturating")), other, rel_tol=1e-6)
    maximised = printed + sum(math.log(d) for d in d_real) / 2
    assert math.isclose(float(losses.discriminator_loss(fake, real)), -maximised, rel_tol=1e-6)  # (5)


def test_perceptual_loss_is_the_distance_of_features_and_reaches_the_result_only():
    network = losses.squeezenet()
    truth = torch.rand(2, 3, 32, 32).mul(2).sub(1).requires_grad_()
    result = (truth.detach() + 0.1 * torch.randn_like(truth)).requires_grad_()
    loss = losses.perceptual_loss(network, result, truth)
    loss.backward()
    assert float(loss.detach()) > 0
    assert truth.grad is None
    assert result.grad is not None
    assert result.grad.abs().sum() > 0
    assert float(losses.perceptual_loss(network, truth, truth).detach()) < 1e-5


def test_lattice_loss_sees_what_repeats_and_nothing_else():
    truth = torch.rand(2, 3, 64, 64) * 2 - 1
    pattern = torch.randn(4, 4)
    pattern = (pattern - pattern.mean()).repeat(16, 16)
    grid = losses.lattice_loss(truth + pattern, truth, 4)
    assert torch.allclose(grid, pattern.square().mean(), rtol=1e-4)
    assert float(losses.lattice_loss(truth + 0.3, truth, 4)) < 1e-10
    noise = torch.randn_like(truth)
    assert float(losses.lattice_loss(truth + noise, truth, 4)) < 0.03 * float(noise.square().mean())


def test_spectrum_loss_sees_hatching_and_forgives_softness():
    torch.manual_seed(0)
    truth = torch.rand(2, 3, 192, 192) * 2 - 1
    assert float(losses.spectrum_loss(truth, truth)) == 0
    assert float(losses.spectrum_loss(truth * 0.5, truth)) == 0
    assert float(losses.spectrum_loss(truth.flip(0), truth)) < 1e-3  # another picture of the same texture
    stripes = torch.sin(torch.arange(192) * 1.35)[:, None].expand(192, 192)
    hatched = (truth + 0.5 * stripes).requires_grad_()
    loss = losses.spectrum_loss(hatched, truth)
    assert 0.005 < float(loss.detach()) < 0.2  # a few frequencies of many
    (gradient,) = torch.autograd.grad(loss, hatched)
    assert float((gradient.mean(1) * stripes).sum()) > 0  # less of the stripes is what it asks for


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
    codes = torch.randn(3, 4, 6, requires_grad=True)
    penalty, mean = losses.path_length_penalty(bank, codes, torch.zeros(()))
    assert 0 < float(mean) < 1
    penalty.backward()
    assert bank.get_parameter("synthesis.layers.0.conv.weight").grad is not None
    assert float(penalty.detach()) > 0


# -------------------------------------------------------------------------------------------------------------------- data


def test_order_shuffles_each_epoch_and_depends_on_the_position_alone():
    whole = batch_order(5, 0, 15, seed=3)
    for epoch in whole.view(3, 5):
        assert sorted(epoch.tolist()) == [0, 1, 2, 3, 4]
    assert len({tuple(epoch.tolist()) for epoch in whole.view(3, 5)}) > 1
    assert torch.equal(torch.cat([batch_order(5, start, 3, seed=3) for start in range(0, 15, 3)]), whole)
    assert not torch.equal(batch_order(5, 0, 15, seed=4), whole)


def test_pictures_are_cut_and_resized(pictures: str, tmp_path: Path):
    loaded = load_pictures([pictures], 16)
    assert loaded.shape == (6, 3, 16, 16)
    assert loaded.dtype == torch.uint8
    with zipfile.ZipFile(pictures) as archive:
        original = np.array(Image.open(archive.open("0.png")))
    assert torch.equal(loaded[0], torch.from_numpy(original[:, 2:18]).permute(2, 0, 1))
    assert load_pictures([pictures], 8, limit=2).shape == (2, 3, 8, 8)
    with pytest.raises(RequestError, match="neither a folder nor a zip"):
        load_pictures([str(tmp_path / "none")], 8)
    with pytest.raises(RequestError, match="no pictures in"):
        load_pictures([str(tmp_path)], 8)
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(PictureError, match=r"bad\.png"):
        load_pictures([str(tmp_path)], 8)


def test_batches_are_in_range_and_half_are_mirrored(pictures: str):
    loaded = load_pictures([pictures], 16)
    plain = training_batch(loaded, 0, 600, 1, flip=False, device=CPU)
    batch = training_batch(loaded, 0, 600, 1, flip=True, device=CPU)
    assert float(batch.min()) >= -1
    assert float(batch.max()) <= 1
    mirrored = sum(torch.equal(a, b.flip(2)) and not torch.equal(a, b) for a, b in zip(batch, plain, strict=True))
    assert 250 < mirrored < 350


# ------------------------------------------------------------------------------------------------------------------- loops


def test_bank_file_holds_both_networks_and_its_facts(bank: str):
    checkpoint = native.read(bank)
    generator = checkpoint.build("generator", bank)
    assert isinstance(generator, StyleGAN2)
    assert generator.mean_code is not None
    assert torch.allclose(generator.mean_code, generator.estimate_mean_code(), atol=1e-6)
    assert isinstance(checkpoint.build("discriminator", bank), StyleGAN2Discriminator)
    assert checkpoint.about.licence == "CC0-1.0"
    assert checkpoint.about.training["images"] == 16
    assert "train" not in checkpoint.about.training["recipe"]["data"]
    assert str(Path(bank).parent) not in json.dumps(checkpoint.about.training)
    folder = Path(bank).parent
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [4, 8, 12, 16]
    assert {"d_loss", "g_loss", "r1", "path_length", "augment_p"} <= set(lines[0])
    assert _size(folder / "samples" / "000000016.png") == (8 * 16, 3 * 16)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return {f"{part}.{n}": t for part, network in native.read(path).networks.items() for n, t in network.tensors.items()}


def test_an_interrupted_bank_run_ends_as_an_uninterrupted_one(pictures: str, bank: str, tmp_path: Path):
    train_bank(bank_recipe(pictures, run=RunConfig(images=8, batch_size=4, checkpoint_every=8, log_every=4)), tmp_path, CPU)
    path = train_bank(bank_recipe(pictures), tmp_path, CPU)
    whole, resumed = _tensors(Path(bank)), _tensors(path)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_run_of_another_recipe_is_not_gone_on_with(pictures: str, bank: str):
    with pytest.raises(CheckpointError, match="another recipe"):
        train_bank(bank_recipe(pictures, lr=0.1), Path(bank).parent, CPU)


def test_a_bank_grows_from_a_smaller_one(pictures: str, bank: str, tmp_path: Path):
    run = RunConfig(images=4, batch_size=4, checkpoint_every=4, log_every=4)
    network = StyleGAN2Config((8, 8, 4, 4), code_dim=8, mapping_layers=2)
    path = train_bank(bank_recipe(pictures, network=network, run=run, start=bank, lr=0.0), tmp_path, CPU)
    small, large = _tensors(Path(bank)), _tensors(path)
    assert native.read(path).about.training["recipe"]["start"] == "tiny-bank.safetensors"
    assert torch.equal(small["generator.synthesis.layers.4.conv.weight"], large["generator.synthesis.layers.4.conv.weight"])
    assert torch.equal(small["discriminator.blocks.1.conv1.weight"], large["discriminator.blocks.2.conv1.weight"])
    assert torch.equal(small["discriminator.out.weight"], large["discriminator.out.weight"])
    other = StyleGAN2Config((8, 6, 4, 4), code_dim=8, mapping_layers=2)
    with pytest.raises(RequestError, match="cannot grow into"):
        train_bank(bank_recipe(pictures, network=other, run=run, start=bank), tmp_path / "other", CPU)


def test_projected_discriminator_trains_the_bank_and_is_not_kept(pictures: str, tmp_path: Path):
    run = RunConfig(images=8, batch_size=4, checkpoint_every=8, log_every=4, precision="bfloat16")
    network = StyleGAN2Config((8, 8, 8, 4), code_dim=8, mapping_layers=2)
    path = train_bank(bank_recipe(pictures, discriminator="projected", network=network, run=run), tmp_path, CPU)
    assert set(native.read(path).networks) == {"generator"}


def test_glean_learns_and_leaves_the_bank_alone(pictures: str, bank: str, tmp_path: Path):
    run = RunConfig(images=240, batch_size=4, checkpoint_every=80, log_every=40)
    path = train_glean(glean_recipe(pictures, bank, run=run, adversarial_from=80, lr=3e-3), tmp_path, CPU)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["mse"] < 0.8 * lines[0]["mse"]
    assert "adversarial" not in lines[0]
    assert {"adversarial", "discriminator", "psnr", "bicubic_psnr", "feature_distance"} <= set(lines[-1])
    model = native.read(path).build(None, path)
    assert isinstance(model, GLEAN)
    trained = native.read(bank).networks["generator"].tensors
    for name, tensor in model.bank.state_dict().items():
        assert torch.equal(tensor, trained[name]), name
    assert _size(tmp_path / "samples" / "000000240.png") == (4 * 16, 3 * 16)
    assert native.read(path).about.training["recipe"]["bank"] == "tiny-bank.safetensors"


def test_an_interrupted_glean_run_ends_as_an_uninterrupted_one(pictures: str, bank: str, tmp_path: Path):
    whole = train_glean(glean_recipe(pictures, bank), tmp_path / "whole", CPU)
    stopped = False

    def stop(images: int, line: dict) -> None:
        nonlocal stopped
        if images == 12 and not stopped:
            stopped = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_glean(glean_recipe(pictures, bank), tmp_path / "cut", CPU, stop)
    cut = train_glean(glean_recipe(pictures, bank), tmp_path / "cut", CPU, stop)
    for name, tensor in _tensors(whole).items():
        assert torch.equal(tensor, _tensors(cut)[name]), name
    for run in ("whole", "cut"):
        lines = (tmp_path / run / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["images"] for line in lines] == [4, 8, 12, 16]


def test_glean_wants_a_whole_bank(pictures: str, bank: str, tmp_path: Path):
    with pytest.raises(RequestError, match="--bank"):
        train_glean(glean_recipe(pictures, ""), tmp_path, CPU)
    checkpoint = native.read(bank)
    del checkpoint.networks["generator"].tensors["synthesis.layers.1.conv.weight"]
    broken = tmp_path / "broken.safetensors"
    native.write(broken, checkpoint)
    with pytest.raises(CheckpointError, match=r"missing synthesis.layers.1.conv.weight"):
        train_glean(glean_recipe(pictures, str(broken)), tmp_path, CPU)


def test_cosine_schedule():
    assert schedule(0, 100, 0) == 1
    assert math.isclose(schedule(50, 100, 0), 0.5)
    assert schedule(100, 100, 0) < 1e-9
    assert schedule(0, 100, 9) == pytest.approx(0.1)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    log = Log(tmp_path / "log.jsonl")
    log.add({"mse": torch.tensor(float("nan"))})
    with pytest.raises(GleansrError, match="not finite after 6 pictures"):
        log.check(6)
    with pytest.raises(GleansrError, match="not finite after 7 pictures"):
        log.write(7)


def test_a_resumed_log_drops_what_is_done_again_and_half_a_line(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"images": 4}\n{"images": 8}\n{"images": 12}\n{"ima')
    Log(path, 8)
    assert path.read_text() == '{"images": 4}\n{"images": 8}\n'


def test_passed():
    assert [images for images in range(4, 41, 4) if passed(images, 4, 10)] == [12, 20, 32, 40]
