"""TIFF layouts: read as tifffile reads them, or refused by their names."""

import contextlib
import io
import struct

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from PIL.ExifTags import Base

from gleansr.errors import ImageError
from gleansr.images.codec import decode

TOPS = {"u1": 255, "u2": 65535, "u4": 2**32 - 1, "i1": 127, "i2": 32767, "i4": 2**31 - 1, "f2": 1, "f4": 1, "f8": 1}


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **options)
    return file.getvalue()


def shades(channels, dtype, seed=0):
    """(20, 24, channels) from black to white."""
    values = np.random.default_rng(seed).random((20, 24, channels))
    values[0, 0], values[0, 1] = 0, 1
    return (values * TOPS[dtype]).astype(dtype)


def read(file):
    """(H, W, channels) of colour and alpha of a file, as it is decoded, in [0, 1]."""
    image = decode(file)
    planes = image.pixels if image.alpha is None else torch.cat([image.pixels, image.alpha])
    return np.moveaxis(planes.numpy(), 0, -1).astype("f8")


def expected(file, dtype, *, inverted=False):
    """The same by tifffile."""
    with tifffile.TiffFile(io.BytesIO(file)) as opened:
        page = opened.pages.first
        values = page.asarray().astype("f8") / TOPS[dtype]
        if values.ndim == 3 and page.planarconfig == 2:
            values = np.moveaxis(values, 0, -1)
    values = np.atleast_3d(1 - values if inverted else values)
    if values.shape[-1] in (1, 2):
        values = np.concatenate([values[..., :1]] * 3 + [values[..., 1:]], -1)
    return values


LAYOUTS = [
    (dtype, kind, channels, planar)
    for dtype in TOPS
    for kind, channels in (("minisblack", 1), ("miniswhite", 1), ("minisblack", 2), ("rgb", 3), ("rgb", 4))
    for planar in (("contig",) if channels == 1 else ("contig", "separate"))
]


@pytest.mark.parametrize(("dtype", "kind", "channels", "planar"), LAYOUTS)
@pytest.mark.parametrize("order", "<>")
def test_every_layout_is_read_as_tifffile_reads_it(dtype, kind, channels, planar, order):
    values = shades(channels, dtype)
    stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
    extra = ["unassalpha"] if channels in (2, 4) else None
    for compression in (None, "zlib"):
        for tile in (None, (16, 16)):
            file = tiff(
                stored if channels > 1 else stored[..., 0],
                photometric=kind,
                planarconfig=planar if channels > 1 else None,
                byteorder=order,
                compression=compression,
                tile=tile,
                extrasamples=extra,
                rowsperstrip=None if tile else 7,
            )
            atol = 0.5 / 255 + 1e-6 if dtype in ("f2",) else 2e-6
            np.testing.assert_allclose(read(file), expected(file, dtype, inverted=kind == "miniswhite"), atol=atol)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u2", "u4", "i2"])
def test_a_predictor_and_big_tiff_are_read(dtype, order):
    values = shades(3, dtype)
    file = tiff(values, photometric="rgb", compression="zlib", predictor=2, byteorder=order)
    np.testing.assert_allclose(read(file), expected(file, dtype), atol=1e-6)
    big = tiff(values, photometric="rgb", bigtiff=True)
    np.testing.assert_allclose(read(big), expected(big, dtype), atol=1e-6)


def by_hand(tags, content):
    """A little-endian TIFF of one strip, of tags with a SHORT or, for several values, SHORTs."""
    tags = {**tags, 273: None, 278: tags[257], 279: len(content)}
    place = 8 + 2 + 12 * len(tags) + 4
    entries, beyond = b"", b""
    extra_at = place
    for tag in sorted(tags):
        values = tags[tag] if isinstance(tags[tag], tuple) else (tags[tag],)
        if tag == 273:
            entries += struct.pack("<HHIi", tag, 4, 1, -1)
        elif len(values) == 1:
            entries += struct.pack("<HHIHH", tag, 3, 1, values[0], 0)
        else:
            entries += struct.pack("<HHII", tag, 3, len(values), extra_at + len(beyond))
            beyond += struct.pack(f"<{len(values)}H", *values)
    start = extra_at + len(beyond)
    entries = entries.replace(struct.pack("<HHIi", 273, 4, 1, -1), struct.pack("<HHII", 273, 4, 1, start))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0) + beyond + content


def test_a_float_predictor_is_read():
    values = np.random.default_rng(1).random((6, 10)).astype(">f4")
    planes = values.view(np.uint8).reshape(6, 10, 4).swapaxes(1, 2).reshape(6, 40)  # the bytes of like rank together
    stored = planes.copy()
    stored[:, 1:] -= planes[:, :-1]
    file = by_hand({256: 10, 257: 6, 258: 32, 259: 1, 262: 1, 277: 1, 317: 3, 339: 3}, stored.tobytes())
    np.testing.assert_array_equal(read(file)[..., 0], values)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_bits_are_read(bits):
    values = np.random.default_rng(2).integers(0, 2**bits, (5, 9))
    values[0, 0] = 2**bits - 1
    packed = np.packbits((values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(5, -1), axis=1)
    file = by_hand({256: 9, 257: 5, 258: bits, 259: 1, 262: 1, 277: 1}, packed.tobytes())
    np.testing.assert_allclose(read(file)[..., 1], values / (2**bits - 1), atol=1e-6)


def test_12_bits_in_16_are_told_by_the_tag_of_the_largest_value():
    values = np.random.default_rng(3).integers(0, 4096, (8, 8)).astype("u2")
    for top, white in ((4095, 4095), (4000, 65535)):  # the second says only which values occur
        file = tiff(values, photometric="minisblack", extratags=[(281, "H", 1, top, True)])
        np.testing.assert_allclose(read(file)[..., 0], values / white, atol=1e-6)


def test_associated_alpha_is_divided_out_and_other_samples_are_no_alpha():
    values = shades(4, "u2").astype("f8")
    values[..., 3] = np.maximum(values[..., 3], 6000)
    colour = np.rint(values[..., :3] * values[..., 3:] / 65535)
    stored = np.concatenate([colour, values[..., 3:]], -1).astype("u2")
    file = tiff(stored, photometric="rgb", extrasamples=["assocalpha"])
    np.testing.assert_allclose(read(file), values / 65535, atol=1e-4)
    assert decode(tiff(stored, photometric="rgb", extrasamples=["unspecified"])).alpha is None


def test_32_bits_are_the_range_that_holds_them():
    values = np.array([[0, 13107, 65535]], "u4")
    np.testing.assert_allclose(read(tiff(values, photometric="minisblack"))[0, :, 0], [0, 0.2, 1], atol=1e-6)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "f4"])
def test_values_far_below_0_are_refused(dtype):
    values = shades(1, dtype)[..., 0]
    values[3, 3] = -TOPS[dtype] // 2
    with pytest.raises(ImageError, match=r"values below 0.*shift them"):
        decode(tiff(values, photometric="minisblack"))


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({258: (16, 16, 16), 262: 3, 277: 3}, "16-bit palette"),
        ({258: 64, 262: 1, 277: 1, 339: 1}, "64-bit grey"),
        ({258: 64, 262: 1, 277: 1, 339: 6}, "complex 64-bit grey"),
        ({258: (8, 8, 8), 262: 6, 277: 3, 530: (2, 2)}, "8-bit YCbCr"),
        ({258: 32, 262: 1, 277: 1, 259: 5}, r"32-bit grey, compressed \(LZW\)"),
        ({258: (32, 32, 32), 262: 32803, 277: 3, 339: (3, 3, 3)}, "float 32-bit a camera's colour filter"),
        ({258: (16,) * 4, 262: 5, 277: 4, 284: 2}, "16-bit CMYK in 4 planes"),
    ],
)
def test_what_is_not_read_is_refused_by_name_with_a_remedy(tags, said):
    file = by_hand({256: 4, 257: 4, 259: 1, **tags}, bytes(4 * 4 * 64))
    with pytest.raises(ImageError, match=f"not read: {said}; save the image as 8- or 16-bit RGB or grey"):
        decode(file)


def test_big_endian_big_tiff_is_refused_by_name():
    with pytest.raises(ImageError, match="big-endian BigTIFF is not read; save"):
        decode(tiff(shades(3, "u1"), photometric="rgb", bigtiff=True, byteorder=">"))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncated_deep_files_are_refused(compression):
    file = tiff(shades(3, "u2"), photometric="rgb", compression=compression)
    for end in (len(file) - 40, len(file) // 2):
        with pytest.raises(ImageError, match="cannot be read"):
            decode(file[:end])


def test_what_pillow_reads_rightly_stays_as_it_reads_it():
    image = Image.fromarray(shades(4, "u1"), "CMYK")
    file = io.BytesIO()
    image.save(file, "TIFF")
    np.testing.assert_allclose(read(file.getvalue()), np.asarray(image.convert("RGB")) / 255, atol=1e-6)


def test_metadata_orientation_profile_and_pages_hold_for_deep_files_too():
    values = shades(3, "u2")
    exif = [(274, "H", 1, 6, True), (315, "s", 0, "somebody", True)]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(values, photometric="rgb", extratags=exif, resolution=(100, 200), resolutionunit=2, metadata=None)
        writer.write(values, photometric="rgb", metadata=None)
    image = decode(file.getvalue(), name="scan")
    np.testing.assert_allclose(np.moveaxis(image.pixels.numpy(), 0, -1), np.rot90(values, -1) / 65535, atol=1e-6)
    kept = Image.Exif()
    kept.load(image.metadata.exif)
    assert kept[Base.Artist] == "somebody"
    assert image.metadata.dpi == (200, 100)
    assert image.notes == ("scan: has several pages, the first was used",)


def test_an_image_that_pillow_opened_is_read_by_its_tags_too():
    values = shades(3, "u2")
    with Image.open(io.BytesIO(tiff(np.moveaxis(values, -1, 0), photometric="rgb", planarconfig="separate"))) as image:
        np.testing.assert_allclose(np.moveaxis(decode(image).pixels.numpy(), 0, -1), values / 65535, atol=1e-6)


@pytest.mark.parametrize("kind", [1, 2, 5, 7, 12])
@pytest.mark.parametrize("tag", [258, 273, 278, 279, 339])
def test_a_tag_of_another_kind_is_no_mistake_of_ours(tag, kind):
    """Bytes, text, fractions and floats where whole numbers belong."""
    file = bytearray(tiff(shades(3, "i2"), photometric="rgb", planarconfig="separate"))
    (at,) = struct.unpack_from("<I", file, 4)
    (entries,) = struct.unpack_from("<H", file, at)
    entry = next(at + 2 + 12 * i for i in range(entries) if struct.unpack_from("<H", file, at + 2 + 12 * i)[0] == tag)
    struct.pack_into("<H", file, entry + 2, kind)
    with contextlib.suppress(ImageError):
        decode(bytes(file))
