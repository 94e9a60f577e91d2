"""`gleansr serve`: the page and the service."""

import threading
import webbrowser
from functools import partial
from typing import Annotated

import tyro
from rich.console import Console

from gleansr.cli.progress import fetched
from gleansr.errors import RequestError
from gleansr.serving.config import ServingConfig


def serve(
    config: Annotated[ServingConfig, tyro.conf.arg(name="")],
    open_page: Annotated[bool, tyro.conf.arg(name="open")] = False,
    offline: bool = False,
) -> None:
    """Enlarge and retouch in the browser, and serve both over HTTP (docs/serving.md).

    - gleansr serve --open
    - curl -F image=@photo.jpg http://127.0.0.1:8008/v1/upscale -o large.png
    - gleansr serve --models faces-8x cats-8x --port 9000

    Args:
        config: What is served, to whom, and within which limits.
        open_page: Open the page in the browser.
        offline: Never download a model.
    """
    try:
        from gleansr.serving import server
    except ImportError as error:
        raise RequestError(f"serving needs {error.name}: pip install 'gleansr[serve]'") from None

    with server.listen(config.host, config.port) as listener:  # what is not possible is said before the models are loaded
        console = Console(stderr=True, soft_wrap=True)
        if console.is_terminal:  # somebody waits; a log has the line below
            console.print("gleansr: loading the models", markup=False, highlight=False)
        upscalers, models = server.load_models(config, partial(fetched, offline=offline))

        def started(url: str) -> None:
            device = next(iter(upscalers.values())).device
            console.print(f"gleansr: serving {', '.join(config.models)} on {device} at {url} (Ctrl-C stops)", markup=False, highlight=False)
            if open_page:
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        server.run(config, upscalers, models, listener, started)
