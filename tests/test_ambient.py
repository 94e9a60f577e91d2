"""What a program has set torch to changes no result and is left as it was; and forked processes, which lack threads of their parent."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import gleansr
from gleansr import baselines as baselines
from gleansr.ambient import plain_torch
from gleansr.baselines.dgp_config import DGPConfig
from gleansr.checkpoints import native
from gleansr.errors import RequestError
from gleansr.evaluation.metric_suite import MetricSuite
from gleansr.evaluation.metrics import consistency, frechet_distance, ms_ssim, psnr, ssim
from gleansr.images.back_projection import back_project
from gleansr.images.resize import degrade
from gleansr.inference.tasks import Enlarge
from gleansr.jobs import JobResult, Manifest, Work, destinations, run, walk
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator
from gleansr.photos import upscale_photo
from gleansr.retouching.refine import prepare


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def all_at_once() -> Iterator[None]:
    with (
        default_dtype(torch.bfloat16),
        default_device("meta"),
        torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode(),
        deterministic(),
    ):
        yield


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16 autocast": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "default device": lambda: default_device("meta"),
    "device in a with": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "deterministic": deterministic,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "all at once": all_at_once,
}


def ambient() -> tuple[object, ...]:
    """All that the states above set, and that loading or calling might disturb."""
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_device(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
    )


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of 16x16 with its discriminator."""
    torch.manual_seed(0)
    config = StyleGAN2Config((8, 8, 4), code_dim=8, mapping_layers=1)
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    native.save(path, {"generator": StyleGAN2(config), "discriminator": StyleGAN2Discriminator(config)}, native.About("bank"))
    return path


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, np.float32))


def values(image: Image.Image) -> tuple[str, tuple[int, int], bytes]:
    return image.mode, image.size, image.tobytes()


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def loaded_and_called(model: Path, cat: Image.Image, **options: Any) -> list[Any]:
    upscaler = gleansr.load(model, device="cpu", **options)
    made = [
        upscaler(with_alpha(cat), back_projection=1.0),
        upscaler(noise(3, 9, 8)),
        *upscaler.upscale([cat, cat.resize((8, 8))], batch_size=2),
    ]
    return [values(image) for image in made]


def state_of(model: torch.nn.Module) -> list[Any]:
    for name, parameter in model.named_parameters():
        assert parameter.is_leaf, name
        assert not parameter.is_inference(), name
    tensors = [*model.state_dict().values(), *model.buffers()]
    assert {(t.device.type, t.dtype) for t in tensors if t.is_floating_point()} == {("cpu", torch.float32)}
    return [t.numpy().tobytes() for t in tensors]


def retouched(model: Path, cat: Image.Image) -> list[Any]:
    edited = cat.copy()
    edited.paste("red", (20, 20, 30, 30))
    upscaler = gleansr.load(model, device="cpu")
    prepared = prepare(edited, cat, upscaler)
    images = [
        gleansr.retouch(edited, cat, model=upscaler),
        gleansr.retouch(with_alpha(edited), with_alpha(cat), model=model),
        prepared.mask,
    ]
    return [values(image) for image in images]


def resized() -> list[Any]:
    images = noise(2, 3, 24, 24) * 2 - 1
    results = [
        gleansr.resize(images, scale=0.37),
        gleansr.resize(images.double(), size=7),
        degrade(images, 3),
        back_project(degrade(images, 3), images),
    ]
    return [result.numpy().tobytes() for result in results] + [gleansr.resize(images[0, 0].numpy(), size=(5, 40)).tobytes()]


def measured() -> list[Any]:
    a, b = (noise(2, 3, 180, 180, seed=seed) * 2 - 1 for seed in (1, 2))
    features = noise(9, 5, seed=3), noise(8, 5, seed=4)
    figures = [psnr(a, b), ssim(a, b), ms_ssim(a, b), consistency(degrade(a, 4), b)]
    with contextlib.suppress(UserWarning):
        figures.append(torch.tensor([frechet_distance(*features)], dtype=torch.float64, device="cpu"))
    return [figure.numpy().tobytes() for figure in figures]


def metric_suite_values() -> list[Any]:
    a, b = (noise(1, 3, 64, 64, seed=seed) * 2 - 1 for seed in (1, 2))
    return MetricSuite(["psnr", "ssim", "squeezenet_distance", "consistency"])(degrade(a, 8), b, a)


def searched(bank: Path, method: str) -> list[Any]:
    stages = {"iterations": (2, 1), "tuned_groups": (1, "all"), "features": (2, 3), "instance_norm": (False, False), "select_samples": 4}
    stages |= {
        f.name: f.default[:2]
        for f in dataclasses.fields(DGPConfig)
        if isinstance(f.default, tuple) and len(f.default) == 5 and f.name not in stages
    }
    settings = {"pulse": {"steps": 3, "fit_samples": 100}, "dgp": stages}.get(method, {})
    model = None if method == "bicubic" else bank
    upscaler = baselines.load(method, model, scale=4, device="cpu", settings=settings)
    return [values(upscaler(noise(3, *[4 if upscaler.input_size else 5] * 2)))]


def photographed(model: Path, cat: Image.Image) -> list[Any]:
    image = upscale_photo(cat, gleansr.load(model, device="cpu"), boxes=((4.0, 4.0, 50.0, 50.0),), scale=2)
    return [values(image), image.info["objects"]]


def in_a_folder(model: Path, cat: Image.Image, folder: Path) -> list[Any]:
    (folder / "in").mkdir(parents=True)
    for i in range(3):
        cat.rotate(90 * i).save(folder / "in" / f"{i}.png")
    with_alpha(cat).save(folder / "in" / "alpha.png")
    [place] = destinations([folder / "in"], folder / "out", "")
    work = Work(Enlarge(gleansr.load(model, device="cpu"), back_projection=0.5), 2)
    with contextlib.closing(Manifest(cast("Path", place.manifest))) as manifest:
        assert [outcome.status for outcome in run(walk(place), work, [manifest]) if isinstance(outcome, JobResult)] == ["done"] * 4
    return [values(Image.open(path)) for path in sorted((folder / "out").glob("*.png"))]


def results(model: Path, bank: Path, folder: Path) -> Iterator[tuple[str, Any]]:
    """What each of the package's public calls makes; none may disturb what torch is set to."""
    cat = Image.fromarray((noise(48, 40, 3) * 255).numpy().astype(np.uint8))
    calls: dict[str, Callable[[], Any]] = {
        "float32": lambda: loaded_and_called(model, cat),
        "bfloat16": lambda: loaded_and_called(model, cat, precision="bfloat16"),
        "load_model": lambda: state_of(gleansr.load_model(model)),
        "retouch": lambda: retouched(model, cat),
        "resize": resized,
        "metrics": measured,
        "metric suite": metric_suite_values,
        "pulse": lambda: searched(bank, "pulse"),
        "dgp": lambda: searched(bank, "dgp"),
        "bicubic": lambda: searched(bank, "bicubic"),
        "photo": lambda: photographed(model, cat),
        "folder": lambda: in_a_folder(model, cat, folder),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLEANSR_HOME", str(folder / "home"))  # where PULSE keeps what it has found out about a bank
        for name, call in calls.items():
            before = ambient()
            made = call()
            assert ambient() == before, name
            yield name, made


@pytest.fixture(scope="module")
def plain(tiny_model: Path, bank: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(results(tiny_model, bank, tmp_path_factory.mktemp("plain")))


@pytest.mark.parametrize("name", STATES)
def test_what_torch_is_set_to_changes_no_result(name: str, tiny_model: Path, bank: Path, plain: dict[str, Any], tmp_path: Path):
    with STATES[name]():
        differing = [call for call, made in results(tiny_model, bank, tmp_path) if made != plain[call]]
    assert not differing


def test_the_caller_s_code_between_results_runs_in_its_own_state(tiny_model: Path, cat: Image.Image):
    """So do the iterator that it gives, and what it does while a result waits."""
    upscaler = gleansr.load(tiny_model, device="cpu")
    with default_dtype(torch.float64), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        own = ambient()

        def images() -> Iterator[Image.Image]:
            for _ in range(3):
                assert ambient() == own
                yield cat

        upscaled = cast("Generator[Image.Image]", upscaler.upscale(images(), batch_size=1))
        for _ in range(2):
            next(upscaled)
            assert ambient() == own
        upscaled.close()
        assert ambient() == own
    assert torch.get_default_dtype() == torch.float32


def test_an_error_leaves_the_state_as_it_was(tiny_model: Path):
    upscaler = gleansr.load(tiny_model, device="cpu")
    with all_at_once():
        own = ambient()
        with pytest.raises(RequestError):
            upscaler(noise(3, 5, 5), fit="exact")
        with pytest.raises(RequestError):
            gleansr.load("no such model")
        assert ambient() == own


def test_the_default_dtype_comes_back_when_the_last_of_several_threads_has_left():
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with plain_torch():
            entered.set()
            leave.wait(10)

    with default_dtype(torch.float64):
        thread = threading.Thread(target=first)
        thread.start()
        assert entered.wait(10)
        with plain_torch():
            leave.set()
            thread.join(10)
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float64


def test_gradients_flow_through_what_a_caller_resizes():
    image = noise(3, 6, 6).requires_grad_()
    gleansr.resize(image, scale=2).sum().backward()
    assert image.grad is not None
    with torch.no_grad():
        assert not gleansr.resize(image, scale=2).requires_grad


FORK_MESSAGE = """
import os, sys
import torch, gleansr
from gleansr.errors import RequestError

torch.set_num_threads(2)
low = torch.linspace(0, 1, 3 * 32 * 32).reshape(3, 32, 32)
upscaler = gleansr.load("cats-8x", device="cpu")
wanted = upscaler(low).tobytes()

def forked(call):
    child = os.fork()
    if not child:
        os._exit(call())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def fresh():
    return gleansr.load("cats-8x", device="cpu")(low).tobytes() != wanted

def several():
    torch.set_num_threads(2)
    try:
        upscaler(low)
    except RequestError as error:
        return not ("spawn" in str(error) and "torch.set_num_threads(1)" in str(error))
    return 1

def bare():
    return gleansr.load_model("cats-8x")(low[None]).shape[-1] != 256

print([forked(call) for call in (lambda: upscaler(low).tobytes() != wanted, fresh, several, bare, lambda: forked(fresh))])
assert torch.get_num_threads() == 2
assert upscaler(low).tobytes() == wanted
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_works_or_refuses_at_once():
    """OpenMP's threads stay with the parent: a pass with several would wait for them for ever."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK_MESSAGE], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "[0, 0, 0, 0, 0]\n"), run.stderr
