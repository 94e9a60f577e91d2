"""Gathers the pages of the site: `python docs/site.py FOLDER [PAGE]` writes those of docs/ and of the root, with links that hold there.

PAGE is a folder that `gleansr page` wrote; it becomes the part "Try it".

The Markdown is written for the repository, and this changes its links alone. A link to a page outside of docs/ leads to its copy on the
site; a link to any other file outside of docs/ leads to a page with that file's text, or to the image. Notebooks become Markdown. Standard
library only.
"""

import json
import posixpath
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "examples/README.md": "examples.md",
    "examples/notebooks/upscale.ipynb": "notebooks/upscale.md",
    "examples/notebooks/retouch.ipynb": "notebooks/retouch.md",
    "examples/notebooks/compare.ipynb": "notebooks/compare.md",
    "examples/notebooks/train.ipynb": "notebooks/train.md",
}
"""Pages outside of docs/: path in the repository, path on the site."""
START = "get-started.md"
"""Where a link to the folder docs/ leads."""
LANGUAGES = {".py": "python", ".toml": "toml", ".cff": "yaml", ".md": "markdown", ".yml": "yaml"}
IMAGES = {".png", ".jpg", ".svg"}
TRY = "[Open the page](try/index.html)"
NO_PAGE = "This copy of the site was made without it; `make site` makes one that has it."
"""Ends of the page "Try it"."""
_FENCE = re.compile(r"^(`{3,}).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s#]+)(#[^)\s]*)?\)")


def pages() -> dict[str, str]:
    """The Markdown of all pages, by their path in the repository."""
    paths = [*(ROOT / "docs").rglob("*.md"), *(ROOT / path for path in OUTSIDE)]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(paths)}
    return {path: from_notebook(text) if path.endswith(".ipynb") else text for path, text in texts.items()}


def from_notebook(text: str) -> str:
    """The Markdown of a notebook: its text, its code and their outputs, with the images inside the page."""
    blocks = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        blocks.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = {kind: "".join(lines) for kind, lines in output.get("data", {}).items()}
            image = next((kind for kind in ("image/jpeg", "image/png") if kind in data), None)
            if image:
                blocks.append(f"![output of the code above](data:{image};base64,{''.join(data[image].split())})")
            elif "text/markdown" in data:
                blocks.append(data["text/markdown"])
            else:
                printed = "".join(output.get("text", [])) or data["text/plain"]
                blocks.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(blocks) + "\n"


def links(text: str) -> list[tuple[str, str]]:
    """Targets and anchors ("" for none) of the links in a page, without those in blocks of code; only within the repository."""
    found = [(link[2], link[3] or "") for link in _LINK.finditer(_FENCE.sub("", text))]
    found += [("", link[1]) for link in re.finditer(r"\]\((#[^)\s]+)\)", _FENCE.sub("", text))]
    return [(target, anchor) for target, anchor in found if not re.match(r"[a-z]+:", target)]


def resolve(page: str, target: str) -> str:
    """The path in the repository to which a link in a page leads."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) if target else page


def site_path(path: str) -> str:
    """The path on the site of a file of the repository."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if path == "docs":
        return START
    if path.startswith("docs/") and not path.endswith(".py"):
        return path.removeprefix("docs/")
    return f"source/{path}" if Path(path).suffix in IMAGES else f"source/{path}.md"


def rewrite(page: str, text: str) -> str:
    """A page with links as the site needs them."""
    here = posixpath.dirname(site_path(page)) or "."

    def replaced(link: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", link[2]):
            return link[0]
        return f"{link[1]}{posixpath.relpath(site_path(resolve(page, link[2])), here)}{link[3] or ''})"

    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(replaced, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(replaced, text[end:])])


def gather(folder: Path, page: Path | None = None) -> None:
    """Writes all pages and what they need into a new folder, with the page that runs in the browser if there is one."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.md", "*.py", "__pycache__"))
    texts = pages()
    for path, text in texts.items():
        _write(folder / site_path(path), rewrite(path, text))
    if page:
        shutil.copytree(page, folder / "try")
    with (folder / "try.md").open("a", encoding="utf-8") as file:
        file.write(f"\n{TRY if page else NO_PAGE}\n")
    linked = {resolve(path, target) for path, text in texts.items() for target, _ in links(text)}
    for path in sorted(path for path in linked if site_path(path).startswith("source/")):
        target = folder / site_path(path)
        if target.suffix in IMAGES:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, target)
        else:
            code = (ROOT / path).read_text("utf-8").rstrip()
            _write(
                target,
                f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n``````{LANGUAGES.get(Path(path).suffix, 'text')}\n{code}\n``````\n",
            )


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")


if __name__ == "__main__":
    gather(*map(Path, sys.argv[1:3]))
