"""The networks that the benchmarks measure, and those they are measured against: mmagic's, or our own in its plain formulation."""

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

PRESETS: dict[str, Callable[[int, int], GLEANConfig]] = {"full": glean_full, "light": glean_light}
OURS, PEER, PLAIN, ONNX = "gleansr", "mmagic", "plain formulation", "ONNX Runtime"

Forward = Callable[[Tensor], Tensor]
"""low (N, 3, h, w) on the device -> what a network makes of it."""


def add_options(parser: argparse.ArgumentParser, *, sizes: tuple[int, int]) -> None:
    """Which network, where, how often and against what; `sizes` of an untrained one unless told."""
    parser.add_argument(
        "--network", "--model", default="full", metavar="full|light|NAME_OR_FILE", help="full unless told; full and light are untrained"
    )
    parser.add_argument("--in-size", type=positive, help=f"{sizes[0]} unless told; of a name or file its own")
    parser.add_argument("--out-size", type=positive, help=f"{sizes[1]}, likewise; other sizes of a full GLEAN's file are untrained")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--rounds", type=positive, default=5, help="how often each is run, in turn")
    parser.add_argument("--peer", metavar="FOLDER", help="that holds mmagic_glean.py; without it, our own plain formulation is the peer")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network by its name, whose weights need not be there yet."""

    name: str
    in_size: int
    out_size: int
    config: GLEANConfig | None
    """None: no GLEAN, but one that is read from the file."""
    trained: bool
    """Whether its weights are those of the file."""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.in_size}→{self.out_size}"

    @property
    def architecture(self) -> GLEANConfig:
        """Of a GLEAN. Raises RequestError where it is none."""
        if self.config is None:
            raise RequestError(f"{self.name} is no GLEAN; give --network full, light or a GLEAN")
        return self.config

    def build(self) -> nn.Module:
        """On the CPU, in eval mode, always the same."""
        if self.trained:
            return gleansr.load_model(self.name)
        torch.manual_seed(0)
        return GLEAN(self.architecture).eval()

    def on_meta(self) -> nn.Module:
        """With shapes and without numbers."""
        if self.trained:
            return self.build().to("meta")
        with torch.device("meta"):
            return GLEAN(self.architecture).eval()

    def of_size(self, in_size: int, out_size: int) -> "Network":
        """An untrained network of these sizes with the same channel table. Raises RequestError where there is none."""
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
            raise RequestError("it is a light GLEAN, whose channels belong to its sizes; --network light makes one of any size")
        table = config.bank.channels
        sizes = {4 * 2**i: i + 1 for i in range(len(table))}
        if out_size not in sizes:
            raise RequestError(f"its channel table has {', '.join(map(str, sizes))} px")
        field = "plain_channels" if isinstance(config.bank, NoBankConfig) else "channels"
        bank: Any = dataclasses.replace(config.bank, **{field: table[: sizes[out_size]]})
        return dataclasses.replace(config, in_size=in_size, bank=bank)


def chosen(name: str, in_size: int | None, out_size: int | None, sizes: tuple[int, int]) -> Network:
    """The network of `add_options`."""
    if name in PRESETS:
        return Network(name, *sizes, None, trained=False).of_size(in_size or sizes[0], out_size or sizes[1])
    model: Any = gleansr.load_model(name)
    if isinstance(model, GLEAN):
        config = model.config
        read = Network(name, config.in_size, config.out_size, config, trained=True)
        wanted = (in_size or config.in_size, out_size or config.out_size)
        return read if wanted == (config.in_size, config.out_size) else read.of_size(*wanted)
    scale, lr = FeedForwardModel(model, device="cpu").scale, in_size or sizes[0]
    return Network(name, lr, lr * scale, None, trained=True)


def full_of(network: Network) -> Network:
    """The full network of the same sizes, which mmagic's always is."""
    return dataclasses.replace(network, name="full").of_size(network.in_size, network.out_size)


def costs_of(network: Network, batch: int) -> dict[str, Cost]:
    """Of a pass over so many images in the plain formulation, by stage."""
    model, lr = network.on_meta(), torch.empty(batch, 3, network.in_size, network.in_size, device="meta")
    with torch.no_grad():
        return counted(functools.partial(model, lr), model)


@dataclasses.dataclass(frozen=True, eq=False)
class Contestant:
    """A network that is ready to be measured."""

    name: str
    precision: str
    forward: Forward
    module: nn.Module | None = None
    """Whose hooks show the stages; None: they do not show."""

    @property
    def key(self) -> str:
        return f"{self.name}, {self.precision}"


def ours(model: nn.Module, precision: str, device: torch.device) -> Contestant:
    """As `gleansr.load` has it run. The weights of `model` are laid out anew, for others too."""
    method = FeedForwardModel(model, device=device, precision=cast("Precision", precision))
    hidden = method._frozen or method.recorded
    return Contestant(OURS, precision, lambda lr: method(lr).images, None if hidden else model)


def plain(model: nn.Module, precision: str, device: torch.device, name: str = PLAIN) -> Contestant:
    """The module itself: contiguous maps, nothing computed beforehand, half precision by autocast alone."""
    model, dtype = model.to(device), getattr(torch, precision)

    def forward(lr: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return enlarge(model, lr)

    return Contestant(name, precision, forward, model)


def peer_half(device: torch.device) -> str:
    """The half precision in which mmagic's networks run there."""
    return "float16" if device.type == "cuda" else "bfloat16"


def peer_module(folder: str, network: Network, precision: str = "float32") -> nn.Module:
    """mmagic's full network of the same sizes, on the CPU, in eval mode. Its bank's layers have to be told that they run under autocast."""
    full = full_of(network)  # refuses sizes that GLEANs do not have
    torch.manual_seed(0)
    sizes = {"in_size": full.in_size, "out_size": full.out_size}
    return mmagic(folder)["GLEANStyleGANv2"](**sizes, fp16_enabled=precision != "float32").eval()


def read_peer(module: nn.Module) -> nn.Module:
    """Our network with the weights of mmagic's, which are read as from a file."""
    state = {f"generator.{name}": tensor.clone() for name, tensor in module.state_dict().items()}
    return foreign.read({"meta": {}, "state_dict": state}, "mmagic").build("generator", "mmagic")


def onnx(model: nn.Module, batch: int, path: Path) -> Contestant:
    """The network as an ONNX file, which is written, in ONNX Runtime on the CPU, with as many threads as torch has."""
    from gleansr.inference.export import export

    export(Upscaler(FeedForwardModel(model, device="cpu", precision="float32"), About("benchmark")), path, batch=batch)
    exported = OnnxModel(path, torch.device("cpu"))
    return Contestant(ONNX, "float32", exported)
