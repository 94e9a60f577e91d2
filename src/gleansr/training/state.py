"""What the training loops share: the state file, the log, the samples, averaging of weights."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from gleansr.checkpoints import native
from gleansr.errors import CheckpointError, GleansrError, RequestError
from gleansr.files import replacing


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes the whole state of a run, atomically."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, recipe: dict[str, Any], device: torch.device) -> dict[str, Any] | None:
    """The state to go on from, or None when the run is new. A state of another recipe is an error; only `run` limits may have changed."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise CheckpointError(f"{path}: the state of the run cannot be read ({error})") from None
    changed = [key for key in recipe if key not in ("run", "data") and recipe[key] != state["recipe"].get(key)]
    if changed:
        raise CheckpointError(f"{path}: belongs to another recipe ({', '.join(changed)} differ); choose another --output")
    return state


def make_folder(folder: Path) -> None:
    """Makes the folder of a run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder}: the folder cannot be made ({error.strerror})") from None


class Log:
    """Appends JSON lines to a file and keeps the mean of what was reported since the last line.

    Lines of an earlier run beyond `images`, where this one goes on, are removed.
    """

    def __init__(self, path: Path, images: int = 0):
        self.path = path
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            with replacing(path) as temporary:
                temporary.write_text("".join(line for line in lines if 0 <= _images(line) <= images), encoding="utf-8")
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.started = time.monotonic()
        self.seconds = self.started

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds the losses of one step, without waiting for the device."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
        self.count += 1

    def write(self, images: int, **more: Any) -> dict[str, Any]:
        """Writes one line: pictures seen, seconds, means of the losses, and `more`. A loss that is not finite stops the run."""
        means = self.means()
        line = {"images": images, "seconds": round(time.monotonic() - self.started, 1), **means, **more}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.check(images)
        self.sums, self.count = {}, 0
        return line

    def means(self) -> dict[str, float]:
        """Means of the losses since the last line."""
        return {name: float(total) / max(self.count, 1) for name, total in self.sums.items()}

    def check(self, images: int) -> None:
        """Stops the run if a loss since the last line is not finite; to be called before a state is saved over the last good one."""
        means = self.means()
        if not all(math.isfinite(value) for value in means.values()):
            raise GleansrError(f"a loss is not finite after {images} pictures: {means}; the last good state is in {self.path.parent}")


def facts(recipe: Any, images: int, **more: Any) -> native.About:
    """What a trained model says of itself: the recipe without the paths of this machine, pictures seen, and `more`."""
    resolved = dataclasses.asdict(recipe)
    for key in ("train", "validation"):
        resolved["data"].pop(key)
    for key in ("bank", "start"):
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


def step(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float | None = None) -> None:
    """One step of `optimizer` down `loss`, at the learning rate `rate` if given."""
    if rate is not None:
        for group in optimizer.param_groups:
            group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def passed(images: int, batch_size: int, every: int) -> bool:
    """Whether the last batch has reached a multiple of `every` pictures."""
    return images // every > (images - batch_size) // every


def save_grid(path: Path, rows: list[Tensor]) -> None:
    """Saves pictures in [-1, 1] as a sheet: `rows` of (N, 3, H, W), of one size, one below the other."""
    sheet = torch.cat([torch.cat(list(row.float().cpu()), 2) for row in rows], 1)
    pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    with replacing(path) as temporary:
        Image.fromarray(pixels.numpy()).save(temporary, format="PNG")
