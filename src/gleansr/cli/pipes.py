"""`gleansr upscale -`: one image from the standard input, or to the standard output."""

import sys
from pathlib import Path

from rich.console import Console

from gleansr.cli.progress import warnings_above
from gleansr.errors import ImageError, RequestError
from gleansr.files import check_not_input, printable
from gleansr.images.codec import check_output, decode, encode
from gleansr.jobs.steps import Work, describe_result, encode_result
from gleansr.photos import run

PIPE = "-"
"""The standard input or output."""


def upscale_piped(source: str, output: Path | None, extension: str, work: Work, *, overwrite: bool, quiet: bool) -> None:
    """Enlarges one image.

    Args:
        source: `PIPE` or a path.
        output: `PIPE`, a file, or None for the standard output.
        extension: of the result's format at the standard output.
        work: the task and the output options.
        overwrite: replace an existing file.
        quiet: print warnings and errors only.

    Raises:
        RequestError: the standard output is a terminal.
        ImageError: the image cannot be read, or the file exists.
    """
    file = None if output is None or str(output) == PIPE else check_output(output, overwrite=overwrite)
    if file:
        check_not_input(file, [source])
    elif sys.stdout.isatty():
        raise RequestError("an image is not written to a terminal: give -o FILE, or send the standard output to a file or a program")
    name = "standard input" if source == PIPE else source
    data = sys.stdin.buffer.read() if source == PIPE else Path(source)
    if data == b"":
        raise ImageError("standard input: is empty")
    console = Console(stderr=True, soft_wrap=True)
    with warnings_above(console):
        decoded = decode(data, name=name, max_pixels=work.max_pixels, allow_truncated=work.allow_truncated)
        result = run(work.task, decoded)
        if file:
            model = ", ".join(result.models) or work.task.upscaler.about.name
            encode(result.image, file, metadata=decoded.metadata, model=model, quality=work.quality, overwrite=overwrite)
        else:
            encoded, _ = encode_result(result.image, f"standard output{extension}", decoded.metadata, work, result.models)
            sys.stdout.buffer.write(encoded)
            sys.stdout.buffer.flush()
    if not quiet:
        notes = f" ({'; '.join(result.notes)})" if result.notes else ""
        line = f"{name} → {file or PIPE}: {describe_result(decoded.size, result, work)}{notes}"
        console.print(printable(line), markup=False, highlight=False)
