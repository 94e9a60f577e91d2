"""StyleGAN2 in rosinality's layout: training files {"g", "d", "g_ema"} and converted ones {"g_ema", "latent_avg"}."""

from gleansr.checkpoints.native import StoredNetwork
from gleansr.checkpoints.stylegan2_layout import StyleGAN2Layout
from gleansr.checkpoints.weights import Weights

LAYOUT = StyleGAN2Layout(
    generator={
        "mapping.layers.{n}.weight": "style.{k1}.weight",
        "mapping.layers.{n}.bias": "style.{k1}.bias",
        "synthesis.constant": "input.input",
        "synthesis.layers.{i}.conv.weight": "{layer}.conv.weight",
        "synthesis.layers.{i}.conv.affine.weight": "{layer}.conv.modulation.weight",
        "synthesis.layers.{i}.conv.affine.bias": "{layer}.conv.modulation.bias",
        "synthesis.layers.{i}.noise_strength": "{layer}.noise.weight",
        "synthesis.layers.{i}.bias": "{layer}.activate.bias",
        "synthesis.to_rgb.{j}.conv.weight": "{rgb}.conv.weight",
        "synthesis.to_rgb.{j}.conv.affine.weight": "{rgb}.conv.modulation.weight",
        "synthesis.to_rgb.{j}.conv.affine.bias": "{rgb}.conv.modulation.bias",
        "synthesis.to_rgb.{j}.bias": "{rgb}.bias",
        "synthesis.noise_{i}": "noises.noise_{k}",
        "w_avg": "latent_avg",
    },
    discriminator={
        "from_rgb.weight": "convs.0.0.weight",
        "from_rgb.bias": "convs.0.1.bias",
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
    layer=lambda i: f"convs.{i - 1}" if i else "conv1",
    rgb=lambda j: f"to_rgbs.{j - 1}" if j else "to_rgb1",
    block=lambda b, _: f"convs.{b + 1}",
    filters={".blur.kernel": 4, ".upsample.kernel": 4, ".conv2.0.kernel": 1, ".skip.0.kernel": 1},
)


def generator(weights: Weights) -> StoredNetwork:
    """A generator; "latent_avg" next to it in the file is the w_avg."""
    return LAYOUT.read_generator(weights)


def discriminator(weights: Weights) -> StoredNetwork:
    """A discriminator."""
    return LAYOUT.read_discriminator(weights)
