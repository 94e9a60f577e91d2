"""Forward passes of a GLEAN against mmagic's with the same weights, against our own plain formulation, or in ONNX Runtime.

    python -m benchmarks.forward [--network full --in-size 64 --out-size 1024] [--precision float32 bfloat16] [--batch 1 8]
                                 [--peer FOLDER_OF_mmagic_glean.py] [--onnx] [--plot roofline.png] [--json report.json]
    python -m benchmarks.forward --network cats-8x --sweep

Time: all in one process, in turn, after a warm-up; medians and their ratios. Memory: the peak of a process of its own that builds one
network and runs it twice, on a GPU what torch has allocated, otherwise the resident size (Linux). The machine's ceilings are measured
between the passes. The share is the arithmetic of the network's layers over its time and over the ceiling; what a way to compute them
does besides does not count.

Without --peer the other one is our own module, called plainly with contiguous maps, half precision by autocast. With it, `mmagic_glean.py`
makes mmagic's classes importable; mmagic is no dependency of gleansr. Its network is in float32 and, beside half precision of ours, in its
own: autocast with what it calls fp16_enabled, float16 on a GPU and bfloat16 on a CPU. It is the full one always: beside any other of ours
it is one of the same sizes, with weights of its own.

Stages show where modules are called one by one: in mmagic's network and the plain formulation, and in ours on devices where it is neither
computed in strips (CPU) nor recorded (CUDA).

--sweep measures ours alone over scales, output sizes and batches, each in a process of its own.
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
from benchmarks.measure import ChildError, child, clock, in_turn, mmagic, peak_mib, positive
from benchmarks.networks import ONNX, OURS, PEER, PLAIN, Contestant, Network, costs_of
from benchmarks.report import Report, add_options, entry, medians, run_command
from benchmarks.stages import stage_seconds
from gleansr.errors import RequestError
from gleansr.inference.devices import find_device, find_precision

SIZES = (64, 1024)
PRECISIONS = ("float32", "bfloat16", "float16")
SWEEP_SCALES, SWEEP_OUT_SIZES, SWEEP_BATCHES = (2, 4, 8, 16, 32, 64), (64, 128, 256, 512, 1024), (1, 2, 4, 8)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m benchmarks.forward", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    networks.add_options(made, sizes=SIZES)
    made.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["float32"], help="one or more in one run")
    made.add_argument("--batch", type=positive, nargs="+", default=[1], help="images that go in together")
    made.add_argument("--onnx", action="store_true", help="ONNX Runtime takes part, on the CPU")
    made.add_argument("--sweep", action="store_true", help="ours alone over many sizes and batches")
    add_options(made)
    made.add_argument("--alone", help=argparse.SUPPRESS)  # the contestant that this process is for
    return made


def lr_of(network: Network, batch: int, device: torch.device) -> Tensor:
    """(batch, 3, in, in) in [-1, 1], the same each time."""
    return (torch.rand(batch, 3, network.in_size, network.in_size, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)


def alone(options: argparse.Namespace, network: Network, device: torch.device) -> Report:
    """What a child process measures, with no other network in memory: its peak memory and the seconds of passes after the first."""
    name, precision = options.alone.split(",")
    if name == PEER:
        contestant = networks.plain(networks.peer_module(options.peer, network, precision), precision, device, PEER)
    elif name == PLAIN:
        contestant = networks.plain(network.build(), precision, device)
    else:
        contestant = networks.ours(network.build(), precision, device)
    lr = lr_of(network, options.batch[0], device)
    with torch.inference_mode():
        seconds = [clock(functools.partial(contestant.forward, lr), device) for _ in range(1 + options.rounds)]
    return {"peak_mib": peak_mib(device), "seconds": seconds[1:]}


def in_child(options: argparse.Namespace, network: Network, name: str, precision: str, batch: int, rounds: int) -> Report:
    """What `alone` says in a process of its own."""
    arguments = [f"--network={network.name}", f"--in-size={network.in_size}", f"--out-size={network.out_size}", f"--batch={batch}"]
    arguments += [f"--device={options.device}", f"--rounds={rounds}", f"--alone={name},{precision}"]
    return child("forward", [*arguments, *([f"--peer={options.peer}"] if name == PEER else [])])  # whose packages take memory


def same_weights(options: argparse.Namespace, network: Network) -> bool:
    """Whether all contestants have the same."""
    return not options.peer or network.name == "full"


def contestants(options: argparse.Namespace, network: Network, batch: int, device: torch.device, folder: Path) -> list[Contestant]:
    """Ours in each precision, mmagic's in its own or the plain formulation in each, and ONNX Runtime, whose file lies in the folder."""
    if options.peer:
        module = networks.peer_module(options.peer, network)
        model = networks.read_peer(module) if same_weights(options, network) else network.build()
        others = [networks.plain(module, "float32", device, PEER)]
        if any(precision != "float32" for precision in options.precision):
            half = networks.peer_half(device)
            twin = networks.peer_module(options.peer, network, half)
            twin.load_state_dict(module.state_dict(), assign=True)
            others.append(networks.plain(twin, half, device, PEER))
    else:
        model = network.build()
        untouched = copy.deepcopy(model)  # ours lays weights out anew
        others = [networks.plain(untouched, precision, device) for precision in options.precision]
    if options.onnx:
        others.append(networks.onnx(model, batch, folder / "network.onnx"))
    return [*(networks.ours(model, precision, device) for precision in options.precision), *others]


def case(options: argparse.Namespace, network: Network, batch: int, device: torch.device) -> Report:
    """All contestants with one size of batch."""
    lr = lr_of(network, batch, device)
    results: dict[str, Tensor] = {}

    def timed(one: Contestant) -> float:
        with torch.inference_mode():
            return clock(lambda: results.__setitem__(one.key, one.forward(lr)), device)

    with tempfile.TemporaryDirectory() as folder:
        found = contestants(options, network, batch, device, Path(folder))
        runs = {one.key: functools.partial(timed, one) for one in found}
        precisions = list(dict.fromkeys(one.precision for one in found))
        for precision in precisions:
            runs |= Ceilings(precision, device, small=options.small_ceilings).runs(f"{precision} ")
        # ONNX Runtime takes its memory in the first two passes, and its threads are not torch's.
        measured = in_turn(runs, options.rounds, warm_ups=2, rest=0.05) if options.onnx else in_turn(runs, options.rounds)
        staged = {one.key: stage_seconds(runs[one.key], one.module, device, 2) for one in found if one.module is not None}
    reached = medians(measured, precisions)
    own = costs_of(network, batch)
    theirs = costs_of(networks.full_of(network), batch) if options.peer else own
    entries = []
    for one in found:
        costs = theirs if one.name == PEER else own
        made = entry(one.name, one.precision, measured[one.key], total(costs), reached[one.precision], batch)
        made["stages"] = stages_of(staged.get(one.key, {}), costs, one.precision)
        if one.name == OURS:
            made["differences"] = {
                other.key: float((results[one.key] - results[other.key]).abs().max() / results[other.key].std())
                for other in found
                if other.name != OURS and (other.name != PEER or same_weights(options, network))
            }
        if one.name != ONNX:  # whose file is written by a process that holds the network too
            made["peak_mib"] = in_child(options, network, one.name, one.precision, batch, rounds=1)["peak_mib"]
        entries.append(made)
    return {"batch": batch, "contestants": entries, "ceilings": reached}


def stages_of(seconds: dict[str, float], costs: dict[str, Cost], precision: str) -> Report:
    """What each stage that shows costs a batch, its seconds and its speed."""
    made: Report = {}
    for stage, took in seconds.items():
        counts = costs.get(stage, Cost()).as_dict(precision)
        if took and counts["gflop"]:
            made[stage] = {**counts, "seconds": took, "gflops": counts["gflop"] / took}
    return made


def sweep(options: argparse.Namespace, network: Network, device: torch.device) -> Report:
    """Ours over scales to one output size, over output sizes of one scale, and over batches; sizes that it cannot have are left out."""
    facts, (in_size, out_size) = machine(device), (network.in_size, network.out_size)
    wanted = [(out_size // scale, out_size, 1) for scale in SWEEP_SCALES]
    wanted += [(size // 8, size, 1) for size in SWEEP_OUT_SIZES]
    wanted += [(in_size, out_size, batch) for batch in SWEEP_BATCHES]
    found: list[tuple[Network, int]] = []
    for *sizes, batch in dict.fromkeys(wanted):
        try:
            found.append((network if sizes == [in_size, out_size] else network.of_size(*sizes), batch))
        except RequestError:
            continue
    runs = {}
    for precision in options.precision:
        runs |= Ceilings(precision, device, small=options.small_ceilings).runs(f"{precision} ")
    measured = in_turn(runs, 1)
    passes: list[tuple[Network, int, str, Report]] = []
    for one, batch in found:
        for precision in options.precision:
            try:
                made = in_child(options, one, OURS, precision, batch, options.rounds)
            except ChildError as error:  # too little memory, for instance
                made = {"failed": str(error)}
            passes.append((one, batch, precision, made))
        for name, values in in_turn(runs, 1, warm_ups=0).items():
            measured[name] += values
    reached = medians(measured, options.precision)
    points: list[Report] = []
    for one, batch, precision, made in passes:
        point: Report = {"in_size": one.in_size, "out_size": one.out_size, "batch": batch, "precision": precision, **made}
        if "seconds" in made:
            point |= entry(OURS, precision, made["seconds"], total(costs_of(one, batch)), reached[precision], batch)
        points.append(point)
    return {"benchmark": "sweep", "network": {"label": network.name}, "machine": facts, "points": points, "ceilings": reached}


def measure(options: argparse.Namespace) -> Report:
    device = find_device(options.device)  # this and what follows refuses what cannot be, before any work
    for precision in options.precision:
        find_precision(precision, device)
    if options.onnx and device.type != "cpu":
        raise RequestError(f"ONNX Runtime takes part on the CPU, not on {device.type}; leave --onnx out or give --device cpu")
    network = networks.chosen(options.network, options.in_size, options.out_size, SIZES)
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
    run_command(parser(), measure, arguments)


if __name__ == "__main__":
    main()
