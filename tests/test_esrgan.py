"""ESRGAN, ESRGAN+ and the plain residual network: against slow formulations from tensors under their authors' names; files of theirs."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from gleansr.checkpoints import load_model, native, read
from gleansr.checkpoints.native import About
from gleansr.configs import from_dict
from gleansr.errors import CheckpointError, RequestError
from gleansr.images.resize import resize
from gleansr.models.esrgan_plus import (
    DenseBlockPlus,
    ESRGANDiscriminator,
    ESRGANDiscriminatorConfig,
    ESRGANPlus,
    ESRGANPlusConfig,
)
from gleansr.models.residual import ResidualNet, ResidualNetConfig
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------- the layouts and what they compute


def conv(name, n_in, n_out, kernel=3, bias=True):
    weight = {f"{name}.weight": torch.randn(n_out, n_in, kernel, kernel) / math.sqrt(n_in * kernel**2)}
    return weight | ({f"{name}.bias": 0.3 * torch.randn(n_out)} if bias else {})


def older_tensors(doublings, plus=False, n_in=3, features=5, growth=3, n_blocks=2):
    """A network in the older layout, which numbers its layers."""
    t = conv("model.0", n_in, features)
    for b, d in itertools.product(range(n_blocks), (1, 2, 3)):
        name = f"model.1.sub.{b}.RDB{d}"
        t |= conv(f"{name}.conv1x1", features, growth, 1, bias=False) if plus else {}
        for k in range(5):
            t |= conv(f"{name}.conv{k + 1}.0", features + k * growth, features if k == 4 else growth)
    t |= conv(f"model.1.sub.{n_blocks}", features, features)
    for u in range(doublings):
        t |= conv(f"model.{3 + 3 * u}", features, features)
    return t | conv(f"model.{2 + 3 * doublings}", features, features) | conv(f"model.{4 + 3 * doublings}", features, 3)


def newer_names(doublings):
    """The names of the same tensors in the newer layout, which names its layers."""
    ends = {"model.0": "conv_first", "model.1.sub.2": "trunk_conv"}
    ends |= {f"model.{3 + 3 * u}": f"upconv{u + 1}" for u in range(doublings)}
    ends |= {f"model.{2 + 3 * doublings}": "HRconv", f"model.{4 + 3 * doublings}": "conv_last"}
    names = {}
    for name in older_tensors(doublings):
        layer, leaf = name.rsplit(".", 1)
        names[name] = f"{ends.get(layer) or layer.replace('model.1.sub', 'RRDB_trunk').removesuffix('.0')}.{leaf}"
    return names


def dense_block(t, name, x):
    """ESRGAN's dense block, and with a 1x1 convolution ESRGAN+'s."""

    def c(k, *maps):
        return F.conv2d(torch.cat(maps, 1), t[f"{name}.conv{k}.0.weight"], t[f"{name}.conv{k}.0.bias"], padding=1)

    def a(y):
        return torch.where(y > 0, y, 0.2 * y)

    plus = f"{name}.conv1x1.weight" in t
    x1 = a(c(1, x))
    x2 = a(c(2, x, x1))
    if plus:
        x2 = x2 + torch.einsum("oi,nihw->nohw", t[f"{name}.conv1x1.weight"][:, :, 0, 0], x)
    x3 = a(c(3, x, x1, x2))
    x4 = a(c(4, x, x1, x2, x3))
    if plus:
        x4 = x4 + x2
    return 0.2 * c(5, x, x1, x2, x3, x4) + x


def older(t, x, noise=0.0):
    """What a network in the older layout computes; `noise` multiplies what each dense block gives."""

    def conv3(name, y):
        return F.conv2d(y, t[f"model.{name}.weight"], t[f"model.{name}.bias"], padding=1)

    n_blocks = 1 + max(int(name.split(".")[3]) for name in t if "RDB" in name)
    layers = sorted({int(name.split(".")[1]) for name in t})
    y = first = conv3("0", x)
    for b in range(n_blocks):
        start = y
        for d in (1, 2, 3):
            y = dense_block(t, f"model.1.sub.{b}.RDB{d}", y)
            if noise:
                y = y + noise * y * torch.randn(y.shape, dtype=y.dtype)
        y = 0.2 * y + start
    y = first + conv3(f"1.sub.{n_blocks}", y)
    for k in layers[2:-2]:
        y = conv3(str(k), y.repeat_interleave(2, 2).repeat_interleave(2, 3))
        y = torch.where(y > 0, y, 0.2 * y)
    y = conv3(str(layers[-2]), y)
    return conv3(str(layers[-1]), torch.where(y > 0, y, 0.2 * y))


def in_double(t):
    return {name: tensor.double() for name, tensor in t.items()}


def fold(x, factor):
    """(N, C, H, W) -> (N, C * factor^2, H / factor, W / factor)."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // factor, factor, w // factor, factor)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(n, c * factor**2, h // factor, w // factor)


@pytest.mark.parametrize("doublings", [1, 2, 4, 6])
def test_esrgan_plus(doublings, saved):
    tensors = older_tensors(doublings, plus=True)
    checkpoint = read(saved(tensors))
    assert (checkpoint.layout, list(checkpoint.networks)) == ("esrgan", ["generator"])
    assert checkpoint.networks["generator"].config == ESRGANPlusConfig(2**doublings, 5, 3, 2)
    model = checkpoint.build(None, "test").double()
    x = torch.rand(2, 3, 2, 3, dtype=torch.double)
    with torch.inference_mode():
        assert torch.allclose(model(x), older(in_double(tensors), x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("doublings", [0, 1, 2, 3, 4])
def test_older_esrgan(doublings, saved):
    tensors = older_tensors(doublings)
    model = load_model(saved({f"module.{name}": tensor for name, tensor in tensors.items()})).double()
    assert model.config == RRDBNetConfig(2**doublings, 5, 3, 2, folded=doublings > 1)
    x = torch.rand(2, 3, 2, 3, dtype=torch.double)
    with torch.inference_mode():
        assert torch.allclose(model(x), older(in_double(tensors), x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n_in", "factor"), [(12, 2), (48, 4)])
def test_older_esrgan_with_a_folded_input(n_in, factor, saved):
    tensors = older_tensors(2, n_in=n_in)
    model = load_model(saved(tensors)).double()
    assert model.config == RRDBNetConfig(4 // factor, 5, 3, 2)
    x = torch.rand(1, 3, 8, 4, dtype=torch.double)
    with torch.inference_mode():
        assert torch.allclose(model(x), older(in_double(tensors), fold(x, factor)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("doublings", [1, 2])
def test_newer_esrgan(doublings, saved):
    tensors = older_tensors(doublings)
    names = newer_names(doublings)
    checkpoint = read(saved({names[name]: tensor for name, tensor in tensors.items()}))
    assert checkpoint.layout == "esrgan"
    model = checkpoint.build(None, "test").double()
    assert model.config == RRDBNetConfig(2**doublings, 5, 3, 2, folded=doublings > 1)
    x = torch.rand(1, 3, 3, 4, dtype=torch.double)
    with torch.inference_mode():
        assert torch.allclose(model(x), older(in_double(tensors), x), rtol=0, atol=1e-12)


def test_names_are_the_original_programs():
    """Some of the names and shapes of nESRGAN+ for 16x, as its program saves them."""
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in older_tensors(4, plus=True, features=64, growth=32, n_blocks=23).items()}
    assert len(shapes) == 2 + 23 * 3 * 11 + 2 + 6 * 2
    assert shapes["model.1.sub.22.RDB3.conv1x1.weight"] == (32, 64, 1, 1)
    assert shapes["model.1.sub.0.RDB1.conv5.0.weight"] == (64, 192, 3, 3)
    assert {name for name in shapes if name.count(".") == 2 and name.endswith("weight")} == {
        f"model.{k}.weight" for k in (0, 3, 6, 9, 12, 14, 16)
    }
    assert shapes["model.1.sub.23.weight"] == (64, 64, 3, 3)
    assert shapes["model.16.weight"] == (3, 64, 3, 3)


@pytest.mark.parametrize(
    ("make", "changes", "match"),
    [
        (
            lambda: older_tensors(4, plus=True),
            {"model.12.weight": None, "model.12.bias": None},
            r"missing model\.11\.weight \[5, 5, 3, 3\]",
        ),
        (lambda: older_tensors(4, plus=True), {"model.6.weight": None}, r"missing model\.6\.weight \[5, 5, 3, 3\]"),
        (lambda: older_tensors(2, plus=True), {"model.1.sub.1.RDB2.conv1x1.weight": None}, r"missing model\.1\.sub\.1\.RDB2\.conv1x1"),
        (lambda: older_tensors(2, plus=True), {"model.1.sub.0.RDB1.conv1x1.weight": None}, r"unexpected model\.1\.sub\.0\.RDB2\.conv1x1"),
        (lambda: older_tensors(2, plus=True), {"model.3.weight": torch.zeros(4, 5, 3, 3)}, r"model\.3\.weight is \[4, 5, 3, 3\], not"),
        (lambda: older_tensors(2, plus=True, n_in=12), {}, r"model\.0\.weight is \[5, 12, 3, 3\], not \[5, 3, 3, 3\]"),
        (lambda: older_tensors(0, plus=True), {}, "scale must be one of 2, 4, 8, 16, 32, 64, not 1"),
        (lambda: older_tensors(7, plus=True), {}, "scale must be one of 2, 4, 8, 16, 32, 64, not 128"),
        (lambda: older_tensors(2), {"model.1.sub.1.RDB2.conv4.0.bias": None}, r"missing model\.1\.sub\.1\.RDB2\.conv4\.0\.bias \[3\]"),
        (lambda: older_tensors(2), {"model.0.weight": None}, r"model\.0\.weight is missing"),
        (lambda: older_tensors(2), {"model.8.bias": torch.full((5,), torch.nan)}, r"model\.8\.bias holds NaN"),
        (lambda: older_tensors(2), {"noise": torch.zeros(1)}, r"unexpected noise \[1\]"),
        (lambda: older_tensors(2, n_in=5), {}, r"model\.0\.weight reads 5 channels, but an RRDBNet's reads 3, 12 or 48"),
        (lambda: older_tensors(3, n_in=12), {}, "a network that folds its input has 2 convolutions that double the size, not 3"),
        (lambda: older_tensors(5), {}, "enlarges by 1, 2, 4, 8 or 16, not by 32"),
    ],
)
def test_files_that_do_not_fit(make, changes, match, saved):
    path = saved({name: tensor for name, tensor in (make() | changes).items() if tensor is not None})
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "model",
    [
        lambda: ESRGANPlus(ESRGANPlusConfig(8, 4, 3, 1, noise=0.0)),
        lambda: ResidualNet(ResidualNetConfig(3, 4, 1)),
        lambda: RRDBNet(RRDBNetConfig(2, 4, 3, 1, folded=False)),
    ],
)
def test_native_files(model, tmp_path):
    model = model().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    native.save(tmp_path / "model", {"generator": model}, About())
    again = load_model(tmp_path / "model")
    x = torch.rand(1, 3, 5, 6)
    assert again.config == model.config
    with torch.inference_mode():
        assert torch.equal(again(x), model(x))


# -------------------------------------------------------------------------------------------------------------- ESRGAN+


def test_noise_is_multiplicative_and_only_in_training():
    """With convolutions that give zero, a dense block is its noise alone."""
    block = DenseBlockPlus(4, 3, 0.1)
    for parameter in block.convs[4].parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(4, 4, 64, 64).requires_grad_()
    y = block(x)
    factor = (y / x).detach()
    assert abs(factor.mean() - 1) < 0.002
    assert abs(factor.std() - 0.1) < 0.002
    assert ((factor[0] - 1) * (factor[1] - 1)).mean().abs() < 0.001  # another one for every image
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(gradient, factor, atol=1e-5)  # it goes through the scale of the noise
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), x)
    block.noise = 0.0
    assert torch.equal(block.train()(x), x)


def test_training_draws_noise_after_each_dense_block_and_nowhere_else(saved):
    tensors = older_tensors(1, plus=True)
    model = load_model(saved(tensors)).double().train()
    x = torch.rand(2, 3, 4, 4, dtype=torch.double)
    torch.manual_seed(1)
    ours = model(x)
    torch.manual_seed(1)
    theirs = older(in_double(tensors), x, noise=0.1)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    assert not torch.allclose(ours, model.eval()(x), atol=1e-3)


def test_esrgan_plus_starts_small_in_its_blocks_and_learns_everywhere():
    net = ESRGANPlus(ESRGANPlusConfig(4, 64, 32, 1))
    weight = net.get_parameter("trunk.body.0.blocks.1.convs.2.weight")
    assert abs(weight.std() * math.sqrt(weight[0].numel() / 2) - 0.1) < 0.005
    weight = net.get_parameter("ups.1.weight")
    assert abs(weight.std() * math.sqrt(3 * weight[0].numel()) - 1) < 0.05  # torch's own, as in BasicSR
    net = ESRGANPlus(ESRGANPlusConfig(2, 4, 3, 1))
    for name, parameter in net.named_parameters():
        assert parameter.ndim > 1 or parameter.any() != (".body." in name)
        parameter.data += 0.3 * torch.randn_like(parameter)
    net(torch.rand(2, 3, 6, 6)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in net.parameters())


@pytest.mark.parametrize(
    ("config", "values", "match"),
    [
        (ESRGANPlusConfig, {"scale": 3}, "scale must be one of 2, 4, 8, 16, 32, 64, not 3"),
        (ESRGANPlusConfig, {"scale": 1, "noise": -0.1}, "noise must be 0 to 1, not -0.1"),
        (ESRGANPlusConfig, {"features": 10**9}, "features must be 1 to 8192"),
        (ESRGANPlusConfig, {"n_blocks": 10**9}, "n_blocks must be 0 to 256"),
        (ResidualNetConfig, {"scale": 65}, "scale must be 1 to 64, not 65"),
        (ResidualNetConfig, {"features": 0}, "features must be 1 to 8192"),
        (ESRGANDiscriminatorConfig, {"size": 96}, "size must be a power of two, not 96"),
        (ESRGANDiscriminatorConfig, {"size": 2048}, "size must be 32 to 1024"),
    ],
)
def test_configurations_out_of_range(config, values, match):
    with pytest.raises(RequestError, match=match):
        from_dict(config, values, "test")


# -------------------------------------------------------------------------------------------------------- discriminator


def test_discriminator_of_128_px_is_the_original():
    """Its convolutions' shapes as in ESRGAN's code, Discriminator_VGG_128."""
    with torch.device("meta"):
        net = ESRGANDiscriminator(ESRGANDiscriminatorConfig())
    shapes = [tuple(layer.weight.shape) for layer in net.features if isinstance(layer, torch.nn.Conv2d)]
    widths = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    assert shapes == [(n_out, n_in, 4 if k % 2 else 3, 4 if k % 2 else 3) for k, (n_in, n_out) in enumerate(widths)]
    assert sum(p.numel() for p in net.parameters()) == 14_499_401
    assert [net.dense.in_features, net.dense.out_features] == [8192, 100]


@pytest.mark.parametrize("size", [32, 64, 256, 1024])
def test_discriminator_sizes(size):
    with torch.device("meta"):
        net = ESRGANDiscriminator(ESRGANDiscriminatorConfig(size, features=2))
        assert net(torch.empty(2, 3, size, size)).shape == (2, 1)
    assert net.dense.in_features == 16 * 2 * min(size // 8, 8)
    with pytest.raises(ValueError, match=rf"\(N, 3, {size}, {size}\)"):
        net(torch.empty(1, 3, size, size // 2))


def test_discriminator_step_by_step():
    net = ESRGANDiscriminator(ESRGANDiscriminatorConfig(32, features=3))
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    net.double()
    image = torch.rand(4, 3, 32, 32, dtype=torch.double)
    x = image
    for layer in net.features:
        if isinstance(layer, torch.nn.Conv2d):
            x = F.conv2d(x, layer.weight, layer.bias, stride=2 if layer.kernel_size == (4, 4) else 1, padding=1)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            x = (x - mean) / (variance + 1e-5).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]
        else:
            x = torch.where(x > 0, x, 0.2 * x)
    x = x.flatten(1) @ net.dense.weight.T + net.dense.bias
    x = torch.where(x > 0, x, 0.2 * x) @ net.out.weight.T + net.out.bias
    assert torch.allclose(net(image), x, rtol=0, atol=1e-10)
    with torch.autocast("cpu", torch.bfloat16):
        assert net.float()(image.float()).dtype == torch.float32


# ----------------------------------------------------------------------------------------------------- residual network


def randomised(config):
    net = ResidualNet(config)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


def test_an_untrained_residual_network_is_bicubic():
    x = torch.rand(2, 3, 6, 5) * 2 - 1
    assert torch.equal(ResidualNet(ResidualNetConfig(4, 6, 2))(x), resize(x, scale=4))


def test_residual_network_step_by_step():
    net = randomised(ResidualNetConfig(4, 6, 2)).double()
    t = net.state_dict()
    x = torch.rand(2, 3, 6, 5, dtype=torch.double) * 2 - 1

    def c(name, y):
        return F.conv2d(y, t[f"{name}.weight"], t[f"{name}.bias"], padding=1)

    y = c("first", x)
    for b in range(2):
        y = y + c(f"body.{b}.conv2", c(f"body.{b}.conv1", y).clamp(min=0))
    y = c("last", y)  # (2, 3 * 4 * 4, 6, 5): row and column within a pixel come last
    y = y.reshape(2, 3, 4, 4, 6, 5).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 24, 20)
    assert torch.allclose(net(x), y + resize(x, scale=4), rtol=0, atol=1e-12)


def test_residual_network_has_the_size_of_the_yardstick():
    assert sum(p.numel() for p in ResidualNet(ResidualNetConfig()).parameters()) == 583_296


def test_bicubic_is_exact_under_autocast():
    """Half precision rounds what is added, not the image: with little added, the result is far closer than bfloat16's steps of 0.004."""
    net = ResidualNet(ResidualNetConfig(2, 6, 1))
    torch.nn.init.constant_(net.get_parameter("last.bias"), 1e-5)
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.float32
    assert torch.allclose(y, resize(x, scale=2) + 1e-5, rtol=0, atol=1e-6)


def test_gradients_of_the_residual_network():
    """All of the network learns, bicubic records nothing unless the images themselves are to learn, and then its gradient is right."""
    net = randomised(ResidualNetConfig(2, 4, 1)).double()
    x = torch.rand(1, 3, 4, 4, dtype=torch.double)
    y = net(x)
    assert [function is None for function, _ in y.grad_fn.next_functions] == [False, True]
    (y * torch.randn_like(y)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in net.parameters())
    assert torch.autograd.gradcheck(net, (x.requires_grad_(),))


def test_shapes_need_no_contents():
    """A dry run counts on tensors without contents."""
    with torch.device("meta"):
        for net in (ResidualNet(ResidualNetConfig(8, 4, 1)), ESRGANPlus(ESRGANPlusConfig(8, 4, 3, 1))):
            assert net(torch.empty(2, 3, 4, 5)).shape == (2, 3, 32, 40)
