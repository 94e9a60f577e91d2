"""What this machine and this installation can do, whether they do it right, and how fast: what `gleansr doctor` tells."""

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
from typing import Any

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

LEAST_PSNR = {"float32": 80.0, "float32 on a GPU": 60.0, "bfloat16": 45.0, "float16": 45.0}
"""In dB, of results against those of the plain network in float32 on the CPU. GPUs multiply float32 in TF32, of 10 bits, where they may."""

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
"""What the optional dependencies are for."""

WORTH_SAYING = 1.15
"""How many times as fast something must be to be advised."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    text: str
    ok: bool | None = None
    """Whether a check was passed; None: it is none."""


@dataclass(frozen=True)
class Trial:
    """A model in one precision on one device."""

    precision: str
    psnr: float
    """Of its result against the plain network's in float32 on the CPU, in dB, of a range of 2."""
    difference: float
    """The largest, of a range of 2."""
    rates: Mapping[int, float]
    """Images per second by the number that go in together."""
    ok: bool


@dataclass(frozen=True)
class DoctorReport:
    """What was found."""

    findings: Mapping[str, list[Finding]]
    """By section."""
    model: str
    device: str
    trials: list[Trial] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(one.ok is not False for section in self.findings.values() for one in section) and all(one.ok for one in self.trials)


@plain_torch()
def examine(
    model: str = "cats-8x",
    *,
    device: str = "auto",
    precision: Precision = "auto",
    seconds: float = 1.0,
    tell: Callable[[str], object] = lambda _: None,
) -> DoctorReport:
    """Looks at all of it.

    Args:
        model: name or file of the model that is tried.
        device: as in `gleansr.load`.
        precision: one to try alone; "auto" tries all that the device has.
        seconds: for how long each speed is measured.
        tell: is told what is being done.

    Raises:
        RequestError: the model, the device or the precision is not there.
    """
    chosen = find_device(device)
    default = find_precision(precision, chosen)
    wanted = full_name(precision)
    findings = {
        "machine": list(_machine(chosen)),
        "choice": [Finding("device", _why_device(device, chosen)), Finding("precision", _why_precision(wanted, default, chosen))],
        "programs": [*_programs(), *_extras()],
        "files": list(_files()),
    }
    report = DoctorReport(findings, str(model), str(chosen))
    path = checkpoints.model_path(model)
    names: list[Precision] = ["float32", "bfloat16", "float16"]
    names = [name for name in names if wanted in ("auto", name) and _usable(name, chosen)]
    onnx = is_onnx(path)
    if onnx:
        names = ["float32"]
    reference: Tensor | None = None
    for name in names:
        tell(f"trying {model} in {name} on {chosen}")
        upscaler = load(path, device=str(chosen), precision="auto" if onnx else name)
        method = upscaler.method
        if not isinstance(method, FeedForwardModel):
            raise RequestError(f"{model} is no network that enlarges in one pass")
        lr = _lr(method.in_size or 32)
        if reference is None:
            reference = method(lr.to(chosen)).images.cpu() if onnx else plain_result(path, lr)
        try:
            report.trials.append(_trial(upscaler, name, lr, reference, seconds))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            findings["choice"].append(Finding(name, f"out of memory on {chosen}: {one_line(error)}", ok=False))
        if method.recorded and method.recorded.failed:
            findings["programs"].append(Finding("CUDA graphs", f"not used: {method.recorded.failed}"))
    report.advice.extend(_advice(report, str(default).removeprefix("torch."), chosen))
    return report


@torch.inference_mode()
def plain_result(path: str | Path, lr: Tensor) -> Tensor:
    """What the model in a file makes of lr (N, 3, h, w) in [-1, 1] by its plain formulation, on the CPU in float32."""
    return enlarge(checkpoints.read(path).build(None, path).eval(), lr)


def as_dict(report: DoctorReport) -> dict[str, Any]:
    """For machines: plain JSON values."""
    return {
        "ok": report.ok,
        "model": report.model,
        "device": report.device,
        "findings": {section: [vars(one) for one in found] for section, found in report.findings.items()},
        "trials": [
            vars(one) | {"psnr": None if math.isinf(one.psnr) else one.psnr, "rates": {str(n): rate for n, rate in one.rates.items()}}
            for one in report.trials
        ],
        "advice": report.advice,
    }


def _lr(size: int) -> Tensor:
    """(8, 3, size, size) in [-1, 1]: smooth, as images are, and always the same."""
    coarse = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)


def _trial(upscaler: Upscaler, precision: str, lr: Tensor, reference: Tensor, seconds: float) -> Trial:
    method, device = upscaler.method, upscaler.device
    lr = lr.to(device)
    made = method(lr).images.float().cpu()
    error = (made - reference).square().mean().item()
    psnr = 10 * math.log10(4 / error) if error else math.inf
    kind = "float32 on a GPU" if precision == "float32" and device.type != "cpu" else precision
    batches = sorted({1, upscaler.default_batch_size()})
    rates = {n: n / _seconds(functools.partial(method, lr[torch.arange(n) % len(lr)]), device, seconds) for n in batches}
    return Trial(precision, psnr, (made - reference).abs().max().item(), rates, ok=bool(made.isfinite().all()) and psnr >= LEAST_PSNR[kind])


def _seconds(call: Callable[[], object], device: torch.device, budget: float) -> float:
    """Median seconds of a call, after one that warms up; of fewer than three calls where they take longer than that."""
    times: list[float] = []
    call()
    while not times or sum(times) < budget:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _usable(name: str, device: torch.device) -> bool:
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
        yield Finding("bfloat16", f"by {half}" if half else "the CPU has no instructions for it: it works, and is slow")
    if memory := _memory():
        yield Finding("memory", f"{memory / 2**30:.0f} GiB")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        yield Finding(
            f"cuda:{i}",
            f"{properties.name}, capability {properties.major}.{properties.minor}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free",
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no such question on this system
        return None


def _why_device(wanted: str, device: torch.device) -> str:
    if wanted != "auto":
        return f"{device}, as asked for"
    if device.type != "cpu":
        return f"{device}, since there is a GPU"
    if torch.version.cuda is None and torch.version.hip is None:
        return "cpu: this torch was built without GPUs (https://pytorch.org has others)"
    return "cpu: torch sees no GPU"


def _why_precision(wanted: str, precision: torch.dtype, device: torch.device) -> str:
    name = str(precision).removeprefix("torch.")
    if wanted != "auto":
        return f"{name}, as asked for"
    if device.type == "cpu":
        return f"{name}, since results on a CPU are to be exact unless told otherwise"
    return f"{name}, since the GPU has it" if name == "bfloat16" else f"{name}, since the GPU has no bfloat16; float16 is tried below"


def _programs() -> Iterator[Finding]:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
    version = _version("gleansr") or "not installed, run from its sources"
    yield Finding("gleansr", f"{version}, Python {platform.python_version()}, {platform.system()}")
    yield Finding("torch", f"{torch.__version__}, built for {build}")
    onednn = torch.backends.mkldnn.is_available()
    yield Finding("oneDNN", "there" if onednn else "not in this torch: convolutions on the CPU are slower")
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
    """Which optional dependencies there are."""
    try:
        required = importlib.metadata.requires("gleansr") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for extra, purpose in EXTRAS.items():
        names = [match[0] for line in required if f"extra == '{extra}'" in line.replace('"', "'") and (match := re.match(r"[\w.-]+", line))]
        missing = [name for name in names if _version(name) is None]
        lacking = f"not installed: pip install 'gleansr[{extra}]' ({', '.join(missing)})"
        yield Finding(f"for {purpose}", lacking if missing else "installed")


def _files() -> Iterator[Finding]:
    for model in zoo.named_models():
        if model.asset is None:
            continue
        path = zoo.file_of(model)
        try:
            found = sha256_of(path)
            checkpoints.read(path)
        except (OSError, GleansrError) as error:
            yield Finding(model.name, f"{one_line(error)}; install gleansr again", ok=False)
            continue
        intact = model.sha256_prefix is not None and found.startswith(model.sha256_prefix)
        told = "bundled, intact" if intact else f"{path} is not the file that was shipped; install gleansr again"
        yield Finding(model.name, told, ok=intact)
    folder = zoo.cache_folder()
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    fetched = [model.name for model in zoo.named_models() if model.asset is None and zoo.installed(model)]
    told = f"{folder}: {', '.join(fetched) or 'nothing fetched yet'}"
    if not os.access(place, os.W_OK):
        told += "; it cannot be written to: set GLEANSR_HOME to a folder that can"
    yield Finding("fetched models", told)
    if offline := os.environ.get("GLEANSR_OFFLINE"):
        yield Finding("GLEANSR_OFFLINE", f"{offline}: nothing is fetched")


def _advice(report: DoctorReport, default: str, device: torch.device) -> Iterator[str]:
    trials = {trial.precision: trial for trial in report.trials if trial.ok}
    base = trials.get(default)
    if base is None:
        return
    most = max(base.rates)
    better = [trial for trial in trials.values() if trial.rates[most] > WORTH_SAYING * base.rates[most]]
    if better:
        best = max(better, key=lambda trial: trial.rates[most])
        times = best.rates[most] / base.rates[most]
        yield f"--precision {best.precision} is {times:.1f} times as fast here, {best.psnr:.0f} dB from float32: not to be seen"
    if most > 1 and base.rates[most] > WORTH_SAYING * base.rates[1]:
        yield f"many images at once, as folders are, take {base.rates[1] / base.rates[most]:.2f} of the time of one after the other"
    if device.type == "cpu" and torch.get_num_threads() < cores() and "OMP_NUM_THREADS" in os.environ:
        yield f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} leaves cores unused"
