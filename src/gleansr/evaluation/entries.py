"""Methods of a comparison with their models and settings, and their parser."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from gleansr import baselines
from gleansr.configs import merge, parse_override
from gleansr.errors import RequestError
from gleansr.inference.precision import Precision
from gleansr.inference.upscaler import Upscaler

RESERVED = ("truth", "low", "inputs")
"""Labels that the folder of a comparison uses itself."""

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]{0,39}")


@dataclass(frozen=True)
class ComparedMethod:
    """A method of a comparison."""

    label: str
    """Name in reports and files."""
    method: str
    """One of `gleansr.baselines.NAMES`."""
    model: str | None = None
    """Name or file of the model, None for a method without one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """See `gleansr.baselines.load`."""

    def __post_init__(self):
        if not _LABEL.fullmatch(self.label) or self.label.lower() in RESERVED:
            raise RequestError(f"invalid label {self.label!r}: use up to 40 letters, digits, +, - and _, but not {' or '.join(RESERVED)}")

    @property
    def searches(self) -> bool:
        """Whether the method searches for each image in many steps."""
        return self.method in baselines.SEARCHES

    def load(self, scale: int, device: str = "auto", precision: Precision = "auto") -> Upscaler:
        """Loads the method, see `gleansr.baselines.load`."""
        return baselines.load(self.method, self.model, scale=scale, device=device, precision=precision, settings=self.settings)


def parse_entries(methods: str, models: Sequence[str], settings: Sequence[str], scale: int, category: str = "cats") -> list[ComparedMethod]:
    """Parses the methods of a command line, in the order of `methods`.

    Args:
        methods: comma-separated names, "glean,plain,bicubic".
        models: "METHOD=MODEL" or "METHOD:LABEL=MODEL"; a method may have several models. Default: the bundled model; for PULSE and DGP the
            bank of the first given GLEAN.
        settings: "METHOD.name=value" or "LABEL.name=value".
        scale: scale of the bundled models.
        category: category of the bundled models.

    Raises RequestError for unknown methods, duplicate labels, methods without a model, and settings of other methods.
    """
    names = [name.strip().lower() for name in methods.split(",") if name.strip()]
    if not names:
        raise RequestError(f"--methods takes comma-separated names from {','.join(baselines.NAMES)}")
    for name in names:
        if name not in baselines.NAMES:
            near = difflib.get_close_matches(name, baselines.NAMES, n=1)
            raise RequestError(
                f"--methods: unknown method {name!r}; "
                + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(baselines.NAMES)}")
            )
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
            raise RequestError(f"--models gives {label or method} twice; add labels: {method}:one=FILE {method}:two=FILE")
        given[method][label or method] = model
    banks = list(given.get("glean", {}).values())
    entries, problems = [], []
    for name in names:
        for label, model in (given[name] or {name: None}).items():
            if model is None and name != "bicubic":
                model = banks[0] if banks and name in baselines.SEARCHES else _bundled(name, scale, category)
                if model is None:
                    problems.append(_model_needed(name, scale, category))
                    continue
            entries.append(ComparedMethod(label, name, model))
    if problems:
        raise RequestError("; ".join(problems))
    check_labels(entries)
    return _with_settings(entries, settings)


def check_labels(entries: Sequence[ComparedMethod]) -> None:
    """Raises RequestError for duplicate labels; case is ignored, as in some file systems."""
    seen: set[str] = set()
    for entry in entries:
        if entry.label.lower() in seen:
            raise RequestError(
                f"two methods have the label {entry.label!r}; give each name once in --methods, and --models METHOD:LABEL=FILE"
            )
        seen.add(entry.label.lower())


def _with_settings(entries: Sequence[ComparedMethod], settings: Sequence[str]) -> list[ComparedMethod]:
    changes: dict[str, dict[str, Any]] = {}
    for text in settings:
        key, dot, change = text.partition(".")
        owners = [entry.label for entry in entries if entry.label == key] or [entry.label for entry in entries if entry.method == key]
        if not (dot and "=" in change and owners):
            labels = ", ".join(entry.label for entry in entries)
            raise RequestError(f"--option takes METHOD.name=value, such as pulse.steps=50, with a method of {labels}, not {text!r}")
        for owner in owners:
            changes[owner] = merge(changes.get(owner, {}), parse_override(change))
    return [ComparedMethod(entry.label, entry.method, entry.model, changes.get(entry.label, {})) for entry in entries]


def _bundled(method: str, scale: int, category: str) -> str | None:
    """The name of the bundled model, None if there is none."""
    try:
        return baselines.bundled(method, scale, category)
    except RequestError:
        return None


def _model_needed(method: str, scale: int, category: str) -> str:
    if method in baselines.SEARCHES:
        return f"{method} needs a bank: --models {method}=FILE"
    recipe = f"{baselines.network_name(method, scale, category)}-compact"
    recipe_exists = (resources.files("gleansr") / "recipes" / f"{recipe}.toml").is_file()
    return f"{method} needs a file: --models {method}=FILE" + (f"; train one with `gleansr train {recipe}`" if recipe_exists else "")
