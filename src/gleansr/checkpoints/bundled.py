"""Bundled networks of metrics and losses."""

from typing import cast

from safetensors.torch import load_file
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.checkpoints import native
from gleansr.checkpoints.zoo import asset
from gleansr.models.features import EfficientNetLite0, SqueezeNet


@plain_torch()
def squeezenet() -> SqueezeNet:
    """SqueezeNet 1.1 with its ImageNet weights, in eval mode, frozen, float32, on the CPU."""
    path = asset("squeezenet.safetensors")
    return cast("SqueezeNet", native.read(path).build("features", path)).requires_grad_(False)


@plain_torch()
def efficientnet() -> EfficientNetLite0:
    """EfficientNet-Lite0 with its ImageNet weights, stored in 8 bits, in eval mode, frozen, float32, on the CPU."""
    path = asset("efficientnet-lite0.safetensors")
    return cast("EfficientNetLite0", native.read(path).build("features", path)).requires_grad_(False)


@plain_torch()
def lpips_heads(net: str) -> list[Tensor]:
    """The non-negative weights (64), (192 or 128), ... of the channels of five layers in LPIPS v0.1, for "alex" or "vgg"."""
    tensors = load_file(asset("lpips.safetensors"))
    return [tensors[f"{net}.{layer}"] for layer in range(5)]
