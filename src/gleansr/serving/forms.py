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
    """In OpenAPI."""
    parse: Callable[[str], Any] | None = None
    """Parses the value; raises ValueError with the expected values. None for a file."""
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class Form:
    """The contents of a request."""

    files: Mapping[str, BinaryIO]
    """In memory, without absent ones."""
    values: Mapping[str, Any]
    """All other fields, including defaults."""


def file(description: str, *, required: bool = False) -> Field:
    return Field({"type": "string", "format": "binary", "description": description}, required=required)


def choice(description: str, *names: str) -> Field:
    """One of `names`, by default the first."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return text

    return Field({"type": "string", "enum": list(names), "default": names[0], "description": description}, parse, names[0])


def number(description: str, minimum: float, maximum: float, default: float) -> Field:
    """A finite number."""

    def parse(text: str) -> float:
        value = float(text) if re.fullmatch(r"[-+]?[0-9]{0,20}(\.[0-9]{0,20})?", text) and text.strip("+-.") else math.nan
        if not minimum <= value <= maximum:
            raise ValueError(f"must be a number from {minimum:g} to {maximum:g}")
        return value

    schema = {"type": "number", "minimum": minimum, "maximum": maximum, "default": default, "description": description}
    return Field(schema, parse, default)


def integer(description: str, minimum: int, maximum: int, *, power_of_two: bool = False) -> Field:
    """An integer, by default None."""

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
        if not minimum <= value <= maximum or (power_of_two and value & (value - 1)):
            raise ValueError(f"must be {'a power of two' if power_of_two else 'an integer'} from {minimum} to {maximum}")
        return value

    return Field({"type": "integer", "minimum": minimum, "maximum": maximum, "description": description}, parse)


def box(description: str) -> Field:
    """Three integers, by default None."""

    def parse(text: str) -> tuple[int, int, int]:
        if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6}){2}", text):
            raise ValueError("must be left,top,side in pixels, such as 10,20,256")
        left, top, side = map(int, text.split(","))
        return left, top, side

    return Field({"type": "string", "pattern": "^[0-9]+,[0-9]+,[0-9]+$", "description": description, "example": "0,0,256"}, parse)


def request_body(fields: Mapping[str, Field]) -> dict[str, Any]:
    """OpenAPI's description of a request with these fields."""
    schema = {
        "type": "object",
        "properties": {name: dict(field.schema) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.required],
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def check_content_type(request: Request) -> None:
    """Raises Problem "wrong-content-type" if the request is not a form."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        value = f"is {content_type[:100]!r}" if content_type else "is missing"
        raise Problem("wrong-content-type", f"Content-Type {value}; send multipart/form-data, as `curl -F image=@FILE` and FormData do")


async def read(request: Request, body: AsyncIterator[bytes], fields: Mapping[str, Field]) -> Form:
    """Reads a form from `body`.

    Raises:
        Problem: the form is malformed or lacks a field, or a field is unknown, repeated or invalid.
        ClientDisconnect: the client disconnected.
    """
    is_file = {name: field.parse is None for name, field in fields.items()}
    files, texts = await read_parts(request.headers["content-type"], body, is_file)
    values = {name: field.default for name, field in fields.items() if field.parse is not None}
    for name, text in texts.items():
        parse = fields[name].parse
        if parse is not None and text:  # empty counts as absent
            try:
                values[name] = parse(text)
            except ValueError as error:
                raise Problem("bad-field", f"{name} is {text[:50]!r}, but {error}") from None
    if missing := [name for name, field in fields.items() if field.required and name not in files]:
        raise Problem("missing-field", f"the field {missing[0]} is missing; send it as a file, as `curl -F {missing[0]}=@FILE` does")
    return Form(files, values)
