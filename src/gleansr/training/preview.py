"""A sheet of what a network will see in training."""

from pathlib import Path

import torch
from torch.nn import functional

from gleansr.training.config import NetworkRecipe
from gleansr.training.data import TrainingBatches, open_images
from gleansr.training.networks import GLEANNetworkConfig
from gleansr.training.state import save_grid

COLUMNS = 4


def preview(recipe: NetworkRecipe, path: Path, count: int = 16) -> int:
    """Saves the first images of a run as a PNG sheet, in pairs of lr and ground truth, `COLUMNS` pairs a row, and returns their number.

    They are those that training starts with: the same order, crops, mirroring and degradation. `count` is rounded up to whole rows.
    """
    network = recipe.network
    content_height = network.content_height if isinstance(network, GLEANNetworkConfig) else None
    images = open_images(recipe.data, network.out_size, network.in_size, content_height)
    count = -(-count // COLUMNS) * COLUMNS
    batches = TrainingBatches(
        images,
        in_size=network.in_size,
        start=0,
        end=count,
        batch_size=recipe.run.batch_size,
        seed=recipe.run.seed,
        device=torch.device("cpu"),
    )
    pairs = [(lr, gt) for gt_image, lr_image in batches for gt, lr in zip(gt_image, lr_image, strict=True)][:count]
    size = pairs[0][1].shape[-1]
    shown = [torch.stack([functional.interpolate(lr[None], size=size)[0], gt]) for lr, gt in pairs]
    save_grid(path, [torch.cat(shown[i : i + COLUMNS]) for i in range(0, len(shown), COLUMNS)])
    return len(shown)
