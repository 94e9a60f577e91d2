"""StyleGAN and what it serves as bank for: GenForce's files, the networks against slow arithmetic on their tensors, GLEAN around them.

The arithmetic and the names are written from their description, with nothing of gleansr's.
"""

import dataclasses
import hashlib
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from glean_checks import assert_only_the_rgb_path_is_dead

import gleansr
from gleansr.checkpoints import load_model, native, read
from gleansr.cli import main
from gleansr.configs import from_dict
from gleansr.errors import CheckpointError, RequestError
from gleansr.models.glean import GLEAN, GLEANConfig, NoBankConfig
from gleansr.models.stylegan import DownConv, EqualizedUpConv, StyledLayer, StyleGAN, StyleGANConfig, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2Config

CHANNELS = (8, 7, 6, 5)  # 32 px
LARGE = {128: (6, 5, 5, 4, 4, 3), 256: (5, 5, 4, 4, 4, 3, 2)}
CONFIG = StyleGANConfig(CHANNELS, code_dim=12, mapping_layers=3)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_close(ours, theirs, tolerance=2e-5):
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() < tolerance * theirs.std()


# -------------------------------------------------------------------------------------------------------- GenForce's names


def randn(*shape, std=1.0):
    return torch.randn(shape) * std


def blur_kernel(channels):
    return torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).div(16).repeat(channels, 1, 1, 1)


def generator_tensors(channels, code=12, n_dense=3, lod=0.0):
    t = {"truncation.w_avg": randn(code, std=0.3), "synthesis.lod": torch.tensor(lod)}
    for k in range(n_dense):
        t |= {f"mapping.dense{k}.weight": randn(code, code, std=100), f"mapping.dense{k}.bias": randn(code, std=30)}
    for i in range(2 * len(channels)):
        name, j, n = f"synthesis.layer{i}", i // 2, channels[i // 2]
        t |= {f"{name}.bias": randn(n, std=0.3), f"{name}.apply_noise.weight": randn(n, std=0.5)}
        t |= {f"{name}.apply_noise.noise": randn(1, 1, 4 * 2**j, 4 * 2**j)}
        t |= {f"{name}.style.weight": randn(2 * n, code), f"{name}.style.bias": randn(2 * n, std=0.3)}
        if i == 0:
            t[f"{name}.const"] = randn(1, n, 4, 4)
        else:
            t[f"{name}.weight"] = randn(n, n if i % 2 else channels[j - 1], 3, 3)
        if i and i % 2 == 0:
            t[f"{name}.blur.kernel"] = blur_kernel(n)
    for j, n in enumerate(channels):
        t |= {f"synthesis.output{j}.weight": randn(3, n, 1, 1), f"synthesis.output{j}.bias": randn(3, std=0.3)}
    return t


def discriminator_tensors(channels, lod=0.0):
    down = channels[::-1]
    layers = []
    for n_in, n_out in itertools.pairwise(down):
        layers += [(n_in, n_in, 3, 3), (n_out, n_in, 3, 3)]
    last = down[-1]
    layers += [(last, last + 1, 3, 3), (last, 16 * last), (1, last)]
    t = {"lod": torch.tensor(lod)}
    for k, n in enumerate(down):
        t |= {f"input{k}.weight": randn(n, 3, 1, 1), f"input{k}.bias": randn(n, std=0.3)}
    for i, shape in enumerate(layers):
        t |= {f"layer{i}.weight": randn(*shape), f"layer{i}.bias": randn(shape[0], std=0.3)}
        if i % 2 and i < 2 * len(down) - 2:
            t[f"layer{i}.blur.kernel"] = blur_kernel(shape[1])
    return t


# ------------------------------------------------------------------------------------------------------------- arithmetic


def equalised(weight, gain=2**0.5):
    return weight * gain / math.sqrt(weight[0].numel())


def lrelu(x):
    return torch.where(x > 0, x, 0.2 * x)


def four_shifts(weight):
    """(out, in, 3, 3) -> (out, in, 4, 4), the sum of the kernel's four positions in it."""
    wide = weight.new_zeros(*weight.shape[:2], 4, 4)
    for y in (0, 1):
        for x in (0, 1):
            wide[:, :, y : y + 3, x : x + 3] += weight
    return wide


def blurred(x):
    padded = F.pad(x, (1, 1, 1, 1))
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16


def doubled(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halved(x):
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def mapping(t, z):
    w = z / torch.sqrt((z * z).mean(1, keepdim=True) + 1e-8)
    for k in range(sum(name.startswith("mapping.dense") for name in t) // 2):
        w = lrelu(w @ (equalised(t[f"mapping.dense{k}.weight"]) * 0.01).t() + t[f"mapping.dense{k}.bias"] * 0.01)
    return w


def layer(t, name, x, code, noise):
    if f"{name}.const" in t:
        x = t[f"{name}.const"].repeat(len(code), 1, 1, 1)
    else:
        weight = equalised(t[f"{name}.weight"])
        if f"{name}.blur.kernel" not in t:
            x = F.conv2d(x, weight, padding=1)
        elif x.shape[-1] >= 64:
            x = blurred(F.conv_transpose2d(x, four_shifts(weight).transpose(0, 1), stride=2, padding=1))
        else:
            x = blurred(F.conv2d(doubled(x), weight, padding=1))
    x = lrelu(x + noise * t[f"{name}.apply_noise.weight"].view(1, -1, 1, 1) + t[f"{name}.bias"].view(1, -1, 1, 1))
    x = x - x.mean((2, 3), keepdim=True)
    x = x / torch.sqrt((x * x).mean((2, 3), keepdim=True) + 1e-8)
    style = code @ equalised(t[f"{name}.style.weight"], 1.0).t() + t[f"{name}.style.bias"]
    scales, shifts = style[:, : x.shape[1], None, None], style[:, x.shape[1] :, None, None]
    return x * (scales + 1) + shifts


def synthesis(t, latents):
    """The image of a fractional level of detail is the mean of the full-size images of the two whole ones around it."""
    n = latents.shape[1] // 2
    x, images = None, []
    for i in range(2 * n):
        x = layer(t, f"synthesis.layer{i}", x, latents[:, i], t[f"synthesis.layer{i}.apply_noise.noise"])
        if i % 2:
            weight, bias = t[f"synthesis.output{i // 2}.weight"], t[f"synthesis.output{i // 2}.bias"]
            images = [doubled(image) for image in images] + [F.conv2d(x, equalised(weight, 1.0), bias)]
    lod = float(t["synthesis.lod"])
    lower, upper = math.floor(lod), math.ceil(lod)
    return images[n - 1 - lower] * (1 - lod + lower) + images[n - 1 - upper] * (lod - lower)


def discriminator(t, image):
    lod = float(t["lod"])
    n = sum(name.startswith("input") for name in t) // 2
    images = [image]
    for _ in range(n):
        images.append(halved(images[-1]) if images[-1].shape[-1] > 1 else images[-1])

    def enter(k):
        return lrelu(F.conv2d(images[k], equalised(t[f"input{k}.weight"]), t[f"input{k}.bias"]))

    first = math.floor(lod)
    x = enter(first)
    for k in range(first, n - 1):
        if k == first + 1 and lod > first:
            x = x * (1 - lod + first) + enter(k) * (lod - first)
        x = lrelu(F.conv2d(x, equalised(t[f"layer{2 * k}.weight"]), t[f"layer{2 * k}.bias"], padding=1))
        weight, bias = equalised(t[f"layer{2 * k + 1}.weight"]), t[f"layer{2 * k + 1}.bias"]
        x = blurred(x)
        if x.shape[-1] >= 128:
            x = lrelu(F.conv2d(x, four_shifts(weight) / 4, bias, stride=2, padding=1))
        else:
            x = lrelu(halved(F.conv2d(x, weight, bias, padding=1)))
    if first + 1 == n - 1 and lod > first:
        x = x * (1 - lod + first) + enter(n - 1) * (lod - first)
    size = min(4, len(x))
    extra = torch.empty(len(x), 1, 4, 4)
    for g in range(len(x) // size):
        members = x[g :: len(x) // size]
        extra[g :: len(x) // size] = torch.sqrt(((members - members.mean(0)) ** 2).mean(0) + 1e-8).mean()
    i = 2 * n - 2
    x = lrelu(F.conv2d(torch.cat([x, extra], 1), equalised(t[f"layer{i}.weight"]), t[f"layer{i}.bias"], padding=1))
    x = lrelu(x.flatten(1) @ equalised(t[f"layer{i + 1}.weight"]).t() + t[f"layer{i + 1}.bias"])
    return x @ equalised(t[f"layer{i + 2}.weight"], 1.0).t() + t[f"layer{i + 2}.bias"]


# ------------------------------------------------------------------------------------------------ what the networks compute

SIZES_AND_LODS = [
    (CHANNELS, 0.0),
    (CHANNELS, 1.0),
    (CHANNELS, 0.5),
    (CHANNELS, 2.25),
    (CHANNELS, 3.0),
    (LARGE[128], 0.0),
    (LARGE[256], 0.5),
]


@pytest.mark.parametrize(("channels", "lod"), SIZES_AND_LODS)
def test_generator(channels, lod, saved):
    tensors = generator_tensors(channels, lod=lod)
    path = saved({"generator_smooth": tensors})
    assert read(path).networks["generator"].config == StyleGANConfig(channels, 12, 3, lod=lod)
    model = load_model(path)
    assert isinstance(model, StyleGAN)
    n = 2 * len(channels)
    z, latents = torch.randn(2, 12), torch.randn(1, n, 12)
    with torch.no_grad():
        expected = synthesis(tensors, latents)
        assert_close(model.mapping(z), mapping(tensors, z))
        assert_close(model.synthesis(latents), expected, 1e-4)
        exact = synthesis({name: t.double() for name, t in tensors.items()}, latents.double())
        assert_close(model.double().synthesis(latents.double()), exact, 1e-11)
    # With a gradient nothing is overwritten: another path through every layer.
    assert_close(model.synthesis(latents.double()).detach(), exact, 1e-11)


@pytest.mark.parametrize(("channels", "lod"), SIZES_AND_LODS)
def test_discriminator(channels, lod, saved):
    tensors = discriminator_tensors(channels, lod=lod)
    path = saved({"discriminator": tensors})
    assert read(path).networks["discriminator"].config == StyleGANConfig(channels, lod=lod)
    model = load_model(path)
    assert isinstance(model, StyleGANDiscriminator)
    size = model.config.size
    images = torch.randn(8, 3, size, size) * torch.linspace(0.1, 2, 8)[:, None, None, None]
    with torch.inference_mode():
        for n in (1, 4, 8) if size == 32 else (2,):
            theirs = discriminator(tensors, images[:n])
            ours = model(images[:n])
            assert ours.shape == (n, 1)
            assert (ours - theirs).abs().max() < 1e-5 * max(theirs.abs().max(), 1)
    with pytest.raises(ValueError, match="not 6"):
        model(images[:6])
    with pytest.raises(ValueError, match=rf"\(N, 3, {size}, {size}\)"):
        model(images[:, :, 1:])


def test_changes_of_size_are_repetition_or_mean_beside_a_convolution():
    """Borders included, and mirrored kernels would differ grossly."""
    up, down, x = EqualizedUpConv(4, 3), DownConv(3, 4), torch.randn(2, 4, 6, 6)
    weight = equalised(up.weight.detach().transpose(0, 1))
    assert_close(up(x).detach(), blurred(F.conv2d(doubled(x), weight.flip(2, 3), padding=1)))
    assert (up(x) - blurred(F.conv2d(doubled(x), weight, padding=1))).abs().max() > 0.1
    y = blurred(x[:, :3])
    assert_close(down(x[:, :3]).detach(), halved(F.conv2d(y, equalised(down.weight.detach()), padding=1)))


def test_truncation(saved):
    tensors = generator_tensors(CHANNELS)
    model, z = load_model(saved(tensors)), torch.randn(2, 12)
    assert isinstance(model, StyleGAN)
    w, mean = mapping(tensors, z)[:, None].repeat(1, 8, 1), tensors["truncation.w_avg"]
    with torch.inference_mode():
        assert_close(model(z, 0.7), synthesis(tensors, mean + 0.7 * (w - mean)))
        some = torch.cat([mean + 0.7 * (w[:, :3] - mean), w[:, 3:]], 1)
        assert_close(model(z, 0.7, truncation_layers=3), synthesis(tensors, some))
        assert torch.equal(model(z, 0.7, truncation_layers=0), model(z))
        with pytest.raises(ValueError, match="truncation_layers must be 0 to 8, not 9"):
            model(z, 0.7, truncation_layers=9)
        model.register_buffer("w_avg", None)
        estimated = model(z, 0)
        torch.testing.assert_close(estimated[0], estimated[1])
        assert model.w_avg is None
        torch.testing.assert_close(model.estimate_w_avg(), mapping(tensors, torch.randn(20_000, 12)).mean(0), atol=0.05, rtol=0)


def test_noise(saved):
    model, z = load_model(saved(generator_tensors(CHANNELS))), torch.randn(2, 12)
    given = [model.get_buffer(f"synthesis.noise_{i}") for i in range(8)]
    with torch.inference_mode():
        fixed = model(z)
        assert torch.equal(fixed, model(z))
        assert torch.equal(fixed, model(z, noise=given))
        assert torch.equal(model(z, noise="none"), model(z, noise=[torch.zeros_like(n) for n in given]))
        random = model(z, noise="random")
        assert len({float(p.std()) for p in (fixed, random, model(z, noise="random"), model(z, noise="none"))}) == 4
        same = model(z[:1].repeat(2, 1), noise="random")
        assert not torch.allclose(same[0], same[1])  # each image has its own
        with pytest.raises(ValueError, match="8 layers"):
            model(z, noise=given[:7])
        with pytest.raises(ValueError, match=r"\(N, 8, 12\)"):
            model.get_submodule("synthesis")(torch.randn(2, 7, 12))


def test_gradients_reach_every_parameter_that_matters(saved):
    model = load_model(saved(generator_tensors(CHANNELS, lod=0.5)))
    torch.manual_seed(1)
    model(torch.randn(2, 12)).square().sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # Of the RGB layers only the two that blend are seen.
    assert unused == {f"synthesis.to_rgb.{j}.{leaf}" for j in (0, 1) for leaf in ("weight", "bias")}


def test_gradients_are_right():
    layer = StyledLayer(EqualizedUpConv(2, 2), 2, 3).double()
    layer.noise_strength.data.normal_()
    inputs = [torch.randn(2, 2, 2, 2), torch.randn(2, 3), torch.randn(1, 1, 4, 4)]
    assert torch.autograd.gradcheck(layer, [x.double().requires_grad_() for x in inputs])


def test_gradients_of_gradients_exist():
    """R1 and the path length penalty."""
    model = StyleGANDiscriminator(StyleGANConfig((4, 4)))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert model.blocks[0].get_parameter("conv2.weight").grad is not None
    generator = StyleGAN(StyleGANConfig((4, 4), code_dim=6, mapping_layers=1))
    latents = torch.randn(2, 4, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(generator.synthesis(latents).sum(), latents, create_graph=True)
    gradient.square().sum().backward()
    assert generator.get_parameter("synthesis.layers.2.conv.weight").grad is not None


def test_bfloat16_is_close_to_float32(saved):
    path = saved({"generator": generator_tensors(CHANNELS), "discriminator": discriminator_tensors(CHANNELS)})
    generator, critic = load_model(path), load_model(path, part="discriminator")
    latents, images = torch.randn(2, 8, 12), torch.randn(4, 3, 32, 32)
    for model, x in ((generator.get_submodule("synthesis"), latents), (critic, images)):
        for context in (torch.inference_mode(), torch.enable_grad()):
            with context:
                exact = model(x)
                with torch.autocast("cpu", torch.bfloat16):
                    rough = model(x)
            assert rough.dtype == torch.float32
            error = (rough - exact).abs().mean() / exact.std()
            assert 0 < error < 0.03


# -------------------------------------------------------------------------------------------------- what is found in files


def both(t):
    """The state dicts that a converter writes; of the two generators the smooth one is `t`."""
    plain = {name: tensor + 1 if "kernel" not in name and "lod" not in name else tensor for name, tensor in t.items()}
    return {"generator": plain, "discriminator": discriminator_tensors(CHANNELS), "generator_smooth": t}


@pytest.mark.parametrize("layout", ["converter", "runner", "parallel"])
def test_files_of_several_networks(layout, saved):
    tensors = generator_tensors(CHANNELS)
    contents = both(tensors)
    if layout == "runner":
        optimizer = torch.optim.Adam([torch.zeros(2, requires_grad=True)])
        others = {
            "optimizers": {"generator": optimizer.state_dict()},
            "learning_rates": {},
            "running_metadata": {"iter": 3, "seen_img": 12},
        }
        contents = {"models": contents, **others}
    if layout == "parallel":
        contents = {key: {f"module.{name}": t for name, t in network.items()} for key, network in contents.items()}
    checkpoint = read(saved(contents))
    assert (checkpoint.layout, sorted(checkpoint.networks)) == ("genforce", ["discriminator", "generator"])
    assert checkpoint.networks["generator"].config == CONFIG
    model = checkpoint.build(None, "test")
    torch.testing.assert_close(model.get_buffer("w_avg"), tensors["truncation.w_avg"], rtol=0, atol=0)
    torch.testing.assert_close(model.get_parameter("synthesis.constant"), tensors["synthesis.layer0.const"], rtol=0, atol=0)
    assert isinstance(checkpoint.build("discriminator", "test"), StyleGANDiscriminator)


@pytest.mark.parametrize("tensors", [generator_tensors(CHANNELS), discriminator_tensors(CHANNELS)], ids=["generator", "discriminator"])
def test_a_state_dict_alone(tensors, saved):
    checkpoint = read(saved(tensors))
    assert checkpoint.layout == "genforce"
    assert len(checkpoint.networks) == 1


@pytest.mark.parametrize(
    ("make", "digest"),
    [
        (lambda: generator_tensors((512, 512, 512, 512, 256), 512, 8), "70dad8485804a598"),
        (lambda: discriminator_tensors((512, 512, 512, 512, 256)), "31dab924f5ca4612"),
        (lambda: generator_tensors((128, 128, 128, 128, 64, 32, 16), 512, 8), "c536f72d52219e68"),
        (lambda: discriminator_tensors((128, 128, 128, 128, 64, 32, 16)), "cf1129620148aa9d"),
    ],
)
def test_names_are_the_original_programs(make, digest):
    """sha256 of the sorted lines "name<tab>shape" of networks of 64 and 256 px built by the original program."""
    with torch.device("meta"):
        tensors = make()
    lines = sorted(f"{name}\t{list(tensor.shape)}" for name, tensor in tensors.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


CHANGES = [
    ({"mapping.label_weight": randn(3, 12)}, "conditioned on labels, which is not supported"),
    ({"mapping.dense1.bias": None}, r"missing mapping\.dense1\.bias \[12\]"),
    ({"truncation.w_avg": None}, r"missing truncation\.w_avg \[12\]"),
    ({"synthesis.layer4.weight": None}, r"missing synthesis\.layer4\.weight \[6, 7, 3, 3\]"),
    ({"synthesis.layer4.weight": randn(7, 6, 3, 3)}, r"synthesis\.layer4\.weight is \[7, 6, 3, 3\], not \[6, 7, 3, 3\]"),
    ({"synthesis.layer3.apply_noise.weight": randn(1)}, r"synthesis\.layer3\.apply_noise\.weight is \[1\], not \[7\]"),
    ({"synthesis.layer3.blur.kernel": blur_kernel(7)}, r"unexpected synthesis\.layer3\.blur\.kernel"),
    ({"synthesis.layer4.blur.kernel": torch.full((6, 1, 3, 3), 1 / 9)}, r"the filter synthesis\.layer4\.blur\.kernel is not \[1, 2, 1\]"),
    ({"synthesis.layer4.blur.kernel": blur_kernel(5)}, r"the filter synthesis\.layer4\.blur\.kernel is not \[1, 2, 1\]"),
    ({"synthesis.layer2.bias": torch.full((7,), float("nan"))}, r"synthesis\.layer2\.bias holds NaN"),
    ({"synthesis.lod": None}, r"synthesis\.lod is missing or not a scalar"),
    ({"synthesis.lod": randn(2)}, r"synthesis\.lod is missing or not a scalar"),
    ({"synthesis.lod": torch.tensor(3.5)}, "lod must be 0 to 3"),
    ({"synthesis.lod": torch.tensor(float("nan"))}, "lod must be 0 to 3"),
    ({"extra": randn(2)}, r"unexpected extra \[2\]"),
]


@pytest.mark.parametrize(("changes", "match"), CHANGES)
def test_generators_that_do_not_fit(changes, match, saved):
    tensors = generator_tensors(CHANNELS) | changes
    with pytest.raises(CheckpointError, match=match):
        load_model(saved({name: t for name, t in tensors.items() if t is not None}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"layer8.weight": randn(3, 8), "layer8.bias": randn(3)}, "conditioned on 3 labels, which is not supported"),
        ({"layer6.weight": randn(8, 8, 3, 3)}, r"layer6\.weight is \[8, 8, 3, 3\], not \[8, 9, 3, 3\]"),
        ({"layer3.blur.kernel": torch.zeros(6, 1, 3, 3)}, r"the filter layer3\.blur\.kernel is not \[1, 2, 1\]"),
        ({"input2.bias": None}, r"missing input2\.bias \[7\]"),
        ({"layer2.blur.kernel": blur_kernel(6)}, r"unexpected layer2\.blur\.kernel"),
        ({"lod": None}, "lod is missing"),
    ],
)
def test_discriminators_that_do_not_fit(changes, match, saved):
    tensors = discriminator_tensors(CHANNELS) | changes
    with pytest.raises(CheckpointError, match=match):
        load_model(saved({name: t for name, t in tensors.items() if t is not None}))


@pytest.mark.parametrize("prefix", ["generator_ema.", ""])
def test_the_stylegan1_of_mmagic_is_refused_by_name(prefix, saved):
    tensors = {f"{prefix}convs.0.conv1.input": randn(1, 8, 4, 4), f"{prefix}convs.0.noise_injector1.weight": randn(1)}
    with pytest.raises(CheckpointError, match="StyleGAN1 of mmagic"):
        load_model(saved({"meta": {}, "state_dict": tensors}))


def test_models_info_and_convert(saved, tmp_path, capsys):
    path = saved(both(generator_tensors(CHANNELS, lod=0.5)))
    main(["models", "info", str(path)])
    said = capsys.readouterr().out
    assert "layout: genforce" in said
    assert "generator: stylegan," in said
    assert "discriminator: stylegan-discriminator," in said
    assert '"lod": 0.5' in said
    main(["models", "convert", str(path), "-o", str(tmp_path / "native.safetensors")])
    z = torch.randn(2, 12)
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "native.safetensors")(z, 0.7), load_model(path)(z, 0.7))


# --------------------------------------------------------------------------------------------------------- GLEAN around it


def randomise(module):
    """Gives every parameter values far from its initial ones: zeros would hide mistakes."""
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return module.eval()


def glean(bank: StyleGANConfig | NoBankConfig = CONFIG, in_size=8):
    return randomise(GLEAN(GLEANConfig(in_size, bank, n_rrdb=1, features=4, growth=3, out_features=5)))


@pytest.mark.parametrize(("in_size", "n"), [(4, 2), (4, 4), (8, 4), (16, 4), (16, 5)])
@pytest.mark.parametrize("bank", [lambda c: StyleGANConfig(c, code_dim=6), NoBankConfig], ids=["stylegan", "none"])
def test_glean_sizes(in_size, n, bank):
    channels = tuple(range(9, 9 - n, -1))
    model, lr = glean(bank(channels), in_size), torch.randn(2, 3, in_size, in_size)
    with torch.inference_mode():
        assert model(lr).shape == (2, 3, 2 ** (n + 1), 2 ** (n + 1))
    with pytest.raises(ValueError, match=rf"\(N, 3, {in_size}, {in_size}\)"):
        model(lr[:, :, 1:])


def test_glean_step_by_step():
    """8 -> 32: two layers for each size, fusion in front of the first of them, the bank's feature behind the second."""
    model, lr = glean(), torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        (f4, f8), latents = model.encoder(lr)
        layers, decoder = model.bank.get_submodule("synthesis.layers"), model.decoder
        assert torch.equal(latents, model.encode(lr))
        assert latents.shape == (2, 8, 12)
        x = model.get_parameter("bank.synthesis.constant").repeat(2, 1, 1, 1)
        seen = []
        for i, step in enumerate(layers.children()):
            if i == 2:
                x = model.fusion_out[0](torch.cat([x, f4], 1))
            if i == 4:
                x = model.fusion_out[1](torch.cat([x, f8], 1))
            x = step(x, latents[:, i], model.get_buffer(f"bank.synthesis.noise_{i}"))
            seen.append(x)
        sr = decoder.up[0](f8)
        sr = decoder.up[1](torch.cat([sr, seen[5]], 1))
        assert_close(model(lr), decoder.finish(torch.cat([sr, seen[7]], 1)))


def test_glean_ignores_its_dead_paths_and_nothing_else():
    model = glean()
    assert not any(p.requires_grad for p in model.bank.parameters())
    assert_only_the_rgb_path_is_dead(model, torch.randn(1, 3, 8, 8))


def names_of(model, parameters):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in parameters}


def test_trainable_parameters():
    model, plain = glean(), glean(NoBankConfig(CHANNELS))
    everything = names_of(model, model.parameters())
    assert names_of(model, model.trainable_parameters()) == {n for n in everything if not n.startswith(("bank.", "fusion_skip."))}
    assert names_of(plain, plain.trainable_parameters()) == names_of(plain, plain.parameters())


def test_glean_without_a_bank():
    """The decoder reads the encoder's feature alone; all parameters count, and there are no codes."""
    model, lr = glean(NoBankConfig(CHANNELS)), torch.randn(2, 3, 8, 8)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"encoder", "decoder"}
    assert {name.split(".")[1] for name, _ in model.encoder.named_parameters(prefix="encoder")} == {"trunk", "head"}
    shapes = [tuple(model.get_parameter(f"decoder.{name}.weight").shape[:2]) for name in ("up.0.conv", "up.1.conv", "last", "out")]
    assert shapes == [(24, 7), (20, 6), (5, 5), (3, 5)]
    model(lr).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    with pytest.raises(ValueError, match="no bank"):
        model.encode(lr)


def test_bfloat16_glean_is_close_to_float32():
    for bank in (CONFIG, NoBankConfig(CHANNELS)):
        model, lr = glean(bank), torch.randn(2, 3, 8, 8)
        with torch.inference_mode():
            exact = model(lr)
            with torch.autocast("cpu", torch.bfloat16):
                rough = model(lr).float()
        assert 0 < (rough - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize("bank", [CONFIG, NoBankConfig(CHANNELS)], ids=["stylegan", "none"])
def test_glean_comes_back_and_enlarges(bank, tmp_path, cat):
    model, lr = glean(bank), torch.randn(2, 3, 8, 8)
    path = tmp_path / "glean.safetensors"
    native.save(path, {"generator": model}, native.About("tiny"))
    again = load_model(path)
    assert isinstance(again, GLEAN)
    assert again.config == model.config
    with torch.inference_mode():
        assert torch.equal(again(lr), model(lr))
    assert not any(p.requires_grad for p in again.bank.parameters())
    cat.save(tmp_path / "cat.png")
    main(["upscale", str(tmp_path / "cat.png"), "-o", str(tmp_path / "out.png"), "-m", str(path), "--device", "cpu"])
    assert (tmp_path / "out.png").exists()
    assert gleansr.load(path, device="cpu")(cat).size == (32, 32)


def test_a_stylegan_comes_back(tmp_path):
    config = dataclasses.replace(CONFIG, lod=0.5, stddev_group=None)
    model, critic = randomise(StyleGAN(config)), randomise(StyleGANDiscriminator(config))
    model.w_avg = torch.randn(12)
    path = tmp_path / "bank.safetensors"
    native.save(path, {"generator": model, "discriminator": critic}, native.About("tiny"))
    z, images = torch.randn(2, 12), torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_model(path)(z, 0.5), model(z, 0.5))
        assert torch.equal(load_model(path, part="discriminator")(images), critic(images))


BANKS = [StyleGAN2Config(CHANNELS), CONFIG, NoBankConfig(CHANNELS)]


@pytest.mark.parametrize("bank", BANKS, ids=lambda bank: type(bank).__name__)
def test_configurations_of_banks_are_told_apart(bank):
    config = GLEANConfig(8, bank)
    data = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_dict(GLEANConfig, data, "test") == config
    for other in BANKS:
        if type(other) is not type(bank):
            with pytest.raises(RequestError, match="unknown key"):
                from_dict(type(other), data["bank"], "test")


def test_a_wrong_bank_is_named_and_not_only_refused():
    data = dataclasses.asdict(GLEANConfig(8, CONFIG))
    data["bank"] |= {"code_dm": 3}
    with pytest.raises(RequestError, match=r"unknown key bank\.code_dm, did you mean bank\.code_dim\?"):
        from_dict(GLEANConfig, data, "test")
    for call in (
        lambda: StyleGANConfig(()),
        lambda: StyleGANConfig((4, 4), lod=-0.5),
        lambda: StyleGANConfig((4, 4), lod=1.5),
        lambda: NoBankConfig((0, 4)),
        lambda: GLEANConfig(8, NoBankConfig((4, 4))),
        lambda: GLEANConfig(4, StyleGANConfig((4, 4), lod=0.5)),  # an unfinished bank
    ):
        with pytest.raises(ValueError, match=r"\d"):
            call()
