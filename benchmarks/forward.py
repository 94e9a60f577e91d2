"""Forward passes of a GLEAN, compared with mmagic's network of the same weights, the plain formulation or ONNX Runtime.

    python -m benchmarks.forward [--network full --in-size 64 --out-size 1024] [--precision float32 bfloat16] [--batch 1 8]
                                 [--peer FOLDER_OF_mmagic_glean.py] [--onnx] [--plot roofline.png] [--json report.json]
    python -m benchmarks.forward --network cats-8x --sweep

Time: all networks in one process, interleaved, after a warm-up; medians and their ratios. Memory: the peak of a child process that builds
one network and runs it twice: torch's allocations on a GPU, otherwise the resident size (Linux). Ceilings of the machine are measured
between the passes. The share is the arithmetic of the network's layers over time and ceiling, without additional work of a formulation.

Without --peer the baseline is the plain formulation: contiguous feature maps, half precision by autocast. With it, `mmagic_glean.py` makes
mmagic's classes importable; mmagic is no dependency of gleansr. mmagic's network runs in float32 and, if half precision is requested, in
its own: autocast with fp16_enabled, float16 on a GPU and bfloat16 on a CPU. It is always the full one: for another network of gleansr it
has the same sizes and its own weights.

Stages show if modules are called one by one: in mmagic's network, in the plain formulation, and in gleansr on devices where it neither
computes in strips (CPU) nor replays CUDA graphs.

--sweep measures gleansr alone over scales, output sizes and batches, each in a child process.
"""

import argparse
import copy
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import networks
from benchmarks.ceilings import Ceilings
from benchmarks.counting import Cost, total
from benchmarks.machine import machine
from benchmarks.measure import ChildError, child, clock, interleaved, mmagic, peak_mib, positive
from benchmarks.networks import GLEANSR, ONNX, PEER, PLAIN, Contestant, Network, costs_of
from benchmarks.report import Report, add_options, entry, medians, run_command
from benchmarks.stages import stage_seconds
from gleansr.errors import RequestError
from gleansr.inference.devices import find_device, find_precision

SIZES = (64, 1024)
PRECISIONS = ("float32", "bfloat16", "float16")
SWEEP_SCALES, SWEEP_OUT_SIZES, SWEEP_BATCHES = (2, 4, 8, 16, 32, 64), (64, 128, 256, 512, 1024), (1, 2, 4, 8)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.forward", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    networks.add_options(parser, sizes=SIZES)
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["float32"], help="one or more")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1], help="batch sizes")
    parser.add_argument("--onnx", action="store_true", help="include ONNX Runtime, on the CPU")
    parser.add_argument("--sweep", action="store_true", help="gleansr alone over many sizes and batches")
    add_options(parser)
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # the network that this child process measures
    return parser


def lr_of(network: Network, batch: int, device: torch.device) -> Tensor:
    """Fixed random images (batch, 3, in, in) in [-1, 1]."""
    return (torch.rand(batch, 3, network.in_size, network.in_size, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)


def alone(options: argparse.Namespace, network: Network, device: torch.device) -> Report:
    """The report of a child process, which has one network in memory: peak memory, and seconds of the passes after the first."""
    name, precision = options.alone.split(",")
    if name == PEER:
        contestant = networks.plain(networks.peer_module(options.peer, network, precision), precision, device, PEER)
    elif name == PLAIN:
        contestant = networks.plain(network.build(), precision, device)
    else:
        contestant = networks.default(network.build(), precision, device)
    lr = lr_of(network, options.batch[0], device)
    with torch.inference_mode():
        seconds = [clock(functools.partial(contestant.forward, lr), device) for _ in range(1 + options.rounds)]
    return {"peak_mib": peak_mib(device), "seconds": seconds[1:]}


def in_child(options: argparse.Namespace, network: Network, name: str, precision: str, batch: int, rounds: int) -> Report:
    """The result of `alone` in a child process."""
    arguments = [f"--network={network.name}", f"--in-size={network.in_size}", f"--out-size={network.out_size}", f"--batch={batch}"]
    arguments += [f"--device={options.device}", f"--rounds={rounds}", f"--alone={name},{precision}"]
    return child("forward", [*arguments, *([f"--peer={options.peer}"] if name == PEER else [])])  # mmagic's packages take memory


def same_weights(options: argparse.Namespace, network: Network) -> bool:
    """Whether all contestants have the same weights."""
    return not options.peer or network.name == "full"


def contestants(options: argparse.Namespace, network: Network, batch: int, device: torch.device, folder: Path) -> list[Contestant]:
    """gleansr in each precision, mmagic in its own or the plain formulation in each, and ONNX Runtime with a file in `folder`."""
    if options.peer:
        module = networks.peer_module(options.peer, network)
        model = networks.read_peer(module) if same_weights(options, network) else network.build()
        others = [networks.plain(module, "float32", device, PEER)]
        if any(precision != "float32" for precision in options.precision):
            half = networks.peer_half(device)
            half_module = networks.peer_module(options.peer, network, half)
            half_module.load_state_dict(module.state_dict(), assign=True)
            others.append(networks.plain(half_module, half, device, PEER))
    else:
        model = network.build()
        original = copy.deepcopy(model)  # gleansr changes the memory layout of weights
        others = [networks.plain(original, precision, device) for precision in options.precision]
    if options.onnx:
        others.append(networks.onnx(model, batch, folder / "network.onnx"))
    return [*(networks.default(model, precision, device) for precision in options.precision), *others]


def case(options: argparse.Namespace, network: Network, batch: int, device: torch.device) -> Report:
    """Measures all contestants with one batch size."""
    lr = lr_of(network, batch, device)
    results: dict[str, Tensor] = {}

    def timed(contestant: Contestant) -> float:
        with torch.inference_mode():
            return clock(lambda: results.__setitem__(contestant.key, contestant.forward(lr)), device)

    with tempfile.TemporaryDirectory() as folder:
        measured_networks = contestants(options, network, batch, device, Path(folder))
        runs = {contestant.key: functools.partial(timed, contestant) for contestant in measured_networks}
        precisions = list(dict.fromkeys(contestant.precision for contestant in measured_networks))
        for precision in precisions:
            runs |= Ceilings(precision, device, small=options.small_ceilings).runs(f"{precision} ")
        # ONNX Runtime allocates memory in the first two passes and has its own threads.
        measured = interleaved(runs, options.rounds, warm_ups=2, rest=0.05) if options.onnx else interleaved(runs, options.rounds)
        staged = {
            contestant.key: stage_seconds(runs[contestant.key], contestant.module, device, 2)
            for contestant in measured_networks
            if contestant.module is not None
        }
    reached = medians(measured, precisions)
    network_costs = costs_of(network, batch)
    peer_costs = costs_of(networks.full_of(network), batch) if options.peer else network_costs
    entries = []
    for contestant in measured_networks:
        costs = peer_costs if contestant.name == PEER else network_costs
        result = entry(contestant.name, contestant.precision, measured[contestant.key], total(costs), reached[contestant.precision], batch)
        result["stages"] = stages_of(staged.get(contestant.key, {}), costs, contestant.precision)
        if contestant.name == GLEANSR:
            result["differences"] = {
                other.key: float((results[contestant.key] - results[other.key]).abs().max() / results[other.key].std())
                for other in measured_networks
                if other.name != GLEANSR and (other.name != PEER or same_weights(options, network))
            }
        if contestant.name != ONNX:  # a child process would also hold the exported network
            result["peak_mib"] = in_child(options, network, contestant.name, contestant.precision, batch, rounds=1)["peak_mib"]
        entries.append(result)
    return {"batch": batch, "contestants": entries, "ceilings": reached}


def stages_of(seconds: dict[str, float], costs: dict[str, Cost], precision: str) -> Report:
    """Cost, seconds and speed of each stage that shows."""
    stages: Report = {}
    for stage, stage_time in seconds.items():
        counts = costs.get(stage, Cost()).as_dict(precision)
        if stage_time and counts["gflop"]:
            stages[stage] = {**counts, "seconds": stage_time, "gflops": counts["gflop"] / stage_time}
    return stages


def sweep(options: argparse.Namespace, network: Network, device: torch.device) -> Report:
    """gleansr over scales to one output size, output sizes at one scale, and batches, without impossible sizes."""
    facts, (in_size, out_size) = machine(device), (network.in_size, network.out_size)
    cases = [(out_size // scale, out_size, 1) for scale in SWEEP_SCALES]
    cases += [(size // 8, size, 1) for size in SWEEP_OUT_SIZES]
    cases += [(in_size, out_size, batch) for batch in SWEEP_BATCHES]
    possible: list[tuple[Network, int]] = []
    for *sizes, batch in dict.fromkeys(cases):
        try:
            possible.append((network if sizes == [in_size, out_size] else network.of_size(*sizes), batch))
        except RequestError:
            continue
    runs = {}
    for precision in options.precision:
        runs |= Ceilings(precision, device, small=options.small_ceilings).runs(f"{precision} ")
    measured = interleaved(runs, 1)
    passes: list[tuple[Network, int, str, Report]] = []
    for sized, batch in possible:
        for precision in options.precision:
            try:
                result = in_child(options, sized, GLEANSR, precision, batch, options.rounds)
            except ChildError as error:  # such as too little memory
                result = {"failed": str(error)}
            passes.append((sized, batch, precision, result))
        for name, values in interleaved(runs, 1, warm_ups=0).items():
            measured[name] += values
    reached = medians(measured, options.precision)
    points: list[Report] = []
    for sized, batch, precision, result in passes:
        point: Report = {"in_size": sized.in_size, "out_size": sized.out_size, "batch": batch, "precision": precision, **result}
        if "seconds" in result:
            point |= entry(GLEANSR, precision, result["seconds"], total(costs_of(sized, batch)), reached[precision], batch)
        points.append(point)
    return {"benchmark": "sweep", "network": {"label": network.name}, "machine": facts, "points": points, "ceilings": reached}


def measure(options: argparse.Namespace) -> Report:
    device = find_device(options.device)  # invalid requests fail before any work
    for precision in options.precision:
        find_precision(precision, device)
    if options.onnx and device.type != "cpu":
        raise RequestError(f"--onnx runs on the CPU, not on {device.type}; leave it out or give --device cpu")
    network = networks.find_network(options.network, options.in_size, options.out_size, SIZES)
    if options.peer:
        mmagic(options.peer)
    if options.alone:
        return alone(options, network, device)
    if options.sweep:
        return sweep(options, network, device)
    about = {"label": network.label, "in_size": network.in_size, "out_size": network.out_size}
    facts = machine(device)
    cases = [case(options, network, batch, device) for batch in options.batch]
    return {"benchmark": "forward", "unit": "pass", "network": about, "machine": facts, "cases": cases}


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(build_parser(), measure, arguments)


if __name__ == "__main__":
    main()
