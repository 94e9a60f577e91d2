"""A preview sheet of training images."""

from pathlib import Path

import torch
from torch.nn import functional

from gleansr.training.batches import TrainingBatches
from gleansr.training.config import NetworkRecipe
from gleansr.training.data import open_images
from gleansr.training.log import save_grid
from gleansr.training.networks import GLEANNetworkConfig

COLUMNS = 4


def preview(recipe: NetworkRecipe, path: Path, count: int = 16) -> int:
    """Saves the first images of a run as a PNG sheet of lr and gt, `COLUMNS` pairs a row, and returns the number of pairs.

    Order, crops, mirroring and degradation are those of training. `count` is rounded up to full rows.
    """
    network = recipe.network
    content_height = network.content_height if isinstance(network, GLEANNetworkConfig) else None
    dataset = open_images(recipe.data, network.out_size, network.in_size, content_height)
    count = -(-count // COLUMNS) * COLUMNS
    batches = TrainingBatches(
        dataset,
        in_size=network.in_size,
        start=0,
        end=count,
        batch_size=recipe.run.batch_size,
        seed=recipe.run.seed,
        device=torch.device("cpu"),
    )
    images = [(lr, gt) for gts, lrs in batches for gt, lr in zip(gts, lrs, strict=True)][:count]
    size = images[0][1].shape[-1]
    pairs = [torch.stack([functional.interpolate(lr[None], size=size)[0], gt]) for lr, gt in images]
    save_grid(path, [torch.cat(pairs[i : i + COLUMNS]) for i in range(0, len(pairs), COLUMNS)])
    return len(pairs)
