"""`multipart/form-data` (RFC 7578) read into memory as it comes in, and nowhere else.

The readers of the web frameworks write large files to the disk, take a form that was cut off, and take fields that nobody asked for.
"""

import io
from collections.abc import AsyncIterator, Mapping
from difflib import get_close_matches

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gleansr.serving.problems import Problem

LONGEST_VALUE = 1000
"""Bytes of a field that is no file."""


async def read_parts(
    content_type: str, body: AsyncIterator[bytes], files: Mapping[str, bool]
) -> tuple[dict[str, io.BytesIO], dict[str, str]]:
    """The files and the values of the other fields of a form, by name.

    `files` says of each field that may come whether it is a file. Raises Problem "bad-field" as soon as something is wrong.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise _malformed("it has no boundary")
    parts = _Parts(files)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_headers_finished": parts.headers_finished,
                "on_part_data": parts.data,
                "on_end": parts.end,
            },
        )
        async for chunk in body:
            parser.write(chunk)
    except FormParserError as error:
        raise _malformed(" ".join(str(error).split())) from None
    if not parts.ended:
        raise _malformed("it is cut off")
    try:
        values = {name: value.getvalue().decode() for name, value in parts.values.items()}
    except UnicodeDecodeError:
        raise _malformed("a field is not in UTF-8") from None
    return {name: file for name, file in parts.files.items() if name not in parts.nameless or file.getbuffer().nbytes}, values


def _malformed(why: str) -> Problem:
    return Problem("bad-field", f"the form cannot be read: {why}; send multipart/form-data, as `curl -F` and FormData do")


class _Parts:
    """What the parser has found. Its methods are called by the parser."""

    def __init__(self, wanted: Mapping[str, bool]):
        self._wanted = wanted
        self.files: dict[str, io.BytesIO] = {}
        self.values: dict[str, io.BytesIO] = {}
        self.nameless: set[str] = set()
        """Files without a file name, as browsers send for an input that was left empty."""
        self.ended = False
        self.begin()

    def begin(self) -> None:
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._name, self._contents = "", io.BytesIO()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._wanted:
            near = get_close_matches(name, self._wanted, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(self._wanted)}"
            raise Problem("bad-field", f"there is no field {name[:50]!r}; {meant}")
        if name in self.files or name in self.values:
            raise Problem("bad-field", f"{name} is given twice; give it once")
        if self._wanted[name] and b"filename" not in options:
            raise Problem("bad-field", f"{name} must be a file: give it a file name, as `curl -F {name}=@FILE` does")
        if not self._wanted[name] and b"filename" in options:
            raise Problem("bad-field", f"{name} is a file, but must be a plain field without a file name")
        if not options.get(b"filename"):
            self.nameless.add(name)
        self._name = name
        (self.files if self._wanted[name] else self.values)[name] = self._contents

    def data(self, data: bytes, start: int, end: int) -> None:
        self._contents.write(memoryview(data)[start:end])
        if self._name in self.values and self._contents.tell() > LONGEST_VALUE:
            raise Problem("bad-field", f"{self._name} is longer than {LONGEST_VALUE} bytes")

    def end(self) -> None:
        self.ended = True
