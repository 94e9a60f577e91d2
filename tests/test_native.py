"""The native format: what is written comes back, and what does not fit is refused."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from gleansr.checkpoints import load_model, native, read
from gleansr.checkpoints.native import About
from gleansr.errors import CheckpointError
from gleansr.models.biggan import BigGAN, BigGANConfig, BigGANDiscriminator
from gleansr.models.categories import CategoryHead
from gleansr.models.encoder import LatentEncoder
from gleansr.models.esrgan_plus import ESRGANPlus, ESRGANPlusConfig
from gleansr.models.features import EfficientNetLite0, SqueezeNet
from gleansr.models.glean import GLEAN, GLEANConfig
from gleansr.models.residual import ResidualNet, ResidualNetConfig
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.srvgg import SRVGGNet, SRVGGNetConfig
from gleansr.models.stylegan import StyleGAN, StyleGANConfig, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator

BANK = StyleGAN2Config((4, 6, 5), code_dim=8, mapping_layers=2, clamp=256.0, stddev_group=None)
MODELS = {
    "glean": lambda: GLEAN(GLEANConfig(8, BANK, n_rrdb=1, features=4, growth=2, out_features=3)),
    "stylegan2": lambda: StyleGAN2(BANK),
    "stylegan2-discriminator": lambda: StyleGAN2Discriminator(BANK),
    "stylegan2-encoder": lambda: LatentEncoder(BANK),
    "stylegan": lambda: StyleGAN(StyleGANConfig((4, 6, 5), code_dim=8, mapping_layers=2, lod=0.5)),
    "stylegan-discriminator": lambda: StyleGANDiscriminator(StyleGANConfig((4, 6, 5), lod=1.0, stddev_group=None)),
    "rrdbnet": lambda: RRDBNet(RRDBNetConfig(2, 4, 2, 1)),
    "esrgan+": lambda: ESRGANPlus(ESRGANPlusConfig(8, 4, 2, 1, noise=0.0)),
    "srvgg": lambda: SRVGGNet(SRVGGNetConfig(2, 4, 1)),
    "residual": lambda: ResidualNet(ResidualNetConfig(3, 4, 1)),
    "squeezenet": SqueezeNet,
    "efficientnet-lite0": EfficientNetLite0,
    "categories": CategoryHead,
    "biggan": lambda: BigGAN(BigGANConfig(4, 64, n_classes=3, z_chunk=2, shared_dim=4)),
    "biggan-discriminator": lambda: BigGANDiscriminator(BigGANConfig(4, 64, attention=(16,), n_classes=3)),
}


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    return tmp_path / "model.safetensors"


def rewrite(path, metadata=None, tensors=None, networks=None):
    """Changes parts of a native file: its metadata, its tensors (None removes one) or its networks' descriptions."""
    with path.open("rb") as file:
        found = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))["__metadata__"]
    if networks:
        found["networks"] = json.dumps(networks(json.loads(found["networks"])))
    values = load_file(path) | (tensors or {})
    save_file({name: t for name, t in values.items() if t is not None}, path, found | (metadata or {}))


@pytest.mark.parametrize("kind", native.KINDS)
def test_every_kind_comes_back(kind, path):
    model = MODELS[kind]()
    about = About("tiny", "cats", "CC0-1.0", "nobody", training={"images": 3})
    native.save(path, {"generator": model}, about)
    checkpoint = read(path)
    assert (checkpoint.layout, checkpoint.about) == ("gleansr", about)
    assert checkpoint.networks["generator"].kind == kind
    again = load_model(path)
    assert type(again) is type(model)
    assert not again.training
    assert getattr(again, "config", None) == getattr(model, "config", None)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_no_absolute_path_is_written(path):
    recipe = {"teacher": "/home/someone/t.safetensors", "start": "C:\\Users\\someone\\s.safetensors", "run": {"seed": 0}, "lr": 0.1}
    about = About("tiny", training={"recipe": recipe, "data": ["/home/someone/a.zip", "runs/b.zip"], "figures": {"psnr": 24.5}})
    native.save(path, {"generator": MODELS["residual"]()}, about)
    assert b"someone" not in path.read_bytes()
    kept = {"recipe": {"teacher": "t.safetensors", "start": "s.safetensors", "run": {"seed": 0}, "lr": 0.1}}
    assert read(path).about.training == kept | {"data": ["a.zip", "runs/b.zip"], "figures": {"psnr": 24.5}}


def test_output_comes_back(path):
    model = MODELS["glean"]().eval()
    native.save(path, {"generator": model}, About())
    lr = torch.rand(2, 3, 8, 8)
    again = load_model(path)
    with torch.inference_mode():
        assert torch.equal(again(lr), model(lr))
    assert not any(parameter.requires_grad for parameter in again.get_submodule("bank").parameters())


def test_early_files_call_w_avg_mean_code(path):
    generator = StyleGAN2(BANK)
    generator.w_avg = torch.randn(8)
    native.save(path, {"generator": generator}, About())
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors["generator.mean_code"] = tensors.pop("generator.w_avg")
    save_file(tensors, path, metadata)
    assert torch.equal(load_model(path).get_buffer("w_avg"), generator.w_avg)


def test_parts_and_w_avg(path):
    generator, discriminator = StyleGAN2(BANK), StyleGAN2Discriminator(BANK)
    generator.w_avg = torch.randn(8)
    native.save(path, {"generator": generator, "discriminator": discriminator}, About())
    assert torch.equal(load_model(path).get_buffer("w_avg"), generator.w_avg)
    assert isinstance(load_model(path, part="discriminator"), StyleGAN2Discriminator)
    with pytest.raises(CheckpointError, match="no encoder in this file, only generator and discriminator"):
        load_model(path, part="encoder")


def test_half_precision_is_stored_and_float32_built(path):
    model = MODELS["rrdbnet"]()
    native.save(path, {"generator": model}, About(), dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    for name, tensor in load_model(path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].half().float())


def eight_bits(path: Path) -> nn.Module:
    """Saves a network with a weight of more than 4,096 numbers as int8, and returns it."""
    model = RRDBNet(RRDBNetConfig(2, 24, 16, 1))
    native.save(path, {"generator": model}, About(), dtype=torch.int8)
    return model


def test_int8_stores_large_weights_with_a_scale_for_each_channel(path):
    model = eight_bits(path)
    stored = load_file(path)
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    large = "generator.trunk.body.0.blocks.0.convs.4.weight"
    assert (kinds[large], kinds[f"{large}.int8_scale"]) == (torch.int8, torch.float32)
    assert kinds["generator.out.weight"] == kinds["generator.out.bias"] == torch.float16, "the last layer's error is seen most"
    for name, tensor in load_model(path).state_dict().items():
        expected = model.state_dict()[name]
        if f"generator.{name}.int8_scale" in stored:
            step = stored[f"generator.{name}.int8_scale"].view(-1, 1, 1, 1)
            assert ((tensor - expected).abs() <= step * 0.5001).all(), name
            assert torch.equal(tensor.flatten(1).abs().amax(1), 127 * step.flatten()), name  # the whole range is in use
        else:
            assert torch.equal(tensor, expected.half().float()), name
    again = path.with_name("again.safetensors")
    native.write(again, read(path), dtype=torch.int8)
    assert all(torch.equal(a, b) for a, b in zip(load_model(again).parameters(), load_model(path).parameters(), strict=True))


def test_int8_keeps_channels_of_zeros(path):
    model = RRDBNet(RRDBNetConfig(2, 24, 16, 1))
    with torch.no_grad():
        model.get_parameter("trunk.last.weight")[3] = 0
    native.save(path, {"generator": model}, About(), dtype=torch.int8)
    assert not load_model(path).get_parameter("trunk.last.weight")[3].any()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight.int8_scale": torch.ones(5)}, r"last\.weight must be int8 with a scale for each output"),
        ({"weight.int8_scale": torch.ones(24, dtype=torch.int32)}, r"last\.weight must be int8 with a scale for each output"),
        ({"weight.int8_scale": torch.full((24,), torch.nan)}, r"last\.weight holds NaN"),
        ({"weight.int8_scale": None}, r"last\.weight is torch\.int8"),
        ({"weight": None}, r"missing trunk\.last\.weight .*unexpected trunk\.last\.weight\.int8_scale"),
        ({"weight": torch.zeros(24, 24, 3, 3)}, r"last\.weight must be int8 with a scale"),
    ],
)
def test_int8_weights_and_scales_that_do_not_fit(changes, match, path):
    eight_bits(path)
    rewrite(path, tensors={f"generator.trunk.last.{name}": tensor for name, tensor in changes.items()})
    with pytest.raises(CheckpointError, match=match):
        load_model(path)


def test_a_module_without_a_format(path):
    with pytest.raises(TypeError, match="Linear has no native format"):
        native.save(path, {"generator": nn.Linear(1, 1)}, About())
    assert list(path.parent.iterdir()) == []


def config(**changes):
    def change(networks):
        networks["generator"]["config"] |= changes
        return networks

    return change


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"tensors": {"generator.out.bias": None}}, r"missing out\.bias \[3\]"),
        ({"tensors": {"generator.extra": torch.zeros(2)}}, r"unexpected extra \[2\]"),
        ({"tensors": {"generator.out.bias": torch.zeros(4)}}, r"out\.bias is \[4\], not \[3\]"),
        ({"tensors": {"discriminator.bias": torch.zeros(4)}}, r"tensors of no network: discriminator\.bias"),
        ({"metadata": {"format": "gleansr/9"}}, "format 'gleansr/9' in its metadata, but 'gleansr/1' is expected"),
        ({"metadata": {"networks": "no json"}}, "metadata"),
        ({"metadata": {"networks": "[" * 100_000}}, "."),
        ({"metadata": {"networks": "9" * 10_000}}, "."),
        ({"metadata": {"networks": "{}"}}, "tensors of no network"),
        ({"metadata": {"about": '{"colour": "red"}'}}, "unknown key colour"),
        ({"networks": lambda n: {"generator": n["generator"] | {"kind": "os.system"}}}, "os.system"),
        ({"networks": lambda _: {"generator": 3}}, "metadata"),
        ({"networks": config(scale=3)}, "enlarges by 1, 2, 4, 8 or 16, not by 3"),
        ({"networks": config(features=10**15)}, "features and growth must be positive"),
        ({"networks": config(features=-1)}, "features and growth must be positive"),
        ({"networks": config(n_blocks=10**9)}, "n_blocks must be 0 to 256"),
        ({"networks": config(features="64")}, "features must be int, not '64'"),
        ({"networks": config(growth=8192)}, "the weights do not fit the architecture"),
        ({"networks": config(widht=3)}, "unknown key widht"),
    ],
)
def test_files_that_do_not_fit(changes, match, path):
    native.save(path, {"generator": MODELS["rrdbnet"]()}, About())
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.99])
def test_truncated_files(part, path):
    native.save(path, {"generator": MODELS["rrdbnet"]()}, About())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_model(path)


def test_a_safetensors_file_of_others(path):
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no format in its metadata: not a network of a known layout: it holds weight"):
        read(path)


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (torch.tensor([0, torch.nan, 0]), r"out\.bias holds NaN or infinity"),
        (torch.tensor([0, -torch.inf, 0]).half(), r"out\.bias holds NaN or infinity"),
        (torch.zeros(3, dtype=torch.int32), r"out\.bias is torch\.int32"),
        (torch.zeros(3, dtype=torch.bool), r"out\.bias is torch\.bool"),
    ],
)
def test_weights_that_are_no_finite_numbers(tensor, match, path):
    native.save(path, {"generator": MODELS["rrdbnet"]()}, About())
    rewrite(path, tensors={"generator.out.bias": tensor})
    with pytest.raises(CheckpointError, match=match):
        load_model(path)


def test_equal_checkpoints_are_equal_files(path):
    """Whatever the order in which they were put together, and in which process."""
    model = MODELS["rrdbnet"]()
    code = (
        "import sys; from gleansr.checkpoints import native, read; from dataclasses import replace\n"
        "for path in sys.argv[1:]:\n"
        "    c = read(path); n = c.networks['generator']\n"
        "    n = replace(n, tensors=dict(reversed(n.tensors.items())))\n"
        "    about = replace(c.about, training=dict(reversed(c.about.training.items())))\n"
        "    native.write(path + '.again', replace(c, networks={'generator': n}, about=about))"
    )
    trainings = ({"b": 1, "a": {"d": [1, {"f": 2, "e": 3}], "c": 2}}, {"a": {"c": 2, "d": [1, {"e": 3, "f": 2}]}, "b": 1})
    files = [path.with_name(name) for name in ("one", "other")]
    for file, training in zip(files, trainings, strict=True):
        native.save(file, {"generator": model}, About("tiny", training=training))
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    assert len({file.read_bytes() for file in [*files, *(file.with_name(f"{file.name}.again") for file in files)]}) == 1


def test_what_is_written_is_safetensors(path):
    model = MODELS["glean"]()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        native.save(path, {"generator": model}, About(), dtype=dtype)
        expected = {f"generator.{name}": tensor.to(dtype) for name, tensor in model.state_dict().items()}
        found = load_file(path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) and found[name].dtype == dtype for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        (
            lambda n: {"networks": json.dumps(dict.fromkeys(map(str, range(900)), n["generator"]))},
            "metadata is not that of a gleansr model",
        ),
        (lambda _: {"networks": json.dumps({str(i): {"kind": "x"} for i in range(50)})}, "more than 16 networks"),
        (lambda _: {"networks": json.dumps({"generator": {"kind": "rrdbnet", "config": {"k" * 40_000: 1}}})}, "longer than 32,768"),
        (lambda _: {"about": json.dumps({str(i): i for i in range(50_000)})}, "more than 16 networks, or facts"),
        (lambda _: {"about": '{"training": {"a": "' + "x" * 5_000_000 + '"}}'}, "longer than"),
        (lambda _: {"networks": json.dumps({"generator": {"kind": ["rrdbnet"], "config": {}}})}, "a network of the kind"),
    ],
)
def test_metadata_that_would_be_long_work(metadata, match, path):
    native.save(path, {"generator": MODELS["rrdbnet"]()}, About())
    with path.open("rb") as file:
        networks = json.loads(json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))["__metadata__"]["networks"])
    rewrite(path, metadata=metadata(networks))
    with pytest.raises(CheckpointError, match=match):
        read(path)


def test_headers_of_thousands_of_tensors(path):
    zero = np.zeros(1, np.float32)
    safetensors.numpy.save_file({f"t{i}": zero for i in range(native.MAX_TENSORS + 1)}, path)
    with pytest.raises(CheckpointError, match=r"50,001 tensors; at most 50,000"):
        read(path)


def test_a_file_has_the_permissions_of_any_other(tmp_path: Path):
    native.save(tmp_path / "a.safetensors", {"generator": StyleGAN2(BANK)}, About())
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode
