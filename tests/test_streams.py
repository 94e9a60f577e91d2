"""Random streams of a run: apart from each other, and the same each time."""

import itertools

from gleansr.training.streams import stream_seed


def test_streams_do_not_collide_over_seeds_purposes_and_positions():
    purposes = ("order", "degradation", "crop", "mirror", "step", "weights", "samples")
    seeds = [stream_seed(seed, purpose, at) for seed, purpose, at in itertools.product((-1, 0, 1, 2), purposes, range(200))]
    # What used to collide: 1_000_003 images on, the seed before had the same numbers; a batch's flips were the next image's degradation.
    seeds += [stream_seed(0, "degradation", 1_000_003), stream_seed(0, "step", 5, 1), stream_seed(0, "step", 5, 0)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_a_stream_is_the_same_on_every_machine():
    assert stream_seed(0, "order", 0) == 2635072618980576772
    assert stream_seed(7, "step", 12_000) == 13441265336981509004
