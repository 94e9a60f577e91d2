"""The share of PULSE's and DGP's time that their networks take.

    python -m benchmarks.searches [--methods PULSE DGP] [--model cats-bank] [--scale 8] [--shorter 10] [--rounds 3] [--json report.json]

Runs each search, and the same forward and backward passes through the bank (and, for DGP, its discriminator) alone, interleaved in one
process. The rest of a search is downsampling, losses and Adam. --shorter 10 takes a tenth of the published steps, --shorter 1 all. Prints a
table, with --json the report.
"""

import argparse
import functools
import itertools
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import gleansr
from benchmarks.machine import described, machine
from benchmarks.measure import clock, errors_in_one_line, interleaved, positive
from benchmarks.report import Report, add_json, write
from benchmarks.tables import digits, markdown, spread
from gleansr.baselines.dgp import DGP, Discriminator, parameter_groups
from gleansr.baselines.dgp_config import DGPConfig
from gleansr.baselines.pulse import PULSE, PULSEConfig, frozen
from gleansr.errors import RequestError
from gleansr.inference.devices import find_device
from gleansr.models.layers import to_channels_last
from gleansr.models.stylegan import StyleGAN
from gleansr.models.stylegan2 import StyleGAN2

Bank = StyleGAN | StyleGAN2
METHODS = ("PULSE", "DGP")


def pulse_alone(bank: Bank, config: PULSEConfig) -> None:
    """The passes of PULSE for one image, with gradients of latents and noise images; the last step has no backward pass."""
    latents = torch.randn(1, bank.config.n_latents, bank.config.code_dim).to(device_of(bank)).requires_grad_()
    noises = [torch.randn_like(noise) for noise in bank.synthesis.noises("fixed", 1) if noise is not None]
    variables = [latents, *(noise.requires_grad_() for noise in noises[: config.trainable_noise_layers])]
    with frozen(bank):
        for step in range(config.steps):
            image = bank.synthesis(latents, noises)
            if step + 1 < config.steps:
                torch.autograd.grad(image.sum(), variables)


def dgp_alone(bank: Bank, discriminator: Discriminator, config: DGPConfig) -> None:
    """The passes of DGP for one image: initial samples, then forward and backward passes for z and all tuned parameters."""
    z = torch.randn(8, bank.config.code_dim).to(device_of(bank))
    with torch.no_grad():
        for first in range(0, config.select_samples, len(z)):
            discriminator.features(bank(z[: config.select_samples - first]))
    z = z[:1].clone().requires_grad_()
    tuned = [z, *itertools.chain.from_iterable(parameter_groups(bank))]
    for _ in range(sum(config.iterations)):
        features = discriminator.features(bank(z))
        torch.autograd.grad(torch.stack([feature.sum() for feature in features]).sum(), tuned)


def device_of(bank: Bank) -> torch.device:
    return bank.synthesis.constant.device


def measure(options: argparse.Namespace) -> Report:
    device = find_device(options.device)
    bank = gleansr.load_model(options.model, part="generator")
    if not isinstance(bank, Bank):
        raise RequestError(f"{options.model} holds a {type(bank).__name__}; give a StyleGAN or StyleGAN2 with its discriminator")
    discriminator: Discriminator = gleansr.load_model(options.model, part="discriminator")  # pyright: ignore[reportAssignmentType]
    pulse_config = PULSEConfig(fit_samples=1024, steps=max(2, PULSEConfig.steps // options.shorter))  # the last step has no backward pass
    dgp_config = DGPConfig(
        iterations=tuple(max(1, n // options.shorter) for n in DGPConfig.iterations),
        select_samples=max(1, DGPConfig.select_samples // options.shorter),
    )
    pulse, dgp = PULSE(bank, options.scale, pulse_config, device=device), DGP(bank, discriminator, options.scale, dgp_config, device=device)
    # DGP works on copies and PULSE does not change weights, so the networks can be shared.
    bank, discriminator = to_channels_last(bank, device), to_channels_last(discriminator, device).requires_grad_(False)
    lr: Tensor = torch.rand(1, 3, *[bank.config.size // options.scale] * 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pulse(lr)  # fits its Gaussian, once
    searches = {
        "PULSE": (pulse_config.steps, functools.partial(pulse, lr), functools.partial(pulse_alone, bank, pulse_config)),
        "DGP": (sum(dgp_config.iterations), functools.partial(dgp, lr), functools.partial(dgp_alone, bank, discriminator, dgp_config)),
    }
    searches = {name: searches[name] for name in METHODS if name in options.methods}
    calls: dict[str, Callable[[], float]] = {}
    for name, (_, search, passes) in searches.items():
        calls[name], calls[f"{name}'s networks"] = functools.partial(clock, search, device), functools.partial(clock, passes, device)
    seconds = interleaved(calls, options.rounds)
    methods = {
        name: {
            "steps": steps,
            "seconds": seconds[name],
            "networks_seconds": seconds[f"{name}'s networks"],
            "share": [networks / search for networks, search in zip(seconds[f"{name}'s networks"], seconds[name], strict=True)],
        }
        for name, (steps, _, _) in searches.items()
    }
    return {"benchmark": "searches", "model": options.model, "scale": options.scale, "machine": machine(device), "methods": methods}


def text(report: Report) -> str:
    """The table and the machine."""
    columns = [f"{report['model']}, {report['scale']}x", "steps", "s per image", "s in the networks alone", "share"]
    rows = [
        [name, str(row["steps"]), spread(row["seconds"]), digits(statistics.median(row["networks_seconds"])), spread(row["share"])]
        for name, row in report["methods"].items()
    ]
    return f"{markdown(columns, rows)}\n\n{described(report['machine'])}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.searches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="cats-bank", help="name or file of a StyleGAN or StyleGAN2 with its discriminator")
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument("--scale", type=positive, default=8)
    parser.add_argument("--shorter", type=positive, default=10, help="divisor of the published numbers of steps")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--device", default="auto")
    add_json(parser)
    options = parser.parse_args(arguments)
    with errors_in_one_line(parser):
        report = measure(options)
        write(report, text(report), options.json)


if __name__ == "__main__":
    main()
