"""Speed and results of another revision of gleansr against this one, in turn.

    python -m benchmarks.revisions CHECKOUT --model FILE [--size 32] [--rounds 20] [--images FOLDER --folder-rounds 8 --field image]

CHECKOUT is the root of a clone at the other revision, FILE a checkpoint that both can read. A process of each revision loads the model and
upscales the same random image on two threads, in turn. With --images, both also upscale the folder by the command line and serve its
images to 16 clients; `--field` is the name under which the other revision's service takes an image. Every round swaps the order. Prints the
medians, the median of the ratios of pairs, and whether results are the same, but for the service: in batches, which vary, the last bits
differ. Needs `pip install 'gleansr[serve]' httpx`.
"""

import argparse
import hashlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from benchmarks.service import running

HERE, OTHER = "this revision", "the other"
CLIENTS = 16
FORWARD = """
import sys, time, torch, gleansr
torch.set_num_threads(2)
model = gleansr.load(sys.argv[1], device="cpu").method
image = torch.rand(1, 3, int(sys.argv[2]), int(sys.argv[2]), generator=torch.Generator().manual_seed(0)) * 2 - 1
for _ in sys.stdin:
    with torch.inference_mode():
        start = time.perf_counter()
        result = model(image)
        seconds = time.perf_counter() - start
    total = next(value for value in vars(result).values() if isinstance(value, torch.Tensor)).double().sum()
    print(seconds, float(total), flush=True)
"""

Run = Callable[[], tuple[float, str]]
"""Seconds, and a digest of the result, or nothing."""


@contextmanager
def forward_of(source: Path, model: Path, size: int) -> Iterator[Run]:
    """A process of one revision that computes the same image whenever it is called."""
    command = [sys.executable, "-c", FORWARD, str(model), str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(source)) as process:

        def run() -> tuple[float, str]:
            print(file=process.stdin, flush=True)
            seconds, total = process.stdout.readline().split() if process.stdout else ("nan", "")
            return float(seconds), total

        try:
            yield run
        finally:
            process.kill()


def folder_of(source: Path, model: Path, images: Path) -> Run:
    """`gleansr upscale` of a folder, from the start of the process to its end."""

    def run() -> tuple[float, str]:
        with tempfile.TemporaryDirectory() as results:
            command = [sys.executable, "-m", "gleansr", "upscale", str(images), "-m", str(model), "-o", results, "--device", "cpu"]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment(source))
            seconds = time.perf_counter() - start
            return seconds, digest(path.read_bytes() for path in sorted(Path(results).rglob("*.png")))

    return run


@contextmanager
def service_of(source: Path, model: Path, images: Sequence[Path], field: str) -> Iterator[Run]:
    """A service of one revision, which answers all images to 16 clients whenever it is called."""
    files = [path.read_bytes() for path in images]
    with running("--models", model, "--device", "cpu", **environment(source)) as service, httpx.Client(timeout=120) as client:

        def upscale(file: bytes) -> None:
            client.post(f"{service.url.rstrip('/')}/v1/upscale", files={field: ("image.png", file)}).raise_for_status()

        def run() -> tuple[float, str]:
            with ThreadPoolExecutor(CLIENTS) as clients:
                start = time.perf_counter()
                list(clients.map(upscale, files))
                return time.perf_counter() - start, ""

        yield run


def environment(source: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(source)}


def digest(contents: Iterator[bytes]) -> str:
    """The same for two revisions only if they write the same bytes."""
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()[:16]


def compare(name: str, runs: dict[str, Run], rounds: int) -> str:
    """A row of the table: calls both runs once to warm up and then in turn, each round in the other order."""
    results = {which: run()[1] for which, run in runs.items()}
    seconds: dict[str, list[float]] = {which: [] for which in runs}
    orders = itertools.cycle([list(runs), list(reversed(runs))])
    for order in itertools.islice(orders, rounds):
        for which in order:
            seconds[which].append(runs[which]()[0])
    here, other = (statistics.median(seconds[which]) for which in (HERE, OTHER))
    pairs = statistics.median(mine / theirs for mine, theirs in zip(seconds[HERE], seconds[OTHER], strict=True))
    same = ("yes" if results[HERE] == results[OTHER] else "no") if results[HERE] else "-"
    return f"| {name} | {rounds} | {here:.4g} | {other:.4g} | {here / other:.3f} | {pairs:.3f} | {same} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--folder-rounds", type=int, default=8)
    parser.add_argument("--field", default="image")
    options = parser.parse_args(arguments)
    sources = {HERE: Path(__file__).resolve().parents[1] / "src", OTHER: options.checkout / "src"}
    if not (sources[OTHER] / "gleansr").is_dir():
        parser.error(f"{options.checkout} has no src/gleansr")
    print(f"| | rounds | {HERE}, s | {OTHER}, s | ratio | of pairs | same results |", "| --- " * 7 + "|", sep="\n")
    with ExitStack() as stack:
        runs = {which: stack.enter_context(forward_of(source, options.model, options.size)) for which, source in sources.items()}
        print(compare(f"forward, {options.size} px", runs, options.rounds), flush=True)
    if options.images is None:
        return
    images = sorted(path for path in options.images.iterdir() if path.is_file())
    runs = {which: folder_of(source, options.model, options.images) for which, source in sources.items()}
    print(compare(f"folder of {len(images)} images", runs, options.folder_rounds), flush=True)
    with ExitStack() as stack:
        fields = {HERE: "image", OTHER: options.field}
        runs = {which: stack.enter_context(service_of(source, options.model, images, fields[which])) for which, source in sources.items()}
        print(compare(f"service, {CLIENTS} clients", runs, options.folder_rounds), flush=True)


if __name__ == "__main__":
    main()
