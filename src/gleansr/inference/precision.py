"""The names of precisions."""

import difflib
from typing import Literal, get_args

from gleansr.errors import RequestError

Precision = Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
"""Names that users may give; "fp32", "bf16" and "fp16" are short forms."""

_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def full_name(precision: str) -> str:
    """The full name, as in checkpoints, records and messages: "auto", "float32", "bfloat16" or "float16".

    Raises RequestError, with the nearest name, for any other.
    """
    if precision not in get_args(Precision):
        near = difflib.get_close_matches(str(precision).lower(), get_args(Precision), n=1, cutoff=0.5)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise RequestError(f"precision is {precision!r}, but must be one of {', '.join(get_args(Precision))}{meant}")
    return _SHORT.get(precision, precision)
