"""Runs a method in a separate process, which isolates its time, memory and failures."""

import multiprocessing
import platform
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gleansr.errors import GleansrError, InternalError
from gleansr.evaluation.config import ComputeConfig
from gleansr.evaluation.entries import ComparedMethod
from gleansr.inference.method import StepReport
from gleansr.signals import end_with_parent, sigint_blocked

_STEP_SECONDS = 0.2  # between two progress reports within an image


class MethodError(GleansrError):
    """A method raised an error, or its process ended."""


@dataclass(frozen=True, eq=False)
class Run:
    """Results of a method for a batch, and their cost."""

    images: Tensor
    """(N, 3, H, W), RGB, nominally in [-1, 1], not clamped, float32, on the CPU."""
    notes: list[str]
    """The method's note on each image, or ""."""
    seconds: float
    """Time of the batch, until the results are complete on the device."""
    waited: float | None
    """Share of that time that threads waited for a free processor, see `Stopwatch`."""
    peak: int | None
    """Peak memory of the process in bytes, see `peak_memory`."""
    own: int | None
    """Part of `peak` that was added since before the model was loaded."""


class MethodProcess:
    """A method in a new process. Raises MethodError if the method fails."""

    def __init__(self, entry: ComparedMethod, scale: int, compute: ComputeConfig):
        """Starts the process, which loads the model."""
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_pipe, entry, scale, compute), daemon=True)
        with sigint_blocked():  # Ctrl-C stops this process, which ends the child
            self._process.start()
        child_pipe.close()
        try:
            self._request(None)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "MethodProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm_up(self, lr: Tensor) -> None:
        """Runs a batch without measuring: the first run allocates memory and selects kernels."""
        self._request((lr.numpy(), False))

    def __call__(self, lr: Tensor, report: StepReport | None = None) -> Run:
        """Upscales a batch (N, 3, h, w) in [-1, 1]. `report` receives the steps of a search, at most five times a second."""
        images, *rest = self._request((lr.numpy(), report is not None), report)
        return Run(torch.from_numpy(images), *rest)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _request(self, message: tuple[Any, bool] | None, report: StepReport | None = None) -> Any:
        """Sends a message, if any, and waits for the reply."""
        try:
            if message is not None:
                self._pipe.send(message)
            while True:
                kind, *values = self._pipe.recv()
                if kind == "failed":
                    raise MethodError(values[0])
                if kind == "broken":
                    fault = InternalError(
                        "the process of a method failed because of a bug in gleansr: please report it; --debug shows the traceback"
                    )
                    fault.add_note(values[0])
                    raise fault
                if kind == "done":
                    return values
                if report:
                    report(*values)
        except (EOFError, OSError):  # the process has ended
            self._process.join(10)
            code = self._process.exitcode or 0
            reason = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            memory = ", possibly for lack of memory" if code == -9 else ""
            raise MethodError(f"its process {reason}{memory}") from None


# ----------------------------------------------------------------------------------------------------- child process


def _serve(pipe: Connection, entry: ComparedMethod, scale: int, compute: ComputeConfig) -> None:
    end_with_parent()
    try:
        if compute.threads:
            torch.set_num_threads(compute.threads)
        before = peak_memory(torch.device("cpu"))
        upscaler = entry.load(scale, compute.device, compute.precision)
        method, device = upscaler.method, upscaler.device
        before = 0 if device.type == "cuda" else before
        pipe.send(("done",))
        while True:
            lr, reporting = pipe.recv()
            batch = torch.from_numpy(lr).to(device)
            report = _throttled(pipe) if reporting else None
            stopwatch = Stopwatch(device)
            output = method(batch, report)
            stopwatch.stop()
            peak = peak_memory(device)
            own = None if peak is None or before is None else peak - before
            images = output.images.detach().float().cpu().numpy()
            pipe.send(("done", images, list(output.notes) or [""] * len(lr), stopwatch.seconds, stopwatch.waited, peak, own))
    except (EOFError, BrokenPipeError):  # the parent has ended
        return
    except (GleansrError, OSError, MemoryError, RuntimeError) as error:  # torch and its drivers raise RuntimeErrors
        text = " ".join(str(error).split())[:500]
        pipe.send(("failed", text if isinstance(error, GleansrError) else f"{type(error).__name__}: {text}"))
    except Exception:
        pipe.send(("broken", traceback.format_exc()))


def _throttled(pipe: Connection) -> StepReport:
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _STEP_SECONDS:
            last = now
            pipe.send(("step", done, total))

    return report


class Stopwatch:
    """The time of work on a device, from its creation to `stop`."""

    seconds: float
    """Time until the work was complete."""
    waited: float | None
    """Share of the time in which threads of this process that could have worked waited for a free processor, because of other programs or
    of too many threads; None where the system does not count it (other systems than Linux)."""

    def __init__(self, device: torch.device):
        self._device = device
        synchronise(device)
        self._waited, self._worked, self._started = _waiting_time(), time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """Sets `seconds` and `waited`."""
        synchronise(self._device)
        self.seconds = time.perf_counter() - self._started
        worked, waited = time.process_time() - self._worked, _waiting_time()
        # A thread that ends takes its count with it.
        waited = None if waited is None or self._waited is None else max(0.0, waited - self._waited)
        self.waited = None if waited is None else waited / max(waited + worked, 1e-9)


def _waiting_time() -> float | None:
    """Seconds that the threads of this process have waited for a free processor; None where the system does not count them."""
    try:
        # The fields: nanoseconds on a processor, nanoseconds waiting for one, number of times.
        return sum(int(file.read_text().split()[1]) for file in Path("/proc/self/task").glob("*/schedstat")) / 1e9 or None
    except (OSError, ValueError, IndexError):  # also a thread that ended meanwhile
        return None


def synchronise(device: torch.device) -> None:
    """Waits for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes: torch's allocations on a GPU, otherwise the resident size of this process; None where unknown.

    On Linux not from getrusage: ru_maxrss of a new process starts with that of its parent.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware that times and memory depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        cpu = models[0] if models else cpu
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"device": device.type, **gpu, "cpu": cpu, "threads": torch.get_num_threads()}
