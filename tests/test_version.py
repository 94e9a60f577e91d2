"""The version where the package is not installed, only its sources are there."""

import contextlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gleansr
from gleansr.cli import main
from gleansr.images.metadata import software
from gleansr.version import version


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    for name in ("version", "requires", "metadata", "distribution"):
        monkeypatch.setattr(importlib.metadata, name, missing)
    version.cache_clear()
    software.cache_clear()
    yield
    version.cache_clear()
    software.cache_clear()


@pytest.mark.usefixtures("uninstalled")
def test_all_that_names_the_version_works_without_one(command, cat, tiny_model: Path, tmp_path: Path):
    assert (version(), software()) == ("unknown", "gleansr")
    (tmp_path / "in").mkdir()
    for i in range(2):
        cat.save(tmp_path / "in" / f"{i}.png")
    status, said = command("data", "prepare", "folder", tmp_path / "in", tmp_path / "set", "--size", 32, "--workers", 1)
    assert status == 0, said
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["gleansr"] == "unknown"
    status, said = command("evaluate", tiny_model, tmp_path / "in", "--device", "cpu", "--metrics", "psnr", "--json", tmp_path / "e.json")
    assert status == 0, said
    assert json.loads((tmp_path / "e.json").read_text())["protocol"]["versions"]["gleansr"] == "unknown"
    assert command("upscale", tmp_path / "in", "-o", tmp_path / "out", "-m", tiny_model)[0] == 0


def test_only_two_modules_ask_for_what_is_installed():
    root = Path(gleansr.__file__).parent
    asking = {str(path.relative_to(root)) for path in root.rglob("*.py") if "importlib.metadata" in path.read_text(encoding="utf-8")}
    assert asking == {"version.py", "doctor.py"}  # doctor.py asks for other packages, too, and does without


def test_neither_the_package_nor_help_loads_pytorch():
    script = """
import sys, gleansr
from gleansr.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
assert "torch" not in sys.modules, "it was imported"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "upscale" in done.stdout


def test_the_public_surface_is_there_and_nothing_else():
    assert set(gleansr.__all__) < set(dir(gleansr))
    for name in gleansr.__all__:
        assert callable(getattr(gleansr, name))
    with pytest.raises(AttributeError, match="has no attribute 'upsacle'"):
        gleansr.upsacle  # noqa: B018


def test_the_command_says_its_version(capsys: pytest.CaptureFixture[str]):
    main(["--version"])
    assert capsys.readouterr().out == f"gleansr {version()}\n" == f"gleansr {gleansr.__version__}\n"


@pytest.mark.parametrize(("asked", "same"), [(["help"], ["--help"]), (["help", "models"], ["models", "--help"])])
def test_help_is_a_command_too(asked: list[str], same: list[str], capsys: pytest.CaptureFixture[str]):
    said = []
    for arguments in (asked, same):
        with contextlib.suppress(SystemExit):
            main(arguments)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""
