"""One way through: `gleansr upscale IMAGE` reaches each convolution through at most eight files, and without the cluster package."""

import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import gleansr
from gleansr.cli import main
from gleansr.inference import cpu

PACKAGE = Path(gleansr.__file__).parent
MOST_FILES = 8
IMPORTED = "import sys; from gleansr.cli import main; main(sys.argv[1:]); print([name for name in sys.modules if name.startswith({!r})])"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.new("RGB", (8, 8), "orange").save(path)
    return path


@pytest.mark.parametrize("path", ["plain", "fast"])
def test_few_files_lie_between_the_command_and_a_convolution(path: str, image: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    if path == "plain" or not cpu.available(torch.float32):
        monkeypatch.setattr(cpu, "available", lambda _: False)
    stacks: set[tuple[str, ...]] = set()
    threads: set[threading.Thread] = set()

    def record(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            files = [Path(frame.filename) for frame in traceback.extract_stack()]
            stacks.add(tuple(dict.fromkeys(str(file.relative_to(PACKAGE)) for file in files if file.is_relative_to(PACKAGE))))
            threads.add(threading.current_thread())
            return original(*args, **options)

        monkeypatch.setattr(owner, name, call)

    record(F, "conv2d")
    record(F, "conv_transpose2d")
    if hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        record(torch.ops.mkldnn, "_convolution_pointwise")
    main(["upscale", str(image), "-m", str(tiny_model), "--device", "cpu"])
    assert (image.parent / "cat_4x.png").exists()
    assert threads == {threading.main_thread()}  # so that each stack begins with the command
    inner = "inference/cpu/frozen.py" if path == "fast" and cpu.available(torch.float32) else "models/glean.py"
    for files in stacks:
        assert files[:2] == ("cli/__init__.py", "cli/upscale.py")
        assert inner in files
    longest = max(stacks, key=len)
    assert len(longest) <= MOST_FILES, longest


def test_a_local_image_imports_neither_the_cluster_package_nor_what_takes_seconds(image: Path, tiny_model: Path):
    slow = IMPORTED.format(("gleansr.cluster", "sympy", "torch._dynamo"))
    command = [sys.executable, "-c", slow, "upscale", str(image), "-m", str(tiny_model), "--device", "cpu"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert ran.stdout.strip() == "[]"
    assert (image.parent / "cat_4x.png").exists()
