"""`gleansr doctor`: what it finds, what it says is wrong, and that it never falls over."""

import importlib.metadata
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gleansr import doctor
from gleansr.checkpoints import zoo
from gleansr.errors import RequestError
from gleansr.inference.devices import find_device
from gleansr.inference.method import ModelOutput
from gleansr.inference.runner import FeedForwardModel
from gleansr.inference.upscaler import Upscaler


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default batch of a tiny model has 512 images, and each measurement takes a second."""
    measure = doctor._seconds
    monkeypatch.setattr(Upscaler, "default_batch_size", lambda _: 2)
    monkeypatch.setattr(doctor, "_seconds", lambda call, device, _: measure(call, device, 0))


def test_all_is_well_here(tiny_model: Path):
    texts: list[str] = []
    report = doctor.examine(str(tiny_model), device="cpu", on_step=texts.append)
    assert report.ok
    assert [trial.precision for trial in report.trials] == ["float32", "bfloat16"]
    exact, half = report.trials
    assert exact.difference < 1e-4
    assert exact.psnr > 100 > half.psnr > 45
    assert half.difference > 100 * exact.difference
    assert all(rate > 0 for trial in report.trials for rate in trial.rates.values())
    assert texts == [f"trying {tiny_model} in {name} on cpu" for name in ("float32", "bfloat16")]
    assert {finding.name for finding in report.findings["files"]} >= {m.name for m in zoo.named_models() if m.asset}
    assert all(one.ok for one in report.findings["files"] if one.ok is not None)
    assert json.loads(json.dumps(doctor.as_dict(report)))["trials"][1]["psnr"] == half.psnr


def test_one_precision_alone(tiny_model: Path):
    report = doctor.examine(str(tiny_model), device="cpu", precision="bfloat16")
    assert [trial.precision for trial in report.trials] == ["bfloat16"]
    assert any(finding.text == "bfloat16, as requested" for finding in report.findings["choice"])
    with pytest.raises(RequestError, match="float16 is for GPUs"):
        doctor.examine(str(tiny_model), device="cpu", precision="float16")


def test_wrong_results_are_found(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    call = FeedForwardModel.__call__

    def wrong(self: FeedForwardModel, lr: torch.Tensor, report: object = None) -> ModelOutput:
        images = call(self, lr).images.clone()
        images[0, 0, 0, 0] = math.nan if self.precision == torch.bfloat16 else images[0, 0, 0, 0] + 0.5
        return ModelOutput(images)

    monkeypatch.setattr(FeedForwardModel, "__call__", wrong)
    report = doctor.examine(str(tiny_model), device="cpu")
    assert [trial.ok for trial in report.trials] == [False, False]
    assert not report.ok
    assert report.advice == [] or not any("--precision" in line for line in report.advice)


def test_what_does_not_fit_is_told(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: FeedForwardModel, lr: torch.Tensor, report: object = None) -> ModelOutput:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(FeedForwardModel, "__call__", full)
    report = doctor.examine(str(tiny_model), device="cpu")
    assert not report.ok
    assert [one.ok for one in report.findings["choice"]] == [None, None, False, False]


def test_a_damaged_bundled_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = zoo.file_of(zoo.find("plain-cats-8x")).read_bytes()  # which needs no other file
    bundled = sum(model.asset is not None for model in zoo.named_models())
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    monkeypatch.setattr(zoo, "file_of", lambda _: damaged)
    assert all("is not the file that was shipped" in one.text for one in doctor._files() if one.ok is False)
    assert [one.ok for one in doctor._files()].count(False) == bundled
    damaged.write_bytes(whole[:100])
    assert all("install gleansr again" in one.text for one in doctor._files() if one.ok is False)
    damaged.unlink()
    assert [one.ok for one in doctor._files()].count(False) == bundled


def test_what_is_not_installed_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch):
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    extras = {one.name: one.text for one in doctor._extras()}
    assert extras["for ONNX files"] == "not installed: pip install 'gleansr[export]' (onnxruntime)"
    assert extras["for training"] == "installed"
    assert {f"for {purpose}" for purpose in doctor.EXTRAS.values()} == set(extras)


def test_every_extra_has_a_purpose():
    provided = set(importlib.metadata.metadata("gleansr").get_all("Provides-Extra") or [])
    assert set(doctor.EXTRAS) == provided - {"test", "docs", "release", "all"}


def test_the_environment_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path / "not there yet"))
    monkeypatch.setenv("GLEANSR_OFFLINE", "1")
    texts = {one.name: one.text for one in doctor._files()}
    assert texts["downloaded models"] == f"{tmp_path / 'not there yet'}: none"
    assert texts["GLEANSR_OFFLINE"] == "1: downloads are off"


def test_why(monkeypatch: pytest.MonkeyPatch):
    cpu, gpu = find_device("cpu"), torch.device("cuda")
    assert doctor._explain_device("cpu", cpu) == "cpu, as requested"
    assert doctor._explain_device("auto", gpu) == "cuda, since a GPU is available"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert doctor._explain_device("auto", cpu) == "cpu: torch finds no GPU"
    assert doctor._explain_precision("auto", torch.bfloat16, gpu) == "bfloat16, which the GPU supports"
    assert "float16 is tried below" in doctor._explain_precision("auto", torch.float32, gpu)


@pytest.mark.parametrize("width", ["80", "40"])
def test_the_command(command: Callable[..., tuple[int, str]], tiny_model: Path, monkeypatch: pytest.MonkeyPatch, width: str):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("NO_COLOR", "1")
    status, text = command("doctor", "--model", tiny_model, "--device", "cpu")
    assert status == 0
    assert "all is well" in text
    assert "right" in text or width == "40"
    assert all(len(line) <= int(width) for line in text.splitlines())
    assert "\x1b" not in text


def test_the_command_for_machines_and_for_what_is_not_there(command: Callable[..., tuple[int, str]], tiny_model: Path, tmp_path: Path):
    assert json.loads(command("doctor", "--model", tiny_model, "--device", "cpu", "--json")[1])["ok"] is True
    status, text = command("doctor", "--model", tmp_path / "none.safetensors")
    assert (status, len(text.splitlines())) == (2, 1)
    assert "none.safetensors" in text
    if not torch.cuda.is_available():
        assert command("doctor", "--device", "cuda")[0] == 2
