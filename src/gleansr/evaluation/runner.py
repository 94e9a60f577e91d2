"""One method in a process of its own, so that its time and its memory are its own and its end is nobody else's."""

import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gleansr.errors import GleansrError, InternalError
from gleansr.evaluation.entries import ComparedMethod
from gleansr.inference.method import StepReport
from gleansr.inference.precision import Precision, full_name

_STEP_SECONDS = 0.2  # between two reports of the progress within an image


class MethodError(GleansrError):
    """A method failed: it raised an error, or its process ended."""


@dataclass(frozen=True)
class ComputeConfig:
    """Where and how methods compute."""

    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    """Of the CPU; None: as many as torch takes by itself."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", full_name(self.precision))


@dataclass(frozen=True, eq=False)
class Run:
    """What a method made of a batch, and at what cost."""

    images: Tensor
    """(N, 3, H, W), RGB, nominally in [-1, 1], not clamped, float32, on the CPU."""
    notes: list[str]
    """What the method said of each image, "" if nothing."""
    seconds: float
    """For the batch, until the results were there on the device."""
    peak: int | None
    """Bytes: the most that the process has taken so far, see `peak_memory`."""
    own: int | None
    """Bytes: what of `peak` was added since before the model was read."""


class MethodProcess:
    """Runs a method in a fresh process. Its methods raise MethodError where that one fails."""

    def __init__(self, entry: ComparedMethod, scale: int, place: ComputeConfig):
        """Starts the process and has it load the model."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, entry, scale, place), daemon=True)
        with _deaf():  # Ctrl-C is for this process, which then ends the other one
            self._process.start()
        theirs.close()
        try:
            self._ask(None)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "MethodProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm_up(self, lr: Tensor) -> None:
        """Enlarges a batch once for nothing: the first time, memory is asked for and kernels are chosen."""
        self._ask((lr.numpy(), False))

    def __call__(self, lr: Tensor, report: StepReport | None = None) -> Run:
        """Enlarges a batch (N, 3, h, w) in [-1, 1]. `report` is told of the steps of a slow method, now and then."""
        images, *rest = self._ask((lr.numpy(), report is not None), report)
        return Run(torch.from_numpy(images), *rest)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _ask(self, question: tuple[Any, bool] | None, report: StepReport | None = None) -> Any:
        """What the process answers to a batch, or at its start to nothing."""
        try:
            if question is not None:
                self._pipe.send(question)
            while True:
                kind, *values = self._pipe.recv()
                if kind == "failed":
                    raise MethodError(values[0])
                if kind == "broken":
                    fault = InternalError("the process of a method ended by a fault of gleansr: please report it; --debug shows where")
                    fault.add_note(values[0])
                    raise fault
                if kind == "done":
                    return values
                if report:
                    report(*values)
        except (EOFError, OSError):  # nobody is there any more
            self._process.join(10)
            code = self._process.exitcode or 0
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            memory = ", perhaps for lack of memory" if code == -9 else ""
            raise MethodError(f"its process {how}{memory}") from None


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started within do not hear Ctrl-C."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which unblocks the signal when it starts its process, at the first use
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --------------------------------------------------------------------------------------------------- in the other process


def _serve(pipe: Connection, entry: ComparedMethod, scale: int, place: ComputeConfig) -> None:
    _end_with_parent()
    try:
        if place.threads:
            torch.set_num_threads(place.threads)
        before = peak_memory(torch.device("cpu"))
        upscaler = entry.load(scale, place.device, place.precision)
        method, device = upscaler.method, upscaler.device
        before = 0 if device.type == "cuda" else before
        pipe.send(("done",))
        while True:
            lr, reporting = pipe.recv()
            batch = torch.from_numpy(lr).to(device)
            report = _throttled(pipe) if reporting else None
            synchronise(device)
            start = time.perf_counter()
            enlarged = method(batch, report)
            synchronise(device)
            seconds = time.perf_counter() - start
            peak = peak_memory(device)
            own = None if peak is None or before is None else peak - before
            images = enlarged.images.detach().float().cpu().numpy()
            pipe.send(("done", images, list(enlarged.notes) or [""] * len(lr), seconds, peak, own))
    except (EOFError, BrokenPipeError):  # the comparison has gone
        return
    except (GleansrError, OSError, MemoryError, RuntimeError) as error:  # torch and its drivers raise RuntimeErrors
        said = " ".join(str(error).split())[:500]
        pipe.send(("failed", said if isinstance(error, GleansrError) else f"{type(error).__name__}: {said}"))
    except Exception:
        pipe.send(("broken", traceback.format_exc()))


def _end_with_parent() -> None:
    """This process ends as soon as its parent has, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _throttled(pipe: Connection) -> StepReport:
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _STEP_SECONDS:
            last = now
            pipe.send(("step", done, total))

    return report


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int | None:
    """Bytes: on a GPU the most that torch has held there, else the largest resident size of this process; None where that is not known.

    Not getrusage's ru_maxrss on Linux: a fresh process's begins with that of the process that started it.
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
    """What times and memory depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        cpu = models[0] if models else cpu
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"device": device.type, **gpu, "cpu": cpu, "threads": torch.get_num_threads()}
