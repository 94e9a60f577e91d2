"""The README: short, its commands and its code do what it says, and what it states agrees with the models and the metadata."""

import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import docs
from gleansr.checkpoints import zoo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXAMPLES = ROOT / "examples"
TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the images that the README names."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "small.png"):
        shutil.copyfile(EXAMPLES / "chelsea-32.png", name)
    with Image.open("cat.png") as image:
        image.convert("RGB").save("cat.jpg", quality=100, subsampling=0)
    with Image.open(EXAMPLES / "chelsea-256.png") as image:
        original = image.convert("RGB")
    original.save("photo.png")
    original.paste(original.crop((80, 60, 110, 90)).resize((45, 45)), (72, 52))
    original.save("edited.png")
    Path("small").mkdir()
    shutil.copyfile("cat.png", "small/cat.png")
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_is_short():
    assert len(README.splitlines()) <= 120


@pytest.mark.usefixtures("files")
def test_commands_do_what_it_says(command: Callable[..., tuple[int, str]]):
    lines = [shlex.split(line, comments=True)[1:] for line in blocks("")[0].splitlines() if line.startswith("gleansr ")]
    assert [line[0] for line in lines] == ["upscale", "retouch", "serve"]
    for line in lines[:2]:  # the tests of the service start it
        status, printed = command(*line)
        assert status == 0, printed
    with Image.open("cat_8x.png") as large, Image.open("edited_retouched.png") as retouched:
        assert (large.size, retouched.size) == ((256, 256), (256, 256))


@pytest.mark.usefixtures("files")
def test_the_code_runs(capsys: pytest.CaptureFixture[str]):
    [code] = blocks("python")
    exec(code, {})  # noqa: S102, it is our own
    assert capsys.readouterr().out == "1 image → large (model auto)\n"
    for name in ("large.png", "cat.png", "retouched.png"):
        with Image.open(name) as image:
            assert image.size == (256, 256)


def test_the_table_of_models_is_complete_and_right():
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| \[.*$", README, re.MULTILINE)]
    listed = {re.sub(r"\[(.*?)\].*", r"\1", row[0]): row[1:] for row in rows}
    bundled = {model.name: model for model in zoo.named_models() if model.asset and (model.kind == "glean" or model.name == "general-4x")}
    assert set(listed) == set(bundled)
    for name, (category, scale, sizes, *_, size, licence) in listed.items():
        model = bundled[name]
        assert category == model.category
        assert size == f"{zoo.file_of(model).stat().st_size / 1e6:.1f} MB"
        assert licence.replace(" ", "-", 1).replace("-NC ", "-NC-") == model.licence
        assert scale == f"{model.out_size // (model.in_size or 1)}{TIMES}"
        if category != "any":
            assert re.fullmatch(rf"{model.in_size}{TIMES}\d+ → {model.out_size}{TIMES}\d+", sizes)


def test_its_figures_are_those_of_the_results():
    results = (ROOT / "docs" / "results.md").read_text("utf-8")
    clean, _, real = results.partition("**Real**")
    for row in re.findall(r"^\| \[(?!general)(.*?)\]\(.*?\) \| (.*)$", README, re.MULTILINE):
        cells = [cell.strip() for cell in row[1].split("|")]
        for part, told in ((clean, cells[3]), (real, cells[4])):
            [measured] = re.findall(rf"^\| {row[0]} \| (.*)$", part.partition("## Self-ensemble")[0], re.MULTILINE)
            _, psnr, _, squeezenet, mobilenet, *_ = [cell.strip() for cell in measured.split("|")]
            assert told == f"{psnr.partition(' (')[0]}, {squeezenet}, {mobilenet}", row[0]
    [table] = re.findall(r"^### The 64 images.*?(?=^###)", results, re.MULTILINE | re.DOTALL)
    for line in re.findall(r"^\| (?:GLEAN|plain|ESRGAN\+|PULSE|DGP|bicubic).*$", README, re.MULTILINE):
        name, *told = [cell.strip() for cell in line.split("|")[1:-1]]
        [measured] = [row for row in table.splitlines() if row.startswith(f"| {name} |")]
        assert set(told) <= {cell.strip() for cell in measured.split("|")}, name


def test_refreshing_its_tables_changes_what_is_stale_and_nothing_else():
    results = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert docs.refreshed(README, results) == README
    clean = next(line for line in README.splitlines() if line.startswith("| [faces-8x]")).split(" | ")[4]
    measured = next(line for line in results.splitlines() if line.startswith("| faces-8x | ")).split(" | ")[2]
    gain = clean.split(",")[0]
    assert measured.startswith(f"{gain} (")
    stale = README
    for present, other in ((clean, "+9.99 dB"), ("| **24.45 dB** |", "| 30 dB |"), ("1.8 MB", "9 MB")):
        assert present in stale
        stale = stale.replace(present, other)
    assert docs.refreshed(stale, results) == README
    assert clean.replace(gain, "+9.98 dB") in docs.refreshed(README, results.replace(measured, "+9.98 dB (35.60)"))


def test_metadata_agree():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation
    [released] = re.findall(r"^date-released: (.*)$", citation, re.MULTILINE)
    assert re.findall(r"^## (.*)$", changes, re.MULTILINE)[:2] == ["[Unreleased]", f"[{PROJECT['version']}] - {released}"]
    extras = PROJECT["optional-dependencies"]
    assert not {"test", "docs", "release"} & set(re.findall(r"[a-z]+", extras["all"][0].partition("[")[2]))
