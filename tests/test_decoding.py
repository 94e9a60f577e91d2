"""decode and encode: every mode, orientation and profile, every error, and what is written read back."""

import io
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin
from PIL.ExifTags import GPS, IFD, Base

from gleansr.errors import ImageError, RequestError
from gleansr.images import codec as images
from gleansr.images.codec import EDITED, GENERATED, Metadata, check_output, decode, encode, to_image, unpremultiply
from gleansr.jobs.steps import encode_result

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SUFFIXES = (".png", ".jpg", ".webp", ".tif")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def rgb(height=5, width=7):
    return Image.fromarray(noise(height, width, 3))


def data(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def steps(img):
    """The pixels as HWC in 8 bits."""
    return np.asarray(to_image(img.pixels, img.alpha))


def planes(img):
    return img.pixels.numpy() if img.alpha is None else torch.cat((img.pixels, img.alpha)).numpy()


# Sources and modes


@pytest.mark.parametrize("form", ["path", "string", "bytes", "memoryview", "image", "array", "tensor"])
def test_every_source_gives_the_same_image(form, tmp_path):
    image, path = rgb(), tmp_path / "a.png"
    image.save(path)
    array = np.asarray(image)
    source = {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "memoryview": memoryview(path.read_bytes()),
        "image": image,
        "array": array,
        "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1) / 255,
    }[form]
    img = decode(source)
    assert img.pixels.shape == (3, 5, 7)
    assert img.pixels.dtype == torch.float32
    assert img.alpha is None
    assert img.notes == ()
    np.testing.assert_array_equal(img.pixels.permute(1, 2, 0), array / np.float32(255))
    assert str(path) in img.name if form in ("path", "string") else img.name
    assert decode(source, name="me").name == "me"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "CMYK"])
def test_opaque_8_bit_modes_decode_as_pillow_converts_them(mode):
    image = rgb().convert(mode)
    img = decode(image)
    assert img.alpha is None
    np.testing.assert_array_equal(steps(img), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_modes_with_alpha_decode_to_straight_colour(mode):
    image = Image.fromarray(noise(6, 6, 4) | 1)
    if mode == "PA":
        mask = image.getchannel("A")
        image = image.convert("RGB").convert("P")
        image.putalpha(mask)
    else:
        image = image.convert("LA" if mode == "La" else "RGBA").convert(mode)
    assert image.mode == mode
    img = decode(image)
    expected = image.convert("LA").convert("RGBA") if mode == "La" else image.convert("RGBA")
    np.testing.assert_array_equal(steps(img), np.asarray(expected))


def test_arrays_and_tensors_of_every_channel_count():
    for channels, opaque in ((1, True), (2, False), (3, True), (4, False)):
        array = noise(4, 5, channels) // 2
        img = decode(array)
        assert (img.alpha is None) == opaque
        expected = np.moveaxis(array, -1, 0) / np.float32(255)
        np.testing.assert_array_equal(planes(img)[-1], expected[-1])
        np.testing.assert_array_equal(planes(decode(torch.from_numpy(expected))), planes(img))
    grey = noise(4, 5)
    np.testing.assert_array_equal(planes(decode(grey)), planes(decode(grey[..., None])))
    deep = np.array([[0, 1, 32768, 65535]], np.uint16)
    np.testing.assert_array_equal(decode(deep).pixels[1], deep / np.float32(65535))


def test_a_image_does_not_share_memory_with_its_source():
    tensor = torch.full((3, 2, 2), 0.5)
    img = decode(tensor)
    tensor.zero_()
    assert (img.pixels == 0.5).all()


@pytest.mark.parametrize("dtype", ["uint16", ">u2"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_values(kind, dtype):
    values = np.array([[0, 1, 255, 256], [1000, 32767, 65534, 65535]], dtype)
    img = decode(data(Image.fromarray(values), kind))
    np.testing.assert_array_equal(img.pixels, np.broadcast_to(values.astype("f4") / np.float32(65535), (3, 2, 4)))


def test_16_bit_grey_with_a_profile_is_converted():
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    img = decode(data(Image.fromarray(values), "PNG", icc_profile=plain))
    np.testing.assert_allclose(img.pixels[0, 0], values[0] / 65535, atol=0.6 / 255)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], "f4"), [0.0, 0.5, 1.0]),
        (np.array([[-3.0, 51.0, 255.0]], "f4"), [0.0, 0.2, 1.0]),
        (np.array([[0.0, 13107.0, 65535.0]], "f4"), [0.0, 0.2, 1.0]),
        (np.array([[-1, 13107, 65535]], "i4"), [0.0, 0.2, 1.0]),
        (np.array([[0, 2**30, 2**31 - 1]], "i4"), [0.0, 0.5, 1.0]),
    ],
)
def test_float_and_32_bit_grey_find_their_range(values, expected):
    img = decode(data(Image.fromarray(values), "TIFF"))
    np.testing.assert_allclose(img.pixels[2, 0], expected, atol=1e-6)


def png(bits, colour_type, rows, *chunks):
    """A PNG that Pillow does not write, of rows of bytes."""
    header = struct.pack(">IIBBBBB", len(rows[0]) * 8 // bits // {0: 1, 2: 3}[colour_type], len(rows), bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    result = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")):
        result += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return result


def test_16_bit_colour_is_reduced_to_8_bits():
    values = np.array([[[0x0102, 0x80FF, 0xFFFF], [0, 0x7F00, 0xFE01]]], ">u2")
    img = decode(png(16, 2, [values[0].tobytes()]))
    np.testing.assert_allclose(img.pixels.permute(1, 2, 0), values.astype("f4") / 65535, atol=1 / 255)


def test_16_bit_grey_with_a_transparent_value():
    img = decode(png(16, 0, [b"\x00\x07\x07\x00\x80\x00"], (b"tRNS", b"\x07\x00")))
    assert img.alpha is not None
    assert img.alpha.flatten().tolist() == [1, 0, 1]
    np.testing.assert_array_equal(img.pixels[0, 0], np.array([0x0007, 0x0700, 0x8000], "f4") / 65535)


def test_lab_is_converted():
    lab = Image.merge("LAB", [Image.new("L", (1, 1), value) for value in (138, 209, 198)])  # L 54.3, a 80.8, b 69.9: red
    np.testing.assert_allclose(steps(decode(lab))[0, 0], [255, 0, 0], atol=6)


def test_animations_give_their_first_frame():
    first, second = rgb(), rgb().transpose(Image.Transpose.ROTATE_180)
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        animation = data(first, kind, save_all=True, append_images=[second], **options)
        np.testing.assert_array_equal(steps(decode(animation)), np.asarray(first))


def test_readable_suffixes_are_those_of_images():
    suffixes = images.readable_suffixes()
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".gif", ".bmp"} <= suffixes
    assert not {".txt", ".eps", ".mpg", ".h5", ".pdf"} & suffixes


# Transparency


@pytest.mark.parametrize("transparency", [2, bytes([255, 128, 0, 255])])
def test_palettes_with_transparency(transparency):
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    img = decode(data(image, "PNG", transparency=transparency))
    alphas = [255, 255, 0, 255] if transparency == 2 else [255, 128, 0, 255]
    np.testing.assert_array_equal(steps(img)[0, :, 3], alphas)
    np.testing.assert_array_equal(steps(img)[0, 1, :3], [40, 50, 60])


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7)), ("1", 0)])
def test_a_transparent_value_becomes_alpha(mode, key):
    image = Image.fromarray(np.array([[0, 7, 255]], np.uint8)).convert(mode)
    img = decode(data(image, "PNG", transparency=key))
    hidden = [0] if mode == "1" else [1]
    assert img.alpha is not None
    assert [i for i in range(3) if img.alpha[0, 0, i] == 0] == hidden or mode == "1"
    assert set(img.alpha.unique().tolist()) == {0.0, 1.0}


def test_an_opaque_alpha_is_dropped():
    assert decode(rgb().convert("RGBA")).alpha is None
    assert decode(np.full((2, 2, 2), 255, np.uint8)).alpha is None


def test_premultiplication_and_back():
    image = noise(8, 8, 4)
    image[0, :, 3] = 0
    image[1:, :, 3] |= 1
    img = decode(image)
    assert img.alpha is not None
    product = img.premultiplied()
    np.testing.assert_allclose(product, planes(img)[:3] * planes(img)[3:], atol=1e-7)
    straight = unpremultiply(product, img.alpha)
    np.testing.assert_allclose(straight[:, 1:], img.pixels[:, 1:], atol=1e-5)
    assert (straight[:, 0] == 0).all()
    opaque = decode(image[..., :3])
    assert torch.equal(opaque.premultiplied(), opaque.pixels)
    assert unpremultiply(torch.ones(3, 1, 1), torch.full((1, 1, 1), 0.5)).max() == 1  # an overshoot is clamped


# Orientation and colour


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_is_turned_upright(orientation, kind):
    upright = rgb()
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # stored turned the other way
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"dpi": (100, 200)}
    img = decode(data(stored, kind, exif=exif, **options))
    np.testing.assert_array_equal(steps(img), np.asarray(upright))
    kept = Image.Exif()
    kept.load(img.metadata.exif)
    assert kept[Base.Orientation] == 1
    if kind == "PNG":
        expected = (200, 100) if orientation >= 5 else (100, 200)
        assert img.metadata.dpi == pytest.approx(expected, abs=0.1)


def swapped_profile():
    """An RGB profile whose red and blue primaries are exchanged: its pixels (r, g, b) are (b, g, r) in sRGB."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(int.from_bytes(profile[128:132], "big")):
        at = 132 + 12 * i
        name = bytes(profile[at : at + 4])
        profile[at : at + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(name, name)
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_an_embedded_profile_is_converted_to_srgb(mode):
    image = rgb().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(noise(5, 7, seed=1)))
    img = decode(data(image, "PNG", icc_profile=swapped_profile()))
    assert img.notes == ()
    expected = np.asarray(image.convert("RGB"))[..., ::-1].astype(int)
    np.testing.assert_allclose(steps(img)[..., :3], expected, atol=2)
    if mode == "RGBA":
        np.testing.assert_array_equal(steps(img)[..., 3], np.asarray(image)[..., 3])


def cmyk_profile():
    """A CMYK profile in which cyan and black ink are both black, and the other inks are invisible."""
    xyz_white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    ramp = bytes(range(256))
    corners = b"".join(bytes([0 if c or k else 255, 128, 128]) for c in (0, 1) for _ in range(4) for k in (0, 1))
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + corners + ramp * 3
    tags = {b"wtpt": xyz_white, b"A2B0": lut}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    white = struct.pack(">iii", 63190, 65536, 54061)
    header = b"lcms\x02\x10\0\0prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + white
    return struct.pack(">I", 128 + len(table + body)) + header.ljust(124, b"\0") + table + body


def test_cmyk_is_converted_by_its_profile():
    image = Image.frombytes("CMYK", (3, 1), bytes([255, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0, 255]))
    img = decode(data(image, "TIFF", icc_profile=cmyk_profile()))
    assert img.notes == ()
    np.testing.assert_allclose(steps(img)[0, :, 0], [0, 255, 0], atol=3)
    np.testing.assert_array_equal(steps(decode(data(image, "TIFF")))[0, 0], [0, 255, 255])


def test_an_srgb_profile_changes_nothing():
    image = rgb(64, 64)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(steps(decode(data(image, "PNG", icc_profile=profile))), np.asarray(image))


@pytest.mark.parametrize(("mode", "profile"), [("RGB", b"rubbish"), ("RGB", swapped_profile()[:200]), ("CMYK", swapped_profile())])
def test_a_profile_that_does_not_work_is_ignored_with_a_note(mode, profile):
    image = rgb().convert(mode)
    image.info["icc_profile"] = profile
    img = decode(image, name="holiday")
    assert len(img.notes) == 1
    assert img.notes[0].startswith("holiday: its colour profile was ignored")
    np.testing.assert_array_equal(steps(img), np.asarray(image.convert("RGB")))


# Metadata and files


def scene():
    """An image with everything that is to be kept, and some that is not."""
    exif = Image.Exif()
    exif[Base.Artist] = "Jörg Müller".encode()  # UTF-8, which cameras write
    exif[Base.Copyright] = "CC0"
    exif[Base.Software] = "Old software"
    exif[Base.Orientation] = 6
    exif[IFD.Exif] = {
        Base.DateTimeOriginal: "2020:01:02 03:04:05",
        Base.ExifImageWidth: 7,
        Base.ExifImageHeight: 5,
        Base.ColorSpace: 65535,
        Base.MakerNote: b"secret" * 9,
    }
    exif[IFD.GPSInfo] = {GPS.GPSLatitudeRef: "N", GPS.GPSLatitude: (47.0, 30.0, 0.5)}
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "A tower")
    text.add_text("Title", "Bañeza")
    text.add_text("Software", "Old software")
    text.add_text("of some program", "steps: 20")
    return decode(data(rgb(), "PNG", exif=exif, pnginfo=text, dpi=(300, 300)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_is_kept_and_synthetic_detail_marked(suffix, tmp_path):
    path = encode(rgb(20, 28), tmp_path / f"out{suffix}", metadata=scene().metadata, model="bank-9 & <co>")
    with Image.open(path) as image:
        image_exif = image.getexif()
        details, place = dict(image_exif.get_ifd(IFD.Exif)), dict(image_exif.get_ifd(IFD.GPSInfo))
        exif = dict(image_exif)
        image.load()
    assert exif[Base.Artist].encode("latin-1").decode() == "Jörg Müller"
    assert exif[Base.Copyright] == "CC0"
    assert exif[Base.Orientation] == 1
    assert exif[Base.Software].startswith("gleansr")
    assert exif[Base.Software].endswith("(model bank-9 & <co>)")
    assert details[Base.DateTimeOriginal] == "2020:01:02 03:04:05"
    assert (details[Base.ExifImageWidth], details[Base.ExifImageHeight], details[Base.ColorSpace]) == (28, 20, 1)
    assert Base.MakerNote not in details
    assert place[GPS.GPSLatitudeRef] == "N"
    assert float(place[GPS.GPSLatitude][2]) == 0.5
    assert exif[Base.XResolution] == pytest.approx(300, abs=0.1)
    (description,) = ElementTree.fromstring(image.info["xmp"]).iter(f"{RDF}Description")  # noqa: S314
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType") == EDITED
    assert description.get("{http://ns.adobe.com/xap/1.0/}CreatorTool") == exif[Base.Software]
    if suffix != ".webp":
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    if suffix == ".png":
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert image.text["Software"] == exif[Base.Software]
        assert image.text["Title"] == "Bañeza"
        assert "of some program" not in image.text
    if suffix in (".png", ".jpg"):
        assert decode(path).metadata.text["Comment"] == "A tower"
    again = decode(path).metadata
    assert encode(rgb(), tmp_path / f"again{suffix}", metadata=again).exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_without_metadata_are_marked_too_and_generated_ones_stay_so(suffix, tmp_path):
    path = encode(rgb(), tmp_path / f"a{suffix}")
    assert EDITED.encode() in path.read_bytes()
    assert not decode(path).metadata.generated
    encode(rgb(), path, metadata=Metadata(generated=True))
    assert GENERATED.encode() in path.read_bytes()
    assert decode(path).metadata.generated


def test_damaged_metadata_is_ignored():
    image = rgb()
    image.info |= {
        "exif": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01",
        "dpi": (float("nan"), 1e9),
        "xmp": b"\xff<",
        "comment": b"\xe9",
    }
    img = decode(image)
    assert img.metadata.dpi is None
    np.testing.assert_array_equal(steps(img), np.asarray(image))
    image = rgb()
    image.info["exif"] = b"Exif\0\0rubbish"
    assert "Exif metadata was ignored" in decode(image).notes[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("suffix", [".png", ".tiff", ".TIF", ".webp"])
def test_lossless_round_trips(mode, suffix, tmp_path):
    image = Image.fromarray(noise(9, 11, 4) | 1)
    image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    path = encode(image, tmp_path / f"a{suffix}", quality=100)
    expected = np.asarray(image if mode == "RGBA" else image.convert("RGB"))
    np.testing.assert_array_equal(steps(decode(path)), expected)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_round_trips_are_close_and_follow_the_quality(suffix, tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    image = Image.fromarray(np.dstack((smooth, 255 - smooth, smooth)))
    path = encode(image, tmp_path / f"a{suffix}")
    assert np.abs(steps(decode(path)) - np.asarray(image, int)).mean() < 2
    large = path.stat().st_size
    assert encode(image, path, quality=20).stat().st_size < large


def test_a_jpeg_has_no_subsampling_and_lies_on_white(tmp_path):
    image = Image.fromarray(np.dstack((np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 51, np.uint8))))
    with Image.open(encode(image, tmp_path / "a.jpg")) as jpeg:
        assert isinstance(jpeg, JpegImagePlugin.JpegImageFile)
        assert all(layer[1:3] == (1, 1) for layer in jpeg.layer)
        np.testing.assert_allclose(np.asarray(jpeg), 204, atol=2)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_of_the_image_s_own_info_is_written(suffix, tmp_path):
    image = rgb().convert("CMYK")
    image.info = {"icc_profile": cmyk_profile(), "comment": b"old", "dpi": (9, 9), "exif": b"old", "compression": "tiff_lzw"}
    with Image.open(encode(image, tmp_path / f"a{suffix}")) as written:
        assert not {"icc_profile", "comment"} & written.info.keys()
        assert written.info.get("dpi") in (None, (1, 1), (72, 72))  # what Pillow assumes


def test_to_image_clamps_and_rounds_half_to_even():
    values = torch.tensor([-1.0, 0.0, 0.5 / 255, 1.5 / 255, 2.49 / 255, 254.6 / 255, 1.0, 7.0])
    image = to_image(values.expand(3, 1, -1))
    assert image.mode == "RGB"
    assert np.asarray(image)[0, :, 1].tolist() == [0, 0, 0, 2, 2, 255, 255, 255]
    exact = torch.arange(256) / 255
    assert np.asarray(to_image(exact.expand(3, 1, -1)))[0, :, 0].tolist() == list(range(256))
    both = to_image(torch.zeros(3, 2, 2, requires_grad=True), torch.full((1, 2, 2), 0.2))
    assert (both.mode, both.getpixel((0, 0))) == ("RGBA", (0, 0, 0, 51))


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 2, 2),
        torch.zeros(2, 2),
        torch.zeros(4, 2, 2, dtype=torch.uint8),
        torch.full((3, 2, 2), torch.nan),
    ],
)
def test_to_image_refuses_what_is_no_image(pixels):
    with pytest.raises(ImageError):
        to_image(pixels)


# Errors


def refused(source, message, **options):
    with pytest.raises(ImageError, match=message) as caught:
        decode(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    assert str(tmp_path / "no.png") in refused(tmp_path / "no.png", "No such file")
    refused(str(tmp_path), "directory")
    refused("a\0b.png", "null")
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    assert str(path) in refused(path, "is empty")
    refused(b"", "up.png: is empty", name="up.png")
    path.write_text("This is not an image.\n" * 100)
    assert str(path) in refused(path, "not an image")
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image")


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images.Path, "open", denied)
    refused(tmp_path / "a.png", "a.png: cannot be read: Permission denied")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated_and_corrupt_files_are_errors(kind, tmp_path, capfd):
    whole = data(rgb(64, 64), kind)
    path = tmp_path / f"half.{kind.lower()}"
    for cut in (whole[: len(whole) // 2], whole[:20], whole[: len(whole) // 3] + b"\0" * 8):
        path.write_bytes(cut)
        assert str(path) in refused(path, ": (cannot be read|is not an image)")


def test_too_large_images_are_errors_and_pillow_does_not_only_warn(monkeypatch):
    file = data(rgb(10, 12))
    for limit in (100, 50):  # Pillow warns at 100 and raises at 50
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refused(file, "too large.*raise PIL.Image.MAX_IMAGE_PIXELS")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120)
    assert decode(file).pixels.shape == (3, 10, 12)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(images, "MAX_PIXELS", 119)
    refused(file, "10|12x10 pixels are more than 119")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3)), "not float64; floats go into a CHW tensor"),
        (np.zeros((4, 4, 5), np.uint8), r"\(5, 4, 4\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "HW or HWC"),
        (np.zeros((0, 4), np.uint8), r"\(1, 0, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "tensors are CHW, float"),
        (torch.zeros(1, 3, 4, 4), r"\(1, 3, 4, 4\)"),
        (torch.full((3, 4, 4), -1.0), r"in \[0, 1\], not from -1"),
        (torch.full((3, 4, 4), torch.nan), "nan"),
        (Image.fromarray(np.full((2, 2), np.inf, "f4")), "not from inf"),
        (["a.png"], "not list"),
        (None, "not NoneType"),
    ],
)
def test_other_sources_are_refused(source, message):
    refused(source, message)


def test_warnings_stay_in_also_with_threads():
    exif = Image.Exif()
    exif[Base.Artist] = "x" * 50
    file = data(rgb(), "JPEG", exif=exif.tobytes()[:-30])  # Pillow warns of corrupt Exif
    before, interval = list(warnings.filters), sys.getswitchinterval()
    threads = [threading.Thread(target=lambda: [decode(file) for _ in range(20)]) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert list(warnings.filters) == before


def test_the_filter_stays_in_its_place_while_another_image_is_begun(monkeypatch: pytest.MonkeyPatch):
    """Taken out to be put in again, it would let through what an image that is being read warns of just then."""
    taken_out = []

    class Watched(list):
        def remove(self, item):
            if item in self:
                taken_out.append(item)
            super().remove(item)

    def begin_another(*_: int) -> None:
        monkeypatch.setattr(warnings, "filters", Watched(warnings.filters))
        decode(data(rgb()))

    decode(data(rgb()), on_open=begin_another)
    assert not taken_out


def test_warnings_of_others_are_not_lost_while_a_image_is_read():
    """Filters that another thread sets and restores meanwhile stay whole, and ours does not stay behind."""
    before = list(warnings.filters)
    file = data(rgb())
    inside, leave = threading.Event(), threading.Event()

    def opened(width, height):
        assert (width, height) == (7, 5)
        inside.set()
        assert leave.wait(5)

    reader = threading.Thread(target=decode, args=[file], kwargs={"on_open": opened})
    reader.start()
    assert inside.wait(5)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", UserWarning, stacklevel=1)
        leave.set()
        reader.join()
    assert list(warnings.filters) == before


def test_images_are_read_side_by_side():
    meeting = threading.Barrier(2, timeout=5)
    threads = [threading.Thread(target=decode, args=[data(rgb())], kwargs={"on_open": lambda *_: meeting.wait()}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not meeting.broken


def test_opened_may_refuse():
    def no(width, height):
        raise ImageError(f"{width}x{height} is not wanted")

    refused(data(rgb()), "7x5 is not wanted", on_open=no)


def test_check_output(tmp_path):
    (tmp_path / "there.png").touch()
    (tmp_path / "folder.png").mkdir()
    assert check_output(tmp_path / "a.JPEG") == tmp_path / "a.JPEG"
    assert check_output(str(tmp_path / "there.png")).name == "there.png"
    for name, overwrite, message in (
        ("a.gif", True, r"'.gif'; use one of .png, .jpg"),
        ("a", True, "unknown suffix ''"),
        ("no/a.png", True, "does not exist"),
        ("there.png/a.png", True, "does not exist"),
        ("folder.png", True, "is a folder"),
        ("there.png", False, "already exists"),
    ):
        with pytest.raises(ImageError, match=message):
            check_output(tmp_path / name, overwrite=overwrite)
        with pytest.raises(ImageError, match=message):
            encode(rgb(), tmp_path / name, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "there.png"]
    assert (tmp_path / "there.png").stat().st_size == 0


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(images.os, "access", lambda *_: False)
    with pytest.raises(ImageError, match="cannot be written to"):
        check_output(tmp_path / "a.png")


@pytest.mark.parametrize("quality", [0, 101, 95.5, None])
def test_other_qualities_are_refused(quality, tmp_path):
    with pytest.raises(RequestError, match="1 to 100"):
        encode(rgb(), tmp_path / "a.jpg", quality=quality)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = encode(rgb(), tmp_path / "a.png")
    old = path.read_bytes()

    def full(_, file, *__, **___):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    for target in (path, tmp_path / "b.jpg"):
        with pytest.raises(ImageError, match=r"cannot be written: No space left on device$"):
            encode(rgb(), target)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == old


def test_images_too_large_for_a_format_are_errors(tmp_path):
    with pytest.raises(ImageError, match=r"a.webp: cannot be written"):
        encode(Image.new("RGB", (16384, 1)), tmp_path / "a.webp")
    assert list(tmp_path.iterdir()) == []


def test_written_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    assert encode(rgb(), tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


# Damage, compared with plain Pillow


def examples():
    """Small files of every common kind, by name."""
    rng = np.random.default_rng(3)
    smooth = np.add.outer(np.arange(24) * 5, np.arange(20) * 6).astype(np.uint8)
    image = Image.fromarray(np.dstack((smooth, 255 - smooth, rng.integers(0, 256, smooth.shape, dtype=np.uint8))))
    grey, clear = image.convert("L"), image.copy()
    clear.putalpha(grey)
    exif = Image.Exif()
    exif[Base.Artist] = "somebody"
    return {
        "png": data(image),
        "png alpha": data(clear),
        "png palette": data(image.convert("P")),
        "png text": data(grey, exif=exif),
        "jpeg": data(image, "JPEG"),
        "jpeg exif": data(image, "JPEG", exif=exif),
        "jpeg progressive": data(grey, "JPEG", progressive=True),
        "webp": data(image, "WEBP"),
        "webp lossless": data(clear, "WEBP", lossless=True),
        "tiff": data(image, "TIFF"),
        "tiff deflate": data(image, "TIFF", compression="tiff_adobe_deflate"),
        "tiff lzw": data(grey, "TIFF", compression="tiff_lzw"),
        "gif": data(image, "GIF"),
        "bmp": data(image, "BMP"),
        "tga": data(image, "TGA"),
        "ppm": data(image, "PPM"),
    }


def pillow_reads(file):
    """What plain Pillow makes of a file, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(file))
            image.load()
            return image
    except Exception:
        return None


@pytest.mark.parametrize("kind", examples())
def test_a_damaged_file_is_read_as_pillow_reads_it_or_refused(kind):
    whole, rng = examples()[kind], np.random.default_rng(7)
    refusals = 0
    for _ in range(60):
        damaged = bytearray(whole)
        if rng.random() < 0.2:
            del damaged[rng.integers(len(whole)) :]
        else:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        expected = pillow_reads(bytes(damaged))
        if expected is None:
            refused(bytes(damaged), "(cannot be read|is not an image|too large)")
            refusals += 1
            continue
        try:
            img = decode(bytes(damaged))
        except ImageError:  # with a reason
            continue
        if "icc_profile" in expected.info:
            continue
        orientation = expected.getexif().get(Base.Orientation, 1)
        if expected.mode in ("RGB", "RGBA", "L", "P") and orientation == 1:
            kind_ = "RGBA" if img.alpha is not None else "RGB"
            np.testing.assert_array_equal(steps(img), np.asarray(expected.convert(kind_)))
    assert refusals or kind in ("bmp", "tga", "ppm")


def test_a_png_whose_pixels_are_damaged_is_refused_whatever_is_asked_of_its_metadata():
    image = Image.fromarray(noise(64, 64, 3))
    whole = data(image, compress_level=0)
    at = whole.index(b"IDAT") + 4 + 7 + 64 * 193 // 2  # within the stored block, whose length and checksum are then wrong
    for offset in (0, 1):
        damaged = bytearray(whole)
        damaged[whole.index(b"IDAT") + 4 + 3 + offset] ^= 0x10
        refused(bytes(damaged), "cannot be read")
    damaged = bytearray(whole)
    damaged[at] ^= 1
    assert pillow_reads(bytes(damaged)) is None
    refused(bytes(damaged), "cannot be read")


@pytest.mark.parametrize("kind", [TypeError, AttributeError])
def test_a_mistake_in_the_writer_is_no_fault_of_the_image(kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise kind("a bug")

    monkeypatch.setattr("gleansr.images.codec.writer_options", fail)
    with pytest.raises(kind, match="a bug"):
        encode(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    work = SimpleNamespace(task=SimpleNamespace(upscaler=SimpleNamespace(about=SimpleNamespace(name="x"))), quality=95)
    with pytest.raises(kind, match="a bug"):
        encode_result(Image.new("RGB", (4, 4)), "a.png", Metadata(), cast("Any", work))


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95])
def test_the_quality_of_a_jpeg_is_known(quality: int):
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(data, "JPEG", quality=quality)
    assert decode(data.getvalue()).jpeg_quality == pytest.approx(quality, abs=0.5)
    assert decode(Image.open(data)).jpeg_quality == pytest.approx(quality, abs=0.5)


def test_other_images_have_no_quality():
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    assert decode(data.getvalue()).jpeg_quality is None
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "JPEG", qtables=[[1] * 64, [255] * 64])
    assert decode(data.getvalue()).jpeg_quality == pytest.approx(99, abs=0.2)
