"""Shared by all tests: one thread, so that tiny tensors are not spread over cores, and small images."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:  # processes that a test starts share the cores with those of the other workers
    os.environ["OMP_NUM_THREADS"] = "1"


SLOWEST = ("static_page", "page", "cluster", "processes", "export", "compare", "fuzz_kills", "training", "serving_abuse", "fuzz_http")
"""The files that take longest; begun last, one of them would keep a single worker busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slowest files first, and skips what this machine cannot do, with the reason."""
    places = {f"test_{name}": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command line in this process; returns its exit status and what it printed, both streams together."""
    from gleansr.cli import main

    def call(*arguments: object) -> tuple[int, str]:
        status: int | str | None = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return int(status or 0), captured.out + captured.err

    return call


@pytest.fixture
def cat() -> Image.Image:
    """A smooth coloured image 64x64."""
    y, x = np.mgrid[0:64, 0:64] / 63
    pixels = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x) * np.cos(7 * y)], -1)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves contents with torch and returns the path."""

    def save(contents: Any, **options: Any) -> Path:
        torch.save(contents, tmp_path / "weights", **options)
        return tmp_path / "weights"

    return save


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native file with an untrained GLEAN 8 -> 32, whose results are close to mid-grey but depend on the image."""
    from gleansr.checkpoints import native
    from gleansr.models.glean import GLEAN, GLEANConfig
    from gleansr.models.stylegan2 import StyleGAN2Config

    torch.manual_seed(0)
    model = GLEAN(GLEANConfig(8, StyleGAN2Config((8, 8, 6, 4), code_dim=8, mapping_layers=1), n_rrdb=1, features=4, growth=3))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    native.save(path, {"generator": model}, native.About("tiny", "blobs", "CC0-1.0", "nobody"))
    return path
