"""The page's HTML, for the service and for a site without a server."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

PAGE = Path(__file__).parent / "static"
"""The rest of the page."""


def html(*, models: str | None = None, policy: str = "") -> str:
    """The page.

    Args:
        models: address of the list of models, if they run in the browser; None: a service runs them.
        policy: what a page of such a site may load; a service says it in its headers.
    """
    environment = Environment(loader=PackageLoader("gleansr", "serving"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html").render(models=models, policy=policy)
