"""One training step of GLEAN against the same step built on mmagic's networks.

    python -m benchmarks.training --peer FOLDER_OF_mmagic_glean.py [--in-size 32 --out-size 256] [--batch 2] [--precision bfloat16]

The step is that of the supplement: generator forward, equation (4) with the discriminator frozen, Adam; equation (5) on the same results,
Adam. Losses, optimiser and batches are the same for both; mmagic's networks run as its trainer runs them: all parameters given to Adam, the
discriminator's losses in two backward passes. Time: both in one process, in turn, after one warm-up; medians and their ratio. Memory: the
peak of a process of its own, on a GPU what torch has allocated at most, otherwise the resident size (Linux). Prints one JSON object.
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
from gleansr.checkpoints.bundled import squeezenet
from gleansr.models.glean import GLEAN, glean_full
from gleansr.models.layers import placed
from gleansr.models.stylegan2 import StyleGAN2Config, StyleGAN2Discriminator, stylegan2_channels
from gleansr.resize import degrade
from gleansr.training import losses as L

Step = Callable[[torch.Tensor], None]


def ours(in_size: int, out_size: int, device: torch.device) -> tuple[nn.Module, nn.Module, list[nn.Parameter]]:
    model = placed(GLEAN(glean_full(in_size, out_size)), device)
    discriminator = placed(StyleGAN2Discriminator(StyleGAN2Config(stylegan2_channels(out_size))), device)
    return model, discriminator, model.trainable_parameters()


def peer(folder: str, in_size: int, out_size: int, device: torch.device) -> tuple[nn.Module, nn.Module, list[nn.Parameter]]:
    networks = mmagic(folder)
    model = networks["GLEANStyleGANv2"](in_size=in_size, out_size=out_size).to(device)
    discriminator = networks["StyleGAN2Discriminator"](in_size=out_size).to(device)
    return model, discriminator, list(model.parameters())


def step(which: str, options: argparse.Namespace, device: torch.device) -> Step:
    """What trains one network on one batch (N, 3, out, out)."""
    sizes = (options.in_size, options.out_size, device)
    model, discriminator, parameters = ours(*sizes) if which == "ours" else peer(options.peer, *sizes)
    model.train()
    features = squeezenet().to(device)
    g_optimizer, d_optimizer = (torch.optim.Adam(p, 1e-4, (0.9, 0.99)) for p in (parameters, discriminator.parameters()))
    layout = torch.channels_last if which == "ours" else torch.contiguous_format
    scale = options.out_size // options.in_size

    def run(truth: torch.Tensor) -> None:
        truth = truth.to(memory_format=layout)
        low = degrade(truth, scale)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16")
        discriminator.requires_grad_(False)
        with autocast:
            result = model(low)
            loss = L.equation4_objective(
                L.equation1_mse(result, truth),
                L.equation2_perceptual(features, result, truth),
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
        if which == "ours":
            with autocast:
                d_loss = L.equation5_discriminator(discriminator(result), discriminator(truth))
            d_loss.backward()
        else:
            with autocast:
                real_loss = nn.functional.softplus(-discriminator(truth)).mean()
            real_loss.backward()
            with autocast:
                fake_loss = nn.functional.softplus(discriminator(result)).mean()
            fake_loss.backward()
        d_optimizer.step()

    return run


def timed(run: Step, truth: torch.Tensor) -> float:
    wait = torch.cuda.synchronize if truth.is_cuda else lambda: None
    wait()
    started = time.perf_counter()
    run(truth)
    wait()
    return time.perf_counter() - started


def peak_memory(which: str, options: argparse.Namespace) -> float:
    """Peak memory in MiB of a fresh process that trains two steps."""
    arguments = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in ("in-size", "out-size", "batch", "precision", "device")]
    if options.peer:
        arguments += ["--peer", options.peer]
    return peak_of("training", [*arguments, "--alone", which])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-size", type=int, default=32)
    parser.add_argument("--out-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="folder that holds mmagic_glean.py")
    parser.add_argument("--alone", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    truth = (torch.rand(options.batch, 3, options.out_size, options.out_size) * 2 - 1).to(device)

    if options.alone:
        run = step(options.alone, options, device)
        for _ in range(2):
            run(truth)
        print_peak(device)
        return

    names = ["ours", "peer"] if options.peer else ["ours"]
    memory = {name: peak_memory(name, options) for name in names}
    steps = {name: step(name, options, device) for name in names}
    seconds = times(in_turn({name: functools.partial(timed, run, truth) for name, run in steps.items()}, options.rounds))
    medians = seconds["seconds_median"]
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    report = {
        "network": f"{options.in_size}->{options.out_size}, batch {options.batch}, {options.precision}",
        "machine": f"{machine}, torch {torch.__version__}",
        "rounds": options.rounds,
        **seconds,
        "peak_mib": memory,
    }
    if options.peer:
        report["speed_ours_over_peer"] = medians["peer"] / medians["ours"]
        report["memory_ratio_ours_to_peer"] = memory["ours"] / memory["peer"]
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
