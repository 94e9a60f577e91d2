"""DGP: its degradations and its whole search against slow formulations, what it leaves untouched, and what it refuses."""

import copy
import dataclasses
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gleansr.baselines.dgp import DGP, Degradation, lanczos2_matrix, parameter_groups, storage_factors
from gleansr.baselines.dgp_config import PRESETS, DGPConfig
from gleansr.configs import from_dict
from gleansr.errors import GleansrError, RequestError
from gleansr.images.resize import degrade, resize
from gleansr.models.biggan import BigGAN, BigGANConfig, BigGANDiscriminator
from gleansr.models.stylegan import StyleGAN, StyleGANConfig, StyleGANDiscriminator
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator

CHANNELS = (8, 8, 8, 8)  # 32 px
KINDS = ("stylegan2", "stylegan", "biggan")


def randomised(network, seed):
    """Biases, strengths and gains far from their initial values: zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim < 2:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network


def networks(kind) -> tuple[Any, Any]:
    """A bank and a discriminator: 32 px, BigGAN's 64 px."""
    torch.manual_seed(0)
    if kind == "stylegan2":
        config = StyleGAN2Config(CHANNELS, code_dim=8, mapping_layers=2)
        pair = StyleGAN2(config), StyleGAN2Discriminator(config)
    elif kind == "stylegan":
        config = StyleGANConfig(CHANNELS, code_dim=8, mapping_layers=2)
        pair = StyleGAN(config), StyleGANDiscriminator(config)
    else:
        config = BigGANConfig(4, 64, attention=(16,), n_classes=5, z_chunk=3, shared_dim=6)
        pair = BigGAN(config), BigGANDiscriminator(config)
    return randomised(pair[0], 1), randomised(pair[1], 2)


def settings(**changes):
    """Two short stages."""
    values = {
        "iterations": (2, 2),
        "tuned_groups": (1, "all"),
        "features": (3, 8),
        "feature_weights": (1.0, 0.5),
        "mse_weights": (2.0, 10.0),
        "generator_lrs": (2e-3, 1e-3),
        "latent_lrs": (1e-2, 5e-3),
        "lr_ratios": (1.0, 0.9),
        "instance_norm": (False, False),
        "select_samples": 6,
    }
    return DGPConfig(**(values | changes))


def lrs(n, size=8):
    generator = torch.Generator().manual_seed(7)
    return degrade(resize(torch.rand(n, 3, 4, 4, generator=generator) * 2 - 1, size=4 * size).clamp(-1, 1), 4)


def method(kind, *, scale=None, **changes):
    return DGP(*networks(kind), scale or (8 if kind == "biggan" else 4), settings(**changes), device="cpu")


# ---------------------------------------------------------------------------------------------------------- degradation


def lanczos2(distance):
    if distance == 0:
        return 1.0
    x = math.pi * distance
    return 2 * math.sin(x) * math.sin(x / 2) / x**2 if abs(distance) < 2 else 0.0


@pytest.mark.parametrize(("size", "factor"), [(16, 2), (16, 4), (32, 8), (32, 16)])
def test_lanczos2_pixel_by_pixel(size, factor):
    """Outputs are weighted means around their centres, by Lanczos' kernel stretched by the factor; outside is the nearest border pixel."""
    image = torch.randn(size, size, dtype=torch.float64)
    matrix = lanczos2_matrix(size, factor).double()
    weights = [(offset, lanczos2(offset / factor)) for offset in [i + 0.5 for i in range(-2 * factor, 2 * factor)]]
    total = sum(weight for _, weight in weights)

    def pixel(y, x):
        centre_y, centre_x = (y + 0.5) * factor, (x + 0.5) * factor  # in units of pixels, whose centres are at halves
        value = 0.0
        for dy, wy in weights:
            for dx, wx in weights:
                row, column = (min(max(math.floor(centre + d), 0), size - 1) for centre, d in ((centre_y, dy), (centre_x, dx)))
                value += wy * wx * float(image[row, column])
        return value / total**2

    shrunk = matrix @ image @ matrix.T
    assert shrunk.shape == (size // factor, size // factor)
    for y, x in [(0, 0), (0, size // factor - 1), (size // factor // 2, size // factor // 2), (size // factor - 1, 0)]:
        assert math.isclose(float(shrunk[y, x]), pixel(y, x), abs_tol=1e-6)


def test_degradation_downsamples_by_either_kernel_and_upsamples_bilinearly():
    image = torch.randn(2, 3, 32, 32)
    cpu = torch.device("cpu")
    bicubic, lanczos = Degradation(32, 8, "bicubic", cpu), Degradation(32, 8, "lanczos2", cpu)
    torch.testing.assert_close(bicubic.downsample(image), resize(image, scale=1 / 8), atol=1e-5, rtol=0)
    assert (bicubic.downsample(image) - lanczos.downsample(image)).abs().max() > 0.01
    for degradation in (bicubic, lanczos):
        lr = degradation.downsample(image)
        torch.testing.assert_close(degradation(image), F.interpolate(lr, scale_factor=8.0, mode="bilinear"), atol=1e-5, rtol=0)
        torch.testing.assert_close(degradation(torch.ones(1, 3, 32, 32)), torch.ones(1, 3, 32, 32))


# ------------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("kind", ["stylegan2", "stylegan"])
def test_features_of_a_discriminator(kind):
    """Each image's features are those that it has alone, and the last of them gives the logit."""
    _, discriminator = networks(kind)
    images = torch.randn(3, 3, 32, 32)
    features = discriminator.features(images)
    assert [tuple(f.shape) for f in features] == [(3, 8, 16, 16), (3, 8, 8, 8), (3, 8, 4, 4), (3, 8)]
    for i in range(3):
        alone = discriminator.features(images[i : i + 1])
        for together, single in zip(features, alone, strict=True):
            torch.testing.assert_close(together[i : i + 1], single, atol=1e-5, rtol=1e-5)
        assert torch.equal(discriminator(images[i : i + 1]), discriminator.out(alone[-1]))
    first = discriminator.blocks[0]
    entry = discriminator.from_rgb(images) if kind == "stylegan2" else F.leaky_relu(discriminator.from_rgb[0](images), 0.2)
    assert torch.equal(features[0], first(entry))
    with pytest.raises(ValueError, match=r"\(N, 3, 32, 32\)"):
        discriminator.features(images[:, :, 1:])


def test_features_from_the_size_that_lod_tells():
    config = StyleGANConfig(CHANNELS, code_dim=8, lod=1.0)
    discriminator = randomised(StyleGANDiscriminator(config), 0)
    assert [f.shape[-1] for f in discriminator.features(torch.randn(1, 3, 32, 32))] == [8, 4, 8]


# -------------------------------------------------------------------------------------------------- groups and their steps


def names_of(model, parameters):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in parameters}


@pytest.mark.parametrize(
    ("kind", "layers"), [("stylegan2", [(0,), (1, 2), (3, 4), (5, 6)]), ("stylegan", [(0, 1), (2, 3), (4, 5), (6, 7)])]
)
def test_groups_go_from_the_input_to_the_output(kind, layers):
    bank, _ = networks(kind)
    groups = [names_of(bank, group) for group in parameter_groups(bank)]
    everything = {name for name, _ in bank.named_parameters()}
    for group, numbers in zip(groups, layers, strict=True):
        assert {n for n in group if ".layers." in n and n.startswith("synthesis")} == {
            n for n in everything if n.startswith(tuple(f"synthesis.layers.{i}." for i in numbers))
        }
    first = {n for n in everything if n.startswith(("mapping.", "synthesis.constant"))}
    assert {n for n in groups[0] if not n.startswith("synthesis.layers")} == first
    assert everything - set().union(*groups) == {n for n in everything if "to_rgb" in n}


def test_published_numbers_of_groups():
    """ft_num 2 3 4 5 7 at 256 px, and 2 3 4 5 6 at 128 px, in both of which the last stage tunes all."""
    with torch.device("meta"):
        sizes = {n: len(parameter_groups(StyleGAN2(StyleGAN2Config((4,) * n)))) for n in (6, 7, 9)}
        assert [len(parameter_groups(BigGAN(BigGANConfig(8, size)))) for size in (128, 256)] == [6, 7]
    assert sizes == {6: 6, 7: 7, 9: 9}  # 128, 256, 1024 px
    for preset in PRESETS.values():
        assert preset().tuned_groups == (2, 3, 4, 5, "all")


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_changes_what_acts_as_published(kind):
    """The factors are those of the equalised weights: gain / sqrt(fan-in), times 0.01 in the mapping network."""
    bank, _ = networks(kind)
    factors = storage_factors(bank)
    found = {name: factors.get(p, 1.0) for name, p in bank.named_parameters()}
    for name, parameter in bank.named_parameters():
        expected = 1.0
        if kind != "biggan" and name.startswith("mapping") and name.endswith("bias"):
            expected = 0.01
        elif kind != "biggan" and name.endswith("weight"):
            gain = 2**0.5 if kind == "stylegan" and not name.startswith("synthesis.to_rgb") and "affine" not in name else 1
            expected = gain / math.sqrt(parameter[0].numel()) * (0.01 if name.startswith("mapping") else 1)
        assert math.isclose(found[name], expected), name


# ----------------------------------------------------------------------------------------------------------- the search


def slow_search(bank, discriminator, scale, config, lr):
    """DGP as the official code does it, plainly: one sample after another, all gradients always, Adam by hand."""
    bank, size = copy.deepcopy(bank), lr.shape[-1] * scale
    conditional = isinstance(bank, BigGAN)

    def enlarge(x):
        return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)

    def shown(image):
        small = resize(image, scale=1 / scale) if config.downsampler == "bicubic" else torch.einsum("yh,nchw,xw->ncyx", down, image, down)
        return enlarge(small)

    def distance(image, number):
        pairs = list(zip(discriminator.features(image), discriminator.features(target), strict=True))
        return torch.stack([F.l1_loss(a, b) for a, b in pairs[::-1][:number]]).sum()

    down, target = lanczos2_matrix(size, scale), enlarge(lr)
    generator = torch.Generator().manual_seed(config.seed)
    samples = torch.randn(config.select_samples, bank.config.code_dim, generator=generator) * config.select_std
    labels = torch.full((len(samples),), config.class_index or 0)
    if conditional and config.class_index is None:
        labels = torch.randint(bank.config.n_classes, (len(samples),), generator=generator)
    with torch.no_grad():
        found = [distance(shown(bank(z[None], y[None]) if conditional else bank(z[None])), 3) for z, y in zip(samples, labels, strict=True)]
    best = int(torch.stack(found).argmin())
    z = samples[best : best + 1].clone().requires_grad_()
    embedding: Any = bank.embed(labels[best : best + 1]).detach() if conditional else None
    groups = [[z], *parameter_groups(bank)]
    factors = storage_factors(bank)
    squares = {p: torch.zeros_like(p) for group in groups for p in group}
    steps = dict.fromkeys(squares, 0)
    img, first, norms = target, torch.empty(0), None
    for stage, iterations in enumerate(config.iterations):
        number = config.tuned_groups[stage]
        tuned = len(groups) if number == "all" else number
        if conditional:
            norms = (norms or bank.instance_norms(z, embedding)) if config.instance_norm[stage] else None
        for _ in range(iterations):
            img = bank.synthesis(z, embedding, norms) if conditional else bank(z)
            first = first if len(first) else img
            image = shown(img)
            loss = config.feature_weights[stage] * distance(image, config.features[stage])
            loss = loss + config.mse_weights[stage] * F.mse_loss(image, target) + config.prior_weight * (z**2 / 2).mean()
            parameters = list(squares)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is None:
                    continue
                depth = next(i for i, group in enumerate(groups) if any(p is parameter for p in group)) - 1
                rate = config.latent_lrs[stage] if depth < 0 else config.generator_lrs[stage] * config.lr_ratios[stage] ** depth
                rate = 0 if depth >= tuned else rate / factors.get(parameter, 1.0)
                steps[parameter] += 1
                squares[parameter] = 0.999 * squares[parameter] + 0.001 * gradient**2
                denominator = (squares[parameter] / (1 - 0.999 ** steps[parameter])).sqrt() + 1e-8
                parameter.data -= rate * gradient / denominator
    assert (img - first).abs().max() > 0.05 * img.std()  # otherwise a comparison would not see the fine-tuning
    return img.detach(), int(labels[best])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("stylegan2", {}),
        ("stylegan2", {"downsampler": "lanczos2", "seed": 3, "prior_weight": 0.5}),
        ("stylegan", {}),
        ("biggan", {}),
        ("biggan", {"class_index": 3, "instance_norm": (True, True)}),
        ("biggan", {"instance_norm": (True, False)}),
    ],
)
def test_the_search_step_by_step(kind, changes):
    bank, discriminator = networks(kind)
    scale = 8 if kind == "biggan" else 4
    config, lr = settings(**changes), lrs(1)
    expected, label = slow_search(bank, discriminator, scale, config, lr)
    found = DGP(bank, discriminator, scale, config, device="cpu")(lr)
    assert found.images.shape == expected.shape
    assert (found.images - expected).abs().max() < 2e-3 * expected.std()
    assert (f"class {label}" in found.notes[0]) == (kind == "biggan" and config.class_index is None)


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_nearer_to_the_given_image(kind):
    lr = lrs(1)
    errors = []
    for iterations in (1, 12):
        made = method(kind, iterations=(iterations, iterations), mse_weights=(10.0, 10.0), latent_lrs=(3e-2, 1e-2))(lr)
        errors.append(float((resize(made.images.clamp(-1, 1), size=8) - lr).square().mean()))
        assert made.notes[0].startswith(f"downsampled, {-10 * math.log10(errors[-1] / 4):.1f} dB to the input")
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuned", [0, 1, 2, 99, "all"])
def test_a_stage_changes_its_groups_only(kind, tuned):
    bank, discriminator = networks(kind)
    config = settings(tuned_groups=(tuned, "all"), generator_lrs=(1e-3, 0.0))
    search = DGP(bank, discriminator, 4, config, device="cpu")
    search(lrs(1, 16 if kind == "biggan" else 8))
    after = dict(search._bank.named_parameters())
    changed = {name for name, parameter in bank.named_parameters() if not torch.equal(parameter, after[name])}
    groups = parameter_groups(bank)
    assert changed == names_of(bank, [p for group in groups[: len(groups) if tuned == "all" else tuned] for p in group])


def fingerprint(module):
    tensors = {name: tensor.clone() for name, tensor in [*module.state_dict().items(), *module.named_buffers()]}
    flags = [(p.requires_grad, p.grad is None, p.stride(), str(p.device)) for p in module.parameters()]
    return tensors, flags, [m.training for m in module.modules()]


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_given_networks_stay_and_a_broken_search_leaves_no_trace(kind, error):
    bank, discriminator = networks(kind)
    next(bank.parameters()).requires_grad_(False)
    before = [fingerprint(network) for network in (bank, discriminator)]
    search = DGP(bank, discriminator, 8, settings(), device="cpu")
    lr = lrs(1, 8 if kind == "biggan" else 4)
    expected = search(lr).images

    def broken(done, total):
        if done > 6:  # beyond the samples
            raise error

    with pytest.raises(error):
        search(lr, broken)
    assert torch.equal(search(lr).images, expected)
    for network, state in zip((bank, discriminator), before, strict=True):
        assert_same(state, fingerprint(network))


@pytest.mark.parametrize("kind", ["stylegan2", "biggan"])
def test_a_image_depends_on_itself_seed_and_settings_only(kind):
    lr = lrs(2)
    lr = lr[[0, 1, 0]]
    made, other = method(kind)(lr), method(kind)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    alone = other(lr[1:2])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made.images[1:2], alone.images)
    assert made.notes[1] == alone.notes[0]
    assert torch.equal(made.images[0], made.images[2])
    assert not torch.equal(made.images[0], made.images[1])
    assert not torch.equal(method(kind, seed=1)(lr[1:2]).images, alone.images)


def test_it_works_where_gradients_are_off():
    search, lr = method("stylegan2"), lrs(1)
    expected = search(lr).images
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(search(lr.clone()).images, expected)


def test_progress():
    told = []
    method("stylegan2", iterations=(9, 4))(lrs(2), lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {6 + 2 * 13}
    done = [d for d, _ in told]
    assert done == sorted(set(done))
    assert done[-1] == 6 + 2 * 13
    assert max(b - a for a, b in zip([0, *done], done, strict=False)) <= 6


def test_all_scales():
    config = StyleGAN2Config((4,) * 6, code_dim=8, mapping_layers=1)  # 128 px
    pair = StyleGAN2(config), StyleGAN2Discriminator(config)
    for scale in (4, 8, 16, 32, 64):
        search = DGP(*pair, scale, settings(iterations=(1, 1), select_samples=1), device="cpu")
        assert (search.in_size, search.scale, search.name) == (128 // scale, scale, "DGP")
        assert search(torch.zeros(1, 3, 128 // scale, 128 // scale)).images.shape == (1, 3, 128, 128)


def test_bfloat16_searches_too():
    lr = lrs(1)
    bank, discriminator = networks("stylegan2")
    errors = []
    for iterations in (1, 12):
        changes = {"iterations": (iterations, iterations), "mse_weights": (10.0, 10.0), "latent_lrs": (3e-2, 1e-2)}
        made = DGP(bank, discriminator, 4, settings(**changes), device="cpu", precision=torch.bfloat16)(lr).images
        assert made.dtype == torch.float32
        errors.append((resize(made, size=8) - lr).square().mean())
    assert errors[1] < 0.8 * errors[0]


def test_a_search_that_goes_astray_is_an_error():
    with pytest.raises(GleansrError, match=r"stage 1.*lower generator_lrs"):
        method("stylegan2", generator_lrs=(1e30, 0.0))(lrs(1))


# -------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": (3,)}, "one entry per stage: iterations has 1, tuned_groups has 2"),
        ({"iterations": (3, 0)}, "iterations must be 1 to"),
        ({"tuned_groups": (1, "most")}, 'tuned_groups must be numbers of 0 or more, or "all"'),
        ({"tuned_groups": (-1, 2)}, "tuned_groups must be numbers of 0"),
        ({"features": (0, 1)}, "features must be 1 or more"),
        ({"feature_weights": (1.0, -1.0)}, "feature_weights must be 0 or more"),
        ({"mse_weights": (1.0, math.nan)}, "mse_weights must be 0 or more"),
        ({"generator_lrs": (-1e-3, 0.0)}, "generator_lrs must be 0 or more"),
        ({"betas": (0.0, 1.0)}, "betas must be 0 to below 1"),
        ({"select_samples": 0}, "select_samples must be 1 to"),
        ({"select_std": 0.0}, "select_std must be above 0"),
        ({"downsampler": "area"}, "downsampler must be bicubic or lanczos2, not 'area'"),
        ({"class_index": -1}, "class_index must be 0 or more"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        settings(**changes)


def test_settings_from_plain_data():
    for preset in PRESETS.values():
        data = json.loads(json.dumps(dataclasses.asdict(preset())))
        assert from_dict(DGPConfig, data, "test") == preset()
    with pytest.raises(RequestError, match=r"did you mean generator_lrs\?"):
        from_dict(DGPConfig, {"generator_lr": [1.0]}, "test")


def test_what_does_not_fit_together():
    bank, discriminator = networks("stylegan2")
    biggan, biggan_discriminator = networks("biggan")

    def refused(message, generator, discriminator, scale, **changes):
        with pytest.raises(RequestError, match=message) as caught:
            DGP(generator, discriminator, scale, settings(**changes), device="cpu")
        assert "\n" not in str(caught.value)

    refused("needs the bank's own discriminator, which this file lacks; train one with `gleansr train-bank`", bank, None, 4)
    refused("not a Linear", bank, nn.Linear(1, 1), 4)
    refused("for images of 64 px, but the bank generates 32 px", bank, biggan_discriminator, 4)
    refused("not a StyleGAN2Discriminator", discriminator, discriminator, 4)
    for scale in (0, 1, 3, 32, 8.0):
        refused(f"powers of two from 2 to 16, not {scale}", bank, discriminator, scale)
    refused("class_index is 2, but a StyleGAN2 has no classes", bank, discriminator, 4, class_index=2)
    refused("class_index is 5, but this bank's classes are 0 to 4", biggan, biggan_discriminator, 4, class_index=5)
    with pytest.raises(RequestError, match=r"\(N, 3, 8, 8\), not \(1, 3, 4, 4\)"):
        method("stylegan2")(torch.zeros(1, 3, 4, 4))
