"""Large images: what they may cost, and that strips change nothing."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import gleansr.inference.upscaler
from gleansr.errors import ImageError, TooLargeError
from gleansr.images.codec import MAX_SIDE, DecodedImage, decode
from gleansr.images.planes import to_planes
from tests.photo_parts import upscaler


def blank(width, height, colour_type=2):
    """A PNG of one value, of a few kB however large it is."""
    row = 1 + width * {0: 1, 2: 3, 6: 4}[colour_type]
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(bytes([0]) + b"\x40" * (row - 1)) for _ in range(height)) + packer.flush()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


CHILD = """
import resource, sys
import gleansr, torch
from gleansr.images.codec import decode
from tests.photo_parts import upscaler
torch.set_num_threads(1)
model = upscaler(32, 2)
model.fit(decode(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = decode(sys.argv[1])
fitted = model.fit(image)
assert fitted.lr.shape == (3, 32, 32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_image_takes_a_few_bytes_a_pixel_and_not_floats_of_all(tmp_path):
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    width, height, per_pixel = 4000, 3000, 11
    large.write_bytes(blank(width, height, 6))
    small.write_bytes(blank(64, 48, 6))
    child = subprocess.run([sys.executable, "-c", CHILD, large, small], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    strips = 200e6  # of floats and what sums them, whatever the size
    assert int(child.stdout) * unit < per_pixel * width * height + strips


def test_the_limits_are_said_with_a_remedy():
    file = blank(1200, 1000, 0)
    assert decode(file, max_pixels=1_200_000).size == (1000, 1200)
    with pytest.raises(TooLargeError, match=r"1200x1000 pixels are more than 1199999; if you trust it, .*--max-megapixels"):
        decode(file, max_pixels=1_199_999)
    with pytest.raises(ImageError, match=f"more than {MAX_SIDE} pixels along a side"):
        decode(blank(MAX_SIDE + 1, 1, 0))


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (75, 75), (400, 3)])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_strips_make_what_the_whole_makes(size, fit, alpha, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=rng)
    mask = torch.randint(0, 256, (1, *size), dtype=torch.uint8, generator=rng) if alpha else None
    model, image = upscaler(16, 2), DecodedImage(pixels, mask)
    whole = model.fit(image, fit)
    monkeypatch.setattr(gleansr.inference.upscaler, "_LARGE", 500)
    monkeypatch.setattr(gleansr.inference.upscaler, "_STRIP", 500)
    strips = model.fit(image, fit)
    assert (strips.keep, strips.note) == (whole.keep, whole.note)
    torch.testing.assert_close(strips.lr, whole.lr, atol=2e-6, rtol=0)
    if alpha:
        torch.testing.assert_close(strips.alpha, whole.alpha, atol=2e-6, rtol=0)


def test_conversion_in_strips_makes_what_the_whole_makes(monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    images = [Image.fromarray(values), Image.fromarray(values).convert("P"), Image.fromarray(values).convert("CMYK")]
    images.append(Image.fromarray(values).convert("L"))
    whole = [to_planes(image, "a", [], None) for image in images]
    monkeypatch.setattr("gleansr.images.planes._STRIP", 100)
    for image, (colours, alpha) in zip(images, whole, strict=True):
        again, alpha_again = to_planes(image, "a", [], None)
        assert torch.equal(again, colours)
        assert (alpha is None) == (alpha_again is None)
        if alpha is not None and alpha_again is not None:
            assert torch.equal(alpha, alpha_again)


def test_8_bits_stay_8_bits_and_grey_one_channel():
    assert decode(blank(8, 8, 2)).stored.dtype == torch.uint8
    assert decode(blank(8, 8, 2)).stored.shape == (1, 8, 8)  # all of one grey
    assert decode(blank(8, 8, 0)).pixels.shape == (3, 8, 8)
