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


def serve(config: Annotated[ServingConfig, tyro.conf.arg(name="")], open: bool = False, offline: bool = False) -> None:
    """Retouch and upscale in the browser, and serve both to other programs; see docs/serving.md.

    Args:
        config: What is served, to whom, and how much of it.
        open: Open the page in the browser.
        offline: Never download a model.
    """
    try:
        from gleansr.serving import server
    except ImportError as error:
        raise RequestError(f"serving wants {error.name}: pip install 'gleansr[serve]'") from None

    with server.listen(config.host, config.port) as listener:  # what is not possible is said before the models are loaded
        models = server.load_models(config, partial(fetched, offline=offline))

        def started(url: str) -> None:
            device = next(iter(models.values())).device
            Console(stderr=True, soft_wrap=True).print(
                f"gleansr: serving {', '.join(models)} on {device} at {url} (Ctrl-C stops)", markup=False, highlight=False
            )
            if open:
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        server.run(config, models, listener, started)
