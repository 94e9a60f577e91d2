"""Random streams: each use of randomness in a run draws from a stream of its own, which follows from the run's seed alone."""

from typing import Literal

import numpy as np

Purpose = Literal["order", "degradation", "crop", "mirror", "step", "weights", "samples"]
# By number, because a stream must stay what it is when another purpose is added.
_PURPOSES: dict[Purpose, int] = {"order": 0, "degradation": 1, "crop": 2, "mirror": 3, "step": 4, "weights": 5, "samples": 6}


def stream_seed(seed: int, purpose: Purpose, *position: int) -> int:
    """The seed, 0 to 2**64 - 1, of the stream for one purpose at one position.

    Args:
        seed: of the run; any whole number.
        purpose: what is drawn.
        position: whole numbers from 0 up that tell where in the run: an image, an epoch, a step, a process.

    Source: the spawn keys of NumPy's SeedSequence, which keep streams apart where sums such as `seed * 1_000_003 + position` collide.
    """
    entropy = [abs(seed), int(seed < 0)]
    sequence = np.random.SeedSequence(entropy, spawn_key=(_PURPOSES[purpose], *position))
    return int(sequence.generate_state(1, np.uint64)[0])
