"""Executes the notebooks of examples/notebooks and stores them with their outputs, without what differs from machine to machine.

    python -m benchmarks.notebooks [NAME...]

They run in their folder with this Python, as a user runs them, and from the beginning: what an earlier run wrote is removed. Needs
`pip install 'gleansr[test]'`.
"""

import argparse
import shutil
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
NAMES = ("upscale", "retouch", "compare", "train")
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}


def read(name: str) -> NotebookNode:
    """A notebook as it is stored."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def normalised(notebook: NotebookNode) -> NotebookNode:
    """A copy that does not depend on who ran or edited it: cells are numbered from the top, and of an image only the JPEG is kept."""
    notebook = nbformat.from_dict({**notebook, "metadata": METADATA})
    for number, cell in enumerate(notebook.cells, 1):
        tags = cell.metadata.get("tags")
        cell.id, cell.metadata = f"{number:02}", nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
            if "image/jpeg" in output.get("data", {}):
                output.data.pop("image/png", None)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; by default all")
    for name in parser.parse_args().names or NAMES:
        shutil.rmtree(FOLDER / "output", ignore_errors=True)
        notebook, start = read(name), time.perf_counter()
        options = {"kernel_name": "python3", "coalesce_streams": True, "resources": {"metadata": {"path": str(FOLDER)}}}
        NotebookClient(notebook, timeout=None, **options).execute()
        file = FOLDER / f"{name}.ipynb"
        nbformat.write(normalised(notebook), file)
        print(f"{file.name}: {time.perf_counter() - start:.0f} s, {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
