"""What /openapi.json says beside the routes themselves: fields, headers, problems, examples."""

from typing import Any

from gleansr.serving import forms, jobs
from gleansr.serving.problems import KINDS

DESCRIPTION = (
    "Enlarges small images and makes retouched ones realistic with a generative latent bank. Detail is invented: plausible, not what was "
    "there. Do not identify people or read number plates with it."
)

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": {"type": "string", "format": "uri", "example": "urn:gleansr:problem:bad-picture"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was wrong, the value, and how to mend it"},
    },
    "required": ["type", "title", "status", "detail"],
}
_HEADERS = {
    "Gleansr-Model": ("string", "Name of the model"),
    "Gleansr-Note": ("string", "What was done with the image, percent-encoded; absent if nothing"),
    "Gleansr-Seconds": ("number", "The forward pass, with all images of its batch; absent if there was none"),
    "Gleansr-Size": ("string", "Width and height in pixels, such as 256x256"),
}
_DETAILS = {
    "bad-field": "strength is '2', but must be a number from 0 to 1",
    "bad-picture": "picture: is no image of a known kind; send PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF",
    "unauthorized": "a token is needed; send `Authorization: Bearer TOKEN`",
    "superseded": "a newer request of the same editor was sent; wait for its answer",
    "too-many-pixels": "picture: is 60000x60000, which is more than 25000000 pixels; send a smaller image",
    "missing-field": "the field image is missing; send it as a file, as `curl -F picture=@FILE` does",
    "busy": "64 requests are being worked on, which is the most; try again in 7 s",
}
_NAMES = (
    "bad-field",
    "bad-picture",
    "unauthorized",
    "foreign-host",
    "foreign-origin",
    "slow-upload",
    "superseded",
    "too-many-bytes",
    "too-many-pixels",
    "wrong-content-type",
    "missing-field",
    "unfit",
    "busy",
    "failed",
    "timeout",
)


def image_route(kind: jobs.RequestKind, path: str, *examples: str) -> dict[str, Any]:
    """Arguments of FastAPI's decorator for a route that takes and answers images. `examples` are arguments of curl."""
    headers = dict(_HEADERS)
    if "box" in kind.fields:
        headers["Gleansr-Box"] = ("string", "Left, top and width of the region that the model saw")
    image = {"schema": {"type": "string", "format": "binary"}}
    done = {
        "description": "The image, marked as having synthetic detail",
        "headers": {name: {"description": said, "schema": {"type": type_}} for name, (type_, said) in headers.items()},
        "content": {f"image/{format_}": image for format_ in ("png", "jpeg", "webp")},
    }
    editor = {
        "name": "Gleansr-Editor",
        "in": "header",
        "description": "Of an interactive editor, a random name: its newer request replaces an older one that still waits",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"},
        "example": "b7f3c2d09a41",
    }
    samples = [{"lang": "Shell", "source": f"curl {arguments} http://127.0.0.1:8008{path}"} for arguments in examples]
    return {
        "responses": {200: done, **problems(*_NAMES)},
        "openapi_extra": {"requestBody": forms.documented(kind.fields), "parameters": [editor], "x-codeSamples": samples},
    }


def problems(*names: str) -> dict[int | str, dict[str, Any]]:
    """Answers by status, with an example of each problem."""
    answers: dict[int | str, dict[str, Any]] = {}
    for name in names:
        status, title = KINDS[name]
        answer = answers.setdefault(
            status, {"description": title, "content": {"application/problem+json": {"schema": _PROBLEM, "examples": {}}}}
        )
        example = {"type": f"urn:gleansr:problem:{name}", "title": title, "status": status, "detail": _DETAILS.get(name, title)}
        answer["content"]["application/problem+json"]["examples"][name] = {"value": example}
        if name == "busy":
            answer["headers"] = {"Retry-After": {"description": "Estimate, in seconds", "schema": {"type": "integer"}}}
    return answers
