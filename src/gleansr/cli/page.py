"""`gleansr page`: the page as a static site."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


def page(
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    models: tuple[str, ...] = (),
    runtime: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write the page as a folder for any file server; its models run in the browser (docs/page.md).

    - gleansr page -o site
    - gleansr page -o site --models faces-8x faces-4x general-4x
    - gleansr page -o site --runtime node_modules/onnxruntime-web

    Args:
        output: The folder.
        models: Bundled models that the page offers; by default the light ones.
        runtime: Folder of the npm package onnxruntime-web. By default npm fetches it once.
        overwrite: Replace the files of a former site in the folder.
    """
    from gleansr.serving.site import MODELS, write_site

    console = Console(stderr=True, soft_wrap=True)

    def report(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    site = write_site(output, models or MODELS, runtime, overwrite=overwrite, report=report)
    report(
        f"{site.folder}: the page with {', '.join(site.models)} ({site.size / 1e6:.1f} MB; a first use loads at most "
        f"{site.first_use / 1e6:.1f} MB). Serve it: python -m http.server -d {site.folder} 8009"
    )
