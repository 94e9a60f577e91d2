"""Starts a wide GLEAN as a narrower one that it computes exactly, to be trained further.

Source: Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016; new channels start untrained and
unread here, instead of as copies that must be told apart by noise.
"""

import itertools
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from gleansr.models.glean import GLEANConfig


def widen(tensors: Mapping[str, Tensor], wide: Mapping[str, Tensor], source: GLEANConfig, target: GLEANConfig) -> dict[str, Tensor]:
    """The layers of a trained GLEAN, `tensors`, that are wider in an untrained one of the same input size, `wide`, in the latter's shapes.

    Old outputs do not read new inputs, so that the wide network gives the images of the narrow one; new outputs keep their untrained
    weights. Layers with fewer channels than the trained ones are left out.
    """
    layers = {}
    for name, untrained in wide.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.shape == untrained.shape or len(tensor) > len(untrained):
            continue
        result = untrained.clone()
        outputs = len(tensor)  # before a pixel shuffle too, where the four of a channel follow each other
        if tensor.ndim == 1:
            result[:outputs] = tensor
        else:
            old, new = input_channels(name, source, tensor.shape[1]), input_channels(name, target, untrained.shape[1])
            if any(a > b for a, b in zip(old, new, strict=True)):
                continue
            starts = itertools.accumulate(new, initial=0)
            inputs = torch.cat([torch.arange(start, start + width) for start, width in zip(starts, old, strict=False)])
            result[:outputs] = 0
            result[:outputs, inputs] = tensor
        layers[name] = result
    return layers


def input_channels(name: str, config: GLEANConfig, n_in: int) -> list[int]:
    """The channels of each of the features that a layer reads side by side; `n_in` are all of them."""
    if match := re.search(r"\.convs\.(\d+)\.", name):  # of a dense block: its input and what grew
        return [config.features, *[config.growth] * int(match[1])]
    if match := re.match(r"decoder\.(?:up\.(\d+)|last)\.", name):
        stage = int(match[1]) if match[1] else len(config.decoder_sizes)
        own = config.decoder_channels(config.decoder_sizes[stage - 1]) if stage else config.encoder_channels(config.in_size)
        return [own, n_in - own] if own < n_in else [own]
    return [n_in]
