"""Networks as ONNX files: the same results, any batch, the facts in the file, and what cannot be exported."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import gleansr
from gleansr import baselines as baselines
from gleansr import doctor
from gleansr.checkpoints.int8 import round_weights
from gleansr.checkpoints.native import About
from gleansr.cli import main
from gleansr.errors import CheckpointError, GleansrError, RequestError
from gleansr.inference.export import Exported, export
from gleansr.inference.onnx_runtime import OnnxModel
from gleansr.inference.runner import FeedForwardModel
from gleansr.inference.upscaler import Upscaler
from gleansr.models.glean import GLEAN, GLEANConfig, lighten
from gleansr.models.residual import ResidualNet, ResidualNetConfig
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.stylegan import StyleGANConfig
from gleansr.models.stylegan2 import StyleGAN2Config

BANK = StyleGAN2Config((8, 8, 6, 4), code_dim=8, mapping_layers=1)


def upscaler(model: torch.nn.Module, **about: object) -> Upscaler:
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return Upscaler(FeedForwardModel(model, device="cpu"), About(**{"name": "tiny", "licence": "CC0-1.0", **about}))  # pyright: ignore[reportArgumentType]


def weights(ours: Upscaler) -> int:
    """The number of weights of a network, 4 bytes each in a file in float32."""
    assert isinstance(ours.method, FeedForwardModel)
    return sum(tensor.numel() for tensor in cast("torch.nn.Module", ours.method.model).parameters())


def images(n: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(n)) * 2 - 1


@pytest.fixture(scope="module")
def ours() -> Upscaler:
    return upscaler(GLEAN(GLEANConfig(8, BANK, n_rrdb=1, features=4, growth=3)), category="blobs", content_height=24)


@pytest.fixture(scope="module")
def for_any_number(ours: Upscaler, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`ours` for any number of images. Each export takes seconds."""
    return export(ours, tmp_path_factory.mktemp("exported") / "a.onnx", batch=None)


@pytest.fixture(scope="module")
def exported(for_any_number: Exported) -> Path:
    return for_any_number.path


@pytest.mark.parametrize("batch", [3, None])
def test_any_number_of_images_gives_the_network_s_results(tmp_path: Path, ours: Upscaler, for_any_number: Exported, batch: int | None):
    done = export(ours, tmp_path / "tiny.onnx", batch=batch) if batch else for_any_number
    assert done.batch == batch
    assert done.difference < 0.1
    assert done.size == done.path.stat().st_size
    assert done.psnr > 100
    theirs = gleansr.load(done.path)
    assert (theirs.input_size, theirs.output_size, theirs.scale, theirs.about) == (8, 32, 4, ours.about)
    for n in (1, 2, 5):
        lr = images(n, 8, 8)
        assert (theirs.method(lr).images - ours.method(lr).images).abs().max() < 1e-4
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31, 4), np.uint8), "RGBA")
    assert np.abs(np.asarray(theirs(image), int) - np.asarray(ours(image), int)).max() <= 1


@pytest.mark.parametrize(
    "model",
    [
        GLEAN(GLEANConfig(8, StyleGANConfig((8, 6, 4), code_dim=8, mapping_layers=1), n_rrdb=1, features=4, growth=3)),
        GLEAN(lighten(GLEANConfig(8, replace(BANK, channels=(8, 6, 4)), n_rrdb=2, features=8, growth=4, out_features=8))),
        RRDBNet(RRDBNetConfig(scale=2, features=4, growth=2, n_blocks=1)),
    ],
    ids=["stylegan bank", "light", "ESRGAN with folded input"],
)
def test_every_kind_of_network(tmp_path: Path, model: torch.nn.Module):
    ours = upscaler(model)
    export(ours, tmp_path / "a.onnx", batch=None)
    theirs = gleansr.load(tmp_path / "a.onnx")
    for size in [(8, 8)] if ours.input_size else [(8, 8), (13, 21)]:
        lr = images(2, *size)
        assert (theirs.method(lr).images - ours.method(lr).images).abs().max() < 1e-4


@pytest.mark.parametrize("batch", [2, None])
def test_a_self_ensemble_is_in_the_file_once(tmp_path: Path, ours: Upscaler, batch: int | None):
    assert isinstance(ours.method, FeedForwardModel)
    method = FeedForwardModel(cast("torch.nn.Module", ours.method.model), device="cpu", self_ensemble=True)
    both = Upscaler(method, replace(ours.about, self_ensemble=True))
    done = export(both, tmp_path / "both.onnx", batch=batch)
    assert done.size < 1.5 * 4 * weights(ours) + 2**18, "the weights are stored twice"
    theirs, lr = gleansr.load(done.path), images(2, 8, 8)
    assert theirs.about == both.about
    assert gleansr.load(done.path, self_ensemble=True).about == both.about
    with pytest.raises(RequestError, match="computes as it was exported, with one self-ensemble"):
        gleansr.load(done.path, self_ensemble=False)
    assert (theirs.method(lr).images - method(lr).images).abs().max() < 1e-4
    assert (theirs.method(lr).images - ours.method(lr).images).abs().max() > 1e-3


def test_half_precision_is_near_and_smaller(tmp_path: Path):
    ours = upscaler(GLEAN(GLEANConfig(8, StyleGAN2Config((64, 64, 32, 16), 64, 1), n_rrdb=1, features=16, growth=8)))
    half = export(ours, tmp_path / "half.onnx", half=True)
    assert half.size < 0.6 * 4 * weights(ours)
    assert 45 < half.psnr < 100
    lr = images(1, 8, 8)
    result = gleansr.load(tmp_path / "half.onnx").method(lr).images
    assert result.dtype == torch.float32
    assert (result.clamp(-1, 1) - ours.method(lr).images.clamp(-1, 1)).std() < 0.01


def test_a_small_file_holds_weights_in_eight_bits_where_they_are_exact(tmp_path: Path):
    """Convolutions by their first axis, linear layers, which the exporter transposes, by their last."""
    torch.manual_seed(0)
    network = GLEAN(lighten(GLEANConfig(8, StyleGAN2Config((64, 64, 32, 16), 64, 1), n_rrdb=1, features=64, growth=32)))
    plain = export(Upscaler(FeedForwardModel(network, device="cpu"), About("tiny")), tmp_path / "plain.onnx", small_file=True)
    round_weights(network)
    ours = Upscaler(FeedForwardModel(network, device="cpu"), About("tiny"))
    small = export(ours, tmp_path / "small.onnx", small_file=True)
    assert small.size < 0.35 * plain.size
    assert small.psnr > 100, "another function than that of the network's weights"
    held = {tensor.name: tensor for tensor in onnx.load(small.path).graph.initializer}
    floats = [tensor for tensor in held.values() if tensor.data_type == onnx.TensorProto.FLOAT]
    assert sum(np.prod(tensor.dims) for tensor in floats) < 0.1 * weights(ours)
    lr = images(1, 8, 8)
    assert (gleansr.load(small.path).method(lr).images - ours.method(lr).images).abs().max() < 1e-4


def test_the_file_tells_nothing_of_the_machine_that_wrote_it(exported: Path):
    assert str(Path(gleansr.__file__).parent).encode() not in exported.read_bytes()
    onnx.checker.check_model(onnx.load(exported))


def test_doctor_tries_an_exported_network(exported: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Upscaler, "default_batch_size", lambda _: 2)
    report = doctor.examine(str(exported), seconds=0)
    assert report.ok
    assert [trial.precision for trial in report.trials] == ["float32"]


def test_a_file_that_differs_is_not_kept(exported: Path, tmp_path: Path, ours: Upscaler, monkeypatch: pytest.MonkeyPatch):
    traced = onnx.load(exported)
    traced.ClearField("metadata_props")
    monkeypatch.setattr("gleansr.inference.export._proto", lambda *_: traced)
    call = OnnxModel.__call__
    monkeypatch.setattr(OnnxModel, "__call__", lambda self, lr: call(self, lr) + 0.01)
    (tmp_path / "a.onnx").write_bytes(b"old")
    with pytest.raises(GleansrError, match=r"was not written: ONNX Runtime's result differs by 0\.01"):
        export(ours, tmp_path / "a.onnx", batch=None)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_what_cannot_be_exported(exported: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.onnx"
    with pytest.raises(RequestError, match="bicubic cannot be exported: it is not a network"):
        export(baselines.load("bicubic", scale=2, device="cpu"), path)
    with pytest.raises(RequestError, match="plain network cannot be exported"):
        export(upscaler(ResidualNet(ResidualNetConfig(scale=4, features=8, n_blocks=1))), path)
    tiny = gleansr.load(tiny_model, device="cpu")
    with pytest.raises(RequestError, match="batch must be at least 1, not 0"):
        export(tiny, path, batch=0)
    with pytest.raises(RequestError, match="in float32"):
        export(gleansr.load(tiny_model, device="cpu", precision="bfloat16"), path)
    with pytest.raises(RequestError, match="cannot be exported"):
        export(gleansr.load(exported), tmp_path / "b.onnx")
    with pytest.raises(RequestError, match="in the precision that it was exported in, not in bfloat16"):
        gleansr.load(exported, precision="bfloat16")
    monkeypatch.setattr("gleansr.inference.export.LARGEST", 1000)
    with pytest.raises(RequestError, match="one ONNX file holds at most 1,000"):
        export(tiny, path)
    for package in ("onnxscript", "onnxruntime"):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, missing=package, find=find: None if name == missing else find(name))
        with pytest.raises(RequestError, match=rf"{package}: pip install 'gleansr\[export\]'"):
            export(tiny, path) if package == "onnxscript" else gleansr.load(exported)
        monkeypatch.undo()


def test_onnx_files_of_others_and_broken_ones(exported: Path, tmp_path: Path):
    node = onnx.helper.make_node("Identity", ["low"], ["high"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("low", "high")]
    foreign = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]), producer_name="x", ir_version=10)
    foreign.opset_import[0].version = 20
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match="gleansr did not write this ONNX file"):
        gleansr.load(tmp_path / "foreign.onnx")
    (tmp_path / "cut.onnx").write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot load it"):
        gleansr.load(tmp_path / "cut.onnx")


def test_the_command_and_the_example_of_the_documentation(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "tiny.onnx"
    main(["export", str(tiny_model), "-o", str(file), "--dynamic-batch"])
    assert "any number of images at once" in capsys.readouterr().err
    Image.new("RGB", (8, 8), "teal").save(tmp_path / "small.png")
    main(["upscale", str(tmp_path / "small.png"), "-m", str(file), "-o", str(tmp_path / "ours.png")])
    capsys.readouterr()
    file.rename(tmp_path / "cats-8x.onnx")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    exec(text.partition("```python\n")[2].partition("```")[0], {})  # noqa: S102, it is our own
    with Image.open("ours.png") as ours, Image.open("large.png") as large:
        assert ours.size == (32, 32)
        assert np.abs(np.asarray(ours, int) - np.asarray(large, int)).max() <= 1
    file = Path("cats-8x.onnx")
    for arguments, said in (
        ([str(file)], "already exists"),
        ([str(file), "--overwrite", "--dynamic-batch", "--batch-size", "2"], "leave --batch-size out"),
        ([str(tmp_path / "tiny.pt")], "ends in .onnx"),
        ([str(tmp_path / "none" / "tiny.onnx")], "does not exist"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["export", str(tiny_model), "-o", *arguments])
        assert end.value.code in (1, 2)
        assert said in capsys.readouterr().err
