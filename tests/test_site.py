"""The documentation: every page is in the navigation of the site, every link and anchor leads somewhere, and its commands exist."""

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro

from gleansr.cli import main
from tests.scripts import script

ROOT = Path(__file__).parents[1]
site = script("docs/site.py")

PAGES: dict[str, str] = site.pages()
FENCE = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#{1,6} (.*)$", FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in plain}


def test_the_navigation_has_each_page_once():
    nav = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(nav) == sorted(site.site_path(page) for page in PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_lead_somewhere(page: str):
    for target, anchor in site.links(PAGES[page]):
        path = site.resolve(page, target)
        assert (ROOT / path).exists(), f"{page} links to {target}"
        if anchor:
            assert anchor[1:] in anchors(PAGES[path]), f"{page} links to {target}{anchor}"
        if not target.endswith("/") and (ROOT / path).is_dir():
            assert path == "docs", f"{page} links to the folder {target}, which is no page of the site"


def test_gathered_pages_hold_links_of_the_site_only(tmp_path: Path):
    site.gather(tmp_path)
    for file in tmp_path.rglob("*.md"):
        page = file.relative_to(tmp_path).as_posix()
        if page.startswith("source/"):
            continue
        for target, _ in site.links(file.read_text("utf-8")):
            path = tmp_path / site.resolve(page, target)
            assert path.is_file(), f"{page} links to {target}"
    assert (tmp_path / "index.md").read_text("utf-8").startswith("# gleansr\n")
    assert "``````python\n" in (tmp_path / "source/src/gleansr/inference/cpu/winograd.py.md").read_text("utf-8")
    assert (tmp_path / "source/examples/chelsea-256.png").is_file()


def test_the_page_that_runs_in_the_browser_is_part_of_the_site_if_it_was_made(tmp_path: Path):
    page = tmp_path / "page"
    (page / "static").mkdir(parents=True)
    (page / "index.html").write_text("the page")
    (page / "static" / "main.js").write_text("")
    site.gather(tmp_path / "with", page)
    assert (tmp_path / "with" / "try" / "index.html").read_text() == "the page"
    assert (tmp_path / "with" / "try" / "static" / "main.js").exists()
    assert "(try/index.html)" in (tmp_path / "with" / "try.md").read_text("utf-8")
    site.gather(tmp_path / "without")
    assert not (tmp_path / "without" / "try").exists()
    assert "make site" in (tmp_path / "without" / "try.md").read_text("utf-8")


def commands(text: str) -> Iterator[str]:
    """The commands of gleansr in the blocks of code of a page, joined where they are continued, and in its tables those with an output."""
    for fence in FENCE.finditer(text):
        if fence[2] in ("", "sh"):
            for line in re.sub(r"[ \t]+(#[^\n]*)?\n", "\n", re.sub(r"\\\n\s*", "", fence[3])).splitlines():
                if line.startswith("gleansr ") and not set("<…;") & set(line) and "[--" not in line:
                    yield line
    for line in re.findall(r"`(gleansr [^`…<]* -o [^`…<]*)`", FENCE.sub("", text)):
        if line.split()[1] in ("train", "figure", "compare"):
            yield line


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(PAGES[page]))])
def test_commands_have_these_options(page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    original = tyro.cli
    parsed: list[str] = []

    def parse(function, **options):
        """As tyro.cli, but the command does nothing."""

        @functools.wraps(function)
        def nothing(*_: object, **__: object) -> None:
            parsed.append(options["prog"])

        return original(nothing, **options)

    monkeypatch.setattr(tyro, "cli", parse)
    lines = list(commands(PAGES[page]))
    for line in lines:
        arguments = shlex.split(line, comments=True)[1:]
        try:
            main(arguments)
        except SystemExit as end:
            assert not end.code, f"{page}: {line}\n{capsys.readouterr().err}"  # noqa: PT017, its message is needed
    assert len(parsed) + sum("help" in line.split() or "--version" in line.split() for line in lines) == len(lines)
