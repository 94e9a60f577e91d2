"""Whatever a file holds, reading it ends in a network or in one line that says what is wrong; nothing in it is executed."""

import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import foreign_layouts as layouts
import pytest
import torch
from hostile_files import FILES

from gleansr.checkpoints import load_model, read
from gleansr.errors import CheckpointError

CHANNELS = (4, 6, 5)  # 16 px


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file"


def refusal(path, match=None):
    """The message of the refusal to read `path`, of one line with the path first."""
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------------------------------- tensors that do not fit


def rosinality(**changes):
    """A tiny generator in rosinality's layout, tensors replaced or (None) removed."""
    tensors = layouts.generator_tensors("rosinality", CHANNELS) | changes
    return {"g_ema": {name: tensor for name, tensor in tensors.items() if tensor is not None}}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"convs.1.noise.weight": None}, r"missing g_ema\.convs\.1\.noise\.weight \[1\]"),
        ({"conv1.activate.bias": None}, r"g_ema\.conv1\.activate\.bias is missing"),
        ({"style.2.weight": None}, r"missing g_ema\.style\.2\.weight"),
        ({"extra": torch.zeros(3)}, r"unexpected g_ema\.extra \[3\]"),
        ({"convs.0.conv.weight": torch.zeros(6, 4, 3, 3)}, r"g_ema\.convs\.0\.conv\.weight is \[6, 4, 3, 3\], not \[1, 6"),
        ({"conv1.activate.bias": torch.zeros(())}, r"g_ema\.conv1\.activate\.bias has the shape \[\]"),
        ({"to_rgb1.bias": torch.full((1, 3, 1, 1), torch.nan)}, r"g_ema\.to_rgb1\.bias holds NaN or infinity"),
        ({"to_rgb1.bias": torch.full((1, 3, 1, 1), torch.inf)}, r"g_ema\.to_rgb1\.bias holds NaN or infinity"),
        ({"to_rgb1.bias": torch.zeros(1, 3, 1, 1, dtype=torch.int64)}, r"g_ema\.to_rgb1\.bias is torch\.int64"),
        ({"to_rgb1.bias": "a word"}, r"not tensors: to_rgb1\.bias"),
        ({"conv1.activate.bias": torch.zeros(1).expand(9000)}, r"9000"),
        ({"input.input": torch.zeros(1).expand(1, 4, 4, 4)}, r"input\.input claims more numbers than the file holds"),
        ({"convs.0.conv.blur.kernel": layouts.KERNEL}, r"filter g_ema\.convs\.0\.conv\.blur\.kernel is not \[1, 3, 3, 1\]"),
        ({"to_rgbs.0.upsample.kernel": torch.ones(2, 2)}, r"filter g_ema\.to_rgbs\.0\.upsample\.kernel is not"),
    ],
)
def test_tensors_that_do_not_fit(changes, match, file):
    torch.save(rosinality(**changes), file)
    refusal(file, match)


def test_large_numbers_are_no_infinity(file):
    torch.save(rosinality(**{"conv1.activate.bias": torch.full((4,), 3e38)}), file)
    assert read(file).networks["generator"].tensors["synthesis.layers.0.bias"][0] == 3e38


def test_ten_problems_are_listed(file):
    tensors = layouts.glean_tensors(8, CHANNELS)
    kept = {name: t for name, t in tensors.items() if "body.1" not in name or "body.1.rdb1.conv1.weight" in name}
    torch.save({"state_dict": {f"generator.{name}": t for name, t in kept.items()}}, file)
    message = refusal(file, "the weights do not fit the architecture")
    assert message.count("missing generator.encoder.0.0.body.1.") == 10
    assert message.endswith(" and 19 more")


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        ({"layer1.weight": torch.zeros(1), "epoch": 3}, r"not a network of a known layout: it holds layer1.weight, epoch"),
        ({"params": {"head.weight": torch.zeros(1)}}, r"it holds params\.head\.weight, .*RRDBNet and SRVGGNetCompact of BasicSR"),
        ([torch.zeros(1)], "holds a list"),
        (torch.zeros(1), "holds a Tensor"),
        ({}, "holds an empty dict"),
        ({3: torch.zeros(1)}, "it holds 3"),
    ],
)
def test_other_contents(contents, match, file):
    torch.save(contents, file)
    refusal(file, match)


def test_an_unusual_rrdbnet(file):
    tensors = layouts.rrdbnet_tensors(4)
    torch.save(tensors | {"conv_first.weight": torch.zeros(6, 5, 3, 3)}, file)
    refusal(file, r"conv_first\.weight reads 5 channels")


# ------------------------------------------------------------------------------------------------- networks of another kind


def change(network, module, **attributes):
    """Changes attributes of a module inside a network of NVIDIA."""
    for leaf in module.split(".") if module else []:
        network = network.meta["state"]["_modules"][leaf]
    network.meta["state"].update(attributes)


@pytest.mark.parametrize(
    ("module", "attributes", "match"),
    [
        ("", {"c_dim": 10}, "conditioned on 10 classes"),
        ("synthesis.b8", {"architecture": "resnet"}, r"G_ema\.synthesis\.b8 has architecture 'resnet'; only 'skip'"),
        ("synthesis.b8.conv0", {"activation": "swish"}, "activation 'swish'; only 'lrelu'"),
        ("synthesis.b8.conv0", {"use_noise": False}, "use_noise False"),
        ("synthesis.b8.conv0", {"conv_clamp": 3}, "different conv_clamp"),
        ("mapping.fc1", {"bias_gain": 1}, r"G_ema\.mapping\.fc1 has bias_gain 1; only 0.01"),
        ("synthesis", {"img_channels": 4}, "img_channels 4"),
        ("synthesis.b8.conv0", {"_buffers": {"resample_filter": torch.ones(12)}}, r"conv0\.resample_filter is not"),
        ("synthesis", {"_modules": {"input": layouts.Persistent("SynthesisInput", {})}}, "a StyleGAN3"),
    ],
)
def test_other_generators_of_nvidia(module, attributes, match, file, monkeypatch):
    _, _, g, _ = layouts.nvidia_networks(CHANNELS)
    change(g, module, **attributes)
    layouts.dump({"G_ema": g}, file, monkeypatch)
    refusal(file, match)


@pytest.mark.parametrize(
    ("module", "attributes", "match"),
    [
        ("b16", {"architecture": "skip"}, r"D\.b16 has architecture 'skip'; only 'resnet'"),
        ("b4.mbstd", {"num_channels": 2}, "num_channels 2; only 1"),
        ("b4.mbstd", {"group_size": 0}, "minibatch standard deviation over 0 images"),
        ("b4", {"_modules": {}}, "minibatch standard deviation over 0 images"),
    ],
)
def test_other_discriminators_of_nvidia(module, attributes, match, file, monkeypatch):
    _, _, _, d = layouts.nvidia_networks(CHANNELS)
    change(d, module, **attributes)
    layouts.dump({"D": d}, file, monkeypatch)
    refusal(file, match)


def test_modules_without_end(file, monkeypatch):
    loop = layouts.Persistent("Generator", {"_modules": {}})
    for _ in range(40):
        loop = layouts.Persistent("Generator", {"_modules": {"a": loop, "b": loop}})
    layouts.dump({"G": loop}, file, monkeypatch)
    refusal(file)


def test_other_pickles(file):
    file.write_bytes(pickle.dumps({"G": 3}))
    refusal(file, "not one of NVIDIA's with networks G_ema, G or D")
    file.write_bytes(pickle.dumps([1, 2]))
    refusal(file, "not one of NVIDIA's")


def test_pickle_of_tensorflow(file):
    file.write_bytes(b"\x80\x03cdnnlib.tflib.network\nNetwork\nq\x00)\x81q\x01.")
    refusal(file, "a TensorFlow pickle; convert it with legacy.py")


# ----------------------------------------------------------------------------------------------------------- hostile files


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))], ids=["torch", "pickle"])
def test_nothing_is_executed(save, file, tmp_path):
    save({"g_ema": Payload(tmp_path / "executed")}, file)
    refusal(file, r"refused: asks for (posix|nt)\.system, .*nothing was executed")
    assert not (tmp_path / "executed").exists()


def test_a_payload_in_a_storage(file, tmp_path):
    inner = io.BytesIO()
    torch.save(Payload(tmp_path / "executed"), inner, _use_new_zipfile_serialization=False)
    file.write_bytes(b"\x80\x03ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(inner.getvalue())))
    with file.open("ab") as stream:
        stream.write(inner.getvalue() + b"\x85R.")
    refusal(file, r"refused: asks for (posix|nt)\.system")
    assert not (tmp_path / "executed").exists()


def test_functions_cannot_be_changed(file, monkeypatch):
    """BUILD with a pair as its state sets attributes of whatever it is given."""
    change_call = b"\x80\x03ctorch.storage\n_load_from_bytes\nN}X\x09\x00\x00\x00_functionK\x01s\x86b."
    file.write_bytes(change_call)
    refusal(file, "tries to change a function")
    file.write_bytes(change_call.replace(b"torch.storage\n_load_from_bytes", b"dnnlib.util\nEasyDict"))
    refusal(file)
    generator, _, g, _ = layouts.nvidia_networks(CHANNELS)
    layouts.dump({"G": g}, file, monkeypatch)
    assert torch.equal(load_model(file).get_parameter("synthesis.constant")[0], generator["synthesis.b4.const"])


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\x80",
        b"\x80\x04",
        b"\x80\x04r\xff\xff\xff\x7f.",  # a memo index that would take gigabytes
        b"\x80\x04Nr\xff\xff\xff\x7f.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes of 2**63 - 1
        b"\x80\x04" + b"(" * 200_000,
        b"\x80\x04" + b"]" * 20_000 + b"a" * 19_999 + b".",
        b"PK\x03\x04",
        b"PK\x03\x04" + bytes(100),
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"#!/usr/bin/env python\nprint('hello')\n",
        b"{}",
        struct.pack("<Q", 10_000_000) + b'{"a": 1}',
        struct.pack("<Q", 2**63) + b'{"a": 1}',
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 2) + b"{}",
    ],
    ids=lambda contents: repr(contents[:12]),
)
def test_broken_files(contents, file):
    file.write_bytes(contents)
    refusal(file)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_truncated_files_of_torch(options, part, file):
    torch.save(rosinality(), file, **options)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * part)])
    refusal(file)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_truncated_pickles(part, file, monkeypatch):
    layouts.dump({"G": layouts.nvidia_networks(CHANNELS)[2]}, file, monkeypatch)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * part)])
    refusal(file, "not a whole pickle")


def test_bytes_at_random(file):
    generator = torch.Generator().manual_seed(0)
    starts = (b"", b"\x80\x04", b"PK\x03\x04", bytes(8) + b"{")
    for i in range(200):
        noise = torch.randint(256, (300,), generator=generator, dtype=torch.uint8).numpy().tobytes()
        file.write_bytes(starts[i % len(starts)] + noise)
        refusal(file)


def test_compressed_archive(file):
    torch.save(rosinality(), file)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    refusal(file, "a compressed zip archive")


def test_folders_and_missing_files(tmp_path):
    for path, match in ((tmp_path, "folder|directory"), (tmp_path / "none.pth", "[Nn]o such file")):
        for call in (read, load_model):
            with pytest.raises(CheckpointError, match=match):
                call(path)


def test_messages_are_short(file):
    torch.save({"x" * 100_000: 1, "y\n": 2}, file)
    assert len(re.sub(r".*/file", "", refusal(file))) < 2000


BOUNDS = """
import resource, sys, time
from pathlib import Path
from gleansr.checkpoints import load_model, foreign, nvidia, pickles  # the import of PyTorch is not what is bounded
from gleansr.errors import CheckpointError

mapped = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
for path in sorted(Path(sys.argv[1]).iterdir()):
    limit = mapped + path.stat().st_size + 10**9
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    before = time.process_time()
    try:
        load_model(path)
        print(path.name, "loaded")
    except CheckpointError as error:
        if "Memory" in str(error) or "allocate" in str(error):
            print(path.name, error)
    if time.process_time() - before > 5:
        print(path.name, "took long")
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the bounds are Linux's")
def test_what_is_cheap_to_store_is_cheap_to_refuse(tmp_path):
    """Each within five seconds of processor time and a gigabyte beyond the file's size."""
    for number, contents in enumerate(FILES.values()):
        (tmp_path / f"{number:02}").write_bytes(contents)
    child = [sys.executable, "-c", BOUNDS, str(tmp_path)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.parametrize("what", FILES)
def test_each_hostile_file_is_refused_in_one_line(what, file):
    file.write_bytes(FILES[what])
    assert len(refusal(file).removeprefix(str(file))) < 500


def test_a_tensor_cannot_be_changed(file):
    file.write_bytes(FILES["a tensor that is made larger"])
    refusal(file, "it tries to change a tensor")


def test_tensors_of_one_storage(file):
    """A small file of half precision could otherwise take many times its size as float32."""
    tensors = layouts.generator_tensors("rosinality", CHANNELS, 128, 16)
    numbers = torch.zeros(128 * 128, dtype=torch.float16)
    torch.save({"g_ema": {name: t if "kernel" in name else numbers[: t.numel()].view(t.shape) for name, t in tensors.items()}}, file)
    refusal(file, "its tensors claim .* bytes, more than the .* of the file")
    torch.save({"g_ema": {name: t.half() for name, t in tensors.items()}}, file)
    load_model(file)


def zip_of(change):
    """An honest file of torch, and the same with `change` made to its bytes."""
    stream = io.BytesIO()
    torch.save(layouts.rrdbnet_tensors(4), stream)
    return change(stream.getvalue())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.replace(b"/data/3", b"/data/X", 1), "directory and headers disagree"),
        (lambda d: d[:-6] + bytes(4) + d[-2:], "end does not tell"),
        (lambda d: d + b"more", "an incomplete zip archive"),
        (lambda d: d[: d.rfind(b"PK\1\2") + 42] + bytes(4) + d[d.rfind(b"PK\1\2") + 46 :], "overlap|disagree"),
    ],
)
def test_archives_that_contradict_themselves(change, match, file):
    file.write_bytes(zip_of(lambda data: data))
    load_model(file)
    file.write_bytes(zip_of(change))
    refusal(file, match)


@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning", r"web page \(HTML\).*open the link in a browser"),
        (b"\n <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer.*git lfs pull"),
        (b"7767517\n3 3\n", r"ncnn \(\.param\)"),
        (b"\x47\x6b\x30\x01" + bytes(50), r"ncnn \(\.bin\)"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), r"Keras \(\.h5\)"),
        (b"\x08\x0a\x12\x07pytorch", "an ONNX network.*gleansr export"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), r"an image \(PNG\).*not as the model"),
        (b"\xff\xd8\xff\xe0" + bytes(50), r"an image \(JPEG\)"),
        (b"\x1f\x8b\x08" + bytes(50), "a gzip archive; unpack it"),
        (bytes(257) + b"ustar" + bytes(50), "a tar archive; unpack it"),
        (b'{"metadata": {}}', r"text \(JSON\).*\.safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_named(contents, match, file):
    file.write_bytes(contents)
    refusal(file, match)


def test_archives_that_are_no_checkpoints(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("RealESRGAN/readme.txt", "see there")
    refusal(file, r"a ZIP archive of RealESRGAN/readme\.txt; unpack it")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/code/__torch__.py", "class A: pass")
    refusal(file, r"a TorchScript program, not weights; save those: torch\.save\(torch\.jit\.load")
