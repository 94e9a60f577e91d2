"""StyleGAN, the first version, in PULSE's two files: the synthesis network and the mapping network, two bare state dicts.

The generator's names are those of lernapparat's port. The files lack the noise images, since PULSE passes its own (replaced by seeded
ones), the w_avg (estimated where it is needed) and the RGB layers below the full size, which nothing reads (replaced by zeros).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gleansr.checkpoints import pickles
from gleansr.checkpoints.genforce import FUSED_FROM
from gleansr.checkpoints.native import StoredNetwork, check_values
from gleansr.checkpoints.weights import Weights, pair
from gleansr.errors import CheckpointError
from gleansr.models.layers import binomial_kernel
from gleansr.models.stylegan import BLUR, StyleGANConfig

NORM_EPS = 1e-5
"""Added to the variance by torch's InstanceNorm2d, which PULSE uses, instead of the official 1e-8."""

SIGNATURES = {"synthesis": "blocks.4x4.const", "mapping": "dense0.weight"}
"""A tensor that identifies each of the two files."""


def synthesis(weights: Weights) -> StoredNetwork:
    """The generator of the synthesis network's file and the mapping network's file next to it."""
    return _generator(weights, _sibling(weights, "mapping"))


def mapping(weights: Weights) -> StoredNetwork:
    """The generator of the mapping network's file and the synthesis network's file next to it."""
    return _generator(_sibling(weights, "synthesis"), weights)


def _sibling(weights: Weights, part: str) -> Weights:
    """The other file in the same folder: `part`.pt, or the only *_`part`.pt as in PULSE's cache."""
    folder = Path(weights.source).parent
    exact = folder / f"{part}.pt"
    paths = [exact] if exact.is_file() else sorted(folder.glob(f"*_{part}.pt"))
    if len(paths) != 1:
        problem = f"there are {', '.join(path.name for path in paths[:5])}" if paths else "there is none"
        raise weights.error(f"one of the two files of PULSE's StyleGAN; the other must lie beside it as {part}.pt, but {problem}")
    contents = pickles.load_torch(paths[0])
    if not isinstance(contents, Mapping) or SIGNATURES[part] not in contents:
        raise CheckpointError(f"{paths[0]}: not the {part} network of PULSE's StyleGAN: it lacks the tensor {SIGNATURES[part]}")
    return Weights(pickles.tensors(contents, paths[0]), "", paths[0])


def _generator(synthesis: Weights, mapping: Weights) -> StoredNetwork:
    n = synthesis.count(lambda j: f"blocks.{4 * 2**j}x{4 * 2**j}.conv0_up.weight" if j else "blocks.4x4.const", limit=9)
    sizes = [4 * 2**j for j in range(n)]
    config = StyleGANConfig(
        channels=tuple(synthesis.size(f"blocks.{size}x{size}.epi1.noise.weight", 0) for size in sizes),
        code_dim=synthesis.size("blocks.4x4.epi1.style_mod.lin.weight", 1),
        mapping_layers=mapping.count(lambda k: f"dense{k}.weight"),
        norm_eps=NORM_EPS,
    )
    names = {"synthesis.constant": "synthesis.blocks.4x4.const"} | pair(f"synthesis.to_rgb.{n - 1}", "synthesis.torgb")
    for k in range(config.mapping_layers):
        names |= pair(f"mapping.layers.{k}", f"mapping.dense{k}")
    for i in range(2 * n):
        native, size = f"synthesis.layers.{i}", sizes[i // 2]
        block, conv = f"synthesis.blocks.{size}x{size}", "conv1" if i % 2 else "conv0_up"
        conv = f"{block}.{conv if size > 4 else 'conv'}" if i else block  # the first layer has a bias, but no convolution
        names |= pair(f"{native}.affine", f"{block}.epi{i % 2 + 1}.style_mod.lin") | {f"{native}.bias": f"{conv}.bias"}
        names[f"{native}.noise_strength"] = f"{block}.epi{i % 2 + 1}.noise.weight"
        if i:
            names[f"{native}.conv.weight"] = f"{conv}.weight"

    for size in sizes:  # they give the widths of the replacements below
        name = f"blocks.{size}x{size}.epi1.noise.weight"
        check_values(name, synthesis.tensors[name], synthesis.source)
    replacements = _replacements(config)
    names |= {name: f"lacking.{name}" for name in replacements}
    tensors = {f"lacking.{name}": tensor for name, tensor in replacements.items()}
    tensors |= {f"synthesis.{name}": tensor for name, tensor in _without_filters(synthesis, sizes[1:]).items()}
    tensors |= {f"mapping.{name}": tensor for name, tensor in mapping.tensors.items()}
    up = {f"synthesis.layers.{2 * j}.conv.weight": sizes[j] for j in range(1, n)}  # -> output size
    joined = Weights(tensors, "", f"{synthesis.source} and {mapping.source}")
    network = joined.translate("stylegan", config, names, lambda name, native: (native[1], native[0], 3, 3) if name in up else native)
    for name, size in up.items():
        kernel = tensors[names[name]].transpose(0, 1)
        network.tensors[name] = (kernel if size >= FUSED_FROM else kernel.flip(2, 3)).contiguous()  # see EqualizedUpConv
    return network


def _replacements(config: StyleGANConfig) -> dict[str, Tensor]:
    """Tensors that the files lack, by native names."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i in range(config.n_latents):
        size = 4 * 2 ** (i // 2)
        tensors[f"synthesis.noise_{i}"] = torch.randn(1, 1, size, size, generator=generator)
    for j, channels in enumerate(config.channels[:-1]):
        tensors[f"synthesis.to_rgb.{j}.weight"] = torch.zeros(3, channels, 1, 1)
        tensors[f"synthesis.to_rgb.{j}.bias"] = torch.zeros(3)
    return tensors


def _without_filters(synthesis: Weights, sizes: list[int]) -> dict[str, Tensor]:
    """The tensors without the low-pass filters, one for each doubling, which must equal the only supported filter."""
    tensors = dict(synthesis.tensors)
    for size in sizes:
        name = f"blocks.{size}x{size}.conv0_up.intermediate.kernel"
        kernel = tensors.pop(name, None)
        if kernel is not None and (kernel.shape != (1, 1, 3, 3) or not torch.allclose(kernel.float(), binomial_kernel(1, BLUR), atol=1e-4)):
            raise synthesis.error(f"the filter {name} is not [1, 2, 1], the only one that is supported")
    return tensors
