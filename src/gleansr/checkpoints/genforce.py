"""StyleGAN, the first version, in GenForce's layout: {"generator", "generator_smooth", "discriminator"}, converted or in training files.

Assumed, since the files do not state it: equalised weights, a final layer without tanh, minibatch groups of 4, and resampling fused with
the convolution from 128 px on. All are defaults of GenForce and of the official networks.
"""

import dataclasses
from collections.abc import Mapping

import torch

from gleansr.checkpoints.native import StoredNetwork
from gleansr.checkpoints.weights import Weights, pair
from gleansr.models.layers import binomial_kernel
from gleansr.models.stylegan import BLUR, StyleGANConfig

FUSED_FROM = 128
"""Smallest size in pixels at which the generator's upsampling is fused with its convolution."""


def generator(weights: Weights) -> StoredNetwork:
    """A generator with its w_avg."""
    if "mapping.label_weight" in weights.tensors:
        raise weights.error("a generator conditioned on labels, which is not supported")
    n = weights.count(lambda j: f"synthesis.output{j}.weight")
    config = StyleGANConfig(
        channels=tuple(weights.size(f"synthesis.output{j}.weight", 1) for j in range(n)),
        code_dim=weights.size("synthesis.layer0.style.weight", 1),
        mapping_layers=weights.count(lambda k: f"mapping.dense{k}.weight"),
        lod=_lod(weights, "synthesis.lod"),
    )
    names = {"w_avg": "truncation.w_avg", "synthesis.constant": "synthesis.layer0.const"}
    for k in range(config.mapping_layers):
        names |= pair(f"mapping.layers.{k}", f"mapping.dense{k}")
    for i in range(2 * n):
        native, foreign = f"synthesis.layers.{i}", f"synthesis.layer{i}"
        names |= pair(f"{native}.affine", f"{foreign}.style") | {f"{native}.bias": f"{foreign}.bias"}
        names |= {f"{native}.noise_strength": f"{foreign}.apply_noise.weight", f"synthesis.noise_{i}": f"{foreign}.apply_noise.noise"}
        if i:
            names[f"{native}.conv.weight"] = f"{foreign}.weight"
    for j in range(n):
        names |= pair(f"synthesis.to_rgb.{j}", f"synthesis.output{j}")

    up = {f"synthesis.layers.{2 * j}.conv.weight": 4 * 2**j for j in range(1, n)}  # -> output size
    blurs = {f"synthesis.layer{2 * j}.blur.kernel": config.channels[j] for j in range(1, n)}
    filtered = _without(weights, "synthesis.lod", blurs)
    network = filtered.translate("stylegan", config, names, lambda name, native: (native[1], native[0], 3, 3) if name in up else native)
    for name, size in up.items():
        kernel = filtered.tensors[names[name]].transpose(0, 1)
        network.tensors[name] = (kernel if size >= FUSED_FROM else kernel.flip(2, 3)).contiguous()  # see EqualizedUpConv
    return network


def discriminator(weights: Weights) -> StoredNetwork:
    """A discriminator. Fused and separate downsampling use the kernels alike."""
    n = weights.count(lambda j: f"input{j}.weight")
    top_down = [weights.size(f"input{j}.weight", 0) for j in range(n)]
    if (labels := weights.size(f"layer{2 * n}.weight", 0)) != 1:
        raise weights.error(f"a discriminator conditioned on {labels} labels, which is not supported")
    config = StyleGANConfig(tuple(top_down[::-1]), lod=_lod(weights, "lod"))
    names: dict[str, str] = {}
    for j in range(n):
        names |= pair(f"from_rgb.{j}", f"input{j}")
    for b in range(n - 1):
        names |= pair(f"blocks.{b}.conv1", f"layer{2 * b}") | pair(f"blocks.{b}.conv2", f"layer{2 * b + 1}")
    names |= pair("conv", f"layer{2 * n - 2}") | pair("dense", f"layer{2 * n - 1}") | pair("out", f"layer{2 * n}")
    blurs = {f"layer{2 * b + 1}.blur.kernel": top_down[b] for b in range(n - 1)}
    return _without(weights, "lod", blurs).translate("stylegan-discriminator", config, names)


def _lod(weights: Weights, name: str) -> float:
    """The level of detail, a scalar. GenForce uses the one in the file, in both networks."""
    if name not in weights.tensors or weights.tensors[name].shape != ():
        raise weights.error(f"the tensor {weights.prefix}{name} is missing or not a scalar")
    return float(weights.tensors[name])


def _without(weights: Weights, lod: str, blurs: Mapping[str, int]) -> Weights:
    """`weights` without the level of detail and the blur kernels, which must equal the only supported filter. `blurs`: name -> channels."""
    expected = binomial_kernel(1, BLUR)
    for name, channels in blurs.items():
        kernel = weights.tensors.get(name)
        if kernel is not None and (kernel.shape != (channels, 1, 3, 3) or not torch.allclose(kernel.float(), expected, atol=1e-4)):
            raise weights.error(f"the filter {weights.prefix}{name} is not [1, 2, 1], the only one that is supported")
    kept = {name: tensor for name, tensor in weights.tensors.items() if name != lod and name not in blurs}
    return dataclasses.replace(weights, tensors=kept)
