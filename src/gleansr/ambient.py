"""Isolation from torch's global state (autocast, default device and dtype, gradient mode), and checks after a fork."""

import contextlib
import os
import threading
from collections.abc import Iterator

import torch

from gleansr.errors import RequestError


@contextlib.contextmanager
def plain_torch(*, grad: bool = False) -> Iterator[None]:
    """Resets torch's global state within the block or, as `@plain_torch()`, the function: no autocast, new tensors float32 on the CPU.

    It wraps the package's public calls, but never a `yield` to the caller, whose state would be lost meanwhile. The default dtype belongs
    to the process: other threads of the caller see float32 during the call.

    Args:
        grad: keeps the caller's gradient and inference modes; otherwise both are off.

    Raises:
        RequestError: this process was forked from one that had computed and uses several threads, which would wait for threads that only
            the parent has.
    """
    _check_fork()
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if not grad:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        stack.enter_context(_dtype)
        yield


class _Float32:
    """Makes float32 the default dtype while any thread is inside; the last one to leave restores what the first one found."""

    def __init__(self) -> None:
        self.lock, self.depth, self.previous = threading.Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self.lock:
            if not self.depth:
                self.previous = torch.get_default_dtype()
                if self.previous != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self.depth += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.depth = max(0, self.depth - 1)  # a fork starts with 0
            if not self.depth and self.previous != torch.float32:
                torch.set_default_dtype(self.previous)


_dtype = _Float32()


# ------------------------------------------------------------------------------------------------------------------- fork

FORK_MESSAGE = "forked subprocess"
"""Part of torch's message about a GPU in a process forked from one that had used it."""

FORK_ADVICE = (
    "this process was forked from one that had used the GPU and cannot use it: start processes with "
    "multiprocessing.get_context('spawn'), or use device='cpu' here"
)

_computed = False  # whether this process has entered `plain_torch`
_parent_computed = False


def _check_fork() -> None:
    global _computed
    if _parent_computed and torch.get_num_threads() > 1 and threading.current_thread() is threading.main_thread():
        raise RequestError(
            f"this process was forked from one in which gleansr had run, and torch is set to {torch.get_num_threads()} threads, which "
            "would never finish: use multiprocessing.get_context('spawn'), or torch.set_num_threads(1) in the forked process"
        )
    _computed = True


def _after_fork() -> None:
    """Limits torch to one thread: a forked process has only the thread that forked, but OpenMP expects all of them."""
    global _computed, _parent_computed
    depth, previous = _dtype.depth, _dtype.previous
    _dtype.__init__()  # the lock may have been held, and the other threads will not leave
    if depth:
        torch.set_default_dtype(previous)
    _parent_computed, _computed = _parent_computed or _computed, False
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
