"""Settings of the C allocator. Imports no PyTorch, since the command line applies them first."""

import ctypes
import os
import sys


def keep_freed_memory() -> None:
    """Makes this process and its children keep freed memory for reuse, unless the environment sets this already.

    glibc returns large freed blocks to the system and requests new ones, which the system clears page by page: up to a tenth of the time of
    a small network's forward pass. The setting holds for the whole process, so it is only for gleansr's own processes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for name, option, value in (
        ("MALLOC_TRIM_THRESHOLD_", -1, 2**30),
        ("MALLOC_MMAP_THRESHOLD_", -3, 2**30),
        ("MALLOC_ARENA_MAX", -8, 2),  # each arena keeps what it freed: by default 8 per core, half of a service's memory
    ):
        if mallopt and os.environ.setdefault(name, str(value)) == str(value):
            mallopt(option, value)
