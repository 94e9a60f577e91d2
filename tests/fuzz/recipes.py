"""Recipes and other TOML and JSON with random damage: each is read, or refused in one line. Nothing else may come of it."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from gleansr.configs import from_dict, parse_override
from gleansr.documents import DocumentError, parse_json, parse_toml
from gleansr.errors import RequestError
from gleansr.training.config import NetworkRecipe, recipe_names
from tests.fuzz import finding

_SECONDS = 5.0
"""That one trial may take, on a busy machine."""

PIECES = (
    b"[" * 3000, b"]" * 50, b"{a=" * 500, b'{"a":' * 3000, b"." * 50, b".".join([b"a"] * 300), b"nan", b"-inf", b"Infinity", b"1e999",
    b"9" * 30, b"9" * 5000, b"\xff", b"\xef\xbb\xbf", b"\0", b"\r", b"\n", b'"', b"'''", b"\\ud800", b"\\u0000", b"#", b"=", b"true",
    b"[[a]]", b"[run]", b"run.precision = 'bf16'\n", b"-1", b"0x7fffffffffffffffff", b"1979-05-27", b'"' + b"x" * 100_000 + b'"',
)  # fmt: skip


def seeds() -> list[bytes]:
    """The recipes that come with the package."""
    folder = Path(str(resources.files("gleansr") / "recipes"))
    return [(folder / f"{name}.toml").read_bytes() for name in recipe_names()]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """With bytes changed, pieces put in or taken out, or its end cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1)
        what = rng.randrange(5)
        if what == 0 and place < len(changed):
            changed[place] = rng.randrange(256)
        elif what == 1:
            changed[place:place] = rng.choice(PIECES)
        elif what == 2:
            del changed[place : place + rng.randint(1, 40)]
        elif what == 3:
            other = rng.randrange(len(changed) + 1)
            changed[place:place] = changed[other : other + rng.randint(1, 60)]
        else:
            end = place + rng.randint(1, 6)
            changed[place:end] = rng.choice(PIECES)
    return bytes(changed if rng.random() < 0.9 else changed[: rng.randrange(len(changed) + 1)])


def check(kind: str, call: Callable[[], Any], data: bytes, counts: Counter[str]) -> None:
    """Counts what comes of a call: a value, or an error that is one short line."""
    begun = time.monotonic()
    try:
        call()
        counts[f"{kind}: read"] += 1
    except RequestError as error:
        message = str(error)
        counts[f"{kind}: {'no document' if isinstance(error, DocumentError) else 'refused'}"] += 1
        if "\n" in message or len(message) > 20_000:
            finding(counts, f"{kind}: a message of {len(message)} characters", data)
    except Exception as error:
        finding(counts, f"{kind}: {type(error).__name__}", data)
    if time.monotonic() - begun > _SECONDS:
        finding(counts, f"{kind}: takes long", data)


def run(chances: Iterable[random.Random]) -> Counter[str]:
    """Reads damaged recipes, records and changes of the command line."""
    counts: Counter[str] = Counter()
    recipes = seeds()
    tables = [json.dumps(parse_toml(recipe, "recipe")).encode() for recipe in recipes]
    for rng in chances:
        toml, table = damaged(rng.choice(recipes), rng), damaged(rng.choice(tables), rng)
        check("recipe", lambda toml=toml: from_dict(NetworkRecipe, parse_toml(toml, "x.toml"), "x.toml"), toml, counts)
        check("record", lambda table=table: from_dict(NetworkRecipe, _table(parse_json(table, "x.json")), "x.json"), table, counts)
        change = damaged(b"run.iterations=1000", rng).decode(errors="replace")
        check("change", lambda change=change: parse_override(change), change.encode(), counts)
    return counts


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
