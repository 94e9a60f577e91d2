"""Random streams: each purpose in a run has its own stream, derived from the run's seed."""

from typing import Literal

import numpy as np

Purpose = Literal["order", "degradation", "crop", "mirror", "step", "weights", "samples"]
# Fixed numbers, so that a stream does not change when a purpose is added.
_PURPOSES: dict[Purpose, int] = {"order": 0, "degradation": 1, "crop": 2, "mirror": 3, "step": 4, "weights": 5, "samples": 6}


def stream_seed(seed: int, purpose: Purpose, *position: int) -> int:
    """Returns the seed, 0 to 2**64 - 1, of the stream for a purpose at a position.

    Args:
        seed: of the run, any integer.
        purpose: what the random numbers are for.
        position: non-negative integers: an image, an epoch, a step or a process.

    It uses the spawn keys of NumPy's SeedSequence, since sums such as `seed * 1_000_003 + position` collide.
    """
    entropy = [abs(seed), int(seed < 0)]
    sequence = np.random.SeedSequence(entropy, spawn_key=(_PURPOSES[purpose], *position))
    return int(sequence.generate_state(1, np.uint64)[0])
