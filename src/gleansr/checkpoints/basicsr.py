"""StyleGAN2, RRDBNet (ESRGAN, Real-ESRGAN) and SRVGGNetCompact (Real-ESRGAN) in BasicSR's layout: files {"params_ema"} or {"params"}."""

import math
from collections.abc import Callable

from gleansr.checkpoints.native import StoredNetwork
from gleansr.checkpoints.stylegan2_layout import StyleGAN2Layout
from gleansr.checkpoints.weights import Weights, pair
from gleansr.models.rrdb import RRDBNetConfig
from gleansr.models.srvgg import SRVGGNetConfig

LAYOUT = StyleGAN2Layout(
    generator={
        "mapping.layers.{n}.weight": "style_mlp.{k1}.weight",
        "mapping.layers.{n}.bias": "style_mlp.{k1}.bias",
        "synthesis.constant": "constant_input.weight",
        "synthesis.layers.{i}.conv.weight": "{layer}.modulated_conv.weight",
        "synthesis.layers.{i}.conv.affine.weight": "{layer}.modulated_conv.modulation.weight",
        "synthesis.layers.{i}.conv.affine.bias": "{layer}.modulated_conv.modulation.bias",
        "synthesis.layers.{i}.noise_strength": "{layer}.weight",  # not the convolution's
        "synthesis.layers.{i}.bias": "{layer}.activate.bias",
        "synthesis.to_rgb.{j}.conv.weight": "{rgb}.modulated_conv.weight",
        "synthesis.to_rgb.{j}.conv.affine.weight": "{rgb}.modulated_conv.modulation.weight",
        "synthesis.to_rgb.{j}.conv.affine.bias": "{rgb}.modulated_conv.modulation.bias",
        "synthesis.to_rgb.{j}.bias": "{rgb}.bias",
        "synthesis.noise_{i}": "noises.noise{k}",
        "w_avg": "latent_avg",
    },
    discriminator={
        "from_rgb.weight": "conv_body.0.0.weight",
        "from_rgb.bias": "conv_body.0.1.bias",
        "blocks.{b}.conv1.weight": "{block}.conv1.0.weight",
        "blocks.{b}.conv1.bias": "{block}.conv1.1.bias",
        "blocks.{b}.conv2.weight": "{block}.conv2.1.weight",
        "blocks.{b}.conv2.bias": "{block}.conv2.2.bias",
        "blocks.{b}.skip.weight": "{block}.skip.1.weight",
        "conv.weight": "final_conv.0.weight",
        "conv.bias": "final_conv.1.bias",
        "dense.weight": "final_linear.0.weight",
        "dense.bias": "final_linear.0.bias",
        "out.weight": "final_linear.1.weight",
        "out.bias": "final_linear.1.bias",
    },
    layer=lambda i: f"style_convs.{i - 1}" if i else "style_conv1",
    rgb=lambda j: f"to_rgbs.{j - 1}" if j else "to_rgb1",
    block=lambda b, _: f"conv_body.{b + 1}",
    filters={},
)


def generator(weights: Weights) -> StoredNetwork:
    """A generator; "latent_avg" next to it in the file is the w_avg."""
    return LAYOUT.read_generator(weights)


def discriminator(weights: Weights) -> StoredNetwork:
    """A discriminator."""
    return LAYOUT.read_discriminator(weights)


def rrdbnet(weights: Weights) -> StoredNetwork:
    """An ESRGAN network."""
    doublings = max(weights.count(lambda u: f"conv_up{u + 1}.weight"), 2)  # BasicSR's always has two
    scale, folded = enlargement(weights, "conv_first.weight", doublings)
    features, growth, n_blocks = trunk_sizes(weights)
    names = trunk_names("trunk", "", n_blocks) | pair("high", "conv_hr") | pair("out", "conv_last")
    for u in range(doublings):
        names |= pair(f"ups.{u}", f"conv_up{u + 1}")
    return weights.translate("rrdbnet", RRDBNetConfig(scale, features, growth, n_blocks, folded), names)


def srvgg(weights: Weights) -> StoredNetwork:
    """A compact network of Real-ESRGAN, with PReLU as in all published files."""
    last = weights.count(lambda k: f"body.{k}.weight") - 1
    channels = weights.size(f"body.{last}.weight", 0)
    scale = math.isqrt(channels // 3)
    if channels != 3 * scale**2 or last % 2:
        raise weights.error(f"{weights.prefix}body.{last}.weight makes {channels} channels, but those of a compact network are 3 * scale^2")
    config = SRVGGNetConfig(scale, weights.size("body.0.weight", 0), last // 2 - 1)
    names: dict[str, str] = {}
    for k in range(last + 1):
        layer = f"body.{k}"
        names |= pair(layer, layer) if k % 2 == 0 else {f"{layer}.weight": f"{layer}.weight"}
    return weights.translate("srvgg", config, names)


def enlargement(weights: Weights, first: str, doublings: int) -> tuple[int, bool]:
    """Scale of an ESRGAN network, and whether it folds its input, from the input channels of the weight `first`."""
    n_in = weights.size(first, 1)
    folds = {3: 1, 12: 2, 48: 4}
    if n_in not in folds:
        raise weights.error(f"{weights.prefix}{first} reads {n_in} channels, but an RRDBNet's reads 3, 12 or 48")
    if n_in > 3 and doublings != 2:
        raise weights.error(f"a network that folds its input has 2 convolutions that double the size, not {doublings}")
    return 2**doublings // folds[n_in], n_in > 3 or doublings > 1


def trunk_sizes(weights: Weights) -> tuple[int, int, int]:
    """Features, growth and number of blocks of an RRDB trunk."""
    n_blocks = weights.count(lambda k: f"body.{k}.rdb1.conv1.weight")
    growth = weights.size("body.0.rdb1.conv1.weight", 0) if n_blocks else RRDBNetConfig.growth
    return weights.size("conv_first.weight", 0), growth, n_blocks


def trunk_names(native: str, foreign: str, n_blocks: int) -> dict[str, str]:
    """Native -> foreign names of an RRDB trunk's tensors; `foreign` is a prefix with its dot, or empty."""
    names = pair(f"{native}.first", f"{foreign}conv_first") | pair(f"{native}.last", f"{foreign}conv_body")
    return names | dense_names(native, n_blocks, lambda b, d, k: f"{foreign}body.{b}.rdb{d}.conv{k}")


def dense_names(native: str, n_blocks: int, foreign: Callable[[int, int, int], str]) -> dict[str, str]:
    """The convolutions of a trunk's dense blocks; `foreign` names one by RRDB, from 0, dense block and number, both from 1."""
    names: dict[str, str] = {}
    for block in range(n_blocks):
        for dense in range(3):
            for conv in range(5):
                names |= pair(f"{native}.body.{block}.blocks.{dense}.convs.{conv}", foreign(block, dense + 1, conv + 1))
    return names
