"""One GLEAN forward pass against mmagic's network with the same weights.

    python -m benchmarks.forward --peer FOLDER_OF_mmagic_glean.py [--in-size 64 --out-size 1024] [--rounds 5]

Time: both networks in one process, in turn, after one warm-up; medians and their ratio. Memory (Linux): the peak resident size of a process
that builds one network and runs it twice. `mmagic_glean.py` makes mmagic's classes importable on a CPU; mmagic is no dependency of
gleansr. Without --peer our network is measured alone. Prints one JSON object.
"""

import argparse
import functools
import json
import platform
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import in_turn, mmagic, peak_of, print_peak, times
from gleansr.models.glean import GLEAN, glean_full
from gleansr.upscaler import FeedForward


def ours(in_size: int, out_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return forward_of(GLEAN(glean_full(in_size, out_size)))


def forward_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """As `gleansr.load` has it run on a CPU."""
    method = FeedForward(model, device="cpu")
    return lambda low: method(low).pictures


def peer(folder: str, in_size: int, out_size: int) -> nn.Module:
    return mmagic(folder)["GLEANStyleGANv2"](in_size=in_size, out_size=out_size).eval()


def run(model: Callable[[torch.Tensor], torch.Tensor], low: torch.Tensor) -> tuple[torch.Tensor, float]:
    started = time.perf_counter()
    with torch.inference_mode():
        result = model(low)
    return result, time.perf_counter() - started


def peak_memory(which: str, options: argparse.Namespace) -> float:
    """Peak resident memory in MiB of a fresh process that builds one network and runs it twice."""
    arguments = ["--in-size", str(options.in_size), "--out-size", str(options.out_size), "--alone", which]
    if options.peer:
        arguments += ["--peer", options.peer]
    return peak_of("forward", arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-size", type=int, default=64)
    parser.add_argument("--out-size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="folder that holds mmagic_glean.py")
    parser.add_argument("--alone", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    low = torch.rand(1, 3, options.in_size, options.in_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)

    if options.alone:
        sizes = (options.in_size, options.out_size)
        model = ours(*sizes) if options.alone == "ours" else peer(options.peer, *sizes)
        for _ in range(2):
            run(model, low)
        print_peak(torch.device("cpu"))
        return

    models: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"ours": ours(options.in_size, options.out_size)}
    difference = None
    if options.peer:
        from gleansr.checkpoints import foreign

        theirs = peer(options.peer, options.in_size, options.out_size)
        state = {f"generator.{name}": tensor for name, tensor in theirs.state_dict().items()}
        same = foreign.read({"meta": {}, "state_dict": state}, "mmagic").build("generator", "mmagic")
        models = {"ours": forward_of(same), "peer": theirs}
    results: dict[str, torch.Tensor] = {}

    def timed(name: str) -> float:
        results[name], took = run(models[name], low)
        return took

    seconds = times(in_turn({name: functools.partial(timed, name) for name in models}, options.rounds))
    if options.peer:
        difference = float((results["ours"] - results["peer"]).abs().max() / results["peer"].std())
    medians = seconds["seconds_median"]
    memory = {name: peak_memory(name, options) for name in models}
    report = {
        "network": f"{options.in_size}->{options.out_size}",
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "rounds": options.rounds,
        **seconds,
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
