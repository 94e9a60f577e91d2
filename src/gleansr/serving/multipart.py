"""Reads `multipart/form-data` (RFC 7578) into memory as it arrives.

The parsers of web frameworks write large files to disk and accept truncated forms and unknown fields.
"""

import io
from collections.abc import AsyncIterator, Mapping
from difflib import get_close_matches

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gleansr.serving.problems import Problem

MAX_VALUE = 1000
"""Maximum length in bytes of a field that is not a file."""


async def read_parts(
    content_type: str, body: AsyncIterator[bytes], is_file: Mapping[str, bool]
) -> tuple[dict[str, io.BytesIO], dict[str, str]]:
    """The files and the other values of a form, by name.

    `is_file` has all accepted fields. Raises Problem "bad-field" at the first error.
    """
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if media_type != b"multipart/form-data" or not boundary:
        raise _malformed("it has no boundary")
    parts = _Parts(is_file)
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


def _malformed(reason: str) -> Problem:
    return Problem("bad-field", f"the form cannot be read: {reason}; send multipart/form-data, as `curl -F` and FormData do")


class _Parts:
    """The callbacks of the parser, and the parts parsed so far."""

    def __init__(self, is_file: Mapping[str, bool]):
        self._is_file = is_file
        self.files: dict[str, io.BytesIO] = {}
        self.values: dict[str, io.BytesIO] = {}
        self.nameless: set[str] = set()
        """Files without a file name; browsers send them for empty inputs."""
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
        if name not in self._is_file:
            near = get_close_matches(name, self._is_file, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(self._is_file)}"
            raise Problem("bad-field", f"unknown field {name[:50]!r}; {hint}")
        if name in self.files or name in self.values:
            raise Problem("bad-field", f"{name} is given twice; give it once")
        if self._is_file[name] and b"filename" not in options:
            raise Problem("bad-field", f"{name} must be a file: give it a file name, as `curl -F {name}=@FILE` does")
        if not self._is_file[name] and b"filename" in options:
            raise Problem("bad-field", f"{name} is a file, but must be a plain field without a file name")
        if not options.get(b"filename"):
            self.nameless.add(name)
        self._name = name
        (self.files if self._is_file[name] else self.values)[name] = self._contents

    def data(self, data: bytes, start: int, end: int) -> None:
        self._contents.write(memoryview(data)[start:end])
        if self._name in self.values and self._contents.tell() > MAX_VALUE:
            raise Problem("bad-field", f"{self._name} is longer than {MAX_VALUE} bytes")

    def end(self) -> None:
        self.ended = True
