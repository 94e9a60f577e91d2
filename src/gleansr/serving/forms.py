"""The fields of a request: how each is read, checked and documented."""

import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from starlette.requests import Request

from gleansr.serving.multipart import read_parts
from gleansr.serving.problems import Problem


@dataclass(frozen=True)
class Field:
    """A field of a form."""

    schema: Mapping[str, Any]
    """As OpenAPI describes it."""
    parse: Callable[[str], Any] | None = None
    """Its value from text; raises ValueError that says what was expected. None for a file."""
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class Form:
    """What came in a request."""

    files: Mapping[str, BinaryIO]
    """The files that were given, in memory."""
    values: Mapping[str, Any]
    """All other fields, with their defaults where they were not given."""


def file(description: str, *, required: bool = False) -> Field:
    return Field({"type": "string", "format": "binary", "description": description}, required=required)


def choice(description: str, *names: str) -> Field:
    """One of `names`, by default the first."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return text

    return Field({"type": "string", "enum": list(names), "default": names[0], "description": description}, parse, names[0])


def number(description: str, lr: float, sr: float, default: float) -> Field:
    """A finite number."""

    def parse(text: str) -> float:
        value = float(text) if re.fullmatch(r"[-+]?[0-9]{0,20}(\.[0-9]{0,20})?", text) and text.strip("+-.") else math.nan
        if not lr <= value <= sr:
            raise ValueError(f"must be a number from {lr:g} to {sr:g}")
        return value

    schema = {"type": "number", "minimum": lr, "maximum": sr, "default": default, "description": description}
    return Field(schema, parse, default)


def whole(description: str, lr: int, sr: int, *, power_of_two: bool = False) -> Field:
    """A whole number, by default None."""

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
        if not lr <= value <= sr or (power_of_two and value & (value - 1)):
            raise ValueError(f"must be a {'power of two' if power_of_two else 'whole number'} from {lr} to {sr}")
        return value

    return Field({"type": "integer", "minimum": lr, "maximum": sr, "description": description}, parse)


def box(description: str) -> Field:
    """Three whole numbers, by default None."""

    def parse(text: str) -> tuple[int, int, int]:
        if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6}){2}", text):
            raise ValueError("must be left,top,side in pixels, such as 10,20,256")
        left, top, side = map(int, text.split(","))
        return left, top, side

    return Field({"type": "string", "pattern": "^[0-9]+,[0-9]+,[0-9]+$", "description": description, "example": "0,0,256"}, parse)


def documented(fields: Mapping[str, Field]) -> dict[str, Any]:
    """The body of a request with these fields, for OpenAPI."""
    schema = {
        "type": "object",
        "properties": {name: dict(one.schema) for name, one in fields.items()},
        "required": [name for name, one in fields.items() if one.required],
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def check_content_type(request: Request) -> None:
    """Raises Problem "wrong-content-type" if the request is no form."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "multipart/form-data":
        said = f"is {given[:100]!r}" if given else "is missing"
        raise Problem("wrong-content-type", f"Content-Type {said}; send multipart/form-data, as `curl -F picture=@FILE` and FormData do")


async def read(request: Request, body: AsyncIterator[bytes], fields: Mapping[str, Field]) -> Form:
    """The form in `body`.

    Raises:
        Problem: it is no form, lacks a field, or a field is unknown, given twice, or wrong.
        ClientDisconnect: the client went away.
    """
    wanted = {name: one.parse is None for name, one in fields.items()}
    files, texts = await read_parts(request.headers["content-type"], body, wanted)
    values = {name: one.default for name, one in fields.items() if one.parse is not None}
    for name, text in texts.items():
        parse = fields[name].parse
        if parse is not None and text:  # an empty field is one that was left out
            try:
                values[name] = parse(text)
            except ValueError as error:
                raise Problem("bad-field", f"{name} is {text[:50]!r}, but {error}") from None
    if missing := [name for name, one in fields.items() if one.required and name not in files]:
        raise Problem("missing-field", f"the field {missing[0]} is missing; send it as a file, as `curl -F {missing[0]}=@FILE` does")
    return Form(files, values)
