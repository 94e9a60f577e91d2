"""What the process itself is set to."""

import gc
import json
import os
import platform
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gleansr
from gleansr import baselines as baselines
from gleansr.errors import RequestError
from gleansr.evaluation.config import ComputeConfig
from gleansr.inference.devices import find_device, find_precision
from gleansr.inference.precision import Precision
from gleansr.inference.runner import FeedForwardModel
from gleansr.serving.config import ServingConfig
from gleansr.training.config import NetworkRecipe, load_recipe

PROGRAM = """
import json, os, resource, sys
from gleansr.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [bytes(10_000_000) + b"1" for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(json.dumps([[faults() for _ in range(3)][-1], os.environ.get("MALLOC_TRIM_THRESHOLD_")]))
"""


def after(how: str, **environment: str) -> tuple[int, str | None]:
    """Page faults of taking 30 MB that were freed before, and what the environment says to processes that this one starts."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], env=clean | environment, capture_output=True, text=True, check=True)
    return tuple(json.loads(run.stdout))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is set")
def test_memory_that_was_freed_is_kept():
    assert after("leave")[0] > 1000
    assert after("keep") == (pytest.approx(0, abs=100), str(2**30))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is set")
def test_what_the_environment_says_about_memory_holds():
    small = {"MALLOC_TRIM_THRESHOLD_": "100000", "MALLOC_MMAP_THRESHOLD_": "100000"}
    faults, said = after("keep", **small)
    assert faults > 1000
    assert said == "100000"


THREADS = """
import threading
from pathlib import Path
from gleansr.allocator import keep_freed_memory

keep_freed_memory()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

take, over, before = threading.Lock(), threading.Event(), resident()

def use():
    with take:
        bytes(30_000_000) + b"1"
    over.wait()

threads = [threading.Thread(target=use) for _ in range(12)]
for thread in threads:
    thread.start()
with take:
    pass
over.set()
for thread in threads:
    thread.join()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is set")
def test_threads_share_what_they_freed():
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", THREADS], env=clean, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 150e6  # an arena for each thread would keep 360 MB


@pytest.mark.parametrize("name", ["meta", "xla", "gpu", "cuda:99", "", "cpu:x", "privateuseone", None])
def test_a_device_on_which_nothing_can_be_computed_is_refused_by_its_name(name: Any, tiny_model: Path):
    for find in (find_device, lambda name: gleansr.load(tiny_model, device=name), lambda name: baselines.load("bicubic", device=name)):
        with pytest.raises(RequestError) as caught:
            find(name)
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_is_the_first_device_that_is_there(cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert find_device("auto") == torch.device(expected)


def tensors() -> int:
    """How many are alive, but those of before `gc.freeze`."""
    gc.collect()
    return sum(type(item) in (Tensor, nn.Parameter) for item in gc.get_objects())


@pytest.fixture
def older_ignored() -> Iterator[None]:
    """What lives already is left out of `tensors`: a process that ran many tests holds millions of objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.usefixtures("older_ignored")
def test_nothing_of_a_model_stays_in_memory(precision: Any, tiny_model: Path, cat: Image.Image):
    """In no cache, of neither its weights nor what was made of them."""
    gleansr.load(tiny_model, device="cpu", precision=precision)(cat)  # matrices of resizing, which are of no model, are kept
    before = tensors()
    upscaler = gleansr.load(tiny_model, device="cpu", precision=precision)
    upscaler(cat)
    model = weakref.ref(cast("FeedForwardModel", upscaler.method).model)
    assert tensors() > before + 50
    del upscaler
    assert tensors() <= before  # what other tests left may have gone
    assert model() is None


SHORT = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}


@pytest.mark.parametrize("short", SHORT)
def test_short_names_of_precisions_are_the_long_ones(short: Any):
    assert find_precision(short, torch.device("cuda" if short == "fp16" else "cpu")) == getattr(torch, SHORT[short])
    assert ComputeConfig(precision=short) == ComputeConfig(precision=cast("Precision", SHORT[short]))
    assert ServingConfig(precision=short).precision == SHORT[short]


def test_an_unknown_precision_is_refused_with_the_nearest():
    with pytest.raises(RequestError, match=r"'bfloat', .* did you mean bfloat16\?"):
        find_precision("bfloat", torch.device("cpu"))
    with pytest.raises(RequestError, match="float16 is for GPUs"):
        find_precision("fp16", torch.device("cpu"))


def test_a_recipe_holds_the_long_name(tmp_path: Path):
    def precision(given: str) -> str:
        return load_recipe(NetworkRecipe, "cats-8x-compact", [f"run.precision={given}"]).run.precision

    assert [precision(short) for short in ("bf16", '"fp32"', "bfloat16")] == ["bfloat16", "float32", "bfloat16"]
    for unsuitable in ("fp16", "float16", "auto", "bf 16"):
        with pytest.raises(RequestError, match="precision"):
            precision(unsuitable)


def test_a_command_takes_a_short_name(command: Callable[..., tuple[int, str]], tiny_model: Path, cat: Image.Image, tmp_path: Path):
    cat.save(tmp_path / "cat.png")
    made = []
    for precision in ("bf16", "bfloat16"):
        result = tmp_path / f"{precision}.png"
        status, said = command(
            "upscale", tmp_path / "cat.png", "--model", tiny_model, "--device", "cpu", "--precision", precision, "-o", result
        )
        assert status == 0, said
        made.append(Image.open(result).tobytes())
    assert made[0] == made[1]
    assert command("doctor", "--model", tiny_model, "--device", "cpu", "--precision", "fp16")[0] == 2
