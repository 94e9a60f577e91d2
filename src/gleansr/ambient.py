"""What a program has set torch to, kept out of what this package computes; and what a fork leaves of torch."""

import contextlib
import os
import threading
from collections.abc import Iterator

import torch

from gleansr.errors import RequestError


@contextlib.contextmanager
def plain_torch(*, grad: bool = False) -> Iterator[None]:
    """Within it torch is as in a fresh process but for its threads: no autocast, no inference mode, new tensors float32 on the CPU.

    It surrounds the package's public calls, also as a decorator: `@plain_torch()`. Never a `yield` to the caller, whose state would be lost
    meanwhile. The default dtype belongs to the process, so other threads of the caller see float32 for as long as a call lasts.

    Args:
        grad: Gradients are recorded where the caller records them, and inference mode stays on. Without, neither.

    Raises:
        RequestError: this process was forked from one that had computed, and was then told to use several threads, which would wait for
            threads that only the parent has.
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
    """float32 is the default dtype while any thread is in here; the last one to leave puts back what the first one found."""

    def __init__(self) -> None:
        self.lock, self.inside, self.found = threading.Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.found = torch.get_default_dtype()
                if self.found != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside = max(0, self.inside - 1)  # a fork begins with 0
            if not self.inside and self.found != torch.float32:
                torch.set_default_dtype(self.found)


_dtype = _Float32()


# ------------------------------------------------------------------------------------------------------------------- fork

FORKED = "forked subprocess"
"""What torch says of a GPU in a process forked from one that had used it."""

AFTER_FORK = (
    "this process was forked from one that had used the GPU, which is lost to it: start processes by "
    "multiprocessing.get_context('spawn'), or take device='cpu' here"
)

_computed = False  # whether this process has entered `plain_torch`
_parent_computed = False


def _check_fork() -> None:
    global _computed
    if _parent_computed and torch.get_num_threads() > 1 and threading.current_thread() is threading.main_thread():
        raise RequestError(
            f"this process was forked from one in which gleansr had run, and torch is set to {torch.get_num_threads()} threads here, which "
            "would wait for ever: use multiprocessing.get_context('spawn'), or torch.set_num_threads(1) in the forked process"
        )
    _computed = True


def _after_fork() -> None:
    """Of the threads that torch computes with a forked process has only the one that forked, but OpenMP counts on all of them."""
    global _computed, _parent_computed
    inside, found = _dtype.inside, _dtype.found
    _dtype.__init__()  # the lock may have been held, and the other threads will not leave
    if inside:
        torch.set_default_dtype(found)
    _parent_computed, _computed = _parent_computed or _computed, False
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
