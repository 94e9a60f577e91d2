"""Files are known by their contents: what they are is said, with what to do; raw files are not read as their preview."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gleansr.errors import ImageError
from gleansr.images import formats, readers
from gleansr.images.codec import decode, readable_suffixes
from gleansr.images.jxl import jxl_size


def saved(kind: str, size: tuple[int, int] = (16, 12), **options) -> bytes:
    readers.available()
    file = io.BytesIO()
    Image.new("RGB", size, (200, 40, 90)).save(file, kind, **options)
    return file.getvalue()


def tiff(tags: dict[int, tuple[int, int, int]], make: bytes = b"", order: str = "<") -> bytes:
    """A TIFF of one 16x12 strip of RGB with more tags: (type, count, value)."""
    pixels = bytes(16 * 12 * 3)
    text = 8 + len(pixels)
    usual = {256: (3, 1, 16), 257: (3, 1, 12), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 2), 273: (4, 1, 8), 277: (3, 1, 3)}
    usual |= {278: (3, 1, 12), 279: (4, 1, len(pixels))}
    entries = {**usual, **({271: (2, len(make) + 1, text)} if make else {}), **tags}
    directory = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + struct.pack(f"{order}{'HH' if kind == 3 else 'I'}", value, *([0] if kind == 3 else []))
        for tag, (kind, count, value) in sorted(entries.items())
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, text + len(make) + 1)
    return head + pixels + make + b"\0" + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)


RAWS = {
    "DNG": tiff({50706: (1, 4, 0x401)}),
    "Nikon NEF": tiff({254: (4, 1, 1), 330: (4, 1, 8)}, b"NIKON CORPORATION"),
    "Sony ARW": tiff({254: (4, 1, 1), 330: (4, 1, 8)}, b"SONY", ">"),
    "Pentax PEF": tiff({259: (3, 1, 65535)}, b"PENTAX Corporation "),
    "Canon CR2": b"II*\0\x10\0\0\0CR\x02\0" + bytes(64),
    "Canon CR3": b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom" + bytes(64),
    "Fujifilm RAF": b"FUJIFILMCCD-RAW 0201" + bytes(64),
    "Olympus ORF": b"IIRO\x08\0\0\0" + bytes(64),
    "Panasonic RW2": b"IIU\0\x18\0\0\0" + bytes(64),
}


@pytest.mark.parametrize("kind", RAWS)
@pytest.mark.parametrize("name", ["photo.dng", "photo.tif", "photo"])
def test_a_raw_file_is_not_read_as_its_preview(kind: str, name: str):
    with pytest.raises(ImageError) as error:
        decode(RAWS[kind], name=name)
    assert str(error.value).startswith(f"{name}: is a camera raw file ({kind}): develop it to a TIFF or JPEG first")


@pytest.mark.parametrize(
    "data",
    [tiff({}), tiff({}, b"NIKON"), tiff({330: (4, 1, 8)}, b"NIKON"), tiff({254: (4, 1, 1)}, b"SONY", ">"), saved("TIFF", dpi=(72, 72))],
)
def test_other_tiff_files_are_read(data: bytes):
    assert decode(data).pixels.shape == (3, 12, 16)


def test_a_damaged_directory_is_no_raw_file():
    for data in (RAWS["DNG"][:20], tiff({})[:-40], b"II*\0\xff\xff\xff\xff" + bytes(20)):
        assert formats.identify(data) is not None
        assert formats.identify(data).group == "image"  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("kind", ["HEIF", "JXL", "AVIF", "MPO"])
def test_images_of_phones_are_read(kind: str, tmp_path: Path):
    more = {"save_all": True, "append_images": [Image.new("RGB", (16, 12), "blue")]} if kind == "MPO" else {}
    data = saved(kind, **more)
    image = decode(data)
    assert image.pixels.shape == (3, 12, 16)
    assert np.abs(image.pixels.mean((1, 2)).numpy() * 255 - (200, 40, 90)).max() < 6
    found = formats.identify(data)
    assert found
    assert set(found.suffixes) <= readable_suffixes() | {".heics", ".heifs"}
    with pytest.raises(ImageError, match=r"photo\.jpg: cannot be read: "):
        decode(data[:60], name="photo.jpg")


def test_an_upright_heic():
    exif = Image.Exif()
    exif[274] = 6
    assert decode(saved("HEIF", exif=exif.tobytes())).pixels.shape == (3, 16, 12)


@pytest.mark.parametrize(("name", "kind"), [("a.heic", "HEIF"), ("a.jpg", "HEIF"), ("a.jxl", "JXL")])
def test_without_its_reader_a_image_says_what_it_is(name: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    data = saved(kind)
    names, suffixes = [one for one in readers.available() if one not in ("HEIF", "JXL")], frozenset({".png", ".jpg"})
    monkeypatch.setattr(readers, "available", lambda: names)
    monkeypatch.setattr(readers, "readable_suffixes", lambda: suffixes)
    what = {"HEIF": "HEIC", "JXL": "JPEG XL"}[kind]
    with pytest.raises(ImageError, match=rf"{name}: is a {what} image: `pip install 'gleansr\[heif\]'` adds support"):
        decode(data, name=name)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (17, 33), (300, 200), (1920, 1080), (12, 5000), (640, 480)])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int]):
    assert jxl_size(saved("JXL", size)) == size


def test_a_large_jpeg_xl_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch):
    data = saved("JXL", (300, 200))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="300x200 pixels are more than 59999"):
        decode(data, name="a.jxl", max_pixels=59_999)


MESSAGES = {
    (
        "photo.png",
        b"\x1a\x45\xdf\xa3" + bytes(20) + b"matroska" + bytes(99),
    ): "is a video (Matroska), not an image: rename it to photo.mkv",
    (
        "clip.mp4",
        b"\0\0\0\x18ftypisom\0\0\0\0isommp42",
    ): "is a video (MP4), not an image: pass it to `gleansr upscale` in a separate command",
    ("photo.jpg", b"%PDF-1.7\n"): "is a PDF document, not an image: save its pages as PNG files",
    ("photo.jpg", b"PK\x03\x04" + bytes(40)): "is a ZIP archive, not an image: unpack it",
    ("photo.jpg", b"<!DOCTYPE html><title>Not found</title>"): "is a web page, not an image",
    ("photo.jpg", b"version https://git-lfs.github.com/spec/v1\n"): "is a Git LFS pointer",
    ("a.svg", b"<?xml version='1.0'?><svg/>"): "is an SVG image: save it as a PNG or TIFF",
    ("photo.jpg", saved("GIF")[:9]): "cannot be read: this GIF image is damaged or truncated",
    ("photo.jpg", b"\0\0\0\x18ftypheic" + bytes(80)): "cannot be read: this HEIC image is damaged or truncated",
    ("photo.jpg", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(80)): "cannot be read: this JPEG XL image is damaged or truncated",
    ("photo.jpg", b"nothing known"): "is not an image of a known kind; supported: PNG, JPEG, WebP",
    ("photo.jpg", b""): "is empty",
}


@pytest.mark.parametrize(("name", "data"), MESSAGES, ids=[f"{words[:24]}" for words in MESSAGES.values()])
def test_a_file_that_is_no_image_says_what_it_is(name: str, data: bytes):
    with pytest.raises(ImageError) as error:
        decode(data, name=name)
    assert str(error.value).startswith(f"{name}: {MESSAGES[name, data]}"), error.value
    assert len(str(error.value).splitlines()) == 1


def test_every_usual_kind_is_recognised_whatever_follows():
    kinds = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "WebP", "GIF": "GIF", "BMP": "BMP", "TIFF": "TIFF", "JPEG2000": "JPEG 2000"}
    kinds |= {"ICO": "ICO", "PPM": "PNM", "AVIF": "AVIF", "HEIF": "HEIC", "JXL": "JPEG XL", "DDS": "DDS", "QOI": "QOI"}
    for pillow, name in kinds.items():
        data = saved(pillow)
        for source in (data, data[: formats.HEAD], io.BytesIO(data)):
            found = formats.identify(source)
            assert found
            assert found.name == f"{name} image", pillow
    rng = np.random.default_rng(0)
    for length in range(64):
        formats.identify(rng.bytes(length))
        formats.identify(b"II*\0" + rng.bytes(length))
        jxl_size(b"\xff\x0a" + rng.bytes(length))
        jxl_size(b"\x00\x00\x00\x0cJXL " + rng.bytes(length))
