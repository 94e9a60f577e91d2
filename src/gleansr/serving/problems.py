"""What can go wrong with a request, as RFC 9457 has it told: `application/problem+json`."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

KINDS = {
    "bad-request": (400, "The request is no valid HTTP"),
    "bad-field": (400, "A field has a wrong value"),
    "bad-picture": (400, "An image cannot be read"),
    "unauthorized": (401, "A token is needed"),
    "foreign-host": (403, "The service is not asked by its own name"),
    "foreign-origin": (403, "Another site's page may not use the service"),
    "not-found": (404, "There is nothing here"),
    "method-not-allowed": (405, "The method is not for this address"),
    "slow-upload": (408, "The request did not arrive in time"),
    "superseded": (409, "A newer request of the same editor took its place"),
    "too-many-bytes": (413, "The request is too large"),
    "too-many-pixels": (413, "An image has too many pixels"),
    "wrong-content-type": (415, "The request is no form"),
    "missing-field": (422, "A field is missing"),
    "unfit": (422, "The image does not suit the model or the fields"),
    "busy": (429, "The service is busy"),
    "client-gone": (499, "The client went away"),
    "failed": (500, "The service failed"),
    "stopping": (503, "The service is stopping"),
    "timeout": (504, "The image was not done in time"),
}
"""Status and title of every problem by its name, of which `type` is made."""


class Problem(Exception):  # noqa: N818, RFC 9457's word
    """A request that is not met. `detail` says in one line what was wrong, the value, and how to mend it."""

    def __init__(self, name: str, detail: str, headers: Mapping[str, str] | None = None):
        """`name` is one of KINDS."""
        super().__init__(f"{name}: {detail}")
        self.name, self.detail, self.headers = name, detail, headers or {}
        self.status, self.title = KINDS[name]

    def response(self) -> JSONResponse:
        body = {"type": f"urn:gleansr:problem:{self.name}", "title": self.title, "status": self.status, "detail": self.detail}
        return JSONResponse(body, self.status, self.headers, "application/problem+json")


def worded(error: Exception) -> str:
    """The message of an error of the library, whose options, such as --fit, are fields here."""
    return str(error).replace("--", "")
