"""BigGAN in its authors' PyTorch layout, a state dict of one network: G_ema_256.pth and D_256.pth of DGP.

Assumed, since the files do not state it: the published tables of widths, z in chunks, a shared class embedding, and DGP's constants: one
step of the power iteration, and 1e-6 and 1e-5 added to the spectral norms and the variances.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from gleansr.checkpoints.native import StoredNetwork, skeleton
from gleansr.checkpoints.weights import Weights
from gleansr.models.biggan import DISCRIMINATOR_WIDTHS, GENERATOR_WIDTHS, BigGANConfig

SHARED_NAMES = {"shortcut": "conv_sc", "u": "u0"}
GENERATOR_NAMES = SHARED_NAMES | {
    "embed": "shared",
    "norm1": "bn1",
    "norm2": "bn2",
    "mean": "stored_mean",
    "variance": "stored_var",
    "out_norm": "output_layer.0",
    "out_conv": "output_layer.2",
}
"""Parts of native names -> foreign ones. All others are equal."""


def generator(weights: Weights) -> StoredNetwork:
    """A generator. Tensors of DGP's instance normalisation are ignored: they are computed where they are used."""
    resolution, widths = _table(weights, {len(widths) - 1: (size, widths) for size, widths in GENERATOR_WIDTHS.items()})
    blocks = range(len(widths) - 1)
    config = BigGANConfig(
        channels=weights.size("output_layer.0.gain", 0) // widths[-1],
        resolution=resolution,
        attention=_attention(weights, [8 * 2**i for i in blocks]),
        n_classes=weights.size("shared.weight", 0),
        z_chunk=weights.size("linear.weight", 1),
        shared_dim=weights.size("shared.weight", 1),
    )
    unused = {f"blocks.{i}.0.{norm}.{leaf}" for i in blocks for norm in ("in1", "in2") for leaf in ("weight", "bias")}
    return _translate(weights, "biggan", config, GENERATOR_NAMES, unused)


def discriminator(weights: Weights) -> StoredNetwork:
    """A discriminator, with the embedding of its class term."""
    resolution, widths = _table(weights, {len(widths): (size, widths) for size, widths in DISCRIMINATOR_WIDTHS.items()})
    config = BigGANConfig(
        channels=weights.size("blocks.0.0.conv1.weight", 0) // widths[0],
        resolution=resolution,
        attention=_attention(weights, [max(resolution // 2 ** (i + 1), 4) for i in range(len(widths))]),
        n_classes=weights.size("embed.weight", 0),
    )
    return _translate(weights, "biggan-discriminator", config, SHARED_NAMES, set())


def _table(weights: Weights, tables: Mapping[int, tuple[int, tuple[int, ...]]]) -> tuple[int, tuple[int, ...]]:
    """Resolution and widths of the network with as many blocks as there are in the file."""
    n = weights.count(lambda i: f"blocks.{i}.0.conv1.weight")
    if n not in tables:
        raise weights.error(f"a BigGAN of {n} blocks, but known are those of {', '.join(map(str, tables))}")
    return tables[n]


def _attention(weights: Weights, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes with attention, from the output sizes of the blocks."""
    return tuple(sorted({size for i, size in enumerate(sizes) if f"blocks.{i}.1.theta.weight" in weights.tensors}))


def _translate(weights: Weights, kind: str, config: BigGANConfig, parts: Mapping[str, str], unused: set[str]) -> StoredNetwork:
    """The network of a state dict without the tensors `unused` and "sv0", a log of the largest singular value next to every "u0"."""
    native = skeleton(kind, config).state_dict()
    names = {name: ".".join(parts.get(part, part) for part in name.split(".")) for name in native}
    unused = unused | {f"{name.removesuffix('u0')}sv0" for name in names.values() if name.endswith(".u0")}
    kept = {name: tensor for name, tensor in weights.tensors.items() if name not in unused}
    return dataclasses.replace(weights, tensors=kept).translate(kind, config, names)
