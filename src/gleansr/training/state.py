"""What the training loops share: the state files, signals, the log, the samples, averaging of weights."""

import collections
import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from gleansr.checkpoints import native
from gleansr.errors import CheckpointError, GleansrError, RequestError
from gleansr.files import replacing


class States:
    """The state files of a run, `folder`/000012000.pt and so on: the last `keep` and the best, best.pt.

    A state is everything that the run goes on from: networks, optimisers, averaged weights, pictures seen (from which the schedule, the
    order of the pictures and all random numbers follow) and the recipe. Files are written whole or not at all.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, state: dict[str, Any], score: float | None = None) -> None:
        """Writes a state, makes it the best one if its `score` (less is better) is less than that of best.json, and removes old ones."""
        path = self.folder / f"{state['images']:09d}.pt"
        try:
            make_folder(self.folder)
            with replacing(path) as temporary:
                torch.save(state, temporary)
            if score is not None and score < self._best(before=state["images"]):
                _link(path, self.folder / "best.pt")
                with replacing(self.folder / "best.json") as temporary:
                    temporary.write_text(json.dumps({"images": state["images"], "score": score}) + "\n", encoding="utf-8")
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            reason = os.strerror(errno.ENOSPC) if isinstance(error, RuntimeError) else error.strerror
            raise GleansrError(f"{path}: the state cannot be saved ({reason}); {self.last_good()}") from error
        for old in self._files()[: -self.keep]:
            old.unlink(missing_ok=True)

    def load(self, recipe: dict[str, Any], device: torch.device, resume: str = "auto") -> dict[str, Any] | None:
        """The state to go on from, or None for a new run.

        `resume` is "auto", the newest state that can be read; "never"; or the path of a state. A state of another recipe is an error; only
        where the pictures lie and `run`, but for the seed, may have changed.
        """
        if resume == "never":
            if self._files():
                raise RequestError(f"{self.folder}: holds the states of a run; choose another --output or --resume auto")
            return None
        if resume != "auto":
            return self._read(Path(resume), recipe, device)
        unreadable: list[str] = []
        for path in reversed(self._files()):
            try:
                return self._read(path, recipe, device)
            except _UnreadableError as error:  # a disk fault; an older one is better than none
                unreadable.append(str(error))
        if unreadable:
            raise CheckpointError("; ".join(unreadable))
        return None

    def last_good(self) -> str:
        """Where the newest state is, for messages."""
        files = self._files()
        return f"the last good state is {files[-1]}" if files else "no state was saved yet"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.pt"))

    def _best(self, before: int) -> float:
        try:
            best = json.loads((self.folder / "best.json").read_text(encoding="utf-8"))
            return best["score"] if best["images"] < before else math.inf
        except (OSError, ValueError, KeyError):
            return math.inf

    def _read(self, path: Path, recipe: dict[str, Any], device: torch.device) -> dict[str, Any]:
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds
            raise _UnreadableError(
                f"{path}: the state of the run cannot be read ({next(iter(str(error).splitlines()), type(error).__name__)})"
            ) from None
        mine, other = (_decisive(r) for r in (recipe, state["recipe"]))
        changed = [key for key in mine if mine[key] != other.get(key)]
        if changed:
            raise CheckpointError(f"{path}: belongs to another recipe ({', '.join(changed)} differ); choose another --output")
        return state


class _UnreadableError(CheckpointError):
    """A state file that is damaged."""


def _decisive(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a recipe must be the same for a run to go on, as plain data."""
    places = ("train", "train_low", "validation", "n_validation", "workers", "memory")
    data = {key: value for key, value in recipe["data"].items() if key not in places}
    return json.loads(json.dumps({**recipe, "data": data, "run": recipe["run"]["seed"], "bank_file": None, "perceptual_file": None}))


def _link(source: Path, target: Path) -> None:
    """Makes `target` a second name of `source`, or a copy where the file system has no such thing."""
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)


class StoppedError(GleansrError):
    """The run was asked to stop by a signal and has saved its state."""

    def __init__(self, name: str, saved: str):
        super().__init__(f"stopped by {name}; {saved}; the same command goes on from it")
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
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            with replacing(path) as temporary:
                temporary.write_text("".join(line for line in lines if 0 <= _images(line) <= images), encoding="utf-8")
        self.board = _tensorboard(path.parent / "tensorboard", images) if tensorboard else None

    def write(self, images: int, **values: Any) -> dict[str, Any]:
        """Writes one line: the pictures seen and `values`."""
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

    def picture(self, name: str, path: Path, images: int) -> None:
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
        """Adds the losses of the step that ends at `images`, and the seconds it waited for images. Steps may differ in which losses they have.

        Of the first step whose losses are not all finite they are kept.
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
            worst = int(self.fabric.all_reduce(torch.tensor(float(images), device=self.fabric.device), reduce_op="max"))
            losses = losses if images else "finite here, but not in another process"
            images = worst
        if images:
            raise GleansrError(
                f"a loss is not finite in step {images // self.batch_size} ({images} pictures): {losses}; {states.last_good()}; "
                "since resuming would lead to the same step, begin a run with a lower lr or with precision float32 in another --output"
            )

    def write(self, images: int, states: States, **more: Any) -> dict[str, Any] | None:
        """Checks the losses and writes one line: pictures seen, seconds, means of the losses, pictures/s, the share of steps that did not
        wait for pictures (for more than a twentieth of a step), and `more`. A mean is over the steps that had the loss. None where another process has the log."""
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
    """What a trained model says of itself: the recipe without the paths of this machine, pictures seen, and `more`."""
    resolved = dataclasses.asdict(recipe)
    for key in ("train", "train_low", "validation"):
        resolved["data"].pop(key)
    for key in ("bank_file", "start", "perceptual_file"):
        if resolved.get(key):
            resolved[key] = Path(resolved[key]).name
    return native.About(**resolved["about"], training={"images": images, **more, "recipe": resolved})


def _images(line: str) -> int:
    """The pictures seen of a line of the log; -1 for half a line, left by a run that was killed."""
    try:
        return json.loads(line)["images"]
    except (ValueError, KeyError, TypeError):
        return -1


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
    """Whether the last batch has reached a multiple of `every` pictures."""
    return images // every > (images - batch_size) // every


def save_grid(path: Path, rows: list[Tensor]) -> None:
    """Saves pictures in [-1, 1] as a sheet: `rows` of (N, 3, H, W), of one size, one below the other."""
    sheet = torch.cat([torch.cat(list(row.float().cpu()), 2) for row in rows], 1)
    pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    with replacing(path) as temporary:
        Image.fromarray(pixels.numpy()).save(temporary, format="PNG")
