"""The parts of /openapi.json besides the routes: fields, headers, problems, examples."""

from typing import Any

from gleansr.serving import forms
from gleansr.serving.endpoints import Endpoint
from gleansr.serving.problems import PROBLEMS

DESCRIPTION = (
    "Enlarges small images and makes retouched ones realistic with a generative latent bank. Detail is invented: plausible, not "
    "recovered. Do not use it to identify people or read number plates."
)

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": {"type": "string", "format": "uri", "example": "urn:gleansr:problem:bad-image"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "The cause, the value and the remedy"},
    },
    "required": ["type", "title", "status", "detail"],
}
_HEADERS = {
    "Gleansr-Model": ("string", "Names of the models that made the image, percent-encoded"),
    "Gleansr-Note": ("string", "Notes about the result, percent-encoded; absent if none"),
    "Gleansr-Seconds": ("number", "Duration of the forward passes, of their whole batches; absent if there were none"),
    "Gleansr-Summary": ("string", "What was recognised, and the models, percent-encoded"),
    "Gleansr-Size": ("string", "Width and height in pixels, such as 256x256"),
}
_FACTS = {
    "image": {"type": "string", "contentEncoding": "base64"},
    "media_type": {"type": "string", "example": "image/png"},
    "width": {"type": "integer"},
    "height": {"type": "integer"},
    "scale": {"type": "integer"},
    "model": {"type": "string", "description": "Names of the models that made the image", "example": "general-4x, faces-4x"},
    "summary": {"type": "string", "description": "What was recognised, and the models", "example": "cat (98%), cats-8x"},
    "category": {
        "type": ["object", "null"],
        "description": "Of a thumbnail",
        "properties": {"name": {"type": "string"}, "confidence": {"type": "number"}},
    },
    "objects": {"type": "array", "items": {"type": "object"}, "description": "Of a photo, as in docs/photos.md"},
    "notes": {"type": "array", "items": {"type": "string"}},
    "seconds": {"type": "number", "description": "Of the forward passes"},
}
"""Of a response in JSON, which a request with `Accept: application/json` gets."""
_DETAILS = {
    "bad-field": "strength is '2', but must be a number from 0 to 1",
    "bad-image": "image: is not an image of a known kind; send PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF",
    "unauthorized": "a token is required; send `Authorization: Bearer TOKEN`",
    "superseded": "the same editor sent a newer request; wait for its answer",
    "too-many-pixels": "image: is 60000x60000, more than 25000000 pixels; send a smaller image",
    "missing-field": "the field image is missing; send it as a file, as `curl -F image=@FILE` does",
    "busy": "64 requests are being processed, the maximum; try again in 7 s",
}
_NOT_OF_IMAGES = {"bad-request", "not-found", "method-not-allowed", "client-gone", "stopping"}
"""Problems of other routes, or without a response."""


def image_route(endpoint: Endpoint, path: str, *examples: str) -> dict[str, Any]:
    """Arguments of FastAPI's decorator for a route from images to an image. `examples` are arguments of curl."""
    headers = dict(_HEADERS)
    if "box" in endpoint.fields:
        headers["Gleansr-Box"] = ("string", "Left, top and width of the region that the model saw")
    image = {"schema": {"type": "string", "format": "binary"}}
    facts = {"schema": {"type": "object", "properties": _FACTS, "required": ["image", "media_type", "width", "height"]}}
    success = {
        "description": "The image, with synthetic detail marked in its metadata",
        "headers": {name: {"description": text, "schema": {"type": schema}} for name, (schema, text) in headers.items()},
        "content": {**{f"image/{name}": image for name in ("png", "jpeg", "webp")}, "application/json": facts},
    }
    headers = {
        "Gleansr-Editor": ("Random name of an interactive editor, whose newer request replaces a waiting one", "b7f3c2d09a41"),
        "Gleansr-Progress": ("Random name of the request, by which /v1/progress/NAME tells how far it is", "5d01e7f86b3a"),
    }
    schema = {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"}
    parameters = [
        {"name": name, "in": "header", "description": description, "schema": schema, "example": example}
        for name, (description, example) in headers.items()
    ]
    samples = [{"lang": "Shell", "source": f"curl {arguments} http://127.0.0.1:8008{path}"} for arguments in examples]
    return {
        "responses": {200: success, **problems(*(name for name in PROBLEMS if name not in _NOT_OF_IMAGES))},
        "openapi_extra": {"requestBody": forms.request_body(endpoint.fields), "parameters": parameters, "x-codeSamples": samples},
    }


def problems(*names: str) -> dict[int | str, dict[str, Any]]:
    """Responses by status, with an example of each problem."""
    responses: dict[int | str, dict[str, Any]] = {}
    for name in names:
        status, title = PROBLEMS[name]
        response = responses.setdefault(
            status, {"description": title, "content": {"application/problem+json": {"schema": _PROBLEM, "examples": {}}}}
        )
        example = {"type": f"urn:gleansr:problem:{name}", "title": title, "status": status, "detail": _DETAILS.get(name, title)}
        response["content"]["application/problem+json"]["examples"][name] = {"value": example}
        if name == "busy":
            response["headers"] = {"Retry-After": {"description": "Estimate, in seconds", "schema": {"type": "integer"}}}
    return responses
