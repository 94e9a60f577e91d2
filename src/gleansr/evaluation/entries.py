"""Which methods take part in a comparison, with which models and settings."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from gleansr import baselines as baselines
from gleansr.configs import merge, parse_override
from gleansr.errors import RequestError
from gleansr.inference.precision import Precision
from gleansr.inference.upscaler import Upscaler

RESERVED = ("truth", "low", "inputs")
"""Labels that no method can have, because the folder of a comparison uses them."""

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]{0,39}")


@dataclass(frozen=True)
class ComparedMethod:
    """A method that takes part in a comparison."""

    label: str
    """What the reports and the files call it."""
    method: str
    """One of `gleansr.baselines.NAMES`."""
    model: str | None = None
    """Name or file of its model, None for a method without."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """See `gleansr.baselines.load`."""

    def __post_init__(self):
        if not _LABEL.fullmatch(self.label) or self.label.lower() in RESERVED:
            raise RequestError(
                f"a method cannot be labelled {self.label!r}: up to 40 letters, digits, +, - and _ will do, but not {' or '.join(RESERVED)}"
            )

    @property
    def searches(self) -> bool:
        """Whether it takes many steps for each image."""
        return self.method in baselines.SEARCHES

    def load(self, scale: int, device: str = "auto", precision: Precision = "auto") -> Upscaler:
        """The Upscaler of the method, see `gleansr.baselines.load`."""
        return baselines.load(self.method, self.model, scale=scale, device=device, precision=precision, settings=self.settings)


def parse_entries(methods: str, models: Sequence[str], settings: Sequence[str], scale: int) -> list[ComparedMethod]:
    """The entries that a command line asks for, in the order of `methods`.

    Args:
        methods: names with commas between, "glean,plain,bicubic".
        models: "METHOD=MODEL" or "METHOD:LABEL=MODEL"; a method with several takes part with each. Without one, it takes what comes with
            the package, PULSE and DGP the bank of the first GLEAN that was given.
        settings: "METHOD.name=value" or "LABEL.name=value".
        scale: of the models that come with the package.

    Raises RequestError for unknown methods, labels given twice, methods without a model and settings of nothing.
    """
    names = [name.strip().lower() for name in methods.split(",") if name.strip()]
    if not names:
        raise RequestError(f"--methods takes names with commas between, of {','.join(baselines.NAMES)}")
    for name in names:
        if name not in baselines.NAMES:
            near = difflib.get_close_matches(name, baselines.NAMES, n=1)
            raise RequestError(f"--methods: no method is named {name!r}; " + (f"did you mean {near[0]!r}?" if near else _known()))
    given: dict[str, dict[str, str]] = {name: {} for name in names}
    for text in models:
        key, equals, model = text.partition("=")
        method, _, label = key.partition(":")
        if not (equals and model):
            raise RequestError(f"--models takes METHOD=FILE or METHOD:LABEL=FILE, not {text!r}")
        if method not in given:
            raise RequestError(f"--models {text}: {method} is not one of --methods {','.join(names)}")
        if method == "bicubic":
            raise RequestError(f"--models {text}: bicubic takes no model")
        if (label or method) in given[method]:
            raise RequestError(f"--models gives {label or method} twice; tell them apart by labels: {method}:one=FILE {method}:two=FILE")
        given[method][label or method] = model
    banks = list(given.get("glean", {}).values())
    entries, problems = [], []
    for name in names:
        for label, model in (given[name] or {name: None}).items():
            if model is None and name != "bicubic":
                model = banks[0] if banks and name in baselines.SEARCHES else _bundled(name, scale)
                if model is None:
                    problems.append(_wanting(name, scale))
                    continue
            entries.append(ComparedMethod(label, name, model))
    if problems:
        raise RequestError("; ".join(problems))
    check_labels(entries)
    return _with_settings(entries, settings)


def check_labels(entries: Sequence[ComparedMethod]) -> None:
    """Raises RequestError where two entries have one label; files do not tell cases apart everywhere."""
    seen: set[str] = set()
    for entry in entries:
        if entry.label.lower() in seen:
            raise RequestError(f"two methods are labelled {entry.label!r}; give --methods each name once, and --models METHOD:LABEL=FILE")
        seen.add(entry.label.lower())


def _with_settings(entries: Sequence[ComparedMethod], settings: Sequence[str]) -> list[ComparedMethod]:
    changes: dict[str, dict[str, Any]] = {}
    for text in settings:
        key, dot, change = text.partition(".")
        owners = [entry.label for entry in entries if entry.label == key] or [entry.label for entry in entries if entry.method == key]
        if not (dot and "=" in change and owners):
            labels = ", ".join(entry.label for entry in entries)
            raise RequestError(f"--set takes METHOD.name=value, such as pulse.steps=50, with a method of {labels}, not {text!r}")
        for owner in owners:
            changes[owner] = merge(changes.get(owner, {}), parse_override(change))
    return [ComparedMethod(entry.label, entry.method, entry.model, changes.get(entry.label, {})) for entry in entries]


def _bundled(method: str, scale: int) -> str | None:
    """The name of the model that comes with the package, if there is one."""
    try:
        return baselines.bundled(method, scale)
    except RequestError:
        return None


def _known() -> str:
    return f"known are {', '.join(baselines.NAMES)}"


def _wanting(method: str, scale: int) -> str:
    recipe = {"glean": "cats-{}x-compact", "esrgan+": "esrgan+-cats-{}x-compact", "plain": "plain-cats-{}x-compact"}[method].format(scale)
    known = (resources.files("gleansr") / "recipes" / f"{recipe}.toml").is_file()
    return f"{method} needs a file: --models {method}=FILE" + (f"; train one with `gleansr train {recipe}`" if known else "")
