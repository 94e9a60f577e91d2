"""The C library's allocator. Loads no PyTorch, since the command sets it before anything else."""

import ctypes
import os
import sys


def keep_freed_memory() -> None:
    """Lets this process and those that it starts keep what they free for what they need next, as far as the environment does not say.

    glibc's allocator gives large maps back to the system as soon as they are freed, and asks for them anew, which the system clears page
    by page: up to a tenth of the time of a small network's pass. It is a setting of the whole process, so only for processes of our own.
    """
    most = 2**30
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for name, option in (("MALLOC_TRIM_THRESHOLD_", -1), ("MALLOC_MMAP_THRESHOLD_", -3)):
        if mallopt and os.environ.setdefault(name, str(most)) == str(most):
            mallopt(option, most)
