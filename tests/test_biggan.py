"""BigGAN: its files in the layout of its authors, and what the networks compute against slow arithmetic on the tensors of such files."""

import hashlib
import itertools
import json

import pytest
import torch
import torch.nn.functional as F

from gleansr.checkpoints import load_model, native, read
from gleansr.cli import main
from gleansr.errors import CheckpointError
from gleansr.models.biggan import Attention, BigGAN, BigGANConfig, BigGANDiscriminator, Spectral, SpectralConv, SpectralLinear

GENERATOR = {64: (16, 16, 8, 4, 2), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1)}
DISCRIMINATOR = {64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16)}
CONFIG = BigGANConfig(4, 64, (64,), n_classes=5, z_chunk=3, shared_dim=6)
CRITIC = BigGANConfig(4, 64, (8, 16), n_classes=5)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------------- the authors' layout


def spectral(name, *shape, bias=True):
    """A weight whose largest singular value one step of the power iteration finds roughly, but not exactly."""
    weight, u = torch.randn(shape), torch.randn(1, shape[0])
    for _ in range(3):
        u = F.normalize(u @ weight.flatten(1) @ weight.flatten(1).t()) * 4
    tensors = {f"{name}.weight": weight, f"{name}.u0": u, f"{name}.sv0": torch.ones(1)}
    return tensors | ({f"{name}.bias": 0.3 * torch.randn(shape[0])} if bias else {})


def statistics(name, n):
    return {f"{name}.stored_mean": 0.3 * torch.randn(n), f"{name}.stored_var": torch.rand(n) + 0.5}


def attention_tensors(name, n):
    tensors = {f"{name}.gamma": torch.randn(())}
    for leaf, n_in, n_out in (("theta", n, n // 8), ("phi", n, n // 8), ("g", n, n // 2), ("o", n // 2, n)):
        tensors |= spectral(f"{name}.{leaf}", n_out, n_in, 1, 1, bias=False)
    return tensors


def generator_tensors(config):
    widths = [config.channels * n for n in GENERATOR[config.resolution]]
    t = {"shared.weight": torch.randn(config.n_classes, config.shared_dim)} | spectral("linear", widths[0] * 16, config.z_chunk)
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        block = f"blocks.{i}.0"
        t |= spectral(f"{block}.conv1", n_out, n_in, 3, 3) | spectral(f"{block}.conv2", n_out, n_out, 3, 3)
        t |= spectral(f"{block}.conv_sc", n_out, n_in, 1, 1)
        for norm, n in ((f"{block}.bn1", n_in), (f"{block}.bn2", n_out)):
            t |= statistics(norm, n)
            t |= spectral(f"{norm}.gain", n, config.shared_dim + config.z_chunk, bias=False)
            t |= spectral(f"{norm}.bias", n, config.shared_dim + config.z_chunk, bias=False)
        if 8 * 2**i in config.attention:
            t |= attention_tensors(f"blocks.{i}.1", n_out)
    t |= statistics("output_layer.0", widths[-1])
    t |= {"output_layer.0.gain": 0.4 * torch.randn(widths[-1]), "output_layer.0.bias": 0.4 * torch.randn(widths[-1])}
    return t | spectral("output_layer.2", 3, widths[-1], 3, 3)


def discriminator_tensors(config):
    widths = [3, *(config.channels * n for n in DISCRIMINATOR[config.resolution])]
    t = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        block = f"blocks.{i}.0"
        t |= spectral(f"{block}.conv1", n_out, n_in, 3, 3) | spectral(f"{block}.conv2", n_out, n_out, 3, 3)
        if i < len(widths) - 2 or n_in != n_out:
            t |= spectral(f"{block}.conv_sc", n_out, n_in, 1, 1)
        if max(config.resolution >> (i + 1), 4) in config.attention:
            t |= attention_tensors(f"blocks.{i}.1", n_out)
    return t | spectral("linear", 1, widths[-1]) | spectral("embed", config.n_classes, widths[-1], bias=False)


# ------------------------------------------------------------------------------------------------------------ slow arithmetic


def normalised(t, name):
    """W / sigma in steps."""
    matrix = t[f"{name}.weight"].flatten(1)
    v = matrix.t() @ t[f"{name}.u0"][0]
    v = v / v.norm()
    u = matrix @ v
    u = u / u.norm()
    return t[f"{name}.weight"] / (u @ matrix @ v)


def conv(t, name, x):
    weight = normalised(t, name)
    return F.conv2d(x, weight, t.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def conditional(t, name, x, condition):
    x = (x - t[f"{name}.stored_mean"][:, None, None]) / (t[f"{name}.stored_var"][:, None, None] + 1e-5).sqrt()
    gain, bias = (condition @ normalised(t, f"{name}.{leaf}").t() for leaf in ("gain", "bias"))
    return x * (1 + gain[:, :, None, None]) + bias[:, :, None, None]


def attention(t, name, x):
    n, c, h, w = x.shape
    theta = conv(t, f"{name}.theta", x).reshape(n, c // 8, h * w)
    phi, g = (conv(t, f"{name}.{leaf}", x) for leaf in ("phi", "g"))
    phi, g = (y.reshape(n, -1, h // 2, 2, w // 2, 2).amax((3, 5)).reshape(n, -1, h * w // 4) for y in (phi, g))
    beta = torch.einsum("ncp,ncq->npq", theta, phi).softmax(2)
    found = torch.einsum("npq,ncq->ncp", beta, g).reshape(n, c // 2, h, w)
    return x + t[f"{name}.gamma"] * conv(t, f"{name}.o", found)


def doubled(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halved(x):
    return (x[:, :, ::2] + x[:, :, 1::2]).unflatten(3, (-1, 2)).sum(4) / 4


class Plain:
    """The conditional normalisations as they are."""

    def __call__(self, t, name, x, condition):
        return conditional(t, name, x, condition)


class Instance:
    """Instance normalisation whose constants are set at its first call, of one image, so as to give what the conditional one would."""

    def __init__(self):
        self.constants = {}

    def __call__(self, t, name, x, condition):
        if name not in self.constants:
            y = conditional(t, name, x, condition)
            self.constants[name] = y.flatten(2).std(2)[:, :, None, None], y.flatten(2).mean(2)[:, :, None, None]
        std, mean = self.constants[name]
        centred = x - x.mean((2, 3), keepdim=True)
        return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt() * std + mean


def generate(t, z, embedding, norm=None):
    norm = norm or Plain()
    chunks = z.split(t["linear.weight"].shape[1], 1)
    x = F.linear(chunks[0], normalised(t, "linear"), t["linear.bias"]).reshape(len(z), -1, 4, 4)
    for i, chunk in enumerate(chunks[1:]):
        block, condition = f"blocks.{i}.0", torch.cat([embedding, chunk], 1)
        h = conv(t, f"{block}.conv1", doubled(norm(t, f"{block}.bn1", x, condition).clamp(min=0)))
        h = conv(t, f"{block}.conv2", norm(t, f"{block}.bn2", h, condition).clamp(min=0))
        x = h + conv(t, f"{block}.conv_sc", doubled(x))
        if f"blocks.{i}.1.gamma" in t:
            x = attention(t, f"blocks.{i}.1", x)
    name = "output_layer.0"
    x = (x - t[f"{name}.stored_mean"][:, None, None]) / (t[f"{name}.stored_var"][:, None, None] + 1e-5).sqrt()
    x = x * t[f"{name}.gain"][:, None, None] + t[f"{name}.bias"][:, None, None]
    return conv(t, "output_layer.2", x.clamp(min=0)).tanh()


def discriminate(t, x):
    """Features and logits. The last image of features is rectified, as the official code does in place."""
    n = sum(name.endswith(".0.conv1.weight") for name in t)
    found = []
    for i in range(n):
        block = f"blocks.{i}.0"
        h = conv(t, f"{block}.conv1", x.clamp(min=0) if i else x)
        h = conv(t, f"{block}.conv2", h.clamp(min=0))
        if f"{block}.conv_sc.weight" in t:
            x = conv(t, f"{block}.conv_sc", x)
        x = halved(h) + halved(x) if i < n - 1 else h + x
        found.append(x)
        if f"blocks.{i}.1.gamma" in t:
            x = attention(t, f"blocks.{i}.1", x)
            found.append(x)
    found[-1] = found[-1].clamp(min=0)
    found.append(found[-1].sum((2, 3)))
    return found, found[-1] @ normalised(t, "linear").t() + t["linear.bias"]


def doubles(tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


def both(saved):
    """A generator and a discriminator of one file."""
    path = saved({"G_ema": generator_tensors(CONFIG), "D": discriminator_tensors(CRITIC)})
    return load_model(path), load_model(path, part="discriminator")


def assert_equal(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-10 * theirs.abs().max()


def assert_no_flat_image(image):
    """Neither saturated nor grey: otherwise a comparison would say little."""
    assert 0.05 < image.abs().mean() < 0.9


# ----------------------------------------------------------------------------------------------------- what networks compute

GENERATORS = [
    CONFIG,
    BigGANConfig(4, 64, (), n_classes=3, z_chunk=2, shared_dim=4),
    BigGANConfig(4, 128, (16, 64), n_classes=3, z_chunk=2, shared_dim=4),
    BigGANConfig(2, 256, (64,), n_classes=3, z_chunk=2, shared_dim=4),
]


@pytest.mark.parametrize("config", GENERATORS, ids=lambda config: f"{config.resolution}-{config.attention}")
def test_generator(config, saved):
    tensors = generator_tensors(config)
    checkpoint = read(saved(tensors))
    assert (checkpoint.layout, list(checkpoint.networks)) == ("biggan", ["generator"])
    assert checkpoint.networks["generator"].config == config
    model = checkpoint.build(None, "test").double()
    z, classes = torch.randn(2, config.code_dim).double(), torch.tensor([2, 0])
    tensors = doubles(tensors)
    with torch.inference_mode():
        theirs = generate(tensors, z, tensors["shared.weight"][classes])
        ours = model(z, classes)
    assert ours.shape == (2, 3, config.resolution, config.resolution)
    assert_no_flat_image(theirs)
    assert_equal(ours, theirs)


DISCRIMINATORS = [CRITIC, BigGANConfig(2, 64, (4,)), BigGANConfig(8, 128, n_classes=3), BigGANConfig(4, 256, n_classes=3)]


@pytest.mark.parametrize("config", DISCRIMINATORS, ids=lambda config: f"{config.resolution}-{config.attention}")
def test_discriminator(config, saved):
    tensors = discriminator_tensors(config)
    checkpoint = read(saved(tensors))
    assert (checkpoint.layout, list(checkpoint.networks)) == ("biggan", ["discriminator"])
    assert checkpoint.networks["discriminator"].config == config
    model = checkpoint.build(None, "test").double()
    assert isinstance(model, BigGANDiscriminator)
    image = torch.rand(2, 3, config.resolution, config.resolution).double() * 2 - 1
    with torch.inference_mode():
        features, logits = discriminate(doubles(tensors), image)
        ours = model.features(image)
        assert_equal(model(image), logits)
    assert len(ours) == len(features)
    for mine, theirs in zip(ours, features, strict=True):
        assert_equal(mine, theirs)
    assert logits.shape == (2, 1)


def test_gradients_follow_sigma():
    """As in the original program: sigma is u W v with u and v taken for constants. Nothing is updated."""
    for layer, x in (
        (SpectralConv(4, 6, 3), torch.randn(2, 4, 9, 9)),  # x is the larger one
        (SpectralConv(4, 6, 3), torch.randn(1, 4, 5, 5)),  # the weight is
        (SpectralLinear(5, 7), torch.randn(3, 5)),
    ):
        layer.double()
        x = x.double().requires_grad_()
        weight = layer.weight.detach().requires_grad_()
        matrix = weight.flatten(1)
        v = F.normalize(matrix.detach().t() @ layer.u[0], dim=0)
        u = F.normalize(matrix.detach() @ v, dim=0)
        divided = weight / (u @ matrix @ v)
        theirs = F.linear(x, divided, layer.bias) if x.ndim == 2 else F.conv2d(x, divided, layer.bias, padding=1)
        ours = layer(x)
        assert_equal(ours, theirs)
        wanted = torch.autograd.grad(theirs.square().sum(), (weight, x))
        before = layer.u.clone()
        for mine, other in zip(torch.autograd.grad(ours.square().sum(), (layer.weight, x)), wanted, strict=True):
            assert_equal(mine, other)
        assert torch.equal(layer.u, before)
        with torch.no_grad():
            layer.get_parameter("bias").zero_()
            before = layer(x)
            layer.weight.mul_(-3)  # the sign is W's, the scale is not
            assert_equal(layer(x), -before)


def test_sigma_is_one_step_from_u():
    layer, x = Spectral(6, 5, bias=False).double(), torch.randn(31).double()  # x is larger than the weight
    assert torch.linalg.matrix_norm(layer.normalised(x)[1].detach(), 2) > 1.001  # from a random u sigma is underestimated
    u, s, _ = torch.linalg.svd(layer.weight.detach())
    layer.u.copy_(7 * u[:, :1].t())
    assert torch.equal(layer.normalised(x)[0], x)
    assert_equal(layer.normalised(x)[1].detach(), layer.weight.detach() / s[0])


def test_images_of_a_batch_do_not_mix(saved):
    model, critic = both(saved)
    z, classes = torch.randn(3, CONFIG.code_dim), torch.tensor([4, 1, 1])
    with torch.inference_mode():
        together = model(z, classes)
        assert torch.allclose(together[1:2], model(z[1:2], classes[1:2]), atol=1e-4)
        assert not torch.allclose(together[1], together[2], atol=0.1)
        assert not torch.allclose(model(z, torch.tensor([4, 3, 1]))[1], together[1], atol=0.1)
        assert torch.allclose(critic(together)[1:2], critic(together[1:2]), rtol=1e-3, atol=1e-3)


def test_bfloat16_is_close_to_float32(saved):
    model, critic = both(saved)
    z, classes = torch.randn(2, CONFIG.code_dim), torch.tensor([4, 1])
    with torch.inference_mode():
        exact = model(z, classes)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(z, classes)
            rough_logits = critic(exact)
        assert 0 < (rough - exact).abs().mean() < 0.1 * exact.std()
        assert 0 < (rough_logits - critic(exact)).abs().max() < 0.05 * critic(exact).abs().max()


# --------------------------------------------------------------------------------------------------- what DGP does with them


def names_of(model, parameters):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in parameters}


def test_groups():
    model = BigGAN(BigGANConfig(4, 128, z_chunk=2, shared_dim=3))
    groups = [names_of(model, group) for group in model.parameter_groups()]
    starts = ["linear.", *(f"blocks.{i}." for i in range(5))]
    everything = names_of(model, model.parameters())
    assert groups == [{name for name in everything if name.startswith(start)} for start in starts]
    assert "blocks.3.1.gamma" in groups[4]
    assert {name.split(".")[0] for name in everything.difference(*groups)} == {"embed", "out_norm", "out_conv"}


def test_instance_norms_against_slow_arithmetic(saved):
    """Set with one z and one state of the weights, used with others."""
    tensors = generator_tensors(CONFIG)
    model = load_model(saved(tensors)).double()
    assert isinstance(model, BigGAN)
    tensors, slow = doubles(tensors), Instance()
    embedding, z = torch.randn(1, 6).double(), torch.randn(1, CONFIG.code_dim).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    norms = model.instance_norms(z, embedding)
    with torch.inference_mode():
        plain = model.synthesis(z, embedding)
        assert_equal(model.synthesis(z, embedding, norms), generate(tensors, z, embedding, slow))
        for weights, name in ((tensors, "blocks.1.0.conv1.weight"), (dict(model.named_parameters()), "blocks.1.0.conv1.weight")):
            weights[name][0] *= 2
        other = z * 0.7 + 0.2
        theirs = generate(tensors, other, embedding, slow)
        assert_no_flat_image(theirs)
        assert_equal(model.synthesis(other, embedding, norms), theirs)
        model.load_state_dict(before)
        assert torch.equal(model.synthesis(z, embedding), plain)


def test_instance_norms_keep_the_image(saved):
    """Where no gain is negative; the official code divides the variance by n and the constants by n - 1, which shows at 4x4."""
    tensors = generator_tensors(CONFIG)
    tensors |= {name: t * 1e-3 for name, t in tensors.items() if name.endswith(("bn1.gain.weight", "bn2.gain.weight"))}
    model = load_model(saved(tensors))
    assert isinstance(model, BigGAN)
    z, embedding = torch.randn(3, CONFIG.code_dim), torch.zeros(3, 6)
    for chunk in range(1, 5):
        z[:, 3 * chunk : 3 * chunk + 3] *= 0.1  # gains are 1 + something in (-1, 1)
    with torch.inference_mode():
        norms = model.instance_norms(z, embedding)
        kept, plain = model.synthesis(z, embedding, norms), model.synthesis(z, embedding)
        assert 0 < (kept - plain).abs().mean() < 0.1 * plain.std()
        alone = model.instance_norms(z[1:2], embedding[1:2])
        assert torch.allclose(model.synthesis(z[1:2], embedding[1:2], alone), kept[1:2], atol=1e-3)


def test_gradients_with_instance_norms():
    """The constants learn nothing, and what they replace has no influence."""
    model = BigGAN(CONFIG)
    z, embedding = torch.randn(1, CONFIG.code_dim, requires_grad=True), torch.randn(1, 6, requires_grad=True)
    norms = model.instance_norms(z, embedding)
    assert not any(t.requires_grad for norm in norms for t in (norm.std, norm.mean))
    model.synthesis(z, embedding, norms).square().sum().backward()
    replaced = {name for name, p in model.named_parameters() if p.grad is None}
    assert replaced == {"embed.weight", *(n for n, _ in model.named_parameters() if ".gain." in n or ".bias." in n)}
    assert z.grad is not None
    assert bool(z.grad[:, :3].all())
    assert not bool(z.grad[:, 3:].any())
    assert embedding.grad is None


# ------------------------------------------------------------------------------------------------------------------- files


def published(resolution, chunk):
    return BigGANConfig(16, resolution, n_classes=10, z_chunk=chunk)


@pytest.mark.parametrize(
    ("make", "digest"),
    [
        (lambda: generator_tensors(published(128, 20)), "16a2785d93138491"),
        (lambda: discriminator_tensors(published(128, 20)), "5dfc32d5cb9a33a1"),
        (lambda: generator_tensors(published(256, 17)), "89e1c96a6d47faf6"),
        (lambda: discriminator_tensors(published(256, 17)), "36b16438a9bde6ae"),
    ],
)
def test_names_are_the_original_programs(make, digest):
    """sha256 of the sorted lines "name<tab>shape" of narrow networks built by the original program."""
    with torch.device("meta"):
        tensors = make()
    lines = sorted(f"{name}\t{list(tensor.shape)}" for name, tensor in tensors.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


def test_the_width_of_z():
    assert [published(resolution, chunk).code_dim for resolution, chunk in ((128, 20), (256, 17))] == [120, 119]


def test_what_is_known_in_excess(saved):
    """Logs of singular values may be missing, and what DGP leaves in the files that it saves may be there."""
    tensors = generator_tensors(CONFIG)
    z, classes = torch.randn(1, CONFIG.code_dim), torch.tensor([1])
    with torch.inference_mode():
        image = load_model(saved(tensors))(z, classes)
        without = {name: t for name, t in tensors.items() if not name.endswith(".sv0")}
        assert torch.equal(load_model(saved(without))(z, classes), image)
        norms = {f"blocks.{i}.0.in{k}.{leaf}": torch.randn(3) for i in range(4) for k in (1, 2) for leaf in ("weight", "bias")}
        assert torch.equal(load_model(saved(tensors | norms))(z, classes), image)


CHANGES = [
    ({"blocks.1.0.conv1.bias": None}, r"missing blocks\.1\.0\.conv1\.bias \[32\]"),
    ({"blocks.1.0.bn1.gain.u0": None}, r"missing blocks\.1\.0\.bn1\.gain\.u0 \[1, 64\]"),
    ({"blocks.2.0.conv1.u1": torch.zeros(1, 16)}, r"unexpected blocks\.2\.0\.conv1\.u1"),
    ({"blocks.4.0.conv1.sv0": torch.zeros(1)}, r"unexpected blocks\.4\.0\.conv1\.sv0"),
    ({"blocks.4.0.in1.weight": torch.zeros(1)}, r"unexpected blocks\.4\.0\.in1\.weight"),
    ({"blocks.3.1.theta.weight": None}, r"unexpected blocks\.3\.1\.gamma"),
    ({"blocks.2.1.theta.weight": torch.zeros(2, 16, 1, 1)}, r"missing blocks\.2\.1\.gamma \[\]"),
    ({"blocks.0.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, r"conv1\.weight is \[64, 64, 1, 1\], not \[64, 64, 3, 3\]"),
    ({"linear.weight": torch.zeros(1024, 15)}, r"blocks\.0\.0\.bn1\.gain\.weight is \[64, 9\], not \[64, 21\]"),
    ({"shared.weight": torch.zeros(5, 7)}, r"blocks\.0\.0\.bn1\.gain\.weight is \[64, 9\], not \[64, 10\]"),
    ({"output_layer.0.gain": torch.zeros(9)}, r"output_layer\.0\.gain is \[9\], not \[8\]"),
    ({"output_layer.0.gain": torch.zeros(1)}, "channels must be 1 to 1024, not 0"),
    ({"output_layer.0.gain": torch.zeros(10_000)}, "channels must be 1 to 1024, not 5000"),
    ({"output_layer.0.gain": torch.zeros(2)}, "attention needs 8 channels or more, not 2"),
    ({"linear.weight": torch.zeros(1, 9000)}, "z_chunk must be 1 to 4096, not 9000"),
    ({"linear.weight": torch.zeros(3)}, r"linear\.weight has the shape \[3\]"),
    ({"shared.weight": None}, r"shared\.weight is missing"),
    ({"blocks.9.0.conv1.weight": torch.zeros(1)}, "a BigGAN of 10 blocks, but known are those of 4, 5, 6, 7"),
    ({"blocks.0.0.bn2.stored_mean": torch.full((64,), float("nan"))}, r"blocks\.0\.0\.bn2\.stored_mean holds NaN"),
    ({"shared.weight": torch.zeros(1, 6).expand(90_000, 6)}, r"shared\.weight claims more numbers than the file holds"),
    ({"shared.weight": torch.zeros(1, 1).expand(2_000_000, 6)}, "n_classes must be 1 to 100000, not 2000000"),
]


@pytest.mark.parametrize(("changes", "match"), CHANGES)
def test_generators_that_do_not_fit(changes, match, saved):
    tensors = generator_tensors(CONFIG) | changes
    with pytest.raises(CheckpointError, match=match):
        load_model(saved({name: t for name, t in tensors.items() if t is not None}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"embed.weight": torch.zeros(7, 64)}, r"embed\.u0 is \[1, 5\], not \[1, 7\]"),
        ({"embed.weight": None}, r"embed\.weight is missing"),
        ({"linear.weight": torch.zeros(2, 64)}, r"linear\.weight is \[2, 64\], not \[1, 64\]"),
        ({"blocks.4.0.conv_sc.bias": None}, r"missing blocks\.4\.0\.conv_sc\.bias \[64\]"),
        ({"blocks.0.0.conv1.weight": torch.zeros(4, 1, 3, 3)}, r"conv1\.weight is \[4, 1, 3, 3\], not \[4, 3, 3, 3\]"),
        ({"blocks.0.0.in1.weight": torch.zeros(3)}, r"unexpected blocks\.0\.0\.in1\.weight"),
        ({"blocks.7.0.conv1.weight": torch.zeros(1)}, "a BigGAN of 8 blocks, but known are those of 5, 6, 7"),
    ],
)
def test_discriminators_that_do_not_fit(changes, match, saved):
    tensors = discriminator_tensors(CRITIC) | changes
    with pytest.raises(CheckpointError, match=match):
        load_model(saved({name: t for name, t in tensors.items() if t is not None}))


def test_native_files(saved, tmp_path, capsys):
    model, critic = both(saved)
    path = tmp_path / "native.safetensors"
    native.save(path, {"generator": model, "discriminator": critic}, native.About("tiny"))
    loaded, loaded_critic = load_model(path), load_model(path, part="discriminator")
    assert (loaded.config, loaded_critic.config) == (CONFIG, CRITIC)
    z, classes = torch.randn(2, CONFIG.code_dim), torch.tensor([0, 4])
    with torch.inference_mode():
        image = model(z, classes)
        # Equal weights may still be rounded otherwise where they lie otherwise in memory.
        torch.testing.assert_close(loaded(z, classes), image, rtol=0, atol=1e-5)
        torch.testing.assert_close(loaded_critic(image), critic(image), rtol=1e-5, atol=1e-5)
    for one, other in ((model, loaded), (critic, loaded_critic)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    main(["models", "info", str(path)])
    said = capsys.readouterr().out
    assert "generator: biggan," in said
    assert '"attention": [8, 16]' in said


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"resolution": 48}, r"resolution must be one of \[64, 128, 256, 512\], not 48"),
        ({"channels": 10**9}, "channels must be 1 to 1024, not 1000000000"),
        ({"attention": [512]}, r"attention must be at some of \(4, 8, 16, 32, 64, 128\) px, not \(512,\)"),
        ({"n_classes": 0}, "n_classes must be 1 to 100000, not 0"),
        ({"shared_dim": 5000}, "shared_dim must be 1 to 4096, not 5000"),
        ({"z_chunk": 4}, r"norm1\.bias\.weight is \[64, 9\], not \[64, 10\]"),
    ],
)
def test_configurations_out_of_range(changes, match, tmp_path, monkeypatch):
    describe = json.dumps

    def changed(value, **options):
        if isinstance(value, dict) and "generator" in value:
            value["generator"]["config"] |= changes
        return describe(value, **options)

    monkeypatch.setattr(native.json, "dumps", changed)
    native.save(tmp_path / "native.safetensors", {"generator": BigGAN(CONFIG)}, native.About())
    with pytest.raises(CheckpointError, match=match):
        load_model(tmp_path / "native.safetensors")


# --------------------------------------------------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda g: g(torch.zeros(2, 14), torch.tensor([0, 1])), r"\(2, 14\) and \(2, 6\), but this network takes \(N, 15\) and \(N, 6\)"),
        (lambda g: g(torch.zeros(2, 15), torch.tensor([0])), r"\(2, 15\) and \(1, 6\)"),
        (lambda g: g(torch.zeros(15), torch.tensor([0])), r"\(15,\) and \(1, 6\)"),
        (lambda g: g(torch.zeros(1, 15), torch.tensor([5])), r"integers from 0 to 4, not \[5\]"),
        (lambda g: g(torch.zeros(1, 15), torch.tensor([-1])), r"integers from 0 to 4, not \[-1\]"),
        (lambda g: g(torch.zeros(1, 15), torch.tensor(2)), "integers from 0 to 4, not 2"),
        (lambda g: g.synthesis(torch.zeros(1, 15), torch.zeros(1, 5)), r"\(1, 15\) and \(1, 5\)"),
        (lambda g: g.synthesis(torch.zeros(1, 15), torch.zeros(1, 6), []), "0 instance norms were given, but this network takes 8"),
        (lambda _: BigGANDiscriminator(CRITIC)(torch.zeros(1, 3, 32, 32)), r"\(N, 3, 64, 64\), not \(1, 3, 32, 32\)"),
        (lambda _: BigGANDiscriminator(BigGANConfig(4, 512)), "no discriminator for 512 px, only for 64, 128, 256 px"),
        (lambda _: Attention(7), "8 channels or more, not 7"),
        (lambda _: BigGANConfig(0, 100, (3,)), r"channels must be .*resolution must be .*attention must be"),
    ],
)
def test_wrong_calls(call, match):
    model = BigGAN(CONFIG)
    with pytest.raises(ValueError, match=match):
        call(model)
