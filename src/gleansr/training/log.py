"""The log of a training run: JSON lines, TensorBoard, sample sheets, and means of losses over several processes."""

import collections
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gleansr.documents import parse_line
from gleansr.errors import GleansrError, RequestError
from gleansr.files import replacing
from gleansr.images.pixels import to_bytes
from gleansr.training.checkpoint import Checkpoints


class Log:
    """Appends JSON lines to a file, and optionally writes TensorBoard files.

    Lines beyond `images`, where the run resumes, are removed.
    """

    def __init__(self, path: Path, images: int = 0, *, tensorboard: bool = False):
        self.path = path
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            with replacing(path) as temporary:
                temporary.write_text("".join(line for line in lines if 0 <= _images_of(line) <= images), encoding="utf-8")
        self.board = _tensorboard(path.parent / "tensorboard", images) if tensorboard else None

    def write(self, images: int, **values: Any) -> dict[str, Any]:
        """Writes a line with the images seen and `values`, and returns it."""
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
        """Adds a PNG to TensorBoard."""
        if self.board:
            with Image.open(path) as image:
                pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
                self.board.add_image(name, pixels.view(image.height, image.width, 3), images, dataformats="HWC")


class Meter:
    """Sums the losses of the steps without waiting for the device, and writes their means to the log.

    With several processes the means are over all of them, and every process must call the same methods; the first has the log.
    """

    AGREE_EVERY = 5.0
    """Approximate seconds between two agreements of several processes on whether to stop. Each waits for the device, and SIGKILL often
    follows SIGTERM after half a minute."""

    def __init__(self, log: Log | None, batch_size: int, fabric: Any = None):
        self.log, self.batch_size = log, batch_size
        self.fabric = fabric if fabric and fabric.world_size > 1 else None
        self.sums: dict[str, Tensor] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.first_bad: dict[tuple[str, ...], Tensor] = {}
        """By names of losses: images and losses of the first step whose losses are not all finite; zeros without one."""
        self.waits: list[float] = []
        self.steps = 0
        self.agree_at = 0
        """The first step of the next agreement."""
        self.agree_steps = 1
        self.started = self.last = time.monotonic()

    def add(self, images: int, losses: dict[str, Tensor], waited: float = 0.0) -> None:
        """Adds the losses of the step that ends at `images`, and the seconds it waited for data. Steps may have different losses."""
        values = {name: value.detach().float() for name, value in losses.items()}
        current = torch.stack(list(values.values())).double()
        empty = torch.zeros(1 + len(values), dtype=current.dtype, device=current.device)
        bad = self.first_bad.setdefault(tuple(values), empty)
        is_first = (bad[0] == 0) & ~current.isfinite().all()
        self.first_bad[tuple(values)] = torch.where(is_first, torch.cat([torch.full_like(current[:1], images), current]), bad)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.counts.update(values.keys())
        self.waits.append(waited)
        self.steps += 1

    def agree_on_stop(self, signal_name: str | None) -> str | None:
        """The signal that stops the run, if any process received one. Several processes do not agree in every step, see `AGREE_EVERY`."""
        if self.fabric is None:
            return signal_name
        if self.steps < self.agree_at:
            return None
        self.agree_at = self.steps + self.agree_steps
        number = signal.Signals[signal_name] if signal_name else 0
        highest = self.fabric.all_reduce(torch.tensor(float(number), device=self.fabric.device), reduce_op="max")
        return signal.Signals(int(highest)).name if highest else None

    def check(self, checkpoints: Checkpoints) -> None:
        """Raises GleansrError if a loss was not finite. Call it before a checkpoint is saved."""
        bad = [(int(row[0]), names, row[1:].tolist()) for names, row in self.first_bad.items() if row[0]]
        images, names, values = min(bad, default=(0, (), []))
        losses = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))
        if self.fabric is not None:
            # The first bad step of all processes, as the maximum of the negatives: not all backends have a minimum.
            own = -float(images) if images else -math.inf
            first = float(self.fabric.all_reduce(torch.tensor(own, dtype=torch.float64, device=self.fabric.device), reduce_op="max"))
            losses = losses if images and images == -first else "finite here, but not in another process"
            images = 0 if math.isinf(first) else int(-first)
        if images:
            raise GleansrError(
                f"a loss is not finite in step {images // self.batch_size} ({images} images): {losses}; {checkpoints.describe_last()}; "
                "resuming would repeat the step: begin a run with a lower lr or with precision float32 in another --output"
            )

    def write(self, images: int, checkpoints: Checkpoints, **more: Any) -> dict[str, Any] | None:
        """Checks the losses and writes a line: images seen, seconds, mean of each loss over the steps that had it, images/s, the share of
        steps that waited less than a twentieth of a step for data, and `more`. Returns None where another process has the log."""
        self.check(checkpoints)
        now = time.monotonic()
        elapsed, self.last = now - self.last, now
        steps = max(1, len(self.waits))
        means = [value / self.counts[name] for name, value in self.sums.items()]
        means = torch.stack(means) if means else torch.zeros(0)
        if self.fabric is not None:
            means = self.fabric.all_reduce(means, reduce_op="mean")
            slowest = self.fabric.all_reduce(torch.tensor(elapsed / steps, device=self.fabric.device), reduce_op="max")
            self.agree_steps = max(1, round(self.AGREE_EVERY / max(float(slowest), 1e-3)))
            self.agree_at = min(self.agree_at, self.steps + self.agree_steps)
        losses = dict(zip(self.sums, means.tolist(), strict=True))
        waited = sum(wait > 0.05 * elapsed / steps for wait in self.waits) / steps
        self.sums, self.waits = {}, []
        self.counts.clear()
        if self.log is None:
            return None
        return self.log.write(
            images,
            seconds=round(now - self.started, 1),
            **losses,
            images_per_second=round(steps * self.batch_size / max(elapsed, 1e-9), 2),
            steps_without_waiting=round(1 - waited, 4),
            **more,
        )


def is_due(images: int, batch_size: int, every: int) -> bool:
    """Whether the last batch reached a multiple of `every` images."""
    return images // every > (images - batch_size) // every


def save_grid(path: Path, rows: list[Tensor]) -> None:
    """Saves images in [-1, 1] as a PNG sheet; each row is (N, 3, H, W), all of one size."""
    sheet = torch.cat([torch.cat(list(row.float().cpu()), 2) for row in rows], 1)
    pixels = to_bytes(sheet).permute(1, 2, 0)
    with replacing(path) as temporary:
        Image.fromarray(pixels.numpy()).save(temporary, format="PNG")


def _tensorboard(folder: Path, images: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RequestError("run.tensorboard needs TensorBoard: pip install 'gleansr[train]', or --option run.tensorboard=false") from None
    return SummaryWriter(str(folder), purge_step=images + 1)


def _images_of(line: str) -> int:
    """The images seen of a line of the log; -1 for a truncated line."""
    value = parse_line(line)
    return value["images"] if isinstance(value, dict) and isinstance(value.get("images"), int) else -1
