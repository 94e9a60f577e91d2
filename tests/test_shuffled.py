"""Sub-pixels laid out in whole runs: as PyTorch's pixel shuffle does."""

import torch
import torch.nn.functional as F

from gleansr.inference.cpu.shuffled import shuffled


def test_it_is_pixel_shuffle_of_channels_in_another_order():
    x = torch.randn(2, 3 * 4, 5, 7)
    ordered = x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
    expected = F.pixel_shuffle(x, 2)
    torch.testing.assert_close(shuffled(ordered), expected, rtol=0, atol=0)
    out = torch.empty(2, 3, 10, 14).contiguous(memory_format=torch.channels_last)
    assert shuffled(ordered, out) is out
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_into_some_rows_of_a_map():
    x = torch.randn(1, 8, 3, 4)
    whole = torch.zeros(1, 2, 20, 8).contiguous(memory_format=torch.channels_last)
    shuffled(x, whole[:, :, 6:12])
    torch.testing.assert_close(whole[:, :, 6:12], shuffled(x), rtol=0, atol=0)
    assert not whole[:, :, :6].any()
    assert not whole[:, :, 12:].any()
