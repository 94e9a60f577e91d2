"""Training over several processes, and a run that is killed: what only whole processes can show."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gleansr.checkpoints import native
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator

RECIPE = """
bank_file = "{bank}"
lr = 1e-3
ema_half_life = 8

[about]
name = "tiny"

[network]
in_size = 4
out_size = 16
n_rrdb = 1
features = 4
growth = 3

[data]
train = ["{images}"]
validation = ["{images}"]
n_validation = 3
memory = 0
workers = 2

[run]
iterations = 10
batch_size = 8
checkpoint_every = 40
log_every = 8
tensorboard = false
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of ten steps around a new bank and its discriminator, with images read by workers."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "pictures").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((16, 16)).save(folder / "pictures" / f"{i}.png")
    torch.manual_seed(0)
    config = StyleGAN2Config((8, 8, 4), code_dim=8, mapping_layers=1)
    networks = {"generator": StyleGAN2(config), "discriminator": StyleGAN2Discriminator(config)}
    native.save(folder / "bank.safetensors", networks, native.About("bank"))
    path = folder / "tiny.toml"
    path.write_text(RECIPE.format(bank=folder / "bank.safetensors", images=folder / "pictures"))
    return path


def run(command: list[str], *, status: int = 0) -> str:
    # One thread per process, as tests have; several processes would fight over the cores.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == status, done.stderr
    return done.stderr


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if "seconds" in line]


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert "finished" in run(["gleansr", "train", str(recipe), "-o", str(folder), "--device", "cpu"])
    return folder


@pytest.mark.parametrize("launcher", ["torchrun", "Fabric"])
def test_two_processes_train_as_one_with_the_whole_batch(recipe: Path, alone: Path, tmp_path: Path, launcher: str):
    train = ["gleansr", "train", str(recipe), "-o", str(tmp_path), "--device", "cpu"]
    if launcher == "torchrun":
        run(["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *train])
    else:
        run([*train, "--devices", "2"])
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["processes"] == 2
    one, two = lines(alone), lines(tmp_path)
    assert [line["images"] for line in two] == [line["images"] for line in one] == list(range(8, 81, 8))
    names = ("mse", "perceptual", "adversarial", "discriminator", "fake_logit", "real_logit")
    for a, b in zip(one, two, strict=True):
        for name in names:
            # Sums are taken in another order; Adam, which divides by the size of a gradient, lets that grow a little with each step.
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=2e-5), (name, a["images"])
    for name in ("psnr", "ssim", "feature_distance"):
        assert two[-1][name] == pytest.approx(one[-1][name], abs=2e-3)
    whole, shared = (native.read(folder / "tiny.safetensors").networks["generator"].tensors for folder in (alone, tmp_path))
    assert all(torch.allclose(whole[name], shared[name], atol=2e-4) for name in whole)
    assert any(not torch.equal(whole[name], shared[name]) for name in whole)


RIVAL = """
lr = 1e-3
pixel = "l1"
adversarial = "relativistic"
discriminator = {{ size = 32, features = 2 }}

[about]
name = "tiny-rival"

[network]
kind = "esrgan+"
in_size = 8
out_size = 32
features = 4
growth = 2
n_blocks = 1
noise = 0.1

[data]
train = ["{images}"]
small = "enlarge"

[run]
iterations = 2
batch_size = 4
checkpoint_every = 4
log_every = 4
tensorboard = false
"""


STOPPED = """
import sys
from pathlib import Path
import torch
from gleansr.training.config import NetworkRecipe, load_recipe
from gleansr.training.devices import launch
from gleansr.training.enlarge import train_network

assert "torchmetrics" not in sys.modules, "Fabric imported it"
torch.set_num_threads(1)
fabric = launch("cpu", 2)
for folder, changes in (("whole", []), ("cut", ["run.iterations=1"]), ("cut", [])):
    train_network(load_recipe(NetworkRecipe, sys.argv[1], changes), Path(sys.argv[2]) / folder, fabric)
"""


def test_batch_normalisation_and_noise_in_two_processes(recipe: Path, tmp_path: Path):
    """Each normalises its share and draws noise of its own, and a stop between the steps changes nothing."""
    (tmp_path / "rival.toml").write_text(RIVAL.format(images=recipe.parent / "pictures"))
    (tmp_path / "stopped.py").write_text(STOPPED)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run([*launcher, str(tmp_path / "stopped.py"), str(tmp_path / "rival.toml"), str(tmp_path)])
    whole, cut = (torch.load(tmp_path / folder / "states" / "000000008.pt", weights_only=True) for folder in ("whole", "cut"))
    for part in ("model", "discriminator"):
        assert all(torch.equal(tensor, cut[part][name]) for name, tensor in whole[part].items()), part
    assert lines(tmp_path / "whole")[-1]["discriminator"] == lines(tmp_path / "cut")[-1]["discriminator"]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from gleansr.training.config import NetworkRecipe, load_recipe
from gleansr.training.devices import launch
from gleansr.training.enlarge import train_network

def die(images, line):
    if images == {at}:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
recipe = load_recipe(NetworkRecipe, sys.argv[1])
train_network(recipe, Path(sys.argv[2]), launch("cpu", 1), die)
"""


def test_a_killed_run_goes_on_bit_for_bit(recipe: Path, alone: Path, tmp_path: Path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(at=56))  # after step 7; the state is that of step 5
    output = tmp_path / "run"
    killed = subprocess.run([sys.executable, str(script), str(recipe), str(output)], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (output / "states").glob("0*")] == ["000000040.pt"]
    run(["gleansr", "train", str(recipe), "-o", str(output), "--device", "cpu"])
    whole, resumed = (native.read(folder / "tiny.safetensors").networks["generator"].tensors for folder in (alone, output))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    a, b = (torch.load(folder / "states" / "000000080.pt", weights_only=True) for folder in (alone, output))
    for part in ("model", "averaged", "discriminator"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part]), part
    for part in ("optimizer", "d_optimizer"):
        for i, moments in a[part]["state"].items():
            assert all(torch.equal(moments[name], b[part]["state"][i][name]) for name in moments), part
    for first, second in zip(lines(alone), lines(output), strict=True):
        for key in ("images", "mse", "discriminator", "rate"):
            assert first[key] == second[key]


IMPATIENT = """
from gleansr.__main__ import main
from gleansr.training.log import Meter

Meter.AGREE_EVERY = 0.5
if __name__ == "__main__":
    main()
"""


def test_a_signal_to_one_process_stops_them_all(recipe: Path, tmp_path: Path):
    """They agree twice a second, not once in five: until then they go on."""
    text = recipe.read_text().replace("iterations = 10", "iterations = 100000").replace("log_every = 8", "log_every = 80")
    endless = tmp_path / "endless.toml"
    endless.write_text(text)
    script = tmp_path / "impatient.py"
    script.write_text(IMPATIENT)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), "train", str(endless), "-o", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", *command, "--device", "cpu"], stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        try:
            deadline = time.monotonic() + 120
            while len(lines(tmp_path) if (tmp_path / "log.jsonl").exists() else []) < 2 and time.monotonic() < deadline:
                time.sleep(0.2)
            running.send_signal(signal.SIGTERM)  # torchrun passes it on
            _, said = running.communicate(timeout=120)
        finally:
            running.kill()
    assert "stopped by SIGTERM; the last good checkpoint is" in said, said
    newest = sorted((tmp_path / "states").glob("0*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    assert state["images"] == int(newest.stem) >= 160
    assert lines(tmp_path)[-1]["images"] == state["images"]
