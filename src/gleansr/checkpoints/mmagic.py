"""GLEAN and StyleGAN2 in the layout of mmagic, mmediting and mmgen: files {"meta", "state_dict"}."""

import math

from gleansr.checkpoints.basicsr import trunk_names, trunk_sizes
from gleansr.checkpoints.native import StoredNetwork
from gleansr.checkpoints.stylegan2_layout import StyleGAN2Layout
from gleansr.checkpoints.weights import Weights, pair
from gleansr.models.glean import GLEANConfig

LAYOUT = StyleGAN2Layout(
    generator={
        "mapping.layers.{n}.weight": "style_mapping.{k1}.linear.weight_orig",
        "mapping.layers.{n}.bias": "style_mapping.{k1}.bias",
        "synthesis.constant": "constant_input.input",
        "synthesis.layers.{i}.conv.weight": "{layer}.conv.weight_orig",
        "synthesis.layers.{i}.conv.affine.weight": "{layer}.conv.style_modulation.linear.weight_orig",
        "synthesis.layers.{i}.conv.affine.bias": "{layer}.conv.style_modulation.bias",
        "synthesis.layers.{i}.noise_strength": "{layer}.noise_injector.weight",
        "synthesis.layers.{i}.bias": "{layer}.activate.bias",
        "synthesis.to_rgb.{j}.conv.weight": "{rgb}.conv.weight_orig",
        "synthesis.to_rgb.{j}.conv.affine.weight": "{rgb}.conv.style_modulation.linear.weight_orig",
        "synthesis.to_rgb.{j}.conv.affine.bias": "{rgb}.conv.style_modulation.bias",
        "synthesis.to_rgb.{j}.bias": "{rgb}.bias",
        "synthesis.noise_{i}": "injected_noise_{k}",
        "w_avg": "w_avg",
    },
    discriminator={
        "from_rgb.weight": "convs.0.0.conv.weight_orig",
        "from_rgb.bias": "convs.0.1.bias",
        "blocks.{b}.conv1.weight": "{block}.conv1.0.conv.weight_orig",
        "blocks.{b}.conv1.bias": "{block}.conv1.1.bias",
        "blocks.{b}.conv2.weight": "{block}.conv2.1.conv.weight_orig",
        "blocks.{b}.conv2.bias": "{block}.conv2.2.bias",
        "blocks.{b}.skip.weight": "{block}.skip.1.conv.weight_orig",
        "conv.weight": "final_conv.0.conv.weight_orig",
        "conv.bias": "final_conv.1.bias",
        "dense.weight": "final_linear.0.linear.weight_orig",
        "dense.bias": "final_linear.0.bias",
        "out.weight": "final_linear.1.linear.weight_orig",
        "out.bias": "final_linear.1.bias",
    },
    layer=lambda i: f"convs.{i - 1}" if i else "conv1",
    rgb=lambda j: f"to_rgbs.{j - 1}" if j else "to_rgb1",
    block=lambda b, _: f"convs.{b + 1}",
    filters={".blur.kernel": 4, ".upsample.kernel": 4, ".conv2.0.kernel": 1, ".skip.0.kernel": 1},
)


def generator(weights: Weights) -> StoredNetwork:
    """A StyleGAN2 generator. The published ones have no w_avg."""
    return LAYOUT.read_generator(weights)


def stylegan1(weights: Weights) -> StoredNetwork:
    """Raises an error: mmagic's StyleGAN of the first version differs from the official architecture."""
    raise weights.error(
        "a StyleGAN1 of mmagic (styleganv1), which is not the official architecture; StyleGAN is read from GenForce's files"
    )


def discriminator(weights: Weights) -> StoredNetwork:
    """A StyleGAN2 discriminator, also of a GLEAN; tensors of augmentation (ADA), used in training only, are ignored."""
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith("ada_aug.")}
    return LAYOUT.read_discriminator(Weights(tensors, weights.prefix, weights.source))


def glean(weights: Weights) -> StoredNetwork:
    """A GLEAN: the bank under "generator.", the encoder as one list from the RRDBs to the latents."""
    bank = LAYOUT.generator_config(weights.under("generator."))
    n_fused = weights.count(lambda k: f"fusion_out.{k}.weight")  # at 4, 8, ..., in px
    in_size = 2 ** (n_fused + 1)
    n_up = int(math.log2(bank.size)) - int(math.log2(in_size))
    features, growth, n_rrdb = trunk_sizes(weights.under("encoder.0.0."))
    out_features = weights.size(f"decoder.{n_up}.0.weight", 0)
    config = GLEANConfig(in_size, bank, n_rrdb, features, growth, out_features)

    names = {f"bank.{native}": f"generator.{foreign}" for native, foreign in LAYOUT.generator_names(bank).items()}
    names |= trunk_names("encoder.trunk", "encoder.0.0.", n_rrdb) | pair("encoder.head", "encoder.0.1")
    for k in range(n_fused - 1):
        names |= pair(f"encoder.down.{k}.0", f"encoder.{k + 1}.0") | pair(f"encoder.down.{k}.2", f"encoder.{k + 1}.2")
    names |= pair("encoder.tail", f"encoder.{n_fused}.0") | pair("encoder.code", f"encoder.{n_fused}.3")
    for k in range(n_fused):
        names |= pair(f"fusion_out.{k}", f"fusion_out.{k}") | pair(f"fusion_skip.{k}", f"fusion_skip.{k}")
    for k in range(n_up):
        names |= pair(f"decoder.up.{k}.conv", f"decoder.{k}.upsample_conv")
    names |= pair("decoder.last", f"decoder.{n_up}.0") | pair("decoder.out", f"decoder.{n_up}.2")
    return weights.translate("glean", config, names, LAYOUT.shape, LAYOUT.filters)
