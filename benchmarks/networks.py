"""The networks of the benchmarks, and their baselines: mmagic's network or the plain formulation."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import gleansr
from benchmarks.counting import Cost, counted
from benchmarks.measure import mmagic, positive
from gleansr.checkpoints import foreign
from gleansr.checkpoints.native import About
from gleansr.errors import RequestError
from gleansr.inference.onnx_runtime import OnnxModel
from gleansr.inference.precision import Precision
from gleansr.inference.runner import FeedForwardModel, enlarge
from gleansr.inference.upscaler import Upscaler
from gleansr.models.glean import GLEAN, GLEANConfig, NoBankConfig, glean_full, glean_light
from gleansr.models.network import SRNetwork

PRESETS: dict[str, Callable[[int, int], GLEANConfig]] = {"full": glean_full, "light": glean_light}
GLEANSR, PEER, PLAIN, ONNX = "gleansr", "mmagic", "plain formulation", "ONNX Runtime"

Forward = Callable[[Tensor], Tensor]
"""lr (N, 3, h, w) on the device -> the network's result."""


def add_options(parser: argparse.ArgumentParser, *, sizes: tuple[int, int]) -> None:
    """Options for network, device, rounds and baseline; `sizes` are the default sizes of untrained networks."""
    parser.add_argument(
        "--network", "--model", default="full", metavar="full|light|NAME_OR_FILE", help="default: full; full and light are untrained"
    )
    parser.add_argument("--in-size", type=positive, help=f"default: {sizes[0]}, or that of the file")
    parser.add_argument(
        "--out-size", type=positive, help=f"default: {sizes[1]}, or that of the file; at other sizes a full GLEAN is untrained"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--rounds", type=positive, default=5, help="number of interleaved rounds")
    parser.add_argument("--peer", metavar="FOLDER", help="folder of mmagic_glean.py; default baseline: the plain formulation")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network by name; `build` loads or creates its weights."""

    name: str
    in_size: int
    out_size: int
    config: GLEANConfig | None
    """None for networks other than GLEAN, which are read from their file."""
    trained: bool
    """Whether the weights are those of the file."""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.in_size}→{self.out_size}"

    @property
    def architecture(self) -> GLEANConfig:
        """The configuration of a GLEAN. Raises RequestError for other networks."""
        if self.config is None:
            raise RequestError(f"{self.name} is not a GLEAN; give --network full, light or a GLEAN")
        return self.config

    def build(self) -> nn.Module:
        """The network on the CPU in eval mode, with the same weights every time."""
        if self.trained:
            return gleansr.load_model(self.name)
        torch.manual_seed(0)
        return GLEAN(self.architecture).eval()

    def on_meta(self) -> nn.Module:
        """The network on the meta device."""
        if self.trained:
            return self.build().to("meta")
        with torch.device("meta"):
            return GLEAN(self.architecture).eval()

    def of_size(self, in_size: int, out_size: int) -> "Network":
        """An untrained network of these sizes with the same channel table. Raises RequestError for impossible sizes."""
        try:
            config = PRESETS[self.name](in_size, out_size) if self.name in PRESETS else self._cut(in_size, out_size)
        except ValueError as error:
            raise RequestError(f"{self.name} cannot be {in_size}→{out_size}: {error}") from None
        if config.out_size != out_size:
            raise RequestError(f"{self.name} cannot be {in_size}→{out_size}: sizes are powers of two")
        return Network(self.name, in_size, out_size, config, trained=False)

    def _cut(self, in_size: int, out_size: int) -> GLEANConfig:
        config = self.architecture
        if config.light:
            raise RequestError("a light GLEAN's channels depend on its sizes; --network light has any size")
        table = config.bank.channels
        sizes = {4 * 2**i: i + 1 for i in range(len(table))}
        if out_size not in sizes:
            raise RequestError(f"its channel table has {', '.join(map(str, sizes))} px")
        field = "plain_channels" if isinstance(config.bank, NoBankConfig) else "channels"
        bank: Any = dataclasses.replace(config.bank, **{field: table[: sizes[out_size]]})
        return dataclasses.replace(config, in_size=in_size, bank=bank)


def find_network(name: str, in_size: int | None, out_size: int | None, sizes: tuple[int, int]) -> Network:
    """The network that the options of `add_options` name."""
    if name in PRESETS:
        return Network(name, *sizes, None, trained=False).of_size(in_size or sizes[0], out_size or sizes[1])
    model: Any = gleansr.load_model(name)
    if isinstance(model, GLEAN):
        config = model.config
        network = Network(name, config.in_size, config.out_size, config, trained=True)
        size = (in_size or config.in_size, out_size or config.out_size)
        return network if size == (config.in_size, config.out_size) else network.of_size(*size)
    scale, side = FeedForwardModel(model, device="cpu").scale, in_size or sizes[0]
    return Network(name, side, side * scale, None, trained=True)


def full_of(network: Network) -> Network:
    """The full network of the same sizes, as mmagic's."""
    return dataclasses.replace(network, name="full").of_size(network.in_size, network.out_size)


def costs_of(network: Network, batch: int) -> dict[str, Cost]:
    """The cost of a forward pass in the plain formulation, by stage."""
    model, lr = network.on_meta(), torch.empty(batch, 3, network.in_size, network.in_size, device="meta")
    with torch.no_grad():
        return counted(functools.partial(model, lr), model)


@dataclasses.dataclass(frozen=True, eq=False)
class Contestant:
    """A network ready for measurement."""

    name: str
    precision: str
    forward: Forward
    module: nn.Module | None = None
    """Module whose hooks show the stages; None if they do not."""

    @property
    def key(self) -> str:
        return f"{self.name}, {self.precision}"


def default(model: nn.Module, precision: str, device: torch.device) -> Contestant:
    """The network as `gleansr.load` runs it. Changes the memory layout of the weights of `model`."""
    method = FeedForwardModel(model, device=device, precision=cast("Precision", precision))
    hidden = method._frozen or method.recorded
    return Contestant(GLEANSR, precision, lambda lr: method(lr).images, None if hidden else model)


def plain(model: nn.Module, precision: str, device: torch.device, name: str = PLAIN) -> Contestant:
    """The plain module: contiguous feature maps, nothing precomputed, half precision by autocast."""
    model, dtype = model.to(device), getattr(torch, precision)

    def forward(lr: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return enlarge(cast("SRNetwork", model), lr)

    return Contestant(name, precision, forward, model)


def peer_half(device: torch.device) -> str:
    """The half precision of mmagic's networks on a device."""
    return "float16" if device.type == "cuda" else "bfloat16"


def peer_module(folder: str, network: Network, precision: str = "float32") -> nn.Module:
    """mmagic's full network of the same sizes, on the CPU in eval mode; its bank needs a flag for autocast."""
    full = full_of(network)  # refuses impossible sizes
    torch.manual_seed(0)
    sizes = {"in_size": full.in_size, "out_size": full.out_size}
    return mmagic(folder)["GLEANStyleGANv2"](**sizes, fp16_enabled=precision != "float32").eval()


def read_peer(module: nn.Module) -> nn.Module:
    """A GLEAN with the weights of mmagic's network, read as from a file."""
    state = {f"generator.{name}": tensor.clone() for name, tensor in module.state_dict().items()}
    return foreign.read({"meta": {}, "state_dict": state}, "mmagic").build("generator", "mmagic")


def onnx(model: nn.Module, batch: int, path: Path) -> Contestant:
    """Exports the network to `path`; ONNX Runtime runs it on the CPU with torch's number of threads."""
    from gleansr.inference.export import export

    export(Upscaler(FeedForwardModel(model, device="cpu", precision="float32"), About("benchmark")), path, batch=batch)
    exported = OnnxModel(path, torch.device("cpu"))
    return Contestant(ONNX, "float32", exported)
