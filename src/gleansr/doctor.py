"""The report of `gleansr doctor`: capabilities of the machine and the installation, correctness and speed of a model."""

import functools
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr import checkpoints
from gleansr.ambient import plain_torch
from gleansr.checkpoints import zoo
from gleansr.errors import GleansrError, RequestError, one_line
from gleansr.files import sha256_of
from gleansr.inference.devices import bfloat16_instructions, cores, find_device, find_precision, out_of_memory
from gleansr.inference.onnx_runtime import is_onnx
from gleansr.inference.precision import Precision, full_name
from gleansr.inference.runner import FeedForwardModel, enlarge
from gleansr.inference.upscaler import Upscaler, load
from gleansr.models.network import SRNetwork

MIN_PSNR = {"float32": 80.0, "float32 on a GPU": 60.0, "bfloat16": 45.0, "float16": 45.0}
"""In dB, of results against the plain network in float32 on the CPU. GPUs may multiply float32 in TF32, which has 10 bits."""

EXTRAS = {
    "train": "training",
    "eval": "figures and rooflines",
    "photos": "whole photographs",
    "video": "videos",
    "heif": "HEIC and JPEG XL images",
    "ray": "clusters",
    "export": "ONNX files",
    "serve": "the browser and HTTP",
}
"""The purpose of each optional dependency."""

MIN_SPEEDUP = 1.15
"""Smallest speed-up that is worth advice."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    text: str
    ok: bool | None = None
    """Whether a check passed; None for information."""


@dataclass(frozen=True)
class Trial:
    """A model in one precision on one device."""

    precision: str
    psnr: float
    """PSNR in dB against the plain network in float32 on the CPU, for a range of 2."""
    difference: float
    """Largest difference, for a range of 2."""
    rates: Mapping[int, float]
    """Images per second by batch size."""
    ok: bool


@dataclass(frozen=True)
class DoctorReport:
    """The result of `examine`."""

    findings: Mapping[str, list[Finding]]
    """By section."""
    model: str
    device: str
    trials: list[Trial] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        findings = (finding for section in self.findings.values() for finding in section)
        return all(finding.ok is not False for finding in findings) and all(trial.ok for trial in self.trials)


@plain_torch()
def examine(
    model: str = "cats-8x",
    *,
    device: str = "auto",
    precision: Precision = "auto",
    seconds: float = 1.0,
    on_step: Callable[[str], object] = lambda _: None,
) -> DoctorReport:
    """Examines the machine and the installation, and measures a model.

    Args:
        model: name or file of the model to try.
        device: as in `gleansr.load`.
        precision: the only one to try; "auto" tries all that the device supports.
        seconds: duration of each speed measurement.
        on_step: called with a description of each step.

    Raises:
        RequestError: the model, the device or the precision is not available.
    """
    torch_device = find_device(device)
    default = find_precision(precision, torch_device)
    requested = full_name(precision)
    findings = {
        "machine": list(_machine(torch_device)),
        "choice": [
            Finding("device", _explain_device(device, torch_device)),
            Finding("precision", _explain_precision(requested, default, torch_device)),
        ],
        "programs": [*_programs(), *_extras()],
        "files": list(_files()),
    }
    report = DoctorReport(findings, str(model), str(torch_device))
    path = checkpoints.model_path(model)
    names: list[Precision] = ["float32", "bfloat16", "float16"]
    names = [name for name in names if requested in ("auto", name) and _is_usable(name, torch_device)]
    onnx = is_onnx(path)
    if onnx:
        names = ["float32"]
    reference: Tensor | None = None
    for name in names:
        on_step(f"trying {model} in {name} on {torch_device}")
        upscaler = load(path, device=str(torch_device), precision="auto" if onnx else name)
        method = upscaler.method
        if not isinstance(method, FeedForwardModel):
            raise RequestError(f"{model} is not a feed-forward network")
        lr = _lr(method.in_size or 32)
        if reference is None:
            reference = method(lr.to(torch_device)).images.cpu() if onnx else _plain_result(path, lr)
        try:
            report.trials.append(_trial(upscaler, name, lr, reference, seconds))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            findings["choice"].append(Finding(name, f"out of memory on {torch_device}: {one_line(error)}", ok=False))
        if method.recorded and method.recorded.failed:
            findings["programs"].append(Finding("CUDA graphs", f"not used: {method.recorded.failed}"))
    report.advice.extend(_advice(report, str(default).removeprefix("torch."), torch_device))
    return report


@torch.inference_mode()
def _plain_result(path: str | Path, lr: Tensor) -> Tensor:
    """What the model in a file makes of lr (N, 3, h, w) in [-1, 1] by its plain formulation, on the CPU in float32."""
    return enlarge(cast("SRNetwork", checkpoints.read(path).build(None, path)).eval(), lr)


def as_dict(report: DoctorReport) -> dict[str, Any]:
    """The report as plain JSON values."""
    return {
        "ok": report.ok,
        "model": report.model,
        "device": report.device,
        "findings": {section: [vars(finding) for finding in findings] for section, findings in report.findings.items()},
        "trials": [
            vars(trial)
            | {"psnr": None if math.isinf(trial.psnr) else trial.psnr, "rates": {str(n): rate for n, rate in trial.rates.items()}}
            for trial in report.trials
        ],
        "advice": report.advice,
    }


def _lr(size: int) -> Tensor:
    """(8, 3, size, size) in [-1, 1]: smooth, as images are, and deterministic."""
    coarse = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)


def _trial(upscaler: Upscaler, precision: str, lr: Tensor, reference: Tensor, seconds: float) -> Trial:
    method, device = upscaler.method, upscaler.device
    lr = lr.to(device)
    sr = method(lr).images.float().cpu()
    error = (sr - reference).square().mean().item()
    psnr = 10 * math.log10(4 / error) if error else math.inf
    kind = "float32 on a GPU" if precision == "float32" and device.type != "cpu" else precision
    batches = sorted({1, upscaler.default_batch_size()})
    rates = {n: n / _seconds(functools.partial(method, lr[torch.arange(n) % len(lr)]), device, seconds) for n in batches}
    ok = bool(sr.isfinite().all()) and psnr >= MIN_PSNR[kind]
    return Trial(precision, psnr, (sr - reference).abs().max().item(), rates, ok)


def _seconds(call: Callable[[], object], device: torch.device, budget: float) -> float:
    """Median seconds of a call, measured for `budget` seconds after a warm-up call."""
    times: list[float] = []
    call()
    while not times or sum(times) < budget:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _is_usable(name: str, device: torch.device) -> bool:
    try:
        return find_precision(name, device) is not None
    except RequestError:
        return False


def _machine(device: torch.device) -> Iterator[Finding]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    yield Finding(
        "CPU",
        f"{model}, {_count(cores(), 'core')}, {_count(torch.get_num_threads(), 'thread')}, {torch.backends.cpu.get_cpu_capability()}",
    )
    half = bfloat16_instructions() if device.type == "cpu" else None
    if device.type == "cpu":
        yield Finding("bfloat16", f"supported by {half}" if half else "no CPU instructions: works, but slowly")
    if memory := _memory():
        yield Finding("memory", f"{memory / 2**30:.0f} GiB")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        yield Finding(
            f"cuda:{i}",
            f"{properties.name}, capability {properties.major}.{properties.minor}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not supported by this system
        return None


def _explain_device(requested: str, device: torch.device) -> str:
    if requested != "auto":
        return f"{device}, as requested"
    if device.type != "cpu":
        return f"{device}, since a GPU is available"
    if torch.version.cuda is None and torch.version.hip is None:
        return "cpu: this torch was built without GPU support (other builds: https://pytorch.org)"
    return "cpu: torch finds no GPU"


def _explain_precision(requested: str, precision: torch.dtype, device: torch.device) -> str:
    name = str(precision).removeprefix("torch.")
    if requested != "auto":
        return f"{name}, as requested"
    if device.type == "cpu":
        return f"{name}, the default on CPUs"
    return f"{name}, which the GPU supports" if name == "bfloat16" else f"{name}, since the GPU has no bfloat16; float16 is tried below"


def _programs() -> Iterator[Finding]:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
    version = _version("gleansr") or "not installed, run from sources"
    yield Finding("gleansr", f"{version}, Python {platform.python_version()}, {platform.system()}")
    yield Finding("torch", f"{torch.__version__}, built for {build}")
    onednn = torch.backends.mkldnn.is_available()
    yield Finding("oneDNN", "available" if onednn else "not in this torch: convolutions on the CPU are slower")
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
        yield Finding("ONNX Runtime", f"{onnxruntime.__version__}: {providers}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Finding]:
    """The installed and the missing optional dependencies."""
    try:
        required = importlib.metadata.requires("gleansr") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for extra, purpose in EXTRAS.items():
        names = [match[0] for line in required if f"extra == '{extra}'" in line.replace('"', "'") and (match := re.match(r"[\w.-]+", line))]
        missing = [name for name in names if _version(name) is None]
        problem = f"not installed: pip install 'gleansr[{extra}]' ({', '.join(missing)})"
        yield Finding(f"for {purpose}", problem if missing else "installed")


def _files() -> Iterator[Finding]:
    for model in zoo.named_models():
        if model.asset is None:
            continue
        path = zoo.file_of(model)
        try:
            sha256 = sha256_of(path)
            checkpoints.read(path)
        except (OSError, GleansrError) as error:
            yield Finding(model.name, f"{one_line(error)}; install gleansr again", ok=False)
            continue
        intact = model.sha256_prefix is not None and sha256.startswith(model.sha256_prefix)
        text = "bundled, intact" if intact else f"{path} is not the file that was shipped; install gleansr again"
        yield Finding(model.name, text, ok=intact)
    folder = zoo.cache_folder()
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    downloaded = [model.name for model in zoo.named_models() if model.asset is None and zoo.installed(model)]
    text = f"{folder}: {', '.join(downloaded) or 'none'}"
    if not os.access(existing, os.W_OK):
        text += "; not writable: set GLEANSR_HOME to a writable folder"
    yield Finding("downloaded models", text)
    if offline := os.environ.get("GLEANSR_OFFLINE"):
        yield Finding("GLEANSR_OFFLINE", f"{offline}: downloads are off")


def _advice(report: DoctorReport, default: str, device: torch.device) -> Iterator[str]:
    trials = {trial.precision: trial for trial in report.trials if trial.ok}
    base = trials.get(default)
    if base is None:
        return
    largest = max(base.rates)
    better = [trial for trial in trials.values() if trial.rates[largest] > MIN_SPEEDUP * base.rates[largest]]
    if better:
        best = max(better, key=lambda trial: trial.rates[largest])
        speedup = best.rates[largest] / base.rates[largest]
        yield f"--precision {best.precision} is {speedup:.1f} times as fast here, at {best.psnr:.0f} dB from float32: no visible difference"
    if largest > 1 and base.rates[largest] > MIN_SPEEDUP * base.rates[1]:
        yield f"batches, as for folders, take {base.rates[1] / base.rates[largest]:.2f} of the time of single images"
    if device.type == "cpu" and torch.get_num_threads() < cores() and "OMP_NUM_THREADS" in os.environ:
        yield f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} leaves cores unused"
