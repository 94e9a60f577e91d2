"""A slice of tests/fuzz/images.py, and that it finds what it looks for."""

from collections import Counter
from itertools import islice

import pytest

from gleansr.images.codec import decode
from tests.fuzz import findings, images, trials


def test_whole_files_are_read_as_pillow_reads_them():
    counts: Counter[str] = Counter()
    for data in images.seeds().values():
        images.check(data, counts)
    assert not findings(counts), counts
    assert counts["read by both"] > 30


def test_damaged_files_are_read_as_pillow_reads_them_or_refused():
    counts = images.run(islice(trials(1), 2500))
    assert not findings(counts), counts
    assert counts["refused by both"] > 20


def test_a_reader_that_differs_is_found():
    data = images.seeds()["PNG RGB"]
    counts: Counter[str] = Counter()
    images.check(data, counts, reads=lambda _: ValueError("no"))
    assert "read, though Pillow refuses it" in findings(counts)[0]
    images.check(data, counts, reads=lambda _: images.plain(images.seeds()["PNG L"]))
    assert "other pixels" in findings(counts)[1]
    with pytest.raises(ValueError, match="not an image"):
        decode(b"no image")
