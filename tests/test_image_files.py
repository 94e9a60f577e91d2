"""What image files state beside their pixels, and files that end too early: colour, text, Exif, profiles, truncation."""

import io
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from PIL.ExifTags import IFD, Base

from gleansr.errors import ImageError
from gleansr.images import png as png_files
from gleansr.images.codec import Metadata, decode, encode, to_image


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def data(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_chunks(file, *chunks, before=b"IDAT"):
    """A PNG with chunks, names and contents, put in before its first one of a name."""
    at = next(place for name, place, _ in png_files.chunks(io.BytesIO(file)) if name == before) - 8
    new = b"".join(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks)
    return file[:at] + new + file[at:]


def steps(img):
    return np.asarray(to_image(img.pixels, img.alpha)).astype(int)


def gama(gamma):
    return b"gAMA", struct.pack(">I", round(gamma * 1e5))


def chrm(*values):
    return b"cHRM", struct.pack(">8I", *(round(value * 1e5) for value in values))


BT709 = (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
P3 = (0.3127, 0.329, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
# Known values of https://www.w3.org/TR/css-color-4: color(display-p3 ...) to sRGB, matrix of linear light, by row.
P3_TO_SRGB = np.array([[1.2249401763, -0.2249401763, 0], [-0.0420569547, 1.0420569547, 0], [-0.0196375546, -0.0786360454, 1.0982736]])


def srgb(light):
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def light_of(values):
    values = values / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def light_of_bt709(values):
    return np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))


# StatedColour colour


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([gama(1.0)], lambda v: srgb(v / 255)),
        ([gama(1 / 1.8)], lambda v: srgb((v / 255) ** 1.8)),
        ([gama(1 / 2.2)], lambda v: v),
        ([gama(1 / 2.2), chrm(*BT709)], lambda v: v),
        ([gama(1 / 2.2), chrm(*P3)], lambda v: srgb(light_of(v) @ P3_TO_SRGB.T)),
        ([chrm(*P3)], lambda v: srgb(light_of(v) @ P3_TO_SRGB.T)),
        ([gama(1.0), (b"sRGB", b"\0")], lambda v: v),  # which counts more
        ([gama(1.0), (b"cICP", bytes([1, 13, 0, 1]))], lambda v: v),
        ([(b"cICP", bytes([12, 13, 0, 1]))], lambda v: srgb(light_of(v) @ P3_TO_SRGB.T)),
        ([(b"cICP", bytes([1, 8, 0, 1]))], lambda v: srgb(v / 255)),
        ([(b"cICP", bytes([1, 4, 0, 1]))], lambda v: srgb((v / 255) ** 2.2)),
        (
            [(b"cICP", bytes([1, 1, 0, 1]))],
            lambda v: srgb(np.where(v < 0.081 * 255, v / 255 / 4.5, ((v / 255 + 0.099) / 1.099) ** (1 / 0.45))),
        ),
        ([(b"cICP", bytes([1, 13, 0, 0]))], lambda v: np.clip((v - 16) / 219 * 255, 0, 255)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_stated_colour_is_converted_to_srgb(chunks, expected, mode):
    image = Image.fromarray(noise(12, 11, 4)).convert("RGB" if mode == "P" else mode).convert(mode)
    img = decode(with_chunks(data(image), *chunks, before=b"PLTE" if mode == "P" else b"IDAT"))
    assert img.notes == ()
    np.testing.assert_allclose(steps(img)[..., :3], expected(np.asarray(image.convert("RGB")).astype("f8")), atol=1.01)
    if mode == "RGBA":
        np.testing.assert_array_equal(steps(img)[..., 3], np.asarray(image)[..., 3])


@pytest.mark.parametrize("deep", [False, True])
def test_stated_colour_of_grey(deep):
    values = np.linspace(0, 65535 if deep else 255, 64).astype(np.uint16 if deep else np.uint8)[None]
    img = decode(with_chunks(data(Image.fromarray(values)), gama(1.0), chrm(*P3)))
    assert img.grey
    np.testing.assert_allclose(img.pixels[0, 0] * 255, srgb(values[0] / values.max()), atol=0.01 if deep else 0.51)


@pytest.mark.parametrize(
    ("cicp", "said"),
    [((9, 16, 0, 1), r"HDR \(PQ\)"), ((9, 18, 0, 1), r"HDR \(HLG\)"), ((2, 2, 0, 1), "cICP 2/2/0/1"), ((1, 13, 1, 1), "cICP 1/13/1/1")],
)
def test_colour_that_is_not_converted_is_noted(cicp, said):
    image = Image.fromarray(noise(4, 4, 3))
    img = decode(with_chunks(data(image), (b"cICP", bytes(cicp))), name="a")
    assert len(img.notes) == 1
    assert re.match(f"a: .*{said}", img.notes[0])
    np.testing.assert_array_equal(steps(img), np.asarray(image))


@pytest.mark.parametrize("chunk", [gama(0), gama(400), chrm(*[0.3] * 8), chrm(*[0] * 8), chrm(0.3, 0.3, 0.5, 0, 0.2, 0.7, 0.1, 0.1)])
def test_impossible_numbers_are_ignored_with_a_note(chunk):
    image = Image.fromarray(noise(4, 4, 3))
    img = decode(with_chunks(data(image), chunk))
    assert "ignored" in img.notes[0]
    np.testing.assert_array_equal(steps(img), np.asarray(image))


def test_a_profile_counts_more_than_numbers_and_less_than_latents():
    image = Image.fromarray(noise(6, 6, 3))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = data(image, icc_profile=profile)
    np.testing.assert_array_equal(steps(decode(with_chunks(file, gama(1.0)))), np.asarray(image))
    coded = decode(with_chunks(file, (b"cICP", bytes([1, 8, 0, 1]))))
    np.testing.assert_allclose(steps(coded), srgb(np.asarray(image) / 255), atol=1)


def test_an_opened_image_has_its_latents_honoured_too():
    image = Image.fromarray(noise(6, 6, 3))
    with Image.open(io.BytesIO(with_chunks(data(image), (b"cICP", bytes([1, 8, 0, 1]))))) as opened:
        np.testing.assert_allclose(steps(decode(opened)), srgb(np.asarray(image) / 255), atol=1)


# Metadata never stops an image


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * 3_000_000)),
        (b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        (b"iCCP", b"huge\0\0" + zlib.compress(bytes(3_000_000))),
        (b"zTXt", b"a\0\7what"),
        (b"iCCP", b"a\0\7what"),
        (b"tRNS", b""),
    ],
)
def test_chunks_that_pillow_refuses_do_not_stop_a_png(chunk, before):
    image = Image.fromarray(noise(9, 8, 3))
    file = with_chunks(data(image, dpi=(300, 300)), chunk, before=before)
    with pytest.raises((ValueError, SyntaxError, OSError)), Image.open(io.BytesIO(file)) as opened:
        opened.load()
    if chunk[0] == b"tRNS":  # which belongs to the pixels
        with pytest.raises(ImageError):
            decode(file)
        return
    img = decode(file, name="a")
    np.testing.assert_array_equal(steps(img), np.asarray(image))
    assert [note for note in img.notes if note.startswith("a: its metadata was ignored: ")] == list(img.notes)
    assert img.metadata.dpi == pytest.approx((300, 300), abs=0.1)


def test_much_text_in_all_does_not_stop_a_png():
    image = Image.fromarray(noise(9, 8, 3))
    parts = [(b"zTXt", b"part\0\0" + zlib.compress(b"x" * 1_000_000))] * 70  # more than 64 MB in all
    img = decode(with_chunks(data(image), *parts))
    np.testing.assert_array_equal(steps(img), np.asarray(image))
    assert "metadata was ignored" in img.notes[0]


def test_a_damaged_png_is_not_saved_by_leaving_its_metadata_out():
    file = bytearray(with_chunks(data(Image.fromarray(noise(9, 8, 3))), (b"tEXt", b"Comment\0hello")))
    file[file.index(b"hello")] ^= 1
    with pytest.raises(ImageError, match="the checksum of its chunk tEXt is wrong"):
        decode(bytes(file))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0rubbish", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0" + bytes(200)]
)
def test_broken_exif_xmp_and_profiles_do_not_stop_an_image(kind, exif):
    image = Image.fromarray(noise(16, 16, 3))
    options = (
        {"icc_profile": b"no profile"}
        | ({} if kind == "TIFF" else {"exif": exif})
        | ({"xmp": b"\xff<x"} if kind in ("JPEG", "WEBP") else {})
    )
    if kind == "TIFF":
        options["tiffinfo"] = {700: b"\xff<x", 33723: b"\x1c\xff", 34665: 0xFFFFFF, 34853: 7}
    file = data(image, kind, **options)
    img = decode(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(steps(img), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))
    assert any("colour profile was ignored" in note for note in img.notes)


def test_too_long_exif_and_text_are_left_out_with_a_note():
    image = Image.fromarray(noise(8, 8, 3))
    exif = Image.Exif()
    exif[Base.ImageDescription] = "x" * 61_000
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "y" * 20_000)
    info.add_text("Title", "z")
    img = decode(data(image, exif=exif, pnginfo=info), name="a")
    assert [note.split(":")[1] for note in img.notes] == [" its Exif metadata was ignored", " its text Comment was ignored"]
    assert img.metadata.exif == b""
    assert img.metadata.text == {"Title": "z"}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize(
    "metadata",
    [
        Metadata(text={"Comment": "\udcff"}),
        Metadata(text={"Comment": "x" * 70_000}),
        Metadata(text={"Ж": "x"}),
        Metadata(exif=b"Exif\0\0rubbish"),
        Metadata(exif=b"rubbish", text={"Title": "kept", "Comment": "\ud800"}),
        Metadata(dpi=(float("nan"), 1e300)),
    ],
)
def test_metadata_that_cannot_be_written_is_left_out_with_a_warning(suffix, metadata, tmp_path):
    image = Image.fromarray(noise(8, 8, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = encode(image, tmp_path / f"a{suffix}", metadata=metadata, quality=100)
    assert decode(path).pixels.shape == (3, 8, 8)
    assert all("could not be written" in str(one.message) for one in caught)
    if suffix == ".png" and "Comment" in metadata.text and len(metadata.text["Comment"]) == 1:
        assert caught


def test_exif_that_is_too_long_for_a_jpeg_is_left_out(tmp_path):
    exif = Image.Exif()
    exif[IFD.Exif] = {Base.UserComment: b"x" * 70_000}
    exif[Base.Artist] = "somebody"
    metadata = Metadata(exif=exif.tobytes(), text={"Comment": "kept"})
    with pytest.warns(UserWarning, match="its Exif could not be written"):
        path = encode(Image.new("RGB", (8, 8)), tmp_path / "a.jpg", metadata=metadata)
    assert decode(path).metadata.text == {"Comment": "kept"}
    encode(Image.new("RGB", (8, 8)), tmp_path / "a.png", metadata=metadata)  # holds it


# Files that end too early


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_a_truncated_file_is_refused_or_read_as_far_as_it_goes(kind):
    values = np.add.outer(np.arange(256), np.arange(200)).astype(np.uint8)
    values[200:] = 0  # black as what is missing
    image = Image.fromarray(np.dstack((values, values[::-1], values)))
    options = {"PNG": {"compress_level": 0}, "JPEG": {"quality": 100, "subsampling": 0}, "BMP": {}}[kind]
    whole = data(image, kind, **options)
    complete = steps(decode(whole))
    for share in (0.5, 0.9):
        part = whole[: int(len(whole) * share)]
        with pytest.raises(ImageError, match=r"truncated.*--allow-truncated"):
            decode(part)
        img = decode(part, name="a", allow_truncated=True)
        (note,) = img.notes
        missing = int(note.split()[3])
        assert note == f"a: the {'first' if kind == 'BMP' else 'last'} {missing} of 256 rows are missing"
        there = steps(img)
        if kind == "BMP":  # from the bottom up
            np.testing.assert_array_equal(there[missing:], complete[missing:])
            continue
        assert abs(missing - 256 * (1 - share)) < 60
        np.testing.assert_array_equal(there[: 256 - missing], complete[: 256 - missing])
        assert not there[256 - missing :].any()


def test_what_lacks_its_end_mark_only():
    image = Image.fromarray(noise(24, 16, 3))
    png = data(image)
    np.testing.assert_array_equal(steps(decode(png[:-12])), np.asarray(image))  # as Pillow reads it
    jpeg = data(image, "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        decode(jpeg[:-2])
    img = decode(jpeg[:-2], name="a", allow_truncated=True)
    assert img.notes == ("a: its end is missing, after the last row",)
    np.testing.assert_array_equal(steps(img), steps(decode(jpeg)))


def test_truncation_allowed_does_not_allow_other_damage():
    image = Image.fromarray(noise(64, 64, 3))
    file = bytearray(data(image, compress_level=0))
    file[len(file) // 2] ^= 1
    for damaged in (bytes(file), data(image)[:40], b"no image"):
        with pytest.raises(ImageError):
            decode(damaged, allow_truncated=True)
    with pytest.raises(ImageError, match="its chunk IHDR is wrong"):
        decode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17))


def test_truncated_interlaced_rows_are_incomplete_and_progressive_ones_refused():
    values = noise(32, 32, 3)
    progressive = data(Image.fromarray(values), "JPEG", progressive=True)
    with pytest.raises(ImageError, match="truncated"):
        decode(progressive[: len(progressive) // 2], allow_truncated=True)


def test_a_png_too_short_for_its_pixels_is_refused_before_they_take_memory(monkeypatch):
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", lambda _: pytest.fail("memory was taken"))
    with pytest.raises(ImageError, match="truncated"):
        decode(b"\x89PNG\r\n\x1a\n" + body)


def raw_png(width, height, bits, colour, rows, *chunks, interlaced=0):
    """A PNG of what is to be compressed, with more chunks before that."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    named = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in named)
    return png_files.SIGNATURE + body


@pytest.mark.parametrize("chunks", [(), [(b"tEXt", b"Title\0a")]])
@pytest.mark.parametrize("rows", [1, 40, 63])
def test_a_png_whose_data_ends_after_a_row_is_refused(rows, chunks):
    assert decode(raw_png(64, 64, 8, 0, bytes(65) * 64, *chunks)).size == (64, 64)  # black to the end
    with pytest.raises(ImageError, match="its last rows are missing"):
        decode(raw_png(64, 64, 8, 0, (b"\0" + bytes(range(64))) * rows, *chunks))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 5), (9, 8)])
def test_an_interlaced_png_whose_data_ends_after_a_row_is_refused(width, height):
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in png_files._PASSES]
    rows = [b"\0" + b"\x50" * (3 * columns) for columns, count in sizes if columns > 0 for _ in range(count)]
    np.testing.assert_array_equal(steps(decode(raw_png(width, height, 8, 2, b"".join(rows), interlaced=1))), 0x50)
    with pytest.raises(ImageError, match=r"rows are missing|truncated"):
        decode(raw_png(width, height, 8, 2, b"".join(rows[:-1]), interlaced=1))


def test_a_png_with_text_that_is_too_short_is_refused_before_its_pixels_take_memory(monkeypatch):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", lambda _: pytest.fail("memory was taken"))
    with pytest.raises(ImageError, match="truncated"):
        decode(raw_png(9000, 9000, 8, 2, bytes(1000), (b"tEXt", b"Title\0a")))


def test_a_palette_that_is_missing_is_damage():
    with pytest.raises(ImageError, match="its palette is missing"):
        decode(raw_png(4, 1, 8, 3, b"\0\0\1\2\3"))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_value_of_grey_of_few_bits(bits):
    values = np.arange(8) % 2**bits
    row = np.packbits((values[:, None] >> np.arange(bits)[::-1]) & 1).tobytes()
    img = decode(raw_png(8, 1, bits, 0, b"\0" + row, (b"tRNS", b"\0\1")))
    assert img.alpha is not None
    assert img.alpha.flatten().tolist() == [value != 1 for value in values]
    np.testing.assert_allclose(img.pixels[0, 0], values / (2**bits - 1), atol=1e-6)


def test_the_transparent_value_of_colour_of_16_bits():
    values = np.array([[0, 0, 0], [1000, 2000, 3000], [65535, 65535, 65535]], ">u2")
    img = decode(raw_png(3, 1, 16, 2, b"\0" + values.tobytes(), (b"tRNS", values[1].tobytes())))
    assert img.alpha is not None
    assert img.alpha.flatten().tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_zeros_in_place_of_the_rest_of_a_jpeg(kind):
    image = Image.fromarray(noise(64, 96, 3))
    whole = data(image, kind)
    np.testing.assert_array_equal(steps(decode(whole + bytes(100))), steps(decode(whole)))
    copied = whole[: len(whole) // 2] + bytes(len(whole) // 2)
    with pytest.raises(ImageError, match=r"truncated.*--allow-truncated"):
        decode(copied)
    img = decode(copied, name="a", allow_truncated=True)
    missing = int(img.notes[0].split()[3])
    assert 20 < missing < 60
    np.testing.assert_array_equal(steps(img)[: 64 - missing], steps(decode(whole))[: 64 - missing])
    assert not steps(img)[64 - missing :].any()


# Animations


def test_of_an_animation_the_first_frame_is_taken_with_a_note():
    first, second = Image.fromarray(noise(8, 8, 3)), Image.fromarray(noise(8, 8, 3, seed=1))
    for kind, said in (("PNG", "is animated"), ("GIF", "is animated"), ("WEBP", "is animated"), ("TIFF", "has several pages")):
        options = {"lossless": True} if kind == "WEBP" else {}
        file = data(first, kind, save_all=True, append_images=[second], **options)
        img = decode(file, name="a")
        assert img.notes[0].startswith(f"a: {said}, ")
        if kind != "GIF":
            np.testing.assert_array_equal(steps(img), np.asarray(first))
        assert decode(data(first, kind)).notes == ()
