"""The notebooks of examples/notebooks: their code runs, with small sizes, and their files are light and the same on every machine."""

import ast
import base64
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gleansr.checkpoints import native
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config
from tests.scripts import script

_reason = "notebooks need pip install 'gleansr[test]'"
nbformat = pytest.importorskip("nbformat", reason=_reason)
jupyter_client = pytest.importorskip("jupyter_client", reason=_reason)
nbclient = pytest.importorskip("nbclient", reason=_reason)
pytest.importorskip("ipykernel", reason=_reason)
notebooks = importlib.import_module("benchmarks.notebooks")  # it imports them too

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = StyleGAN2Config((8, 8, 6, 4, 4), code_dim=8, mapping_layers=1)
OPTIONS = [
    *("network.in_size=8", "network.out_size=64", "network.n_rrdb=1", "network.features=4", "network.growth=3", "network.out_features=4"),
    *("run.batch_size=2", "run.precision=float32"),
]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One kernel for all notebooks, because importing torch takes long; it reads no settings of the user."""
    settings = {"OMP_NUM_THREADS": "1", "GLEANSR_OFFLINE": "1", "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython"))}
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, **settings})
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture
def tiny_bank(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "bank.safetensors"
    native.save(file, {"generator": StyleGAN2(TINY)}, native.About("tiny-bank", "flowers", "CC0-1.0", "nobody"))
    return file


def source_of(value: Any) -> str:
    return f"Path({str(value)!r})" if isinstance(value, Path) else repr(value)


def run(name: str, kernel: Any, folder: Path, **values: Any) -> dict[str, list[Any]]:
    """Runs a notebook in a folder with other parameters. Returns the outputs of its cells by their ids."""
    notebook = notebooks.read(name)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    known = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert set(values) <= known
    cell.source += "".join(f"\n{key} = {source_of(value)}" for key, value in values.items())
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {folder}"))
    client = nbclient.NotebookClient(notebook, km=kernel, timeout=120)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def printed(outputs: dict[str, list[Any]]) -> str:
    return "".join(output.text for cell in outputs.values() for output in cell if output.output_type == "stream")


def images(outputs: dict[str, list[Any]]) -> int:
    return sum("image/jpeg" in output.get("data", {}) for cell in outputs.values() for output in cell)


def test_upscale(kernel: Any, tmp_path: Path):
    outputs = run("upscale", kernel, tmp_path, examples=EXAMPLES, models=["cats-8x"], photo_size=64)
    assert "cats-8x" in printed(outputs)
    assert "Nothing to do" in printed(outputs)
    assert images(outputs) == 3
    assert list((tmp_path / "output" / "large").glob("*.png"))


def test_retouch(kernel: Any, tmp_path: Path):
    outputs = run("retouch", kernel, tmp_path, examples=EXAMPLES, strengths=[1])
    assert re.search(r"^\d+% of the pixels differ", printed(outputs), re.MULTILINE)
    assert images(outputs) == 5


def test_compare(kernel: Any, tmp_path: Path):
    outputs = run("compare", kernel, tmp_path, examples=EXAMPLES, labels=["glean", "bicubic"], metrics="psnr", degradations=["bicubic"])
    [table] = [output.data["text/markdown"] for cell in outputs.values() for output in cell if "text/markdown" in output.get("data", {})]
    figures = dict(re.findall(r"^\| bicubic \| (\w+) \| ([\d.]+) \|$", table, re.MULTILINE))
    assert float(figures["glean"]) > float(figures["bicubic"]) > 20
    assert images(outputs) == 1


def test_train(kernel: Any, tmp_path: Path, tiny_bank: Path):
    sizes = {"n_train": 2, "n_test": 1, "iterations": 1, "options": OPTIONS}
    outputs = run("train", kernel, tmp_path, examples=EXAMPLES, bank=str(tiny_bank), start=None, **sizes)
    assert "flowers-8x.safetensors" in printed(outputs)
    assert "psnr" in printed(outputs)
    assert images(outputs) == 2


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_files_are_light_and_the_same_on_every_machine(name: str):
    file = notebooks.FOLDER / f"{name}.ipynb"
    notebook = notebooks.read(name)
    nbformat.validate(notebook)
    assert notebook == notebooks.normalised(notebook)
    assert file.stat().st_size < 300_000
    assert 6 <= len(notebook.cells) <= 16
    for cell in notebook.cells:
        text = cell.source
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            text += json.dumps({key: value for key, value in output.items() if key != "data"})
            text += "".join(str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))
        assert not re.search(r"""(?:^|[\s"'(])(?:/(?:home|root|Users|tmp|srv|work)|[A-Z]:\\)""", text)
    assert any(cell.get("outputs") for cell in notebook.cells), "run python -m benchmarks.notebooks"


def test_all_notebooks_are_tested():
    assert sorted(file.stem for file in notebooks.FOLDER.glob("*.ipynb")) == sorted(notebooks.NAMES)


def test_pages_of_the_site_have_their_text_code_and_outputs():
    page, notebook = script("docs/site.py").pages()["examples/notebooks/upscale.ipynb"], notebooks.read("upscale")
    for cell in notebook.cells:
        assert cell.source in page
    data = [
        output.data["image/jpeg"] for cell in notebook.cells for output in cell.get("outputs", []) if "image/jpeg" in output.get("data", {})
    ]
    assert page.count("](data:image/jpeg;base64,") == len(data) > 0
    [first, *_] = re.findall(r"base64,([^)]*)\)", page)
    assert base64.b64decode(first, validate=True) == base64.b64decode(data[0])
