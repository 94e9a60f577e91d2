"""Problem details for HTTP (RFC 9457): `application/problem+json`."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

PROBLEMS = {
    "bad-request": (400, "The request is not valid HTTP"),
    "bad-field": (400, "A field has an invalid value"),
    "bad-image": (400, "An image cannot be read"),
    "unauthorized": (401, "A token is required"),
    "foreign-host": (403, "The host name is not one of the service's"),
    "foreign-origin": (403, "Pages of other sites may not use the service"),
    "not-found": (404, "The address does not exist"),
    "method-not-allowed": (405, "The address does not support the method"),
    "slow-upload": (408, "The request did not arrive in time"),
    "superseded": (409, "A newer request of the same editor replaced this one"),
    "too-many-bytes": (413, "The request is too large"),
    "too-many-pixels": (413, "An image has too many pixels"),
    "wrong-content-type": (415, "The request is not a form"),
    "missing-field": (422, "A field is missing"),
    "unfit": (422, "The image does not suit the model or the fields"),
    "busy": (429, "The service is busy"),
    "client-gone": (499, "The client disconnected"),
    "failed": (500, "The service failed"),
    "stopping": (503, "The service is stopping"),
    "timeout": (504, "The image was not finished in time"),
}
"""Status and title of each problem, by the name at the end of its `type`."""


class Problem(Exception):  # noqa: N818, RFC 9457's word
    """A failed request. `detail` gives the cause, the value and the remedy in one line."""

    def __init__(self, name: str, detail: str, headers: Mapping[str, str] | None = None):
        """`name` is one of PROBLEMS."""
        super().__init__(f"{name}: {detail}")
        self.name, self.detail, self.headers = name, detail, headers or {}
        self.status, self.title = PROBLEMS[name]

    def response(self) -> JSONResponse:
        body = {"type": f"urn:gleansr:problem:{self.name}", "title": self.title, "status": self.status, "detail": self.detail}
        return JSONResponse(body, self.status, self.headers, "application/problem+json")
