"""What must be the same for a run to resume where it was: its recipe but for what changes nothing, and the contents of its inputs."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gleansr.errors import CheckpointError, ImageError
from gleansr.files import sha256_of
from gleansr.training.data import TrainingImages

SAMPLED = 16
"""Images of each source whose bytes tell whether it is the same."""

FILES = ("bank_file", "perceptual_file", "teacher", "data.train", "data.train_low")
"""Inputs that may lie elsewhere: what they hold is compared, and here only whether there is one."""

# The rest may change, and the log says so. The number of iterations is among it, because a run may be made longer; with a cosine schedule
# that changes the rate, of which `train_network` warns.
_HARMLESS = (
    *("run.iterations", "run.devices", "run.compile", "run.checkpoint_every", "run.log_every", "run.keep", "run.tensorboard"),
    *("data.validation", "data.n_validation", "data.workers", "data.memory"),
    *("start", "about.name", "about.category", "about.licence", "about.credit"),
)


def compare_recipes(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What has changed in a recipe without changing the course of the run: {key: [value of the state, value now]}.

    A key that only one of the two has, written by another version, is not compared.

    Raises:
        CheckpointError: the rest has changed, too.
    """
    old, new = _flat(before), _flat(now)
    changed = {key: [old[key], new[key]] for key in old.keys() & new.keys() if old[key] != new[key]}
    for key in FILES:
        if key in changed and bool(old[key]) == bool(new[key]):
            changed.pop(key)
    decisive = sorted(changed.keys() - {*_HARMLESS})
    if decisive:
        listed = ", ".join(f"{key} was {_short(changed[key][0])} and is {_short(changed[key][1])}" for key in decisive[:10])
        raise CheckpointError(
            f"{path}: belongs to a run of another recipe: {listed}{_more(decisive)}; these change the course of a run, so give the old "
            "values again, or choose another --output for a new run"
        )
    return changed


def inputs_of(images: TrainingImages, **files: str | Path | None) -> dict[str, Any]:
    """By what a later start tells that it has the same inputs wherever they lie: the number of training images, a SHA-256 of some of them,
    and those of `files`, by their keys of the recipe."""
    listed = {key: sha256_of(path) for key, path in files.items() if path}
    sources = [*images.sources, *images.lr_sources]
    whole = hashlib.sha256()
    for source in sources:
        for index in sorted({len(source) * i // SAMPLED for i in range(SAMPLED)}):
            try:
                whole.update(hashlib.sha256(source.read(index)).digest())
            except ImageError:  # whether such an image is left out or refused is decided where it is trained on
                whole.update(bytes(32))
    return {"images": len(images), "data": whole.hexdigest(), **listed}


def compare_inputs(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises CheckpointError where the inputs, see `inputs_of`, are not those that a state was made with. `given` is the recipe."""
    problems = []
    if before.get("images", now["images"]) != now["images"]:
        problems.append(f"data.train has {now['images']:,} images, and had {before['images']}")
    elif before.get("data", now["data"]) != now["data"]:
        problems.append("data.train has as many images as before, but others")
    for key in before.keys() & now.keys() - {"images", "data"}:
        if before[key] != now[key]:
            problems.append(f"{key}, {given[key]}, is another file than before (SHA-256 {now[key][:12]}…, and was {before[key][:12]}…)")
    if problems:
        raise CheckpointError(
            f"{path}: {'; '.join(problems)}; to resume the run give it what it began with, or choose another --output for a new one"
        )


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"run.seed": 0, ...} of nested tables, as plain data."""
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(recipe, default=repr)).items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _more(keys: list[str]) -> str:
    return f" and {len(keys) - 10} more" if len(keys) > 10 else ""
