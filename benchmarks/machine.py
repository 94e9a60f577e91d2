"""Description of the machine for all benchmarks."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from gleansr.evaluation import runner
from gleansr.inference.devices import cores


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, software versions and date.

    "cores" are available to this process, "threads" are torch's; "memory_gib" is the machine's memory or the process's limit; "load" is the
    load average of the last minute.
    """
    facts = runner.machine(device)
    facts |= {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "memory_gib": _memory(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            # PyTorch's default for float32 is TF32 for convolutions only.
            "tf32": {"convolution": torch.backends.cudnn.allow_tf32, "matrix": torch.backends.cuda.matmul.allow_tf32},
        }
    return facts


def described(facts: dict[str, Any]) -> str:
    """The facts in one line."""
    memory = f", {facts['memory_gib']:g} GiB" if facts["memory_gib"] else ""
    cpu = f"{facts['cpu']} ({facts['instructions']}), {facts['cores']} cores, {facts['threads']} threads{memory}"
    gpu = f"{facts['gpu']}, {facts['gpu_memory_gib']:g} GiB, CUDA {facts['cuda']}; " if "gpu" in facts else ""
    load = "" if facts["load"] is None else f", load {facts['load']:g} before"
    return f"{gpu}{cpu}; torch {facts['torch']}, Python {facts['python']}, {facts['system']}; {facts['date']}{load}"


def _memory() -> float | None:
    """Memory in GiB, None if unknown."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    limit_text = limit.read_text(encoding="utf-8").strip() if limit.exists() else "max"
    return round(min(total, int(limit_text) if limit_text.isdecimal() else total) / 2**30, 1)
