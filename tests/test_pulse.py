"""PULSE: its parts and whole runs against slow formulations, what it promises of results, and the files of its banks."""

import hashlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from gleansr.baselines import gaussian, pulse
from gleansr.baselines.pulse import PULSE, PULSEConfig
from gleansr.checkpoints import load_model, read
from gleansr.errors import CheckpointError, RequestError
from gleansr.images.resize import resize
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.stylegan import StyleGAN, StyleGANConfig
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config

BANKS = {"stylegan": (StyleGAN, StyleGANConfig), "stylegan2": (StyleGAN2, StyleGAN2Config)}
DIM, ROWS = 8, 6


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)


@pytest.fixture(params=BANKS)
def bank(request):
    return make_bank(request.param)


def make_bank(kind="stylegan2", channels=(8, 8, 8)):
    """A bank of 16 px in which noise and biases count."""
    model_type, config_type = BANKS[kind]
    model = model_type(config_type(channels, code_dim=DIM, mapping_layers=2))
    for name, parameter in model.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            parameter.data += torch.randn_like(parameter) * 0.2
    return model


def settings(**changes):
    return PULSEConfig(**{"steps": 4, "fit_samples": 200, **changes})


def lrs(n, side=4):
    return torch.rand(n, 3, side, side) * 2 - 1


def fit_of(bank, samples=200):
    """The Gaussian that a run kept."""
    fit = gaussian.cached_gaussian(bank, samples)
    assert fit is not None
    return fit


class Seen:
    """Records the codes, noise images and results of a bank's passes."""

    def __init__(self, bank):
        self.latents, self.noises, self.images = [], [], []
        bank.synthesis.register_forward_hook(self)

    def __call__(self, _, inputs, image):
        self.latents.append(inputs[0].detach().clone())
        self.noises.append([noise.detach().clone() for noise in inputs[1]])
        self.images.append(image.detach().clone())


# ---------------------------------------------------------------------------------------------------- slow formulations


def cubic(x, a=-0.5):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def shrunk(x, factor):
    """Reflected borders, then one weighted sum after the other: along columns, along rows."""
    taps = torch.tensor([cubic((i - 2 * factor + 0.5) / factor) for i in range(4 * factor)], dtype=x.dtype)
    taps = taps / taps.sum()
    before = 3 * factor // 2
    after = 3 * factor - before
    x = F.pad(x, (before, after, before, after), mode="reflect")
    n = x.shape[-1] // factor - 3
    x = torch.stack([(x[:, :, y * factor : (y + 4) * factor] * taps[:, None]).sum(2) for y in range(n)], 2)
    return torch.stack([(x[..., c * factor : (c + 4) * factor] * taps).sum(3) for c in range(n)], 3)


def angles(latents):
    """512 / 8 times the mean square of the angle between every two rows, the small numbers under the roots as in the official code."""
    result = []
    for one in latents:
        total = one.new_zeros(())
        for a, b in itertools.product(one, one):
            far, near = ((a - b) ** 2).sum() + 1e-9, ((a + b) ** 2).sum() + 1e-9
            total = total + 512 * (2 * torch.atan2(far.sqrt(), near.sqrt())) ** 2
        result.append(total / len(one) ** 2 / 8)
    return torch.stack(result)


def slow_loss(image, latents, lr, config):
    """The loss of each image; images in [-1, 1]."""
    error = shrunk((image + 1) / 2, image.shape[-1] // lr.shape[-1]) - (lr + 1) / 2
    l2 = torch.stack([(e**2).mean().clamp(min=config.eps) for e in error])
    l1 = torch.stack([10 * e.abs().mean().clamp(min=config.eps) for e in error])
    return config.l2 * l2 + config.l1 * l1 + config.geocross * angles(latents)


def slow_rate(step, steps, schedule):
    """The official schedules: up and down in straight lines."""
    if schedule == "fixed":
        return 1.0
    points = {"linear1cycle": [(0, 0.1), (0.5, 1), (1, 0.1)], "linear1cycledrop": [(0, 0.1), (0.45, 1), (0.9, 0.1), (1, 0.001)]}
    for (x0, y0), (x1, y1) in itertools.pairwise(points[schedule]):
        if x0 * steps <= step <= x1 * steps:
            return y0 + (y1 - y0) * (step / steps - x0) / (x1 - x0)
    raise AssertionError


def slow_run(bank, lr, config, fit):
    """The image of the last step, for one image, with the arithmetic of the optimisers written out."""
    torch.manual_seed(config.seed)
    variables = [torch.randn(1, 1 if config.tile_latent else ROWS, DIM)]
    n = len(bank.synthesis.layers)
    noises = []
    for i in range(n):
        side = bank.get_buffer(f"synthesis.noise_{i}").shape[-1]
        silent = config.noise == "zero" or i - n in config.zero_noise_layers or i in config.zero_noise_layers
        noises.append(torch.zeros(1, 1, side, side) if silent else torch.randn(1, 1, side, side))
    searched = [i for i in range(n) if config.noise == "trainable" and i < config.trainable_noise_layers and noises[i].any()]
    variables += [noises[i] for i in searched]
    lengths = [[(part**2).sum().add(1e-9).sqrt() for part in x[0]] for x in variables]
    first, second = ([torch.zeros_like(x) for x in variables] for _ in range(2))
    for step in range(config.steps):
        variables = [x.detach().requires_grad_() for x in variables]
        for i, x in zip(searched, variables[1:], strict=True):
            noises[i] = x
        latents = variables[0].repeat(1, ROWS // variables[0].shape[1], 1) * fit.std + fit.mean
        latents = torch.where(latents > 0, latents, 0.2 * latents)
        image = bank.synthesis(latents, noises)
        gradients = torch.autograd.grad(slow_loss(image, latents, lr, config).sum(), variables)
        rate, t = config.lr * slow_rate(step, config.steps, config.schedule), step + 1
        moved = []
        for k, (x, g) in enumerate(zip(variables, gradients, strict=True)):
            if config.optimizer == "adam":
                first[k] = 0.9 * first[k] + 0.1 * g
                second[k] = 0.999 * second[k] + 0.001 * g**2
                change = first[k] / (1 - 0.9**t) / ((second[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            elif config.optimizer == "adamax":
                first[k] = 0.9 * first[k] + 0.1 * g
                second[k] = torch.maximum(0.999 * second[k], g.abs() + 1e-8)
                change = first[k] / (1 - 0.9**t) / second[k]
            else:
                first[k] = (0.9 if config.optimizer == "sgdm" else 0) * first[k] + g
                change = first[k]
            y = x.detach() - rate * change
            parts = [part / (part**2).sum().add(1e-9).sqrt() * length for part, length in zip(y[0], lengths[k], strict=True)]
            moved.append(torch.stack(parts)[None])
        variables = moved
    return image.detach()


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (8, 4), (32, 4), (48, 8), (64, 32)])
def test_shrinking(size, factor):
    x = torch.rand(2, 3, size, size).double()
    matrix = pulse.bicubic_matrix(size, factor)
    ours = matrix @ x @ matrix.T
    torch.testing.assert_close(ours, shrunk(x, factor), rtol=0, atol=1e-12)
    inner = slice(2, size // factor - 2)  # away from the borders it is MATLAB's
    torch.testing.assert_close(ours[..., inner, inner], resize(x, scale=1 / factor)[..., inner, inner], rtol=0, atol=1e-12)
    assert (ours - resize(x, scale=1 / factor)).abs().max() > 1e-3


def test_geocross():
    latents = torch.randn(3, 5, 7).double()
    torch.testing.assert_close(pulse.geocross(latents), angles(latents))
    opposite = torch.stack([torch.ones(1, 7), -torch.ones(1, 7)], 1)  # half of the pairs at the angle pi
    torch.testing.assert_close(pulse.geocross(opposite), torch.tensor([512 / 8 * math.pi**2 / 2]), rtol=1e-4, atol=0)
    assert pulse.geocross(latents[:1, :1].expand(1, 5, 7)) < 1e-6


def test_learning_rates():
    for schedule, steps in itertools.product(("linear1cycledrop", "linear1cycle", "fixed"), (1, 7, 100)):
        config = settings(schedule=schedule, steps=steps, lr=0.3)
        for step in range(steps):
            assert config.rate(step) == pytest.approx(0.3 * slow_rate(step, steps, schedule))
    rates = [PULSEConfig().rate(step) for step in (0, 45, 90, 95, 99)]
    assert rates == pytest.approx([0.04, 0.4, 0.04, 0.0202, 0.00436])


RUNS = [
    {},
    {"optimizer": "sgd", "l1": 2.0, "schedule": "linear1cycle", "noise": "fixed", "seed": 3},
    {"optimizer": "sgdm", "tile_latent": True, "zero_noise_layers": (0, -2), "lr": 0.1},
    {"optimizer": "adamax", "noise": "zero", "schedule": "fixed", "geocross": 0.0},
    {"optimizer": "sgdm", "lr": 0.05, "l1": 1.0, "l2": 0.0, "trainable_noise_layers": 2, "zero_noise_layers": ()},
]


@pytest.mark.parametrize("changes", RUNS)
def test_a_run_is_the_slow_one(changes, bank):
    config, lr, seen = settings(eps=1e-4, **changes), lrs(1), Seen(bank)
    PULSE(bank, 4, config)(lr)
    first, *_, last = seen.images
    fit = fit_of(bank)
    torch.testing.assert_close(last, slow_run(bank, lr, config, fit), rtol=0, atol=2e-4)
    assert (first - last).abs().max() > 0.01


# ------------------------------------------------------------------------------------------------------ what it promises


def losses(seen, lr, config):
    """The loss of every image that a bank made in a search for one."""
    return [float(slow_loss(image, latents, lr, config)) for image, latents in zip(seen.images, seen.latents, strict=True)]


def test_it_comes_nearer(bank):
    with torch.no_grad():
        lr = shrunk(bank(torch.randn(1, DIM)), 4)
    errors = []
    for steps in (1, 20, 60):
        result = PULSE(bank, 4, settings(steps=steps, eps=1e-5, geocross=0.0))(lr)
        errors.append(float((shrunk(result.images, 4) - lr).square().mean()))
    assert errors[2] < 0.5 * errors[1] < 0.1 * errors[0]


def test_the_result_is_the_last_image_or_the_best(bank):
    """From a start that is all but right, steps that are far too long."""
    start = shrunk(PULSE(bank, 4, settings(steps=1))(lrs(1)).images, 4)
    for result, offset in itertools.product(("last", "best"), (0.0, 0.02)):
        lr = start + offset
        config = settings(steps=6, eps=1e-6, optimizer="sgd", lr=1e3, schedule="fixed", result=result)
        seen = Seen(bank)
        enlarged = PULSE(bank, 4, config)(lr)
        everything = losses(seen, lr, config)
        assert everything.index(min(everything)) == 0
        last = result == "last" and not offset
        assert torch.equal(enlarged.images, seen.images[-1 if last else 0])
        assert enlarged.notes == ["PULSE did not reach eps 1e-06: L2 0.0001 after 6 steps" if offset else ""]


def test_a_result_does_not_depend_on_the_batch(bank):
    method, lr = PULSE(bank, 4, settings(steps=10)), lrs(3)
    together = method(lr)
    alone = [method(one[None]) for one in lr]
    assert torch.equal(together.images, torch.cat([a.images for a in alone]))
    assert together.notes == [note for a in alone for note in a.notes]
    assert len({float(image.sum()) for image in together.images}) == 3


def test_to_have_been_near_enough_once_is_enough(bank):
    """As in the official code, wherever the search goes on to."""
    lr = shrunk(PULSE(bank, 4, settings(steps=1))(lrs(1)).images, 4)
    seen = Seen(bank)
    enlarged = PULSE(bank, 4, settings(eps=1e-6, l2=0.0))(lr)
    assert (shrunk(seen.images[-1], 4) - lr).square().mean() / 4 > 1e-3
    assert enlarged.notes == [""]
    assert torch.equal(enlarged.images, seen.images[-1])


@pytest.mark.parametrize("changes", [{"optimizer": "sgdm", "lr": 0.01}, {"optimizer": "sgd", "lr": 1e3, "schedule": "fixed"}])
def test_a_search_for_several_at_once_is_that_for_each(changes, bank):
    """But for rounding, which Adam magnifies. Whether one is near enough does not depend on the others, as it does in the official code."""
    start = PULSE(bank, 4, settings(steps=1))(lrs(1)).images
    method, lr = PULSE(bank, 4, settings(**changes, eps=1e-4)), lrs(3)
    lr[1] = shrunk(start, 4)[0]
    alone = method(lr)
    assert [bool(note) for note in alone.notes] == [True, False, True]
    with pulse.frozen(bank):
        together = method.search(lr, fit_of(bank))
    torch.testing.assert_close(together.images, alone.images, rtol=0, atol=2e-4)
    assert [bool(note) for note in together.notes] == [True, False, True]


def test_lengths_are_kept(bank):
    """Of the rows of the latent code and of the noise images that are searched for; the others stay as they are."""
    layers = len(bank.synthesis.layers)
    for config in (settings(eps=1e-4), settings(eps=1e-4, trainable_noise_layers=2, zero_noise_layers=(0, -2), tile_latent=True)):
        seen = Seen(bank)
        PULSE(bank, 4, config)(lrs(1))
        fit = fit_of(bank)
        latents = [(torch.where(latents > 0, latents, 5 * latents) - fit.mean) / fit.std for latents in seen.latents]
        for latent in latents:
            torch.testing.assert_close(latent.norm(dim=2), latents[0].norm(dim=2), rtol=1e-4, atol=0)
        assert (latents[0] - latents[-1]).abs().max() > 0.01
        silent = {i % layers for i in config.zero_noise_layers}
        for i, (first, *_, last) in enumerate(zip(*seen.noises, strict=True)):
            searched = i < config.trainable_noise_layers and i not in silent
            torch.testing.assert_close(first.norm(), last.norm(), rtol=1e-4, atol=0)
            assert bool(first.any()) == (i not in silent)
            assert torch.equal(first, last) != searched


def test_the_seed_decides(bank):
    lr = lrs(1)
    same = [PULSE(bank, 4, settings(seed=5))(lr).images for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.allclose(PULSE(bank, 4, settings(seed=6))(lr).images, same[0], atol=0.01)


def test_the_bank_stays_as_it_is(bank):
    before = {name: tensor.clone() for name, tensor in bank.state_dict().items()}
    for i, parameter in enumerate(bank.parameters()):
        parameter.requires_grad = i % 2 == 0
    method = PULSE(bank, 4, settings())
    with torch.inference_mode():  # as evaluations call it
        inside = method(lrs(1))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method(lrs(1), interrupt)
    assert inside.images.isfinite().all()
    assert not inside.images.requires_grad
    assert [p.requires_grad for p in bank.parameters()] == [i % 2 == 0 for i in range(len(list(bank.parameters())))]
    assert all(p.grad is None for p in bank.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in bank.state_dict().items())


def test_progress(monkeypatch):
    monkeypatch.setattr(gaussian, "CHUNK", 80)
    method, told = PULSE(make_bank(), 4, settings()), []
    method(lrs(2), lambda *numbers: told.append(numbers))
    assert told == [(i + 1, 3 + 2 * 4) for i in range(11)]  # 200 samples, then two images of 4 steps
    told.clear()
    method(lrs(1), lambda *numbers: told.append(numbers))
    assert told == [(i + 1, 4) for i in range(4)]


def test_half_precision_is_close():
    """At the start: the search magnifies what rounding makes."""
    bank, lr = make_bank(), lrs(1)
    exact = PULSE(bank, 4, settings(steps=1))(lr).images
    rough = PULSE(bank, 4, settings(steps=1), precision=torch.bfloat16)(lr).images
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.03 * exact.std()
    assert PULSE(bank, 4, settings(), precision=torch.bfloat16)(lr).images.isfinite().all()


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_every_scale(scale):
    method = PULSE(make_bank(), scale, settings(steps=2))
    assert (method.in_size, method.scale) == (16 // scale, scale)
    assert method(lrs(1, 16 // scale)).images.shape == (1, 3, 16, 16)


def test_requests_that_cannot_be_met():
    bank = make_bank()
    for scale in (0, 1, 3, 16):
        with pytest.raises(RequestError, match=rf"16 px takes scales that are powers of two from 2 to 8, not {scale}"):
            PULSE(bank, scale)
    with pytest.raises(RequestError, match="not a RRDBNet"):
        PULSE(RRDBNet(RRDBNetConfig(4, features=4, growth=2, n_blocks=1)), 4)
    with pytest.raises(RequestError, match="zero_noise_layers must be -5 to 4 with this bank, not 5"):
        PULSE(bank, 4, settings(zero_noise_layers=(0, 5)))
    for lr in (lrs(1, 8), lrs(1)[0], lrs(1)[:, :1]):
        with pytest.raises(RequestError, match=r"takes images \(N, 3, 4, 4\), not"):
            PULSE(bank, 4)(lr)
    for changes in (
        {"steps": 0},
        {"eps": -1.0},
        {"lr": math.nan},
        {"schedule": "cosine"},
        {"optimizer": "lbfgs"},
        {"fit_samples": 1},
        {"seed": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(changes))):
            settings(**changes)


# ------------------------------------------------------------------------------------------------------- the Gaussian fit


def test_the_gaussian_is_that_of_the_samples(bank, monkeypatch):
    monkeypatch.setattr(gaussian, "CHUNK", 64)
    fit = gaussian.fit_gaussian(bank, 1000)
    generator = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(min(64, 1000 - i), DIM, generator=generator) for i in range(0, 1000, 64)])
    with torch.no_grad():
        w = bank.mapping(z).double()
    values = torch.where(w > 0, w, 5 * w)
    torch.testing.assert_close(fit.mean.double(), values.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(fit.std.double(), values.std(0), rtol=1e-6, atol=0)
    latent = (values - fit.mean) / fit.std
    torch.testing.assert_close(fit.latents(latent.float()), w.float(), rtol=0, atol=1e-5)


def test_the_gaussian_is_cached(bank, monkeypatch, tmp_path):
    fit = gaussian.fit_gaussian(bank, 100)
    kept = fit_of(bank, 100)
    assert torch.equal(kept.mean, fit.mean)
    assert torch.equal(kept.std, fit.std)
    assert gaussian.cached_gaussian(bank, 101) is None
    (file,) = (tmp_path / "home" / "pulse").iterdir()
    for contents in (b"", file.read_bytes()[:-1], b"nonsense" * 9):
        file.write_bytes(contents)
        assert gaussian.cached_gaussian(bank, 100) is None
    for tensors in ({"mean": fit.mean}, {"mean": fit.mean, "std": fit.std[:1]}, {"mean": fit.mean, "std": fit.std / 0}):
        save_file(tensors, file)
        assert gaussian.cached_gaussian(bank, 100) is None
    expected = PULSE(bank, 4, settings(fit_samples=100))(lr := lrs(1)).images  # which writes it again
    assert torch.equal(fit_of(bank, 100).std, fit.std)
    monkeypatch.setattr(pulse, "fit_gaussian", None)
    assert torch.equal(PULSE(bank, 4, settings(fit_samples=100))(lr).images, expected)
    next(bank.mapping.parameters()).data[0] += 1
    assert gaussian.cached_gaussian(bank, 100) is None  # that of another network


def test_a_folder_that_cannot_be_written_is_no_obstacle(bank, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path / "file"))
    assert PULSE(bank, 4, settings())(lrs(1)).images.isfinite().all()


# -------------------------------------------------------------------------------------------------- the files of its banks

CHANNELS = {32: (8, 7, 6, 5), 128: (6, 5, 5, 4, 4, 3)}


def randn(*shape, std=1.0):
    return torch.randn(shape) * std


def parts(channels, code=12, n_dense=3):
    """Synthesis and mapping network under the official program's names."""
    synthesis = {"blocks.4x4.const": randn(1, channels[0], 4, 4), "torgb.weight": randn(3, channels[-1], 1, 1), "torgb.bias": randn(3)}
    for j, n in enumerate(channels):
        block = f"blocks.{4 * 2**j}x{4 * 2**j}"
        for k in (1, 2):
            synthesis[f"{block}.epi{k}.noise.weight"] = randn(n, std=0.5)
            synthesis |= {f"{block}.epi{k}.style_mod.lin.weight": randn(2 * n, code), f"{block}.epi{k}.style_mod.lin.bias": randn(2 * n)}
        second = "conv1" if j else "conv"
        synthesis |= {f"{block}.{second}.weight": randn(n, n, 3, 3), f"{block}.{second}.bias": randn(n, std=0.3)}
        if j:
            synthesis |= {f"{block}.conv0_up.weight": randn(n, channels[j - 1], 3, 3), f"{block}.conv0_up.bias": randn(n, std=0.3)}
            synthesis[f"{block}.conv0_up.intermediate.kernel"] = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
        else:
            synthesis[f"{block}.bias"] = randn(n, std=0.3)
    mapping = {}
    for k in range(n_dense):
        mapping |= {f"dense{k}.weight": randn(code, code, std=100), f"dense{k}.bias": randn(code, std=30)}
    return synthesis, mapping


def equalised(weight, gain=2**0.5):
    return weight * gain / math.sqrt(weight[0].numel())


def slow_mapping(t, z):
    w = z / torch.sqrt((z * z).mean(1, keepdim=True) + 1e-8)
    for k in range(len(t) // 2):
        w = F.leaky_relu(w @ (equalised(t[f"dense{k}.weight"]) * 0.01).t() + t[f"dense{k}.bias"] * 0.01, 0.2)
    return w


def slow_synthesis(t, latents, noises):
    """Pixels repeated before a convolution; from 128 px on, where the official code fuses the two, with the kernel mirrored."""
    x = t["blocks.4x4.const"].repeat(len(latents), 1, 1, 1)
    for i, noise in enumerate(noises):
        side = noise.shape[-1]
        block = f"blocks.{side}x{side}"
        conv = "conv1" if side > 4 else "conv"
        if i % 2:
            x = F.conv2d(x, equalised(t[f"{block}.{conv}.weight"]), t[f"{block}.{conv}.bias"], padding=1)
        elif i:
            weight = equalised(t[f"{block}.conv0_up.weight"])
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = F.conv2d(x, weight.flip(2, 3) if side >= 128 else weight, padding=1)
            x = F.conv2d(x, t[f"{block}.conv0_up.intermediate.kernel"].repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])
            x = x + t[f"{block}.conv0_up.bias"][:, None, None]
        else:
            x = x + t["blocks.4x4.bias"][:, None, None]
        epilogue = f"{block}.epi{i % 2 + 1}"
        x = F.leaky_relu(x + t[f"{epilogue}.noise.weight"][:, None, None] * noise, 0.2)
        x = F.instance_norm(x)  # its default adds 1e-5
        style = latents[:, i] @ equalised(t[f"{epilogue}.style_mod.lin.weight"], 1).t() + t[f"{epilogue}.style_mod.lin.bias"]
        gain, shift = style[:, :, None, None].chunk(2, 1)
        x = x * (gain + 1) + shift
    return F.conv2d(x, equalised(t["torgb.weight"], 1), t["torgb.bias"])


@pytest.fixture
def files(tmp_path):
    """Saves what is given under its name."""

    def save(**contents):
        for name, tensors in contents.items():
            torch.save(tensors, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=name == "mapping")  # the official ones are older
        return tmp_path

    return save


@pytest.mark.parametrize("size", CHANNELS)
def test_files(size, files):
    synthesis, mapping = parts(CHANNELS[size])
    synthesis["blocks.8x8.conv1.weight"] *= 1e-3  # small features: what the normalisation adds counts
    folder = files(synthesis=synthesis, mapping=mapping)
    checkpoint = read(folder / "synthesis.pt")
    assert (checkpoint.layout, list(checkpoint.networks)) == ("pulse", ["generator"])
    assert checkpoint.networks["generator"].config == StyleGANConfig(CHANNELS[size], 12, 3, norm_eps=1e-5)
    model = load_model(folder / "synthesis.pt")
    other = load_model(folder / "mapping.pt").state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())
    n = 2 * len(CHANNELS[size])
    z, latents = torch.randn(3, 12), torch.randn(2, n, 12)
    noises = [torch.randn(2, 1, 4 * 2 ** (i // 2), 4 * 2 ** (i // 2)) for i in range(n)]
    with torch.no_grad():
        torch.testing.assert_close(model.get_submodule("mapping")(z), slow_mapping(mapping, z))
        exact = slow_synthesis({name: t.double() for name, t in synthesis.items()}, latents.double(), [noise.double() for noise in noises])
        ours = model.double().get_submodule("synthesis")(latents.double(), [noise.double() for noise in noises])
    assert (ours - exact).abs().max() < 1e-6 * exact.std()  # the official filter is one of float32


def test_names_are_the_official_programs():
    """sha256 of the sorted lines "name<tab>shape" of a synthesis network of 256 px built by the official program."""
    with torch.device("meta"):
        tensors, _ = parts((128, 128, 128, 128, 64, 32, 16), 512)
    lines = sorted(f"{name}\t{list(tensor.shape)}" for name, tensor in tensors.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "d6438a7dccf6c719"


def test_one_of_two_files_asks_for_the_other(files):
    synthesis, mapping = parts(CHANNELS[32])
    folder = files(synthesis=synthesis)
    with pytest.raises(CheckpointError, match=r"the other must lie beside it as mapping\.pt, but there is none"):
        read(folder / "synthesis.pt")
    files(a1_mapping=mapping)  # as PULSE's cache names it
    assert list(read(folder / "synthesis.pt").networks) == ["generator"]
    files(b2_mapping=mapping)
    with pytest.raises(CheckpointError, match=r"as mapping\.pt, but there are a1_mapping\.pt, b2_mapping\.pt"):
        read(folder / "synthesis.pt")
    files(mapping=mapping)
    assert list(read(folder / "synthesis.pt").networks) == ["generator"]
    (folder / "synthesis.pt").rename(folder / "else.pt")
    with pytest.raises(CheckpointError, match=r"mapping\.pt.* as synthesis\.pt, but there is none"):
        read(folder / "mapping.pt")


CHANGES = [
    ({"torgb.bias": None}, r"missing synthesis\.torgb\.bias \[3\]"),
    ({"blocks.8x8.epi2.noise.weight": randn(1)}, r"synthesis\.blocks\.8x8\.epi2\.noise\.weight is \[1\], not \[7\]"),
    ({"blocks.16x16.conv0_up.weight": randn(7, 6, 3, 3)}, r"conv0_up\.weight is \[7, 6, 3, 3\], not \[6, 7, 3, 3\]"),
    ({"blocks.16x16.conv0_up.weight": None}, r"missing synthesis\.blocks\.16x16\.conv0_up\.weight"),
    ({"blocks.8x8.conv0_up.intermediate.kernel": torch.full((1, 1, 3, 3), 1 / 9)}, r"the filter .* is not \[1, 2, 1\]"),
    ({"blocks.4x4.bias": randn(8) / 0}, "NaN or infinity"),
    ({"blocks.4x4.conv1.bias": randn(8)}, r"unexpected synthesis\.blocks\.4x4\.conv1\.bias"),
    ({"torgb.step": 3}, r"not tensors: torgb\.step"),
]


@pytest.mark.parametrize(("changes", "match"), CHANGES)
def test_files_that_do_not_fit(changes, match, files):
    synthesis, mapping = parts(CHANNELS[32])
    changed = {name: value for name, value in (synthesis | changes).items() if value is not None}
    folder = files(synthesis=changed, mapping=mapping)
    for name in ("synthesis", "mapping"):
        with pytest.raises(CheckpointError, match=match):
            read(folder / f"{name}.pt")


def test_a_mapping_that_does_not_fit(files):
    synthesis, mapping = parts(CHANNELS[32])
    del mapping["dense1.bias"]
    with pytest.raises(CheckpointError, match=r"missing mapping\.dense1\.bias \[12\]"):
        read(files(synthesis=synthesis, mapping=mapping) / "synthesis.pt")
    for contents in ([1], {"dense1.weight": randn(2)}):
        with pytest.raises(
            CheckpointError, match=r"mapping\.pt: not the mapping network of PULSE's StyleGAN: it lacks the tensor dense0\.weight"
        ):
            read(files(mapping=contents) / "synthesis.pt")
