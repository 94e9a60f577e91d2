"""Files of other programs: read by contents, strictly, to networks that compute what those programs compute."""

import argparse
import dataclasses
import hashlib

import foreign_layouts as layouts
import pytest
import torch

from gleansr import load
from gleansr.checkpoints import load_model, read
from gleansr.errors import CheckpointError
from gleansr.models.glean import GLEANConfig
from gleansr.models.rrdb import RRDBNetConfig
from gleansr.models.srvgg import SRVGGNetConfig
from gleansr.models.stylegan2 import StyleGAN2Config

CHANNELS = (12, 16, 10, 8)  # 32 px
CONFIG = StyleGAN2Config(CHANNELS, code_dim=16, mapping_layers=3)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_equal(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5 * theirs.std()


def prefixed(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


# ------------------------------------------------------------------------------------------------- what networks compute


def check_generator(model, layout, tensors, mean, clamp=float("inf")):
    z, latents = torch.randn(2, 16), torch.randn(2, 8, 16)
    with torch.inference_mode():
        w = layouts.mapping(layout, tensors, z)
        assert_equal(model.mapping(z), w)
        assert_equal(model.synthesis(latents), layouts.synthesis(layout, tensors, latents, clamp))
        if mean is not None:
            w = mean + 0.7 * (w - mean)
            image = layouts.synthesis(layout, tensors, w[:, None].repeat(1, 8, 1), clamp)
            assert_equal(model(z, truncation=0.7), image)


def check_discriminator(model, layout, tensors, group=4, clamp=float("inf")):
    images = torch.randn(8, 3, 32, 32) * torch.linspace(0.1, 2, 8)[:, None, None, None]
    with torch.inference_mode():
        for n in (1, 4, 8):
            theirs = layouts.discriminator(layout, tensors, images[:n], group, clamp)
            ours = model(images[:n])
            assert ours.shape == (n, 1)
            assert (ours - theirs).abs().max() < 1e-5 * max(theirs.abs().max(), 1)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_generator(layout, saved):
    tensors = layouts.generator_tensors(layout, CHANNELS)
    mean = tensors.get("mapping.w_avg")
    if layout in ("rosinality", "basicsr"):
        mean = torch.randn(16)
        contents = {"g_ema" if layout == "rosinality" else "params_ema": tensors, "latent_avg": mean}
    else:
        contents = tensors
    checkpoint = read(saved(contents))
    assert (checkpoint.layout, list(checkpoint.networks)) == (layout, ["generator"])
    assert checkpoint.networks["generator"].config == CONFIG
    model = checkpoint.build(None, "test")
    assert not model.training
    assert (model.w_avg is None) == (mean is None)
    check_generator(model, layout, tensors, mean)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_discriminator(layout, saved):
    tensors = layouts.discriminator_tensors(layout, CHANNELS)
    checkpoint = read(saved({"params": tensors} if layout == "basicsr" else tensors))
    assert (checkpoint.layout, list(checkpoint.networks)) == (layout, ["discriminator"])
    assert checkpoint.networks["discriminator"].config == StyleGAN2Config(CHANNELS)
    check_discriminator(checkpoint.build(None, "test"), layout, tensors)


@pytest.mark.parametrize("in_size", [4, 8, 16])
def test_glean(in_size, saved):
    tensors = layouts.glean_tensors(in_size, CHANNELS)
    contents = {
        **prefixed("generator.", tensors),
        **prefixed("discriminator.", layouts.discriminator_tensors("mmagic", CHANNELS)),
        "perceptual_loss.vgg.mean": torch.zeros(1, 3, 1, 1),
        "step_counter": torch.tensor(7),
    }
    path = saved({"meta": {"mmedit_version": "0.9"}, "state_dict": contents})
    checkpoint = read(path)
    assert list(checkpoint.networks) == ["generator", "discriminator"]
    config = GLEANConfig(in_size, CONFIG, n_rrdb=2, features=6, growth=4, out_features=5)
    assert checkpoint.networks["generator"].config == config
    lr = torch.rand(2, 3, in_size, in_size) * 2 - 1
    model = load_model(path)
    assert not any(parameter.requires_grad for parameter in model.get_submodule("bank").parameters())
    with torch.inference_mode():
        assert_equal(model(lr), layouts.glean(tensors, lr, 32))


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_rrdbnet(scale, saved):
    tensors = layouts.rrdbnet_tensors(scale)
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    checkpoint = read(saved({"params": other, "params_ema": tensors}))
    assert checkpoint.networks["generator"].config == RRDBNetConfig(scale, features=6, growth=4, n_blocks=2)
    x = torch.rand(2, 3, 8, 12)
    with torch.inference_mode():
        assert_equal(checkpoint.build(None, "test")(x), layouts.rrdbnet(tensors, x, scale))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_srvgg(scale, saved):
    tensors = layouts.srvgg_tensors(scale)
    path = saved({"params": tensors})
    checkpoint = read(path)
    assert checkpoint.networks["generator"].config == SRVGGNetConfig(scale, features=6, n_convs=3)
    x = torch.rand(2, 3, 8, 12)
    with torch.inference_mode():
        assert_equal(checkpoint.build(None, "test")(x), layouts.srvgg(tensors, x, scale))
    assert load(path, device="cpu").scale == scale


def test_other_compact_networks_are_refused(saved):
    tensors = layouts.srvgg_tensors(2)
    with pytest.raises(CheckpointError, match=r"body.8.weight makes 5 channels, but those of a compact network are 3 \* scale\^2"):
        read(saved({"params": tensors | layouts.conv("body.8", 6, 5)}))
    with pytest.raises(CheckpointError, match="missing"):
        read(saved({"params": {name: t for name, t in tensors.items() if name != "body.3.weight"}}))


# -------------------------------------------------------------------------------------------------- what is found in files


def test_rosinality_training_file(saved):
    tensors = layouts.generator_tensors("rosinality", CHANNELS)
    contents = {
        "g": {name: tensor + 1 for name, tensor in tensors.items() if "kernel" not in name},
        "d": layouts.discriminator_tensors("rosinality", CHANNELS),
        "g_ema": tensors,
        "g_optim": {"state": {}, "param_groups": [{"lr": 0.002}]},
        "d_optim": {},
        "args": argparse.Namespace(size=32, ckpt=None),
        "ada_aug_p": 0.0,
    }
    path = saved(contents)
    assert list(read(path).networks) == ["generator", "discriminator"]
    model = load_model(path)
    assert model.w_avg is None
    check_generator(model, "rosinality", tensors, None)
    check_discriminator(load_model(path, part="discriminator"), "rosinality", contents["d"])


def test_mmagic_prefers_the_average(saved):
    tensors = layouts.generator_tensors("mmagic", CHANNELS)
    plain = {name: tensor + 1 for name, tensor in tensors.items()}
    discriminator = layouts.discriminator_tensors("mmagic", CHANNELS)
    contents = {**prefixed("generator.", plain), **prefixed("discriminator.", discriminator)}
    contents |= {**prefixed("generator_ema.", tensors), "discriminator.ada_aug.log_buffer": torch.zeros(2)}
    path = saved({"meta": {}, "state_dict": contents})
    check_generator(load_model(path), "mmagic", tensors, None)
    check_discriminator(load_model(path, part="discriminator"), "mmagic", discriminator)


def test_state_dicts_of_nvidia(saved):
    tensors = layouts.generator_tensors("nvidia", CHANNELS)
    checkpoint = read(saved({"G_ema": tensors, "D": layouts.discriminator_tensors("nvidia", CHANNELS)}))
    assert list(checkpoint.networks) == ["generator", "discriminator"]
    check_generator(checkpoint.build("generator", "test"), "nvidia", tensors, tensors["mapping.w_avg"])


@pytest.mark.parametrize(("group", "clamp"), [(8, 0.7), (None, 256), (2, None)])
def test_pickles_of_nvidia(group, clamp, tmp_path, monkeypatch):
    generator, discriminator, g, d = layouts.nvidia_networks(CHANNELS, group, clamp)
    other = layouts.nvidia_networks(CHANNELS)[2]
    layouts.dump({"G": other, "D": d, "augment_pipe": None, "G_ema": g}, tmp_path / "network.pkl", monkeypatch)
    checkpoint = read(tmp_path / "network.pkl")
    assert checkpoint.layout == "nvidia"
    assert checkpoint.networks["generator"].config == dataclasses.replace(CONFIG, clamp=clamp)
    assert checkpoint.networks["discriminator"].config == StyleGAN2Config(CHANNELS, clamp=clamp, stddev_group=group)
    limit = clamp or float("inf")
    mean = generator["mapping.w_avg"]
    check_generator(checkpoint.build("generator", "test"), "nvidia", generator, mean, limit)
    check_discriminator(checkpoint.build("discriminator", "test"), "nvidia", discriminator, group, limit)


def test_a_pickle_without_average(tmp_path, monkeypatch):
    generator, _, g, _ = layouts.nvidia_networks(CHANNELS)
    layouts.dump({"G": g}, tmp_path / "network.pkl", monkeypatch)
    constant = load_model(tmp_path / "network.pkl").get_parameter("synthesis.constant")[0]
    torch.testing.assert_close(constant, generator["synthesis.b4.const"], rtol=0, atol=0)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t}, lambda t: prefixed("module.", t)])
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_wrapping_does_not_matter(wrap, options, saved):
    tensors = layouts.glean_tensors(8, CHANNELS)
    model = load_model(saved(wrap(tensors), **options))
    torch.testing.assert_close(model.get_parameter("encoder.head.weight"), tensors["encoder.0.1.weight"], rtol=0, atol=0)
    constant = tensors["generator.constant_input.input"]
    torch.testing.assert_close(model.get_parameter("bank.synthesis.constant"), constant, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, saved):
    tensors = {name: t.to(dtype) for name, t in layouts.generator_tensors("rosinality", CHANNELS).items()}
    model = load_model(saved(tensors))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(model.get_parameter("synthesis.constant"), tensors["input.input"].float())


def test_a_part_that_is_not_there(saved):
    path = saved(layouts.generator_tensors("rosinality", CHANNELS))
    with pytest.raises(CheckpointError, match="no discriminator in this file, only generator"):
        load_model(path, part="discriminator")


def meta_listing(make):
    with torch.device("meta"):
        tensors = make()
    lines = sorted(f"{name}\t{list(tensor.shape)}" for name, tensor in tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


FULL = (512, 512, 512, 512, 256)


@pytest.mark.parametrize(
    ("make", "digest"),
    [
        (lambda: layouts.generator_tensors("rosinality", FULL, 512, 8), "ff91644474f41858"),
        (lambda: layouts.discriminator_tensors("rosinality", FULL), "f8ee597bb4484615"),
        (lambda: layouts.generator_tensors("basicsr", (128, 128, 128, 128, 64), 512, 8), "6c1dce60db6a5b25"),
        (lambda: layouts.discriminator_tensors("basicsr", (128, 128, 128, 128, 64)), "e47fda5f294fe8bb"),
        (lambda: layouts.generator_tensors("mmagic", FULL, 512, 8), "3a49bb8d1e6ecc56"),
        (lambda: layouts.discriminator_tensors("mmagic", FULL), "438aa8deb5f00088"),
        (lambda: layouts.generator_tensors("nvidia", (512,) * 5, 512, 8), "eb13bdd4af3d6b3d"),
        (lambda: layouts.discriminator_tensors("nvidia", (512,) * 5), "017efabed3fb4300"),
        (lambda: prefixed("generator.", layouts.glean_tensors(16, FULL, 512, 8, 64, 32, 2, 64)), "8034a6c3d864ea33"),
        (lambda: layouts.rrdbnet_tensors(2, 64, 32, 2), "6376d09dba620d07"),
        (lambda: layouts.rrdbnet_tensors(4, 64, 32, 3), "96b1621d8b2f6bad"),
    ],
)
def test_names_are_the_original_programs(make, digest):
    """sha256 of the sorted lines "name<tab>shape" of networks of 64 px built by the original programs."""
    assert meta_listing(make) == digest
