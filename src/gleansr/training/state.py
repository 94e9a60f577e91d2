"""What the training loops share: the state files, signals, the log, the samples, averaging of weights."""

import collections
import contextlib
import dataclasses
import json
import logging
import math
import pickle
import re
import shutil
import signal
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from gleansr.checkpoints import native
from gleansr.documents import parse_line, read_json
from gleansr.errors import CheckpointError, GleansrError, RequestError, one_line
from gleansr.files import replacing
from gleansr.images.pixels import to_bytes
from gleansr.training.resume import compare_recipes

logger = logging.getLogger(__name__)


class States:
    """The state files of a run, `folder`/000012000.pt and so on: the last `keep` and the best, best.pt.

    A state is everything that the run resumes from: networks, optimisers, averaged weights, images seen (from which the schedule, the
    order of the images and all random numbers follow) and the recipe. Files are written whole or not at all.
    """

    def __init__(self, folder: Path, keep: int, part: str | None = None):
        """`part`: a key that every state of this kind of run has."""
        self.folder, self.keep, self.part = folder, keep, part
        self.last: Path | None = None
        """The state that was saved or loaded last."""
        self.skipped: list[str] = []
        """Newer states that were damaged, each with the reason."""
        self.changed: dict[str, list[Any]] = {}
        """What of the recipe has changed since the loaded state, without changing the course of the run: {key: [then, now]}."""

    def path(self, images: int) -> Path:
        """Where the state at that number of images lies."""
        return self.folder / f"{images:09d}.pt"

    def save(self, state: dict[str, Any], score: float | None = None) -> None:
        """Writes a state, makes it the best one if its `score` (less is better) is less than that of best.json, and removes old ones."""
        path = self.path(state["images"])
        try:
            make_folder(self.folder)
            with (
                replacing(path) as temporary,
                temporary.open("wb") as file,
            ):  # of a file that torch opens itself it hides the system's error
                torch.save(state, file)
            if score is not None and score < self._best(before=state["images"]):
                _link(path, self.folder / "best.pt")
                with replacing(self.folder / "best.json") as temporary:
                    temporary.write_text(json.dumps({"images": state["images"], "score": score}) + "\n", encoding="utf-8")
        except (OSError, RuntimeError) as error:
            raise GleansrError(f"{path}: the state cannot be saved ({_reason(error)}); {self.last_good()}") from error
        self.last = path
        for old in self._files()[: -self.keep]:
            old.unlink(missing_ok=True)

    def load(self, recipe: dict[str, Any], device: torch.device, resume: str = "auto") -> dict[str, Any] | None:
        """The state to resume from, or None for a new run.

        `resume` is "auto", the newest state that is whole; "never"; or the path of a state. Every byte of a state is verified before it is
        used. `skipped` and `changed` tell of the rest.

        Raises:
            RequestError: `resume` is "never" and there are states.
            CheckpointError: no state is whole; or it belongs to another kind of run or to another recipe, see `compare_recipes`.
        """
        if resume == "never":
            if self._files():
                raise RequestError(f"{self.folder}: holds the states of a run; choose another --output or --resume auto")
            return None
        if resume != "auto":
            return self._read(Path(resume), recipe, device)
        for path in reversed(self._files()):
            try:
                return self._read(path, recipe, device)
            except _DamagedError as error:  # an older one is better than none
                self.skipped.append(str(error))
        if self.skipped:
            raise CheckpointError(f"{'; '.join(self.skipped)}; no state is left to resume from, so choose another --output for a new run")
        return None

    def resumed(self, images: int) -> dict[str, Any]:
        """What the log says of how the run has resumed, if it has. Warns of the states that were skipped."""
        if self.last is None:
            return {}
        if self.skipped:
            logger.warning("skipped: %s; the run resumes at image %s", "; ".join(self.skipped), f"{images:,}")
        return {"resumed": images, "skipped": self.skipped, "changed": self.changed}

    def last_good(self) -> str:
        """Where the last state is, for messages."""
        return f"the last good state is {self.last}" if self.last else "no state was saved yet"

    def _files(self) -> list[Path]:
        """Those that a run has written, and nothing else that somebody keeps beside them, in the order of their images."""
        named = [path for path in self.folder.glob("*.pt") if re.fullmatch("[0-9]{9,}", path.stem)]
        return sorted(named, key=lambda path: int(path.stem))

    def _best(self, before: int) -> float:
        try:
            best = read_json(self.folder / "best.json")
            return best["score"] if best["images"] < before else math.inf
        except (OSError, ValueError, KeyError, TypeError):
            return math.inf

    def _read(self, path: Path, recipe: dict[str, Any], device: torch.device) -> dict[str, Any]:
        try:
            _verify(path)
            state = torch.load(path, map_location=device, weights_only=True)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # zipfile and torch raise many kinds
            unsafe = isinstance(error, pickle.UnpicklingError)  # of which torch says how to execute what is in the file
            reason = "it holds more than tensors and plain data" if unsafe else one_line(error)
            raise _DamagedError(f"{path}: the state of the run cannot be read ({reason})") from None
        if not (
            isinstance(state, dict)
            and {"recipe", "images", self.part or "images"} <= state.keys()
            and all(isinstance(state.get(key, {}), dict) for key in ("recipe", "inputs"))
            and isinstance(state["images"], int)
            and state["images"] >= 0
        ):
            raise CheckpointError(f"{path}: is not a state of this kind of run")
        self.changed = compare_recipes(path, state["recipe"], recipe)
        self.last = path
        return state


class _DamagedError(CheckpointError):
    """A state file that is damaged."""


def _verify(path: Path) -> None:
    """Compares all of a state with its checksums, which torch writes and does not read."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise CheckpointError(f"it is damaged: the checksum of {damaged} is wrong")


def _reason(error: BaseException) -> str:
    """Why a file could not be written. torch's own error hides that of the system, in whose handling it is raised."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return one_line(cause or error)


def _link(source: Path, target: Path) -> None:
    """Makes `target` a second name of `source`, or a copy where the file system has no such thing."""
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)


@contextlib.contextmanager
def restoring(path: Path | None) -> Iterator[None]:
    """Within it the parts of a run take over those of the state in that file. A CheckpointError says where they do not fit."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:  # what load_state_dict raises of other contents
        what = f"lacks {error}" if isinstance(error, KeyError) else one_line(error)[:200]
        raise CheckpointError(f"{path}: does not fit the networks of this run; is its bank another one? ({what})") from None


class TrainingStoppedError(GleansrError):
    """The run was asked to stop by a signal and has saved its state."""

    def __init__(self, name: str, saved: str):
        super().__init__(f"stopped by {name}; {saved}; the same command resumes it")
        self.exit_code = 128 + signal.Signals[name]


def make_folder(folder: Path) -> None:
    """Makes the folder of a run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder}: the folder cannot be made ({error.strerror})") from None


class Log:
    """Appends JSON lines to a file, and to TensorBoard's files if wanted.

    Lines of an earlier run beyond `images`, where this one goes on, are removed.
    """

    def __init__(self, path: Path, images: int = 0, *, tensorboard: bool = False):
        self.path = path
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            with replacing(path) as temporary:
                temporary.write_text("".join(line for line in lines if 0 <= _images(line) <= images), encoding="utf-8")
        self.board = _tensorboard(path.parent / "tensorboard", images) if tensorboard else None

    def write(self, images: int, **values: Any) -> dict[str, Any]:
        """Writes one line: the images seen and `values`."""
        line = {"images": images, **values}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise GleansrError(f"{self.path}: the log cannot be written ({error.strerror})") from error
        if self.board:
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self.board.add_scalar(name, value, images)
            self.board.flush()
        return line

    def add_image(self, name: str, path: Path, images: int) -> None:
        """Shows a PNG in TensorBoard."""
        if self.board:
            with Image.open(path) as image:
                pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
                self.board.add_image(name, pixels.view(image.height, image.width, 3), images, dataformats="HWC")


class Meter:
    """Sums up what the steps report, without waiting for the device, and writes its means to the log now and then.

    With several processes the means are over all of them, and all of them must call the same methods; the first has the log.
    """

    AGREE_EVERY = 5.0
    """Seconds, about, after which several processes agree on whether one of them was asked to stop: it makes them wait for the device, and
    who sends SIGTERM often sends SIGKILL half a minute later."""

    def __init__(self, log: Log | None, batch_size: int, fabric: Any = None):
        self.log, self.batch_size = log, batch_size
        self.fabric = fabric if fabric and fabric.world_size > 1 else None
        self.sums: dict[str, Tensor] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.bad: dict[tuple[str, ...], Tensor] = {}
        self.waits: list[float] = []
        self.steps = 0
        self.agree_steps = 1
        self.started = self.last = time.monotonic()

    def add(self, images: int, losses: dict[str, Tensor], waited: float = 0.0) -> None:
        """Adds the losses of the step that ends at `images`, and the seconds it waited for images.

        Steps may differ in which losses they have. Of the first step whose losses are not all finite they are kept.
        """
        values = {name: value.detach().float() for name, value in losses.items()}
        here = torch.stack(list(values.values())).double()
        none_yet = torch.zeros(1 + len(values), dtype=here.dtype, device=here.device)
        bad = self.bad.setdefault(tuple(values), none_yet)
        first = (bad[0] == 0) & ~here.isfinite().all()
        self.bad[tuple(values)] = torch.where(first, torch.cat([torch.full_like(here[:1], images), here]), bad)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.counts.update(values.keys())
        self.waits.append(waited)
        self.steps += 1

    def agreed(self, signal_name: str | None) -> str | None:
        """The signal that asks the run to stop, if any process got one; of several processes not in every step, see `AGREE_EVERY`."""
        if self.fabric is None:
            return signal_name
        if self.steps % self.agree_steps:
            return None
        number = signal.Signals[signal_name] if signal_name else 0
        highest = self.fabric.all_reduce(torch.tensor(float(number), device=self.fabric.device), reduce_op="max")
        return signal.Signals(int(highest)).name if highest else None

    def check(self, states: States) -> None:
        """Stops the run if a loss was not finite; to be called before a state is saved over the last good one."""
        found = [(int(row[0]), names, row[1:].tolist()) for names, row in self.bad.items() if row[0]]
        images, names, values = min(found, default=(0, (), []))
        losses = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))
        if self.fabric is not None:
            # The first bad step of any process; the maximum of the negatives, since not all backends know a minimum.
            mine = -float(images) if images else -math.inf
            first = float(self.fabric.all_reduce(torch.tensor(mine, dtype=torch.float64, device=self.fabric.device), reduce_op="max"))
            losses = losses if images and images == -first else "finite here, but not in another process"
            images = 0 if math.isinf(first) else int(-first)
        if images:
            raise GleansrError(
                f"a loss is not finite in step {images // self.batch_size} ({images} images): {losses}; {states.last_good()}; "
                "since resuming would lead to the same step, begin a run with a lower lr or with precision float32 in another --output"
            )

    def write(self, images: int, states: States, **more: Any) -> dict[str, Any] | None:
        """Checks the losses and writes one line: images seen, seconds, means of the losses, each over the steps that had it, images/s, the
        share of steps that did not wait for images (for more than a twentieth of a step), and `more`. None where another process has the
        log."""
        self.check(states)
        now = time.monotonic()
        elapsed, self.last = now - self.last, now
        steps = max(1, len(self.waits))
        means = [value / self.counts[name] for name, value in self.sums.items()]
        means = torch.stack(means) if means else torch.zeros(0)
        if self.fabric is not None:
            means = self.fabric.all_reduce(means, reduce_op="mean")
            slowest = self.fabric.all_reduce(torch.tensor(elapsed / steps, device=self.fabric.device), reduce_op="max")
            self.agree_steps = max(1, round(self.AGREE_EVERY / max(float(slowest), 1e-3)))
        named = dict(zip(self.sums, means.tolist(), strict=True))
        waited = sum(wait > 0.05 * elapsed / steps for wait in self.waits) / steps
        self.sums, self.waits = {}, []
        self.counts.clear()
        if self.log is None:
            return None
        return self.log.write(
            images,
            seconds=round(now - self.started, 1),
            **named,
            images_per_second=round(steps * self.batch_size / max(elapsed, 1e-9), 2),
            steps_without_waiting=round(1 - waited, 4),
            **more,
        )


def _tensorboard(folder: Path, images: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RequestError("run.tensorboard needs TensorBoard: pip install 'gleansr[train]', or --set run.tensorboard=false") from None
    return SummaryWriter(str(folder), purge_step=images + 1)


def facts(recipe: Any, images: int, **more: Any) -> native.About:
    """What a trained model says of itself: the recipe with names of files for their paths on this machine, images seen, and `more`."""
    resolved = dataclasses.asdict(recipe)
    for key in ("train", "train_low", "validation"):
        resolved["data"].pop(key)
    for key in ("bank_file", "perceptual_file", "start", "teacher"):
        if resolved.get(key):
            resolved[key] = re.split(r"[\\/]", resolved[key])[-1]
    return native.About(**resolved["about"], training={"images": images, **more, "recipe": resolved})


def _images(line: str) -> int:
    """The images seen of a line of the log; -1 for half a line, left by a run that was killed."""
    value = parse_line(line)
    return value["images"] if isinstance(value, dict) and isinstance(value.get("images"), int) else -1


@torch.no_grad()
def average(target: nn.Module, source: nn.Module, keep: float) -> None:
    """target = keep * target + (1 - keep) * source, for every parameter; buffers are copied."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - keep)  # pyright: ignore[reportPrivateImportUsage]
    for mine, other in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(other)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def passed(images: int, batch_size: int, every: int) -> bool:
    """Whether the last batch has reached a multiple of `every` images."""
    return images // every > (images - batch_size) // every


def save_grid(path: Path, rows: list[Tensor]) -> None:
    """Saves images in [-1, 1] as a sheet: `rows` of (N, 3, H, W), of one size, one below the other."""
    sheet = torch.cat([torch.cat(list(row.float().cpu()), 2) for row in rows], 1)
    pixels = to_bytes(sheet).permute(1, 2, 0)
    with replacing(path) as temporary:
        Image.fromarray(pixels.numpy()).save(temporary, format="PNG")
