"""Files that are cheap to store and would be endless to read: small enough to be written here, byte by byte."""

import io
import struct
import zipfile

import torch

PROTOCOL = b"\x80\x02"


def text(word: str) -> bytes:
    """The operation of a pickle that makes a string."""
    data = word.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def in_zip(pickle: bytes, numbers: bytes = b"", method: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch with such a description and one storage."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for entry, data in (("data.pkl", pickle), ("byteorder", b"little"), ("data/0", numbers), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"archive/{entry}"), data, method)
    return file.getvalue()


def in_legacy(pickle: bytes) -> bytes:
    """The same as a file of torch that is no zip archive, without storages."""
    file = io.BytesIO()
    torch.save({}, file, _use_new_zipfile_serialization=False)
    return file.getvalue().replace(b"\x80\x02}q\x00.\x80\x02]q\x00.", pickle + b"\x80\x02]q\x00.")


def persistent(class_name: bytes, state: bytes) -> bytes:
    """NVIDIA's pickle of one network; both arguments are operations."""
    meta = b"}(" + text("class_name") + class_name + text("state") + state + b"u"
    return PROTOCOL + b"}" + text("G_ema") + name("torch_utils.persistence", "_reconstruct_persistent_obj") + meta + b"\x85Rs."


LAUGHS_LIST = b"]" + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(60))
LAUGHS_TUPLE = b")" + b"2\x86" * 60
STATE = b"}(" + text("_modules") + b"}u"
ONE_STORAGE = b"(" + text("storage") + name("torch", "HalfStorage") + text("0") + text("cpu") + b"M\xe8\x03tQ"


def rebuilt(size: bytes, stride: bytes = b"K\x01\x85", storage: bytes = ONE_STORAGE) -> bytes:
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\x00" + size + stride + b"\x89}tR"


def one(number: int) -> bytes:
    """The tuple of one number."""
    return b"\x8a\x08" + struct.pack("<q", number) + b"\x85"


HUGE = rebuilt(one(10**10), b"K\x00\x85")
GROWN = rebuilt(one(9)) + b"(" + ONE_STORAGE + b"K\x00" + one(10**10) + b"tb."
COLLIDING = b"".join(b"\x8a\x10" + (i << 64).to_bytes(16, "little") + b"N" for i in range(30_000))
COPIED = PROTOCOL + b"](" + b"NN\x86" * 100_000 + b"eq\x00" + (name("collections", "OrderedDict") + b"h\x00\x85R") * 500 + b"."


def _modules() -> bytes:
    """A tree of modules in which all of one level are the same object."""
    module = name("torch_utils.persistence", "_reconstruct_persistent_obj") + b"}(" + text("class_name") + text("M") + text("state")
    tree = module + b"}u\x85R"
    for _ in range(8):
        same = b"".join(text(f"m{i}") + b"h\x00" for i in range(200))
        tree += b"q\x000" + module + b"}(" + text("_modules") + b"}(" + same + b"uuu\x85R"
    return b"}(" + text("_modules") + b"}" + text("a") + tree + b"su"


def _shared_half(n: int) -> bytes:
    """Many tensors of one storage, each as large as it."""
    tensors = b"".join(text(f"conv_up1.{i}") + b"h\x00" for i in range(n))
    return in_zip(PROTOCOL + rebuilt(one(1000)) + b"q\x000}(" + text("conv_up1.weight") + b"h\x00" + tensors + b"u.", bytes(2000))


FILES: dict[str, bytes] = {
    "a key that takes for ever to hash": PROTOCOL + b"}" + LAUGHS_TUPLE + b"Ns.",
    "the same in a zip": in_zip(PROTOCOL + b"}" + LAUGHS_TUPLE + b"Ns."),
    "the same in an older file": in_legacy(PROTOCOL + b"}" + LAUGHS_TUPLE + b"Ns."),
    "the same in a set": PROTOCOL + b"\x8f(" + LAUGHS_TUPLE + b"\x90.",
    "a class's name that takes for ever to show": persistent(LAUGHS_LIST, STATE),
    "classes that take for ever to show": persistent(text("Generator"), b"}(" + text("c_dim") + LAUGHS_LIST + text("_modules") + b"}u"),
    "a limit that takes for ever to compare": persistent(
        text("Generator"), b"}(" + text("_modules") + b"}" + text("conv_clamp") + LAUGHS_TUPLE + b"u"
    ),
    "an architecture that takes for ever to compare": persistent(text("Generator"), b"}(" + text("use_noise") + LAUGHS_LIST + b"u"),
    "modules that share": persistent(text("Generator"), _modules()),
    "a bytearray of 8 GB": in_zip(PROTOCOL + name("builtins", "bytearray") + b"\x8a\x05" + (8 * 10**9).to_bytes(5, "little") + b"\x85R."),
    "bytes of 8 GB": PROTOCOL + b"\x8e" + struct.pack("<Q", 8 * 10**9) + b".",
    "a place of the memo far out": PROTOCOL + b"Nr\xff\xff\xff\x7f.",
    "a tensor that is made larger": in_zip(PROTOCOL + GROWN, bytes(2000)),
    "a tensor of 10 billion numbers": in_zip(PROTOCOL + b"}" + text("conv_up1.weight") + HUGE + b"s.", bytes(2000)),
    "a tensor of 200,000 axes": in_zip(PROTOCOL + b"}" + text("a") + rebuilt(b"(" + b"K\x01" * 200_000 + b"t") + b"s."),
    "tensors that share": _shared_half(20_000),
    "keys that collide": in_zip(PROTOCOL + b"}(" + COLLIDING + b"u."),
    "operations without end": PROTOCOL + b"N0" * 5_000_000 + b".",
    "lists that are copied": COPIED,
    "deep lists": PROTOCOL + b"]" * 300_000 + b"a" * 299_999 + b".",
    "a long number": PROTOCOL + b"\x8b" + struct.pack("<I", 2_000_000) + b"\x7f" * 2_000_000 + b".",
    "a program's whole module": in_zip(PROTOCOL + b"(" + text("module") + b"NNNNtQ."),
    "a zip of its end alone": b"PK\x03\x04" + bytes(60) + b"PK\x05\x06" + b"\xff" * 18,
    "a compressed zip": in_zip(PROTOCOL + b"]" * 10 + b".", bytes(50_000_000), zipfile.ZIP_DEFLATED),
    "a zip of a million entries": b"PK\x03\x04" + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 65535, 65535, 0, 4, 0),
    "a header of safetensors of 90 MB": struct.pack("<Q", 90_000_000) + b'{"a":{' + b" " * 90_000_000,
}  # fmt: skip
"""What is wrong -> the file."""
