"""One training step of GLEAN, compared with the same step on mmagic's networks or on the plain formulation.

    python -m benchmarks.training [--network full --in-size 32 --out-size 256] [--batch 2] [--precision bfloat16]
                                  [--peer FOLDER_OF_mmagic_glean.py] [--plot roofline.png] [--json report.json]

The step is that of the supplement: generator forward, equation (4) with the discriminator frozen, Adam; equation (5) on the same results,
Adam. Losses, optimiser and batches are the same for both; weights are random. The baseline follows mmagic's trainer: contiguous feature
maps, all parameters in Adam, so that the bank's have gradients too, and two backward passes for the discriminator's losses. mmagic's
networks are always the full ones in float32.

Time: both in one process, interleaved, after two warm-ups; medians and their ratio. Memory: the peak of a child process that trains two
steps: torch's allocations on a GPU, otherwise the resident size (Linux). The arithmetic of each is counted in its first warm-up, so it
includes additional work. The machine's ceilings are measured between the steps.
"""

import argparse
import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks import networks
from benchmarks.ceilings import Ceilings
from benchmarks.counting import counted, total
from benchmarks.machine import machine
from benchmarks.measure import child, clock, interleaved, mmagic, peak_mib, positive
from benchmarks.networks import GLEANSR, PEER, PLAIN, Network
from benchmarks.report import Report, add_options, entry, medians, run_command
from gleansr.checkpoints.bundled import squeezenet
from gleansr.images.resize import degrade
from gleansr.inference.devices import find_device, find_precision
from gleansr.models.glean import GLEAN
from gleansr.models.layers import to_channels_last
from gleansr.models.stylegan2 import StyleGAN2Config, StyleGAN2Discriminator
from gleansr.training import losses as L

SIZES = (32, 256)

Step = Callable[[torch.Tensor], None]


def gleansr(network: Network, device: torch.device) -> tuple[nn.Module, nn.Module, list[nn.Parameter]]:
    """Generator, discriminator, and trained parameters of the generator."""
    model = to_channels_last(GLEAN(network.architecture), device)
    discriminator = to_channels_last(StyleGAN2Discriminator(StyleGAN2Config(network.architecture.bank.channels)), device)
    return model, discriminator, model.trainable_parameters()


def plain(network: Network, device: torch.device) -> tuple[nn.Module, nn.Module, list[nn.Parameter]]:
    """The same modules, with gradients of the bank's weights too."""
    model = GLEAN(network.architecture).to(device).requires_grad_(True)
    discriminator = StyleGAN2Discriminator(StyleGAN2Config(network.architecture.bank.channels)).to(device)
    return model, discriminator, list(model.parameters())


def peer(folder: str, network: Network, device: torch.device) -> tuple[nn.Module, nn.Module, list[nn.Parameter]]:
    """mmagic's full networks."""
    model = networks.peer_module(folder, network).to(device)
    discriminator = mmagic(folder)["StyleGAN2Discriminator"](in_size=network.out_size).to(device)
    return model, discriminator, list(model.parameters())


def precision_of(which: str, options: argparse.Namespace) -> str:
    return "float32" if which == PEER else options.precision


def step(which: str, network: Network, options: argparse.Namespace, device: torch.device) -> Step:
    """A function that trains a network on one batch (N, 3, out, out)."""
    precision = precision_of(which, options)
    makers = {GLEANSR: gleansr, PLAIN: plain, PEER: functools.partial(peer, options.peer)}
    torch.manual_seed(0)
    model, discriminator, parameters = makers[which](network, device)
    model.train()
    features = squeezenet().to(device)
    g_optimizer, d_optimizer = (torch.optim.Adam(p, 1e-4, (0.9, 0.99)) for p in (parameters, discriminator.parameters()))
    layout = torch.channels_last if which == GLEANSR else torch.contiguous_format
    scale = network.out_size // network.in_size

    def run(gt: torch.Tensor) -> None:
        gt = gt.to(memory_format=layout)
        lr = degrade(gt, scale)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
        discriminator.requires_grad_(False)
        with autocast:
            result = model(lr)
            loss = L.equation4_objective(
                L.equation1_mse(result, gt),
                L.equation2_perceptual(features, result, gt),
                L.equation3_adversarial(discriminator(result)),
                1e-2,
                1e-2,
            )
        g_optimizer.zero_grad()
        loss.backward()
        g_optimizer.step()
        discriminator.requires_grad_(True)
        d_optimizer.zero_grad()
        result = result.detach()
        if which == GLEANSR:
            with autocast:
                d_loss = L.equation5_discriminator(discriminator(result), discriminator(gt))
            d_loss.backward()
        else:
            with autocast:
                real_loss = nn.functional.softplus(-discriminator(gt)).mean()
            real_loss.backward()
            with autocast:
                fake_loss = nn.functional.softplus(discriminator(result)).mean()
            fake_loss.backward()
        d_optimizer.step()

    return run


def gts(network: Network, options: argparse.Namespace, device: torch.device) -> torch.Tensor:
    """Fixed random images (N, 3, out, out) in [-1, 1]."""
    size = (options.batch, 3, network.out_size, network.out_size)
    return (torch.rand(size, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)


def in_child(which: str, network: Network, options: argparse.Namespace) -> float | None:
    """Peak memory in MiB of a child process that trains two steps."""
    arguments = [f"--{name}={getattr(options, name)}" for name in ("network", "batch", "precision", "device")]
    arguments += [f"--in-size={network.in_size}", f"--out-size={network.out_size}", f"--alone={which}"]
    return child("training", [*arguments, *([f"--peer={options.peer}"] if which == PEER else [])])[
        "peak_mib"
    ]  # mmagic's packages take memory


def measure(options: argparse.Namespace) -> Report:
    device = find_device(options.device)
    find_precision(options.precision, device)  # invalid requests fail before any work
    network = networks.find_network(options.network, options.in_size, options.out_size, SIZES)
    network.architecture  # noqa: B018
    if options.peer:
        mmagic(options.peer)
    gt = gts(network, options, device)
    if options.alone:
        run = step(options.alone, network, options, device)
        for _ in range(2):
            run(gt)
        return {"peak_mib": peak_mib(device)}
    facts, names = machine(device), [GLEANSR, PEER if options.peer else PLAIN]
    precisions = {name: precision_of(name, options) for name in names}
    memory = {name: in_child(name, network, options) for name in names}
    steps = {name: functools.partial(step(name, network, options, device), gt) for name in names}
    costs = {name: total(counted(run)) for name, run in steps.items()}
    runs: dict[str, Callable[[], float]] = {name: functools.partial(clock, run, device) for name, run in steps.items()}
    for precision in dict.fromkeys(precisions.values()):
        runs |= Ceilings(precision, device, small=options.small_ceilings).runs(f"{precision} ")
    measured = interleaved(runs, options.rounds)
    reached = medians(measured, dict.fromkeys(precisions.values()))
    entries = [
        entry(name, precision, measured[name], costs[name], reached[precision], options.batch) | {"peak_mib": memory[name]}
        for name, precision in precisions.items()
    ]
    case = {"batch": options.batch, "contestants": entries, "ceilings": reached}
    about = {"label": f"training, {network.label}", "in_size": network.in_size, "out_size": network.out_size}
    return {"benchmark": "training", "unit": "step", "network": about, "machine": facts, "cases": [case]}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    networks.add_options(parser, sizes=SIZES)
    parser.add_argument("--batch", type=positive, default=2)
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="precision of gleansr and the plain formulation"
    )
    add_options(parser)
    parser.add_argument("--alone", choices=(GLEANSR, PEER, PLAIN), help=argparse.SUPPRESS)  # the network that this child process trains
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(build_parser(), measure, arguments)


if __name__ == "__main__":
    main()
