"""Files that are not checkpoints, identified by their first bytes, and advice for each."""

_CONVERTED = "give the PyTorch file (.pth or .safetensors) that it was converted from"

_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, which only names the file",
        "fetch the file itself: git lfs pull, or the site's download link",
    ),
    (b"7767517", "a network of ncnn (.param)", _CONVERTED),
    (b"\x47\x6b\x30\x01", "weights of ncnn (.bin)", _CONVERTED),
    (b"GGUF", "a GGUF file", _CONVERTED),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras (.h5) and MATLAB write", "give weights of PyTorch; Keras's are not read"),
    (b"\x93NUMPY", "an array of NumPy (.npy)", "give the whole network: a PyTorch or a safetensors file"),
    (b"MATLAB 5.0", "a MATLAB file", "give the whole network: a PyTorch or a safetensors file"),
    (b"\x1f\x8b", "a gzip archive", "unpack it and give the file in it"),
    (b"BZh", "a bzip2 archive", "unpack it and give the file in it"),
    (b"\xfd7zXZ\0", "an xz archive", "unpack it and give the file in it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it and give the file in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give the file in it"),
    (b"Rar!", "a RAR archive", "unpack it and give the file in it"),
    (b"%PDF", "a PDF document", "give the file of weights"),
    (b"\x89PNG", "an image (PNG)", "give it as the image to enlarge, not as the model"),
    (b"\xff\xd8\xff", "an image (JPEG)", "give it as the image to enlarge, not as the model"),
    (b"GIF8", "an image (GIF)", "give it as the image to enlarge, not as the model"),
    (b"BM", "an image (BMP)", "give it as the image to enlarge, not as the model"),
    (b"II*\0", "an image (TIFF)", "give it as the image to enlarge, not as the model"),
    (b"MM\0*", "an image (TIFF)", "give it as the image to enlarge, not as the model"),
    (b"RIFF", "an image or a film (WebP, AVI)", "give it as what to enlarge, not as the model"),
    (b"\x1a\x45\xdf\xa3", "a film (Matroska, WebM)", "give it as what to enlarge, not as the model"),
)
_LATER: tuple[tuple[int, bytes, str, str], ...] = (
    (4, b"ftyp", "an image or a film (HEIC, AVIF, MP4)", "give it as what to enlarge, not as the model"),
    (4, b"TFL3", "a TensorFlow Lite network", _CONVERTED),
    (257, b"ustar", "a tar archive", "unpack it and give the file in it"),
)
HEAD = 512
"""Number of first bytes that `explain` needs."""


def explain(head: bytes, name: str) -> str | None:
    """The type of a file that is not a checkpoint, and what to do; None if it is unknown.

    Args:
        head: the first `HEAD` bytes.
        name: the file name, which alone reveals ncnn's weights in float32.
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")) or b"<html" in start:
        return "a web page (HTML), not the file; open the link in a browser, confirm the download there and give what it saves"
    for position, mark, kind, advice in (*((0, *entry) for entry in _BEGINNINGS), *_LATER):
        if head[position : position + len(mark)] == mark:
            return f"{kind}; {advice}"
    if is_onnx(head):
        return "an ONNX network, which is a program and not weights; `gleansr upscale --model` runs those that `gleansr export` has written"
    if start.startswith((b"{", b"[")):
        return "text (JSON), not weights; give the .safetensors or .pth file that lies beside it"
    if name.lower().endswith(".bin"):
        return f"not a file of PyTorch; if it is ncnn's, {_CONVERTED}"
    return None


def is_onnx(head: bytes) -> bool:
    """Whether a file starts like an ONNX model: a format version below 128, followed by the producer or the graph."""
    return len(head) >= 3 and head[0] == 0x08 and head[1] < 0x80 and head[2] in (0x12, 0x3A)
