"""Training of the networks that GLEAN is compared with: ESRGAN+'s losses against plain loops, and tiny runs of both kinds."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from made_images import smooth_images
from PIL import Image

from gleansr.checkpoints import native
from gleansr.errors import RequestError
from gleansr.inference.runner import enlarge
from gleansr.models.esrgan_plus import ESRGANDiscriminatorConfig, ESRGANPlus, ESRGANPlusConfig
from gleansr.models.features import VGG19
from gleansr.models.residual import ResidualNet
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.stylegan2 import StyleGAN2Config
from gleansr.training import losses
from gleansr.training.checkpoint import TrainingStoppedError
from gleansr.training.config import AboutConfig, DataConfig, NetworkRecipe, RunConfig
from gleansr.training.devices import launch
from gleansr.training.enlarge import schedule, train_network
from gleansr.training.networks import ESRGANPlusNetworkConfig, PlainNetworkConfig
from gleansr.training.parts import build, start_from
from gleansr.training.plan import network_plan


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A zip archive of six smooth images of 32x32."""
    return smooth_images(tmp_path_factory.mktemp("data") / "images.zip", (6, 6), (32, 32))


RUN = RunConfig(iterations=4, batch_size=4, checkpoint_every=8, log_every=4, tensorboard=False)


def plain_recipe(dataset: str, **changes) -> NetworkRecipe:
    values = {
        "about": AboutConfig("tiny-plain", "blobs", "CC0-1.0", "nobody"),
        "network": PlainNetworkConfig(in_size=8, out_size=32, features=6, n_blocks=1),
        "discriminator": StyleGAN2Config((4, 4, 4, 4)),
        "run": RUN,
        "data": DataConfig(train=(dataset,), validation=(dataset,), n_validation=3),
        "lr": 1e-3,
        "ema_half_life": 8,
    }
    return NetworkRecipe(**(values | changes))


def esrgan_recipe(dataset: str, **changes) -> NetworkRecipe:
    """All that is ESRGAN+'s own but VGG19: L1, relativistic, batch normalisation, noise, crops, rotations, halving; no averaging."""
    values = {
        "about": AboutConfig("tiny-esrgan+", "blobs", "CC0-1.0", "nobody"),
        "network": ESRGANPlusNetworkConfig(in_size=16, out_size=64, features=4, growth=2, n_blocks=1, noise=0.1),
        "discriminator": ESRGANDiscriminatorConfig(32, features=2),
        "run": RUN,
        "data": DataConfig(train=(dataset,), validation=(dataset,), n_validation=3, small="enlarge", patch=32, rotate=True),
        "lr": 1e-3,
        "schedule": "halving",
        "halve_at": (2, 3),
        "pixel": "l1",
        "pixel_weight": 5e-3,
        "adversarial": "relativistic",
        "adversarial_weight": 5e-3,
        "perceptual_weight": 1.0,
    }
    return NetworkRecipe(**(values | changes))


RECIPES = {"plain": plain_recipe, "esrgan+": esrgan_recipe}


def train(recipe: NetworkRecipe, output: Path, progress=None) -> Path:
    """Trains in this process, on the CPU."""
    return train_network(recipe, output, launch("cpu", 1), progress)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return native.read(path).networks["generator"].tensors


def log_lines(folder: Path) -> list[dict]:
    """The lines of a log that tell of steps."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "seconds" in line]


# ------------------------------------------------------------------------------------------------------------------ losses


def cross_entropy(logit: float, target: int) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -math.log(probability if target else 1 - probability)


def test_relativistic_losses_are_the_double_loops_of_their_definition():
    fake, real = [0.3, -1.2, 2.0], [1.0, -0.4, 0.7]
    mean_fake, mean_real = sum(fake) / 3, sum(real) / 3
    adversarial = discriminator = 0.0
    for f, r in zip(fake, real, strict=True):
        adversarial += (cross_entropy(r - mean_fake, 0) + cross_entropy(f - mean_real, 1)) / 3 / 2
        discriminator += (cross_entropy(r - mean_fake, 1) + cross_entropy(f - mean_real, 0)) / 3 / 2
    logits = [torch.tensor(values)[:, None] for values in (fake, real)]
    assert float(losses.relativistic_adversarial(*logits)) == pytest.approx(adversarial, rel=1e-5)
    assert float(losses.relativistic_discriminator(*logits)) == pytest.approx(discriminator, rel=1e-5)


def test_gradients_of_the_relativistic_losses_are_differences_of_the_double_loops():
    """The means carry gradient as well: that of a logit is not its own term's alone."""
    fake, real = (torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([0.3, -1.2, 2.0], [1.0, -0.4, 0.7]))
    for loss in (losses.relativistic_adversarial, losses.relativistic_discriminator):
        assert torch.autograd.gradcheck(loss, (fake, real))
        of_fake, of_real = torch.autograd.grad(loss(fake, real), (fake, real))
        assert torch.allclose(of_fake.sum(), -of_real.sum())  # only differences count
    (up,) = torch.autograd.grad(losses.relativistic_adversarial(fake, real.detach()), fake)
    (down,) = torch.autograd.grad(losses.relativistic_discriminator(fake, real.detach()), fake)
    assert (up < 0).all()
    assert (down > 0).all()


def test_l1_error_by_hand():
    prediction, gt = torch.zeros(1, 3, 1, 2), torch.tensor([[[[0.5, 0]], [[0, -1]], [[0, 0]]]])
    assert float(losses.l1_error(prediction, gt)) == pytest.approx(1.5 / 6)


def test_perceptual_distance_of_vgg19_is_the_mean_absolute_difference():
    torch.manual_seed(0)
    network = VGG19().requires_grad_(False)
    gt = torch.rand(1, 3, 32, 32) * 2 - 1
    result = (gt * 0.5).requires_grad_()
    loss = losses.equation2_perceptual(network, result, gt)
    with torch.no_grad():
        assert torch.allclose(loss, (network(result) - network(gt)).abs().mean())
    loss.backward()
    assert result.grad is not None
    assert result.grad.abs().sum() > 0


def test_the_rate_is_halved():
    assert [schedule(images, 400, 0, [100, 200]) for images in (0, 99, 100, 199, 200, 399)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert schedule(100, 400, 199, [100]) == pytest.approx(0.5 * 101 / 200)


# ------------------------------------------------------------------------------------------------------------------- loops


@pytest.mark.parametrize("kind", RECIPES)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(dataset: str, tmp_path: Path, kind: str):
    recipe = RECIPES[kind](dataset)
    whole = train(recipe, tmp_path / "whole")

    def ask(images: int, line: dict) -> None:
        if images == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError, match=r"stopped by SIGTERM; the last good checkpoint is .*000000012\.pt"):
        train(recipe, tmp_path / "cut", ask)
    cut = train(recipe, tmp_path / "cut")
    for name, tensor in tensors_of(whole).items():
        assert torch.equal(tensor, tensors_of(cut)[name]), name
    one, two = (torch.load(tmp_path / run / "states" / "000000016.pt", weights_only=True)["discriminator"] for run in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    if kind == "esrgan+":  # four steps, in each of which it sees results and ground truths twice
        assert {int(tensor) for name, tensor in one.items() if name.endswith("num_batches_tracked")} == {16}
        assert [line["rate"] for line in log_lines(tmp_path / "cut")] == [1e-3, 1e-3, 5e-4, 2.5e-4]
    for a, b in zip(log_lines(tmp_path / "whole"), log_lines(tmp_path / "cut"), strict=True):
        assert all(a[key] == b[key] for key in ("images", "perceptual", "adversarial", "discriminator", "fake_logit"))


@pytest.mark.parametrize(("kind", "model_type"), [("plain", ResidualNet), ("esrgan+", ESRGANPlus)])
def test_a_baseline_learns_and_its_file_alone_is_enough(dataset: str, tmp_path: Path, kind: str, model_type: type):
    run = RunConfig(iterations=40, batch_size=4, checkpoint_every=80, log_every=20, tensorboard=False)
    changes = {"adversarial_weight": 0.0, "perceptual_weight": 0.0, "pixel_weight": 1.0, "schedule": "cosine", "halve_at": (), "lr": 5e-3}
    recipe = RECIPES[kind](dataset, run=run, **changes)
    path = train(recipe, tmp_path)
    lines = log_lines(tmp_path)
    assert lines[-1][recipe.pixel] < 0.8 * lines[0][recipe.pixel]
    assert not {"perceptual", "adversarial", "discriminator"} & lines[0].keys()
    checkpoint = native.read(path)
    model = checkpoint.build(None, path)
    assert isinstance(model, model_type)
    assert checkpoint.about.licence == "CC0-1.0"
    assert checkpoint.about.training["recipe"]["network"]["kind"] == kind
    assert checkpoint.about.training["recipe"]["bank"] is None
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert first["parameters"] == {"trainable": sum(p.numel() for p in model.parameters()), "bank": 0}
    with Image.open(tmp_path / "samples" / "000000160.png") as sheet:
        assert sheet.size == (4 * recipe.network.out_size, 3 * recipe.network.out_size)


def test_validation_sees_no_noise_and_leaves_it_on(dataset: str, tmp_path: Path):
    """Without averaging the very network that trains is judged."""
    figures = []
    for every in (8, 16):
        run = RunConfig(iterations=4, batch_size=4, checkpoint_every=every, log_every=16, tensorboard=False)
        path = train(esrgan_recipe(dataset, run=run), tmp_path / str(every))
        figures.append((log_lines(tmp_path / str(every))[-1]["psnr"], tensors_of(path)))
    assert figures[0][0] == figures[1][0]
    assert all(torch.equal(tensor, figures[1][1][name]) for name, tensor in figures[0][1].items())


def test_ranges_meet_in_one_place():
    torch.manual_seed(0)
    lr = torch.rand(1, 3, 4, 4) * 2 - 1
    model = ESRGANPlus(ESRGANPlusConfig(2, 4, 2, 0)).eval()
    assert torch.equal(enlarge(model, lr), 2 * model(lr / 2 + 0.5) - 1)


def test_esrgan_plus_starts_from_an_esrgan_and_names_what_starts_anew(dataset: str, tmp_path: Path):
    torch.manual_seed(0)
    esrgan = RRDBNet(RRDBNetConfig(4, features=4, growth=2, n_blocks=1))
    native.save(tmp_path / "psnr.safetensors", {"generator": esrgan}, native.About("psnr"))
    run = RunConfig(iterations=1, batch_size=4, checkpoint_every=4, log_every=4, tensorboard=False)
    path = train(esrgan_recipe(dataset, start=str(tmp_path / "psnr.safetensors"), lr=0.0, run=run), tmp_path / "run")
    given, trained = esrgan.state_dict(), tensors_of(path)
    assert all(torch.equal(trained[name], tensor) for name, tensor in given.items())
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert first["new_layers"] == [f"trunk.body.0.blocks.{i}.skip.weight" for i in range(3)]
    assert set(first["new_layers"]) == trained.keys() - given.keys()
    with pytest.raises(RequestError, match="start must be a residual network, but it is RRDBNet"):
        build_from(plain_recipe(dataset), tmp_path / "psnr.safetensors")
    network = ESRGANPlusNetworkConfig(in_size=16, out_size=64, features=5, growth=3, n_blocks=0)
    with pytest.raises(RequestError, match="no layer of it fits"):
        build_from(esrgan_recipe(dataset, network=network), tmp_path / "psnr.safetensors")


def build_from(recipe: NetworkRecipe, start: Path) -> None:
    start_from(str(start), build(recipe)[0])


def test_the_plan_counts_what_is_trained(dataset: str):
    for kind, recipe in ((kind, make(dataset)) for kind, make in RECIPES.items()):
        model, discriminator = build(recipe)
        plan = network_plan(recipe)
        assert discriminator is not None
        assert "bank" not in plan
        assert plan["parameters"]["trainable"] == sum(p.numel() for p in model.parameters())
        assert plan["parameters"]["discriminator"] == sum(t.numel() for t in discriminator.state_dict().values())
        assert plan["memory per device, MiB (estimate)"]["sum"] > 0
        read, generator, critic, *_, end = plan["step"]
        if kind == "plain":
            assert "(1) + 0.01 * (2) on squeezenet + 0.01 * (3), non-saturating;" in generator
        else:
            assert read.endswith("cropped to 32x32 px at random")
            assert "0.005 * L1 error + (2) on squeezenet + 0.005 * (3), relativistic;" in generator
            assert "relativistic" in critic
        assert end == "at the end: write the model"
    assert len(network_plan(esrgan_recipe(dataset, adversarial_weight=0.0))["step"]) == len(plan["step"]) - 1


def test_the_plan_counts_each_perceptual_network(dataset: str):
    plans = {name: network_plan(plain_recipe(dataset, perceptual=name)) for name in ("squeezenet", "efficientnet", "alternating")}
    counts = {name: plan["parameters"]["perceptual networks"] for name, plan in plans.items()}
    assert counts["alternating"] == counts["squeezenet"] + counts["efficientnet"]
    activations = {name: plan["memory per device, MiB (estimate)"]["activations"] for name, plan in plans.items()}
    assert activations["alternating"] == max(activations["squeezenet"], activations["efficientnet"]) > 0
    assert "(2) on squeezenet or efficientnet" in plans["alternating"]["step"][1]


def test_validation_images_that_are_mostly_border_are_looked_at_whole(tmp_path: Path):
    """Their features could not be compared: what is left of a strip of 32x4 px has too few rows."""
    for i in range(2):
        Image.new("RGB", (32, 4), (90 * i, 60, 30)).save(tmp_path / f"{i}.png")
    data = DataConfig(train=(str(tmp_path),), validation=(str(tmp_path),), small="enlarge", aspect="pad")
    train(plain_recipe("", run=RunConfig(iterations=1, batch_size=2, tensorboard=False), data=data), tmp_path / "run")
    assert math.isfinite(log_lines(tmp_path / "run")[0]["psnr"])


def test_images_too_small_for_the_networks_that_compare_them_are_refused_before_the_run():
    network, run = PlainNetworkConfig(in_size=4, out_size=8, features=4, n_blocks=1), RunConfig(iterations=1)
    with pytest.raises(ValueError, match="perceptual_weight needs images of 16 px or more, but they have 8; set it to 0"):
        NetworkRecipe(AboutConfig("p"), network, run, adversarial_weight=0)
    with pytest.raises(ValueError, match=r"data\.validation needs images of 16 px or more, but they have 8; leave it out"):
        NetworkRecipe(AboutConfig("p"), network, run, adversarial_weight=0, perceptual_weight=0, data=DataConfig(validation=("x",)))
