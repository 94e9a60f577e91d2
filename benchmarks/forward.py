"""One GLEAN forward pass against mmagic's network with the same weights.

    python -m benchmarks.forward --peer FOLDER_OF_mmagic_glean.py [--in-size 64 --out-size 1024] [--precision float32] [--rounds 5]

Time: both networks in one process, in turn, after one warm-up; medians and their ratio; mmagic's in float32 always. Memory (Linux): the
peak resident size of a process that builds one network and runs it twice. The machine's ceilings, in the same process and turns: a matrix
product and a 3x3 convolution in the same precision, and a copy. The share is the network's arithmetic, as its layers have it, over its
time and the convolution's speed. `mmagic_glean.py` makes mmagic's classes importable on a CPU; mmagic is no dependency of gleansr.
Without --peer our network is measured alone. Prints one JSON object.
"""

import argparse
import functools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import in_turn, mmagic, peak_of, print_peak, times
from gleansr.models.glean import GLEAN, glean_full
from gleansr.upscaler import FeedForward, Precision


def ours(in_size: int, out_size: int, precision: Precision) -> Callable[[torch.Tensor], torch.Tensor]:
    return forward_of(GLEAN(glean_full(in_size, out_size)), precision)


def forward_of(model: nn.Module, precision: Precision) -> Callable[[torch.Tensor], torch.Tensor]:
    """As `gleansr.load` has it run on a CPU."""
    method = FeedForward(model, device="cpu", precision=precision)
    return lambda low: method(low).pictures


def gflop(in_size: int, out_size: int) -> float:
    """Of a forward pass, a product and a sum being two operations."""
    with torch.device("meta"):
        model = GLEAN(glean_full(in_size, out_size)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, in_size, in_size, device="meta"))
    return counter.get_total_flops() / 1e9


class Ceilings:
    """What the machine reaches: GFLOP/s of a matrix product and of a convolution, GB/s (read and written) of a copy."""

    def __init__(self, dtype: torch.dtype):
        self.side, self.channels, self.pixels = 2048, 256, 128
        self.matrix = torch.randn(self.side, self.side).to(dtype)
        self.map = torch.randn(1, self.channels, self.pixels, self.pixels).to(dtype, memory_format=torch.channels_last)
        self.weight = torch.randn(self.channels, self.channels, 3, 3).to(dtype, memory_format=torch.channels_last)
        self.bytes = torch.zeros(2**28, dtype=torch.uint8)
        self.copied = torch.zeros_like(self.bytes)

    def runs(self) -> dict[str, Callable[[], float]]:
        return {
            "matrix_gflops": lambda: 2 * self.side**3 / 1e9 / self._seconds(lambda: self.matrix @ self.matrix),
            "convolution_gflops": lambda: 18 * (self.channels * self.pixels) ** 2 / 1e9 / self._seconds(self._convolve),
            "copy_gbs": lambda: 2 * len(self.bytes) / 1e9 / self._seconds(lambda: self.copied.copy_(self.bytes)),
        }

    def _convolve(self) -> torch.Tensor:
        return torch.nn.functional.conv2d(self.map, self.weight, padding=1)

    @torch.inference_mode()
    def _seconds(self, call: Callable[[], object]) -> float:
        """The least of three."""
        least = math.inf
        for _ in range(3):
            started = time.perf_counter()
            call()
            least = min(least, time.perf_counter() - started)
        return least


def peer(folder: str, in_size: int, out_size: int) -> nn.Module:
    return mmagic(folder)["GLEANStyleGANv2"](in_size=in_size, out_size=out_size).eval()


def run(model: Callable[[torch.Tensor], torch.Tensor], low: torch.Tensor) -> tuple[torch.Tensor, float]:
    started = time.perf_counter()
    with torch.inference_mode():
        result = model(low)
    return result, time.perf_counter() - started


def peak_memory(which: str, options: argparse.Namespace) -> float:
    """Peak resident memory in MiB of a fresh process that builds one network and runs it twice."""
    arguments = ["--in-size", str(options.in_size), "--out-size", str(options.out_size), "--precision", options.precision, "--alone", which]
    if options.peer:
        arguments += ["--peer", options.peer]
    return peak_of("forward", arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-size", type=int, default=64)
    parser.add_argument("--out-size", type=int, default=1024)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="folder that holds mmagic_glean.py")
    parser.add_argument("--alone", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    low = torch.rand(1, 3, options.in_size, options.in_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)

    if options.alone:
        sizes = (options.in_size, options.out_size)
        model = ours(*sizes, options.precision) if options.alone == "ours" else peer(options.peer, *sizes)
        for _ in range(2):
            run(model, low)
        print_peak(torch.device("cpu"))
        return

    models: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"ours": ours(options.in_size, options.out_size, options.precision)}
    difference = None
    if options.peer:
        from gleansr.checkpoints import foreign

        theirs = peer(options.peer, options.in_size, options.out_size)
        state = {f"generator.{name}": tensor for name, tensor in theirs.state_dict().items()}
        same = foreign.read({"meta": {}, "state_dict": state}, "mmagic").build("generator", "mmagic")
        models = {"ours": forward_of(same, options.precision), "peer": theirs}
    results: dict[str, torch.Tensor] = {}

    def timed(name: str) -> float:
        results[name], took = run(models[name], low)
        return took

    ceilings = Ceilings(torch.float32 if options.precision == "float32" else torch.bfloat16).runs()
    found = in_turn({name: functools.partial(timed, name) for name in models} | ceilings, options.rounds)
    seconds = times({name: found[name] for name in models})
    reached = {name: statistics.median(found[name]) for name in ceilings}
    if options.peer:
        difference = float((results["ours"] - results["peer"]).abs().max() / results["peer"].std())
    medians = seconds["seconds_median"]
    arithmetic = gflop(options.in_size, options.out_size)
    memory = {name: peak_memory(name, options) for name in models}
    report = {
        "network": f"{options.in_size}->{options.out_size}",
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "precision": options.precision,
        "rounds": options.rounds,
        **seconds,
        "gflop": arithmetic,
        "ceilings": reached,
        "share_of_convolution_ceiling": arithmetic / medians["ours"] / reached["convolution_gflops"],
        "peak_mib": memory,
    }
    if options.peer:
        report |= {
            "time_ratio_ours_to_peer": medians["ours"] / medians["peer"],
            "memory_ratio_ours_to_peer": memory["ours"] / memory["peer"],
            "max_difference_over_std": difference,
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
