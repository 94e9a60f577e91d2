"""Checkpoints of a training run, and the checks that a run resumes with the recipe and the inputs it began with."""

import contextlib
import hashlib
import json
import logging
import math
import pickle
import re
import shutil
import signal
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gleansr.documents import read_json
from gleansr.errors import CheckpointError, GleansrError, ImageError, RequestError, one_line
from gleansr.files import lock_folder, replacing, sha256_of
from gleansr.training.data import TrainingImages

logger = logging.getLogger(__name__)

SAMPLED = 16
"""Images of each source whose bytes identify it."""

FILES = ("bank_file", "perceptual_file", "teacher", "data.train", "data.train_low")
"""Inputs that may move: `compare_inputs` compares their contents, `compare_recipes` only whether they are given."""

# A run may be extended, so run.iterations may change too. With a cosine schedule that changes the learning rate; `train_network` warns.
_HARMLESS = (
    *("run.iterations", "run.devices", "run.compile", "run.checkpoint_every", "run.log_every", "run.keep", "run.tensorboard"),
    *("data.validation", "data.n_validation", "data.workers", "data.memory"),
    *("start", "about.name", "about.category", "about.licence", "about.credit"),
)


class Checkpoints:
    """The checkpoints of a run, `folder`/000012000.pt and so on: the last `keep` and the best, best.pt.

    A checkpoint holds everything that a run resumes from: networks, optimisers, averaged weights, recipe and the number of images seen,
    which determines the schedule, the order of the images and all random numbers. Writes are atomic.
    """

    def __init__(self, folder: Path, keep: int, required_key: str = "images"):
        """`required_key`: a key that every checkpoint of this kind of run has."""
        self.folder, self.keep, self.required_key = folder, keep, required_key
        self.last: Path | None = None
        """The checkpoint saved or loaded last."""
        self.skipped: list[str] = []
        """Newer checkpoints that are damaged, each with the reason."""
        self.changed: dict[str, list[Any]] = {}
        """Harmless changes of the recipe since the loaded checkpoint: {key: [old, new]}."""

    def path(self, images: int) -> Path:
        """The checkpoint at that number of images."""
        return self.folder / f"{images:09d}.pt"

    def save(self, checkpoint: dict[str, Any], score: float | None = None) -> bool:
        """Writes a checkpoint and removes old ones. Returns whether it becomes best.pt, its `score` being below that in best.json."""
        path = self.path(checkpoint["images"])
        try:
            make_folder(self.folder)
            # torch hides the system's error when it opens the file itself.
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
            best_images, best_score = self._best()
            # A best checkpoint that lies ahead is of a part of the run that is done again.
            best = score is not None and (best_images >= checkpoint["images"] or score < best_score)
            if best:
                _link(path, self.folder / "best.pt")
                with replacing(self.folder / "best.json") as temporary:
                    temporary.write_text(json.dumps({"images": checkpoint["images"], "score": score}) + "\n", encoding="utf-8")
        except (OSError, RuntimeError) as error:
            raise GleansrError(f"{path}: the checkpoint cannot be saved ({_system_reason(error)}); {self.describe_last()}") from error
        self.last = path
        for old in self._files()[: -self.keep]:
            old.unlink(missing_ok=True)
        return best

    def load(self, recipe: dict[str, Any], device: torch.device, resume: str = "auto") -> dict[str, Any] | None:
        """Returns the checkpoint to resume from, or None for a new run, and sets `skipped` and `changed`.

        `resume` is "auto", the newest intact checkpoint; "never"; or the path of a checkpoint. Every byte is verified before use.

        Raises:
            RequestError: `resume` is "never" and there are checkpoints.
            CheckpointError: no checkpoint is intact, or it belongs to another kind of run or another recipe, see `compare_recipes`.
        """
        if resume == "never":
            if self._files():
                raise RequestError(f"{self.folder}: holds the checkpoints of a run; choose another --output or --resume auto")
            return None
        if resume != "auto":
            return self._read(Path(resume), recipe, device)
        for path in reversed(self._files()):
            try:
                return self._read(path, recipe, device)
            except _DamagedError as error:
                self.skipped.append(str(error))
        if self.skipped:
            raise CheckpointError(f"{'; '.join(self.skipped)}; no intact checkpoint is left; choose another --output for a new run")
        return None

    def resume_facts(self, images: int) -> dict[str, Any]:
        """Values for the log of a run that resumes at `images`; empty for a new run. Warns of skipped checkpoints."""
        if self.last is None:
            return {}
        if self.skipped:
            logger.warning("skipped: %s; the run resumes at image %s", "; ".join(self.skipped), f"{images:,}")
        return {"resumed": images, "skipped": self.skipped, "changed": self.changed}

    def describe_last(self) -> str:
        """The last checkpoint, for messages."""
        return f"the last good checkpoint is {self.last}" if self.last else "no checkpoint was saved yet"

    def _files(self) -> list[Path]:
        """Checkpoints by number of images; other files in the folder are ignored."""
        numbered = [path for path in self.folder.glob("*.pt") if re.fullmatch("[0-9]{9,}", path.stem)]
        return sorted(numbered, key=lambda path: int(path.stem))

    def is_best(self, images: int) -> bool:
        """Whether the checkpoint at that number of images is best.pt."""
        return self._best()[0] == images

    def _best(self) -> tuple[int, float]:
        """The images and the score of best.pt; (-1, infinity) without it."""
        try:
            best = read_json(self.folder / "best.json")
            return int(best["images"]), float(best["score"])
        except (OSError, ValueError, KeyError, TypeError):
            return -1, math.inf

    def _read(self, path: Path, recipe: dict[str, Any], device: torch.device) -> dict[str, Any]:
        try:
            _verify_checksums(path)
            checkpoint = torch.load(path, map_location=device, weights_only=True)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # zipfile and torch raise many kinds
            unsafe = isinstance(error, pickle.UnpicklingError)  # torch's message explains how to execute the file
            reason = "it holds more than tensors and plain data" if unsafe else one_line(error)
            raise _DamagedError(f"{path}: the checkpoint cannot be read ({reason})") from None
        if not (
            isinstance(checkpoint, dict)
            and {"recipe", "images", self.required_key} <= checkpoint.keys()
            and all(isinstance(checkpoint.get(key, {}), dict) for key in ("recipe", "inputs"))
            and isinstance(checkpoint["images"], int)
            and checkpoint["images"] >= 0
        ):
            raise CheckpointError(f"{path}: is not a checkpoint of this kind of run")
        self.changed = compare_recipes(path, checkpoint["recipe"], recipe)
        self.last = path
        return checkpoint


class _DamagedError(CheckpointError):
    """A checkpoint file is damaged."""


class TrainingStoppedError(GleansrError):
    """A signal stopped the run after it saved a checkpoint."""

    def __init__(self, name: str, last_checkpoint: str):
        super().__init__(f"stopped by {name}; {last_checkpoint}; the same command resumes it")
        self.exit_code = 128 + signal.Signals[name]


@contextlib.contextmanager
def load_errors(path: Path | None) -> Iterator[None]:
    """Turns what `load_state_dict` raises for the contents of another run into a CheckpointError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else one_line(error)[:200]
        raise CheckpointError(f"{path}: does not fit the networks of this run; check its bank ({problem})") from None


def make_folder(folder: Path) -> None:
    """Creates the folder of a run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GleansrError(f"{folder}: the folder cannot be created ({error.strerror})") from None


@contextlib.contextmanager
def lock_run(output: Path) -> Iterator[None]:
    """Locks the folder of a run, made if it is missing, before its checkpoints are looked for: a process that was stopped may still be
    writing its last one. A folder that was made for nothing is removed.

    Raises:
        RequestError: another process trains there.
    """
    made = not output.exists()
    make_folder(output)
    try:
        with lock_folder(output, "training"):
            yield
    finally:
        if made and all(file.name == ".lock" for file in output.iterdir()):
            shutil.rmtree(output)


def compare_recipes(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the harmless changes of a recipe since the checkpoint `path`: {key: [old, new]}.

    Keys that only one of the two has, written by another version, are not compared.

    Raises:
        CheckpointError: other values have changed.
    """
    old, new = _flatten(before), _flatten(now)
    changed = {key: [old[key], new[key]] for key in old.keys() & new.keys() if old[key] != new[key]}
    for key in FILES:
        if key in changed and bool(old[key]) == bool(new[key]):
            changed.pop(key)
    decisive = sorted(changed.keys() - {*_HARMLESS})
    if decisive:
        listed = ", ".join(f"{key} was {_shorten(changed[key][0])} and is {_shorten(changed[key][1])}" for key in decisive[:10])
        more = f" and {len(decisive) - 10} more" if len(decisive) > 10 else ""
        raise CheckpointError(
            f"{path}: belongs to a run of another recipe: {listed}{more}; restore the old values, or choose another --output for a new run"
        )
    return changed


def fingerprint_inputs(images: TrainingImages, **files: str | Path | None) -> dict[str, Any]:
    """Identifies the inputs of a run wherever they lie: the number of training images, a SHA-256 over `SAMPLED` images of each source, and
    the SHA-256 of each of `files`, by its recipe key."""
    fingerprint = {key: sha256_of(path) for key, path in files.items() if path}
    digest = hashlib.sha256()
    for source in [*images.sources, *images.lr_sources]:
        for index in sorted({len(source) * i // SAMPLED for i in range(SAMPLED)}):
            try:
                digest.update(hashlib.sha256(source.read(index)).digest())
            except ImageError:  # training decides whether to skip or refuse it
                digest.update(bytes(32))
    return {"images": len(images), "data": digest.hexdigest(), **fingerprint}


def compare_inputs(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the inputs, see `fingerprint_inputs`, differ from those of the checkpoint `path`."""
    problems = []
    if before.get("images", now["images"]) != now["images"]:
        problems.append(f"data.train has {now['images']:,} images, and had {before['images']}")
    elif before.get("data", now["data"]) != now["data"]:
        problems.append("data.train has other images than before")
    for key in before.keys() & now.keys() - {"images", "data"}:
        if before[key] != now[key]:
            problems.append(f"{key}, {recipe[key]}, is another file than before (SHA-256 {now[key][:12]}…, and was {before[key][:12]}…)")
    if problems:
        raise CheckpointError(f"{path}: {'; '.join(problems)}; resume with the original inputs, or choose another --output for a new run")


def _verify_checksums(path: Path) -> None:
    """torch writes the checksums of a file but does not read them."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise CheckpointError(f"it is damaged: the checksum of {damaged} is wrong")


def _system_reason(error: BaseException) -> str:
    """The system's reason why a write failed; torch raises its own error while it handles that one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return one_line(cause or error)


def _link(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`, or a copy on file systems without links."""
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)


def _flatten(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as {"run.seed": 0, ...}."""
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(recipe, default=repr)).items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
