"""Time of a whole photograph without the model's forward passes: `python -m benchmarks.photos`.

A photo of 12 megapixels with 10 objects of 160 to 800 pixels, of which two are rotated and two overlap, and a synthetic model output of the
right size. Times are medians after a warm-up, without reading and writing the file. Detection is timed on the same photo, which has no
faces or cats.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.measure import interleaved, times
from gleansr.checkpoints.native import About
from gleansr.images.codec import DecodedImage
from gleansr.images.resize import resize
from gleansr.inference.method import ModelOutput, StepReport
from gleansr.inference.upscaler import Upscaler
from gleansr.photos import Photo, PhotoConfig
from gleansr.photos.align import crop, make_frame
from gleansr.photos.background import bicubic_bands
from gleansr.photos.cats import Cats
from gleansr.photos.detect import Detection
from gleansr.photos.faces import Faces
from gleansr.photos.paste import Patch, paste

HEIGHT, WIDTH = 3000, 4000


class SyntheticModel:
    """A model with synthetic output."""

    name, device = "synthetic", torch.device("cpu")
    in_size: int | None

    def __init__(self, in_size: int, scale: int):
        self.in_size, self.scale = in_size, scale
        self._out = in_size * scale

    def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:  # noqa: ARG002
        return ModelOutput(resize(lr, scale=self.scale) + 0.1 * torch.randn(len(lr), 3, self._out, self._out))


def objects(count: int) -> list[Detection]:
    """Frames across the photo; every fifth is rotated, the last two overlap."""
    found = []
    for i in range(count):
        side = 160 + 640 * i // max(1, count - 1)
        x, y = 400 + (i % 5) * 750, 500 + (i // 5) * 2000 / max(1, (count - 1) // 5)
        frame = make_frame(x, y, side, angle=17.0 if i % 5 == 0 else 0.0)
        found.append(Detection((x - side / 2, y - side / 2, side, side), frame))
    last = found[-1].frame
    found[-2] = Detection((0, 0, 1, 1), make_frame(last.x - 300, last.y - 50, 600))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--in-size", type=int, default=128)
    parser.add_argument("--scale", type=int, default=8)
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processor", action="store_true", help="CPU time instead of wall-clock time, for busy machines")
    parser.add_argument("--search", action="store_true", help="also time detection")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    clock = time.process_time if given.processor else time.perf_counter

    def timed(run: Callable[[], object]) -> Callable[[], float]:
        def measured() -> float:
            start = clock()
            run()
            return clock() - start

        return measured

    torch.manual_seed(0)
    image = DecodedImage(resize(torch.rand(3, HEIGHT // 20, WIDTH // 20), size=(HEIGHT, WIDTH)).clamp(0, 1))
    upscaler = Upscaler(SyntheticModel(given.in_size, given.scale), About("synthetic"))
    found = objects(given.objects)
    lrs = [crop(image.pixels, one.frame, given.in_size, given.in_size) * 2 - 1 for one in found]
    srs = [upscaler.method(lr[None]).images[0] for lr in lrs]
    runs: dict[str, Callable[[], float]] = {
        "cutting out": timed(lambda: [crop(image.pixels, one.frame, given.in_size, given.in_size) for one in found])
    }
    for factor in given.factors:
        patches = [Patch(one.frame, lr, sr) for one, lr, sr in zip(found, lrs, srs, strict=True)]
        task = Photo(upscaler, PhotoConfig(tuple(one.box for one in found), scale=factor))
        prepared = task.prepare(image)
        runs[f"factor {factor}: enlarging and pasting"] = timed(
            lambda factor=factor, patches=patches: paste(bicubic_bands(image.pixels, factor), (HEIGHT, WIDTH), factor, patches)
        )
        runs[f"factor {factor}: enlarging alone"] = timed(
            lambda factor=factor: paste(bicubic_bands(image.pixels, factor), (HEIGHT, WIDTH), factor, [])
        )
        runs[f"factor {factor}: all of finish, upright, with the consistency measured"] = timed(
            lambda prepared=prepared: prepared.finish(srs, [""] * len(srs))
        )
    if given.search:
        faces, cats = Faces(), Cats()
        runs["searching faces"] = timed(lambda: faces.detect(image.pixels))
        runs["searching faces, upright"] = timed(lambda: faces.detect(image.pixels, rotated=False))
        runs["searching cats all around"] = timed(lambda: cats.detect(image.pixels))
        runs["searching cats, upright"] = timed(lambda: cats.detect(image.pixels, rotated=False))
    report = {"objects": given.objects, "model": [given.in_size, given.scale], "threads": torch.get_num_threads(), "clock": clock.__name__}
    print(json.dumps(report | times(interleaved(runs, given.rounds)), indent=2))


if __name__ == "__main__":
    main()
