"""The networks against slow, independent formulations, their published sizes, and their invariants."""

import itertools
import math
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from glean_checks import assert_only_the_rgb_path_is_dead

from gleansr.checkpoints.native import skeleton
from gleansr.models.features import SqueezeNet, feature_distance
from gleansr.models.glean import GLEAN, GLEANConfig, PixelShuffleUp, glean_full
from gleansr.models.layers import Blur, EqualConv, ModulatedConv, UpsampleRGB
from gleansr.models.projected import ProjectedDiscriminator
from gleansr.models.rrdb import DenseBlock, RRDBNet, RRDBNetConfig
from gleansr.models.stylegan2 import (
    StyledConv,
    StyleGAN2,
    StyleGAN2Config,
    StyleGAN2Discriminator,
    minibatch_stddev,
    stylegan2_channels,
)

TINY = StyleGAN2Config(channels=(8, 8, 6, 4), code_dim=12, mapping_layers=2)


def upfirdn(x: torch.Tensor, gain: float, up: int, down: int, pad: tuple[int, int]) -> torch.Tensor:
    """The textbook operation: insert zeros after each sample, pad, convolve, keep every down-th."""
    n, c, h, w = x.shape
    y = x.new_zeros(n, c, h * up, w * up)
    y[:, :, ::up, ::up] = x
    y = F.pad(y, (*pad, *pad))
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = torch.outer(taps, taps) / 64 * gain
    return F.conv2d(y, kernel.expand(c, 1, 4, 4), groups=c)[:, :, ::down, ::down]


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Gives every parameter values far from its initial ones: zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("padding", "stride"), [(1, 1), (2, 1), (1, 2)])
def test_blur_is_upfirdn(padding: int, stride: int):
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(Blur(padding, stride=stride, gain=4.0)(x), upfirdn(x, 4, 1, stride, (padding, padding)), atol=1e-5)


def test_rgb_is_doubled_as_upfirdn_does():
    x = torch.randn(2, 3, 5, 5)
    assert torch.allclose(UpsampleRGB()(x), upfirdn(x, 4, 2, 1, (2, 1)), atol=1e-5)


@pytest.mark.parametrize(("kernel", "demodulate", "up"), [(3, True, False), (3, True, True), (1, False, False)])
def test_modulated_convolution_is_one_weight_per_sample(kernel: int, demodulate: bool, up: bool):
    torch.manual_seed(0)
    conv = ModulatedConv(5, 4, kernel, 6, demodulate=demodulate, up=up).double()
    randomise(conv)
    x, code = torch.randn(3, 5, 8, 8).double(), torch.randn(3, 6).double()
    results = []
    for one, c in zip(x, code, strict=True):
        style = F.linear(c, conv.affine.weight / math.sqrt(6), conv.affine.bias)
        weight = conv.weight / math.sqrt(5 * kernel * kernel) * style[None, :, None, None]
        if demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        if up:
            y = upfirdn(F.conv_transpose2d(one[None], weight.transpose(0, 1), stride=2), 4, 1, 1, (1, 1))
        else:
            y = F.conv2d(one[None], weight, padding=kernel // 2)
        results.append(y)
    assert torch.allclose(conv(x, code), torch.cat(results), atol=1e-10)


@pytest.mark.parametrize("kernel", [1, 3])
def test_downsampling_convolution_blurs_first(kernel: int):
    conv = EqualConv(4, 5, kernel, down=True, activation=False)
    x = torch.randn(2, 4, 8, 8)
    pad = (2, 2) if kernel == 3 else (1, 1)
    expected = F.conv2d(upfirdn(x, 1, 1, 1, pad), conv.weight / math.sqrt(4 * kernel * kernel), stride=2)
    assert torch.allclose(conv(x), expected, atol=1e-5)


def test_published_parameter_counts():
    """REFERENCE: measured on the official code."""
    for (in_size, out_size), count in {
        (16, 256): 171_903_649,
        (32, 256): 162_479_861,
        (64, 256): 157_774_665,
        (32, 512): 171_628_090,
        (64, 512): 166_922_894,
        (16, 1024): 189_645_707,
        (64, 1024): 175_516_723,
        (128, 1024): 174_196_615,
    }.items():
        model = cast("GLEAN", skeleton("glean", glean_full(in_size, out_size)))
        bank = sum(p.numel() for p in model.bank.parameters())
        assert sum(p.numel() for p in model.parameters()) == count
        assert bank == {256: 30_034_338, 512: 30_276_583, 1024: 30_370_060}[out_size]
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count - bank
    for size, count in {256: 28_864_129, 512: 28_982_849, 1024: 29_012_513}.items():
        discriminator = skeleton("stylegan2-discriminator", StyleGAN2Config(stylegan2_channels(size)))
        assert sum(p.numel() for p in discriminator.parameters()) == count


@pytest.mark.parametrize(("in_size", "out_size"), [(i, o) for i, o in itertools.combinations((4, 8, 16, 32, 64), 2)])
def test_glean_of_every_pair_of_sizes(in_size: int, out_size: int):
    channels = tuple(range(9, 9 - int(math.log2(out_size)) + 1, -1))
    model = GLEAN(GLEANConfig(in_size, StyleGAN2Config(channels, code_dim=6), n_rrdb=1, features=4, growth=3, out_features=5))
    with torch.inference_mode():
        lr = torch.randn(2, 3, in_size, in_size)
        assert model(lr).shape == (2, 3, out_size, out_size)
        assert model.encode(lr).shape == (2, 2 * len(channels), 6)


def test_glean_of_the_large_sizes_by_shape():
    sizes = [2**power for power in range(2, 11)]
    for in_size, out_size in itertools.combinations(sizes, 2):
        if out_size < 128:
            continue
        bank = StyleGAN2Config((4,) * (int(math.log2(out_size)) - 1), code_dim=4, mapping_layers=1)
        model = skeleton("glean", GLEANConfig(in_size, bank, n_rrdb=1, features=4, growth=2, out_features=4)).to("meta")
        with torch.inference_mode():
            assert model(torch.empty(1, 3, in_size, in_size, device="meta")).shape == (1, 3, out_size, out_size)


@pytest.mark.parametrize("sizes", [(32, 32), (64, 32), (2, 32), (24, 256), (512, 2048)])
def test_impossible_glean_sizes_are_refused(sizes: tuple[int, int]):
    channels = (4,) * (int(math.log2(sizes[1])) - 1)
    with pytest.raises(ValueError, match=r"powers of two|1 to 9"):
        GLEANConfig(sizes[0], StyleGAN2Config(channels))


def tiny_glean() -> GLEAN:
    torch.manual_seed(0)
    model = GLEAN(GLEANConfig(8, TINY, n_rrdb=1, features=4, growth=3, out_features=5))
    randomise(model)
    return model.eval()


def test_glean_ignores_the_dead_rgb_path_and_nothing_else():
    assert_only_the_rgb_path_is_dead(tiny_glean(), torch.randn(1, 3, 8, 8))


def test_glean_is_deterministic_and_independent_of_the_batch():
    model, lr = tiny_glean(), torch.randn(3, 3, 8, 8)
    together = model(lr)
    assert torch.equal(together, model(lr))
    assert torch.allclose(together[1:2], model(lr[1:2]), rtol=1e-4, atol=1e-3)


def test_glean_noise_buffers_are_part_of_its_function():
    model, lr = tiny_glean(), torch.randn(1, 3, 8, 8)
    before = model(lr)
    model.get_buffer("bank.synthesis.noise_3").normal_()
    assert not torch.allclose(model(lr), before)


def test_glean_refuses_other_input_sizes():
    with pytest.raises(ValueError, match=r"\(N, 3, 8, 8\), not \(1, 3, 16, 16\)"):
        tiny_glean()(torch.zeros(1, 3, 16, 16))


def test_trainable_parameters_are_all_but_bank_and_dead_path():
    model = tiny_glean()
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = {names[id(p)] for p in model.trainable_parameters()}
    assert chosen == {n for n in names.values() if not n.startswith(("bank.", "fusion_skip."))}


def test_untrained_pixel_shuffle_leaves_no_checkerboard():
    up = PixelShuffleUp(4, 3)
    y = up(torch.randn(1, 4, 6, 6))
    assert torch.allclose(y, F.interpolate(y[:, :, ::2, ::2], scale_factor=2.0), atol=1e-6)


def tiny_bank() -> StyleGAN2:
    torch.manual_seed(0)
    bank = StyleGAN2(TINY)
    randomise(bank)
    return bank.eval()


def test_generator_noise_modes():
    bank, z = tiny_bank(), torch.randn(2, 12)
    assert bank(z).shape == (2, 3, 32, 32)
    assert torch.equal(bank(z, noise="fixed"), bank(z))
    assert not torch.allclose(bank(z, noise="random"), bank(z, noise="random"))
    assert not torch.allclose(bank(z, noise="none"), bank(z))
    given = [bank.synthesis.get_buffer(f"noise_{i}") for i in range(7)]
    assert torch.equal(bank(z, noise=given), bank(z))
    with pytest.raises(ValueError, match="fixed"):
        bank(z, noise="some")
    with pytest.raises(ValueError, match="7 layers"):
        bank(z, noise=given[:3])


def test_truncation_moves_towards_the_w_avg():
    bank, z = tiny_bank(), torch.randn(2, 12)
    w = bank.mapping(z)
    bank.w_avg = torch.randn(12)
    half = bank.w_avg + 0.5 * (w - bank.w_avg)
    assert torch.allclose(bank(z, truncation=0.5), bank.synthesis(half[:, None].expand(-1, 8, -1)), atol=1e-5)
    assert torch.allclose(bank(z, truncation=0)[0], bank(z, truncation=0)[1], atol=1e-5)


def test_a_missing_w_avg_is_estimated_alike_each_time():
    bank, z = tiny_bank(), torch.randn(2, 12)
    assert bank.w_avg is None
    first = bank(z, truncation=0.7)
    assert torch.equal(first, tiny_bank()(z, truncation=0.7))
    assert bank.w_avg is None  # a pass leaves the model's contents as they are
    bank.w_avg = bank.estimate_w_avg()
    assert torch.equal(first, bank(z, truncation=0.7))


def test_latents_reach_the_layers_in_order():
    """Layer i reads code i, the RGB of resolution j reads code 2j + 1: changing a code changes no resolution below."""
    bank = tiny_bank()
    latents = torch.randn(1, 8, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(bank.synthesis(latents).sum(), latents)
    assert bool((gradient.abs().sum(2) > 0).all())
    with pytest.raises(ValueError, match=r"\(N, 8, 12\)"):
        bank.synthesis(latents[:, :7])


def test_minibatch_stddev_groups_are_strided():
    x = torch.randn(8, 3, 2, 2)
    y = minibatch_stddev(x, 4)
    for first in range(2):
        group = x[first::2]
        expected = (group.var(0, unbiased=False) + 1e-8).sqrt().mean()
        assert torch.allclose(y[first::2, 3], expected.expand(4, 2, 2), atol=1e-6)
    assert torch.allclose(minibatch_stddev(x[:1], 4)[:, 3], torch.tensor(1e-4), atol=1e-7)
    assert minibatch_stddev(x, None).shape == (8, 4, 2, 2)
    with pytest.raises(ValueError, match="not 6"):
        minibatch_stddev(x[:6], 4)


def test_clamp_limits_every_activation():
    config = StyleGAN2Config((8, 8), code_dim=8, mapping_layers=1, clamp=0.05)
    bank, z = StyleGAN2(config), torch.randn(2, 8)
    seen: list[float] = []
    for layer in bank.synthesis.layers:
        layer.register_forward_hook(lambda _m, _i, output: seen.append(float(output.detach().abs().max())))
    bank(z)
    assert len(seen) == 3
    assert max(seen) <= 0.05 + 1e-6
    discriminator = StyleGAN2Discriminator(config)
    open_ = StyleGAN2Discriminator(StyleGAN2Config((8, 8)))
    open_.load_state_dict(discriminator.state_dict())
    image = torch.randn(2, 3, 8, 8)
    assert not torch.allclose(discriminator(image), open_(image))


def test_discriminator_size_is_checked():
    with pytest.raises(ValueError, match=r"\(N, 3, 32, 32\)"):
        StyleGAN2Discriminator(TINY)(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("scale", [1, 2, 4, 8, 16])
def test_rrdbnet_scales(scale: int):
    net = RRDBNet(RRDBNetConfig(scale=scale, features=4, growth=3, n_blocks=1))
    assert net(torch.rand(1, 3, 8, 12)).shape == (1, 3, 8 * scale, 12 * scale)
    if scale < 4:
        with pytest.raises(ValueError, match="multiples"):
            net(torch.rand(1, 3, 9, 8))


def test_configurations_out_of_range_are_refused():
    for call in (
        lambda: RRDBNetConfig(scale=3),
        lambda: RRDBNetConfig(n_blocks=10**9),
        lambda: StyleGAN2Config(()),
        lambda: StyleGAN2Config((0, 4)),
        lambda: StyleGAN2Config((4, 4), mapping_layers=10**9),
        lambda: StyleGAN2Config((4, 4), stddev_group=0),
        lambda: GLEANConfig(4, StyleGAN2Config((4, 4)), n_rrdb=10**9),
    ):
        with pytest.raises(ValueError, match=r"\d"):
            call()


def test_feature_distance_by_hand():
    a = [torch.tensor([[[[3.0]], [[4.0]]]])]
    b = [torch.tensor([[[[4.0]], [[3.0]]]])]
    assert torch.allclose(feature_distance(a, b), torch.tensor([0.08]))
    assert torch.allclose(feature_distance(a, [a[0] * 7]), torch.zeros(1), atol=1e-6)
    nothing = torch.zeros(1, 2, 1, 1, requires_grad=True)
    distance = feature_distance([nothing], a)
    assert torch.allclose(distance, torch.ones(1))
    distance.sum().backward()
    assert nothing.grad is not None
    assert bool(nothing.grad.isfinite().all())


def test_feature_distance_is_that_of_normalised_features():
    a, b = torch.rand(2, 5, 4, 3), torch.rand(2, 5, 4, 3)
    expected = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
    assert torch.allclose(feature_distance([a, a], [b, b]), 2 * expected, atol=1e-5)


def test_gradient_of_the_feature_distance_is_that_of_normalised_features():
    a, b = (torch.rand(2, 5, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
    weights = torch.tensor([1.0, -3.0])
    wanted = torch.autograd.grad((expected * weights).sum(), (a, b))
    found = torch.autograd.grad((feature_distance([a], [b]) * weights).sum(), (a, b))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    (alone,) = torch.autograd.grad((feature_distance([a], [b.detach()]) * weights).sum(), (a,))
    assert torch.equal(alone, found[0])


def test_squeezenet_feature_sizes():
    """225 -> 113 (conv1), then three poolings in ceil mode."""
    levels = SqueezeNet()(torch.zeros(1, 3, 225, 225))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (64, 113, 113),
        (128, 56, 56),
        (256, 28, 28),
        (384, 14, 14),
        (512, 14, 14),
    ]


def test_projected_discriminator_sees_contrast():
    torch.manual_seed(0)
    discriminator = ProjectedDiscriminator(SqueezeNet(), 32, width=8)
    images = torch.randn(4, 3, 32, 32).clamp(-1, 1)
    logits = discriminator(images)
    assert logits.ndim == 2
    assert len(logits) == 4
    assert not torch.allclose(logits, discriminator(images * 3), atol=1e-3)
    trained = [name for name, p in discriminator.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("heads.") for name in trained)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_a_frozen_layer_has_the_gradients_of_the_plain_one(up: bool, noisy: bool):
    torch.manual_seed(0)
    layer = StyledConv(5, 4, StyleGAN2Config((4, 4), code_dim=6), up=up).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, code = torch.randn(3, 5, 6, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    noise = torch.randn(1, 1, 12 if up else 6, 12 if up else 6, dtype=torch.float64) if noisy else None
    results = []
    for frozen in (False, True):
        layer.requires_grad_(not frozen)
        inputs = x.clone().requires_grad_(), code.clone().requires_grad_()
        y = layer(*inputs, noise)
        results.append((y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)).sum(), inputs)))
    assert results[1][0].grad_fn.name().startswith("FrozenStyled")
    for plain, kept in zip(*results, strict=True):
        assert torch.allclose(plain, kept, rtol=1e-10, atol=1e-12)


def test_a_frozen_bank_keeps_little_for_the_backward_pass():
    kept: dict[bool, int] = {}
    for frozen in (False, True):
        bank = StyleGAN2(StyleGAN2Config((16, 16, 16, 16), code_dim=8)).requires_grad_(not frozen)
        latents = torch.randn(2, 8, 8, requires_grad=True)
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            if tensor.ndim == 4:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            image = bank.synthesis(latents)
        kept[frozen] = sum(storages.values())
        image.sum().backward()
    assert kept[True] < 0.6 * kept[False]


@pytest.mark.parametrize("trainable", [True, False])
def test_a_dense_block_has_the_gradients_of_its_plain_formulation(trainable: bool):
    torch.manual_seed(0)
    block = DenseBlock(5, 3).double().requires_grad_(trainable)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    dense = x
    for conv in block.convs[:4]:
        dense = torch.cat([dense, F.leaky_relu(conv(dense), 0.2)], 1)
    plain = x + 0.2 * block.convs[4](dense)
    wanted = [x, *block.parameters()] if trainable else [x]
    ramp = torch.linspace(-1, 1, plain.numel(), dtype=torch.float64).view_as(plain)
    assert torch.allclose(block(x), plain, rtol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad((y * ramp).sum(), wanted) for y in (block(x), plain)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
