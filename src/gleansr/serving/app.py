"""The service as an ASGI application: its routes and middleware."""

import hashlib
import mimetypes
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.staticfiles import NotModifiedResponse
from starlette.types import Receive, Scope, Send

from gleansr.inference.router import Models
from gleansr.inference.upscaler import Upscaler
from gleansr.serving.admission import Progress
from gleansr.serving.config import ServingConfig
from gleansr.serving.metrics import RequestMetrics
from gleansr.serving.middleware import BrowserHeaders, CloseUnread, Guard
from gleansr.serving.openapi import DESCRIPTION, image_route, problems
from gleansr.serving.page import PAGE, html
from gleansr.serving.problems import Problem
from gleansr.serving.service import Service
from gleansr.version import version


@dataclass(frozen=True)
class ServedModel:
    """A model of the service, for `/v1/models`."""

    name: str
    category: str | None
    scale: int
    input_size: int
    output_size: int
    content_height: int
    """Rows of the image in the square output; less than `output_size` if it has black bars."""
    licence: str | None
    credit: str | None
    default: bool
    loaded: bool


@dataclass(frozen=True)
class ServedModels:
    models: list[ServedModel]
    automatic: bool
    """Whether upscaling without a model recognises the image and chooses."""


class App:
    """The service as an ASGI application."""

    def __init__(self, config: ServingConfig, upscalers: Mapping[str, Upscaler], models: Models | None = None):
        """`upscalers` by name, each with an input size; the first is the default, unless there are `models` to choose from."""
        self.service = Service(config, upscalers, models)
        routed = _routes(self.service)
        self.requests = RequestMetrics(BrowserHeaders(CloseUnread(Guard(routed, config))), self.service.metrics, routed.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.requests(scope, receive, send)


def _routes(service: Service) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    # FastAPI's documentation pages are disabled: they load scripts from another host.
    app = FastAPI(title="gleansr", version=version(), description=DESCRIPTION, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_failure)

    def get(path: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A route for GET and HEAD; the server omits the body for HEAD."""

        def register(handler: Callable[..., Any]) -> Callable[..., Any]:
            app.head(path, **{**options, "include_in_schema": False})(handler)
            return app.get(path, **options)(handler)

        return register

    @app.post(
        "/v1/upscale",
        summary="Enlarge an image",
        response_class=Response,
        **image_route(
            service.upscaling,
            "/v1/upscale",
            "-F image=@small.png -o large.png",
            "-F image=@photo.jpg -F scale=2 -F format=jpeg -o large.jpg",
            "-F image=@small.png -H 'Accept: application/json'",
            "-F image=@small.png -F model=cats-8x -F fit=crop -o large.png",
        ),
    )
    async def upscale(request: Request) -> Response:
        return await service.answer(request, service.upscaling)

    @app.post(
        "/v1/retouch",
        summary="Make a retouched image realistic",
        response_class=Response,
        **image_route(
            service.retouching,
            "/v1/retouch",
            "-F edited=@edited.png -F original=@original.png -o retouched.png",
            "-F edited=@edited.png -F original=@original.png -F output=mask -o mask.png",
        ),
    )
    async def retouch(request: Request) -> Response:
        return await service.answer(request, service.retouching)

    @get("/v1/models", summary="List the models", responses=problems("unauthorized"))
    async def list_models() -> ServedModels:
        return ServedModels(
            [_served(name, upscaler, name == next(iter(service.upscalers))) for name, upscaler in service.upscalers.items()],
            service.models is not None,
        )

    @get("/v1/progress/{name}", summary="How far a request is", responses=problems("unauthorized"))
    async def progress(name: str) -> Progress:
        return service.progress(name)

    @get("/healthz", summary="Liveness probe", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok"

    @get("/readyz", summary="Readiness probe", response_class=PlainTextResponse, responses=problems("stopping"))
    async def readyz() -> str:
        if not service.ready:
            raise Problem("stopping", "the service accepts no more requests; use another instance, or try again later")
        return "ready"

    @get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=problems("unauthorized"))
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    contents = html()

    etag = f'"{hashlib.sha256(contents.encode()).hexdigest()}"'
    static = StaticFiles(directory=PAGE)

    @get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        response = HTMLResponse(contents, headers={"ETag": etag})
        return NotModifiedResponse(response.headers) if static.is_not_modified(response.headers, request.headers) else response

    for suffix, media_type in ((".js", "text/javascript"), (".css", "text/css"), (".svg", "image/svg+xml")):
        mimetypes.add_type(media_type, suffix)  # a system's own types may differ, and browsers refuse them
    app.mount("/static", static)
    app.openapi = lambda: _openapi(app, secured=service.config.secret is not None)
    return app


def _served(name: str, upscaler: Upscaler, default: bool) -> ServedModel:
    about = upscaler.about
    return ServedModel(
        name,
        about.category,
        upscaler.scale,
        upscaler.input_size or 0,
        upscaler.output_size or 0,
        upscaler.content_height or 0,
        about.licence,
        about.credit,
        default,
        True,
    )


def _openapi(app: FastAPI, *, secured: bool) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        if secured:
            schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
        app.openapi_schema = schema
    return app.openapi_schema


async def _answer_problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)  # noqa: S101, the handler is registered for this type
    return problem.response()


async def _answer_http(_: Request, error: Exception) -> Response:
    """Answers errors of the router."""
    assert isinstance(error, HTTPException)  # noqa: S101, as above
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        return Problem("method-not-allowed", f"this address accepts {allowed}", error.headers).response()
    return Problem("not-found", "see /openapi.json for all addresses").response()


async def _answer_failure(_: Request, __: Exception) -> Response:
    """Answers unexpected errors. The server logs the traceback."""
    return Problem("failed", "internal error; please report it, with the traceback from the service's log").response()
