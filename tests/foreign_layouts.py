"""Small networks in the layouts of other programs, and what they compute, step by step from the tensors under their foreign names.

Written from the description of the layouts and networks, with nothing of gleansr's: names here, slow arithmetic below.
"""

import itertools
import math
import pickle
import re
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F

KERNEL = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
LAYOUTS = ("rosinality", "basicsr", "mmagic", "nvidia")

# ---------------------------------------------------------------------------------------------------------------- names

LAYER = {  # what follows the name of a synthesis layer: weight, style weight, style bias, noise strength, bias
    "rosinality": ("conv.weight", "conv.modulation.weight", "conv.modulation.bias", "noise.weight", "activate.bias"),
    "basicsr": (
        "modulated_conv.weight",
        "modulated_conv.modulation.weight",
        "modulated_conv.modulation.bias",
        "weight",
        "activate.bias",
    ),
    "mmagic": (
        "conv.weight_orig",
        "conv.style_modulation.linear.weight_orig",
        "conv.style_modulation.bias",
        "noise_injector.weight",
        "activate.bias",
    ),
    "nvidia": ("weight", "affine.weight", "affine.bias", "noise_strength", "bias"),
}


def layer(layout, i):
    if layout == "nvidia":
        return f"synthesis.b{4 * 2 ** ((i + 1) // 2)}.conv{0 if i % 2 else 1}"
    prefix = "style_conv" if layout == "basicsr" else "conv"
    return f"{prefix}s.{i - 1}" if i else f"{prefix}1"


def to_rgb(layout, j):
    if layout == "nvidia":
        return f"synthesis.b{4 * 2**j}.torgb"
    return f"to_rgbs.{j - 1}" if j else "to_rgb1"


def dense(layout, n):
    return {
        "rosinality": (f"style.{n + 1}.weight", f"style.{n + 1}.bias"),
        "basicsr": (f"style_mlp.{n + 1}.weight", f"style_mlp.{n + 1}.bias"),
        "mmagic": (f"style_mapping.{n + 1}.linear.weight_orig", f"style_mapping.{n + 1}.bias"),
        "nvidia": (f"mapping.fc{n}.weight", f"mapping.fc{n}.bias"),
    }[layout]


def noise_name(layout, i):
    return {
        "rosinality": f"noises.noise_{i}",
        "basicsr": f"noises.noise{i}",
        "mmagic": f"injected_noise_{i}",
        "nvidia": f"{layer(layout, i)}.noise_const",
    }[layout]


CONSTANT = {
    "rosinality": "input.input",
    "basicsr": "constant_input.weight",
    "mmagic": "constant_input.input",
    "nvidia": "synthesis.b4.const",
}


def block(layout, b, size):
    """conv1 weight and bias, conv2 weight and bias, skip weight of a discriminator's block."""
    if layout == "nvidia":
        p = f"b{size >> b}"
        return [f"{p}.{leaf}" for leaf in ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "skip.weight")]
    p = f"conv_body.{b + 1}" if layout == "basicsr" else f"convs.{b + 1}"
    w = "conv.weight_orig" if layout == "mmagic" else "weight"
    return [f"{p}.conv1.0.{w}", f"{p}.conv1.1.bias", f"{p}.conv2.1.{w}", f"{p}.conv2.2.bias", f"{p}.skip.1.{w}"]


def ends(layout, size):
    """fromRGB, last convolution, first and second linear layer of a discriminator: weight and bias each."""
    if layout == "nvidia":
        names = [f"b{size}.fromrgb", "b4.conv", "b4.fc", "b4.out"]
        return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]
    w, lin = ("conv.weight_orig", "linear.weight_orig") if layout == "mmagic" else ("weight", "weight")
    body = "conv_body" if layout == "basicsr" else "convs"
    return [
        f"{body}.0.0.{w}",
        f"{body}.0.1.bias",
        f"final_conv.0.{w}",
        "final_conv.1.bias",
        f"final_linear.0.{lin}",
        "final_linear.0.bias",
        f"final_linear.1.{lin}",
        "final_linear.1.bias",
    ]


# -------------------------------------------------------------------------------------------------------------- tensors


def randn(*shape, mean=0.0, std=1.0):
    return torch.randn(shape) * std + mean


def generator_tensors(layout, channels, code=16, n_dense=3):
    batch = () if layout == "nvidia" else (1,)
    t = {}
    for n in range(n_dense):
        t |= zip(dense(layout, n), (randn(code, code, std=100), randn(code, std=30)), strict=True)
    t[CONSTANT[layout]] = randn(*batch, channels[0], 4, 4)
    for i in range(2 * len(channels) - 1):
        n_in, n_out = channels[i // 2], channels[(i + 1) // 2]
        values = (
            randn(*batch, n_out, n_in, 3, 3),
            randn(n_in, code),
            randn(n_in, mean=1, std=0.2),
            randn(*batch, std=0.5),
            randn(n_out, std=0.3),
        )
        t |= zip((f"{layer(layout, i)}.{leaf}" for leaf in LAYER[layout]), values, strict=True)
        side = 4 * 2 ** ((i + 1) // 2)
        t[noise_name(layout, i)] = randn(*(() if layout == "nvidia" else (1, 1)), side, side)
        if layout == "nvidia":
            t[f"{layer(layout, i)}.resample_filter"] = KERNEL.clone()
        elif layout != "basicsr" and i % 2:
            t[f"{layer(layout, i)}.conv.blur.kernel"] = KERNEL * 4
    for j, n in enumerate(channels):
        names = [LAYER[layout][0], LAYER[layout][1], LAYER[layout][2], "bias"]
        bias = randn(3) if layout == "nvidia" else randn(1, 3, 1, 1)
        values = (randn(*batch, 3, n, 1, 1), randn(n, code), randn(n, mean=1, std=0.2), bias)
        t |= zip((f"{to_rgb(layout, j)}.{leaf}" for leaf in names), values, strict=True)
        if layout == "nvidia":
            t[f"synthesis.b{4 * 2**j}.resample_filter"] = KERNEL.clone()
        elif layout != "basicsr" and j:
            t[f"{to_rgb(layout, j)}.upsample.kernel"] = KERNEL * 4
    if layout == "nvidia":
        t["mapping.w_avg"] = randn(code)
    return t


def discriminator_tensors(layout, channels):
    size, down = 2 ** (len(channels) + 1), channels[::-1]
    last = down[-1]
    shapes = [(down[0], 3, 1, 1), (last, last + 1, 3, 3), (last, 16 * last), (1, last)]
    values = [value for shape in shapes for value in (randn(*shape), randn(shape[0], std=0.3))]
    t = dict(zip(ends(layout, size), values, strict=True))
    for b, (n_in, n_out) in enumerate(itertools.pairwise(down)):
        shapes = [(n_in, n_in, 3, 3), (n_in,), (n_out, n_in, 3, 3), (n_out,), (n_out, n_in, 1, 1)]
        t |= zip(block(layout, b, size), (randn(*s, std=0.3 if len(s) == 1 else 1) for s in shapes), strict=True)
        if layout == "nvidia":
            p = f"b{size >> b}"
            filters = [f"{p}.", f"{p}.conv0.", f"{p}.conv1.", f"{p}.skip."] + ([] if b else [f"{p}.fromrgb."])
            t |= {f"{name}resample_filter": KERNEL.clone() for name in filters}
        elif layout != "basicsr":
            t |= {f"convs.{b + 1}.{name}.0.kernel": KERNEL.clone() for name in ("conv2", "skip")}
    if layout == "nvidia":
        t["b4.conv.resample_filter"] = KERNEL.clone()
    return t


def conv(name, n_in, n_out, kernel=3):
    return {
        f"{name}.weight": randn(n_out, n_in, kernel, kernel, std=1 / math.sqrt(n_in * kernel**2)),
        f"{name}.bias": randn(n_out, std=0.1),
    }


def trunk_tensors(prefix, n_in, features, growth, n_blocks):
    t = conv(f"{prefix}conv_first", n_in, features) | conv(f"{prefix}conv_body", features, features)
    for b in range(n_blocks):
        for d in (1, 2, 3):
            for k in range(5):
                name = f"{prefix}body.{b}.rdb{d}.conv{k + 1}"
                t |= conv(name, features + k * growth, features if k == 4 else growth)
    return t


def rrdbnet_tensors(scale, features=6, growth=4, n_blocks=2):
    t = trunk_tensors("", {1: 48, 2: 12}.get(scale, 3), features, growth, n_blocks)
    for name in ("conv_up1", "conv_up2", *(("conv_up3",) if scale == 8 else ()), "conv_hr"):
        t |= conv(name, features, features)
    return t | conv("conv_last", features, 3)


def srvgg_tensors(scale, features=6, n_convs=3):
    t = conv("body.0", 3, features)
    for k in range(n_convs + 1):
        t |= {f"body.{2 * k + 1}.weight": randn(features)} | conv(f"body.{2 * k + 2}", features, features if k < n_convs else 3 * scale**2)
    return t


def glean_tensors(in_size, channels, code=16, n_dense=3, features=6, growth=4, n_blocks=2, out_features=5):
    c = dict(zip((4 * 2**k for k in range(len(channels))), channels, strict=True))
    out_size = max(c)
    t = {f"generator.{name}": v for name, v in generator_tensors("mmagic", channels, code, n_dense).items()}
    t |= trunk_tensors("encoder.0.0.", 3, features, growth, n_blocks) | conv("encoder.0.1", features, c[in_size])
    k, size = 1, in_size
    while size > 4:
        t |= conv(f"encoder.{k}.0", c[size], c[size // 2]) | conv(f"encoder.{k}.2", c[size // 2], c[size // 2])
        k, size = k + 1, size // 2
    n = 2 * len(channels) * code
    t |= conv(f"encoder.{k}.0", c[4], c[4])
    t |= {f"encoder.{k}.3.weight": randn(n, 16 * c[4], std=0.1), f"encoder.{k}.3.bias": randn(n)}
    for k in range(int(math.log2(in_size)) - 1):
        t |= conv(f"fusion_out.{k}", 2 * channels[k], channels[k]) | conv(f"fusion_skip.{k}", channels[k] + 3, 3)
    d, size = 0, in_size
    while size < out_size:
        t |= conv(f"decoder.{d}.upsample_conv", c[size] * (2 if d else 1), 4 * c[2 * size])
        d, size = d + 1, 2 * size
    return t | conv(f"decoder.{d}.0", 2 * c[out_size], out_features) | conv(f"decoder.{d}.2", out_features, 3)


# ----------------------------------------------------------------------------------------------------------- arithmetic


def lrelu(x):
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def resample(x, kernel, up=1, down=1, pad=(0, 0)):
    """upfirdn2d: zeros between the samples, zeros around them, the filter, every down-th sample."""
    n, c, h, w = x.shape
    wide = torch.zeros(n, c, h * up, w * up)
    wide[:, :, ::up, ::up] = x
    wide = F.pad(wide, (*pad, *pad))
    y = F.conv2d(wide.reshape(n * c, 1, *wide.shape[2:]), kernel.flip(0, 1)[None, None])
    return y.reshape(n, c, *y.shape[2:])[:, :, ::down, ::down]


def linear(x, weight, bias, lr_mul=1.0):
    return x @ (weight * (lr_mul / math.sqrt(weight.shape[1]))).t() + bias * lr_mul


def modulated(x, code, t, names, demodulate, up=False):
    """Each image convolved with its own weight."""
    weight = t[names[0]]
    weight = weight if weight.ndim == 5 else weight[None]
    weight = weight / math.sqrt(weight[0, 0].numel()) * linear(code, t[names[1]], t[names[2]])[:, None, :, None, None]
    if demodulate:
        weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    results = []
    for one, w in zip(x, weight, strict=True):
        if not up:
            results.append(F.conv2d(one[None], w, padding=w.shape[-1] // 2))
            continue
        c, h, _ = one.shape
        spread = torch.zeros(1, c, 2 * h - 1, 2 * h - 1)
        spread[:, :, ::2, ::2] = one
        results.append(resample(F.conv2d(spread, w.flip(2, 3), padding=2), KERNEL * 4, pad=(1, 1)))
    return torch.cat(results)


def mapping(layout, t, z):
    w = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    n = 0
    while dense(layout, n)[0] in t:
        w = lrelu(linear(w, *(t[name] for name in dense(layout, n)), lr_mul=0.01))
        n += 1
    return w


def styled(layout, t, i, x, code, clamp=math.inf):
    names = [f"{layer(layout, i)}.{leaf}" for leaf in LAYER[layout]]
    y = modulated(x, code, t, names, demodulate=True, up=i % 2 == 1)
    y = y + t[names[3]] * t[noise_name(layout, i)]
    return lrelu(y + t[names[4]][:, None, None]).clamp(-clamp, clamp)


def synthesis(layout, t, latents, clamp=math.inf):
    x = t[CONSTANT[layout]].reshape(1, -1, 4, 4).repeat(len(latents), 1, 1, 1)
    image, i = None, 0
    while f"{layer(layout, i)}.{LAYER[layout][0]}" in t:
        x = styled(layout, t, i, x, latents[:, i], clamp)
        if i % 2 == 0:
            p = to_rgb(layout, i // 2)
            y = modulated(x, latents[:, i + 1], t, [f"{p}.{leaf}" for leaf in LAYER[layout]], demodulate=False)
            y = (y + t[f"{p}.bias"].reshape(1, 3, 1, 1)).clamp(-clamp, clamp)
            image = y if image is None else y + resample(image, KERNEL * 4, up=2, pad=(2, 1))
        i += 1
    return image


def discriminator(layout, t, image, group=4, clamp=math.inf):
    size = image.shape[-1]
    rgb, rgb_bias, last, last_bias, fc, fc_bias, out, out_bias = (t[name] for name in ends(layout, size))

    def eq(x, w, bias=None, **options):
        y = F.conv2d(x, w / math.sqrt(w[0].numel()), **options)
        return y if bias is None else lrelu(y + bias[:, None, None]).clamp(-clamp, clamp)

    x = eq(image, rgb, rgb_bias)
    for b in range(int(math.log2(size)) - 2):
        w1, b1, w2, b2, skip = (t[name] for name in block(layout, b, size))
        y = eq(resample(eq(x, w1, b1, padding=1), KERNEL, pad=(2, 2)), w2, b2, stride=2)
        x = (y + eq(resample(x, KERNEL, pad=(1, 1)), skip, stride=2)) / math.sqrt(2)
    n = len(x)
    g = min(group or n, n)
    extra = torch.zeros(n, 1, 4, 4)
    for member in range(n):
        others = x[member % (n // g) :: n // g]
        extra[member] = (others.var(0, unbiased=False) + 1e-8).sqrt().mean()
    x = eq(torch.cat([x, extra], 1), last, last_bias, padding=1)
    return linear(lrelu(linear(x.flatten(1), fc, fc_bias)), out, out_bias)


def conv3(t, name, x, stride=1):
    return F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], stride, 1)


def plain_lrelu(x):
    return F.leaky_relu(x, 0.2)


def trunk(t, prefix, x):
    first = y = conv3(t, f"{prefix}conv_first", x)
    b = 0
    while f"{prefix}body.{b}.rdb1.conv1.weight" in t:
        start = y
        for d in (1, 2, 3):
            maps = [y]
            for k in range(1, 6):
                z = conv3(t, f"{prefix}body.{b}.rdb{d}.conv{k}", torch.cat(maps, 1))
                maps.append(plain_lrelu(z) if k < 5 else z)
            y = y + 0.2 * maps[-1]
        y = start + 0.2 * y
        b += 1
    return first + conv3(t, f"{prefix}conv_body", y)


def rrdbnet(t, x, scale):
    n, c, h, w = x.shape
    f = max(4 // scale, 1)
    x = x.reshape(n, c, h // f, f, w // f, f).permute(0, 1, 3, 5, 2, 4).reshape(n, c * f * f, h // f, w // f)
    y = trunk(t, "", x)
    for name in ("conv_up1", "conv_up2", *(("conv_up3",) if scale == 8 else ())):
        y = plain_lrelu(conv3(t, name, y.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    return conv3(t, "conv_last", plain_lrelu(conv3(t, "conv_hr", y)))


def srvgg(t, x, scale):
    n, _, h, w = x.shape
    y, last = x, max(int(name.split(".")[1]) for name in t)
    for k in range(0, last, 2):
        y = conv3(t, f"body.{k}", y)
        y = y.clamp(min=0) + t[f"body.{k + 1}.weight"][:, None, None] * y.clamp(max=0)
    y = conv3(t, f"body.{last}", y)
    y = y.reshape(n, 3, scale, scale, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, 3, scale * h, scale * w)
    return y + x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def glean(t, lr, out_size, code=16):
    n, size = len(lr), lr.shape[-1]
    features = [plain_lrelu(conv3(t, "encoder.0.1", trunk(t, "encoder.0.0.", lr)))]
    k = 1
    while features[-1].shape[-1] > 4:
        y = plain_lrelu(conv3(t, f"encoder.{k}.0", features[-1], 2))
        features.append(plain_lrelu(conv3(t, f"encoder.{k}.2", y)))
        k += 1
    y = plain_lrelu(conv3(t, f"encoder.{k}.0", features[-1])).reshape(n, -1)
    latents = (y @ t[f"encoder.{k}.3.weight"].t() + t[f"encoder.{k}.3.bias"]).reshape(n, -1, code)

    bank = {name.removeprefix("generator."): v for name, v in t.items() if name.startswith("generator.")}
    x = styled("mmagic", bank, 0, bank["constant_input.input"].repeat(n, 1, 1, 1), latents[:, 0])
    stored = {}
    for i in range(1, latents.shape[1] - 1, 2):
        if x.shape[-1] <= size:
            fused = int(math.log2(x.shape[-1])) - 2
            x = conv3(t, f"fusion_out.{fused}", torch.cat([x, features[-1 - fused]], 1))
        x = styled("mmagic", bank, i, x, latents[:, i])
        x = styled("mmagic", bank, i + 1, x, latents[:, i + 1])
        stored[x.shape[-1]] = x

    y, d = features[0], 0
    while y.shape[-1] < out_size:
        y = F.pixel_shuffle(conv3(t, f"decoder.{d}.upsample_conv", y), 2)
        y = torch.cat([y, stored[y.shape[-1]]], 1)
        d += 1
    return conv3(t, f"decoder.{d}.2", plain_lrelu(conv3(t, f"decoder.{d}.0", y)))


# ------------------------------------------------------------------------------------------------------ NVIDIA's pickles


class Persistent:
    """Pickles as an object of NVIDIA's torch_utils.persistence does: a function of theirs is to execute source code."""

    def __init__(self, class_name, state):
        self.meta = {"type": "class", "version": 6, "module_src": "raise SystemExit"}
        self.meta |= {"class_name": class_name, "state": state}

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,), None


def persistent(class_name, tensors, attributes):
    """A network of nested modules from its tensors; `attributes` of a module's name are what it has beside them."""
    modules = {"": Persistent(class_name, {})}
    for name in tensors:
        parts = name.split(".")[:-1]
        for k in range(len(parts)):
            modules.setdefault(".".join(parts[: k + 1]), Persistent("Layer", {}))
    for name, module in modules.items():
        state = {"training": False, "_parameters": {}, "_buffers": {}, "_modules": {}, "weight_gain": np.float64(0.5)}
        module.meta["state"].update(state | attributes(name))
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        modules[module].meta["state"]["_parameters"][leaf] = torch.nn.Parameter(tensor)
    for name, module in modules.items():
        parent, _, leaf = name.rpartition(".")
        if name:
            modules[parent].meta["state"]["_modules"][leaf] = module
    return modules[""]


def nvidia_attributes(name, architecture, clamp, **root):
    """What a module of a StyleGAN2 of NVIDIA has beside its tensors, as far as it matters."""
    if name == "":
        return {"c_dim": 0, **root}
    attributes: dict[str, object] = {"activation": "linear" if name.endswith((".affine", ".out", ".skip")) else "lrelu"}
    if re.fullmatch(r"(synthesis\.)?b\d+", name):
        attributes["architecture"] = architecture
    if re.search(r"(conv\d?|fromrgb|torgb)$", name):
        attributes["conv_clamp"] = clamp
    if name.endswith(".skip"):
        attributes["conv_clamp"] = None
    if "fc" in name or "affine" in name:
        attributes["bias_gain"] = 0.01 if "mapping" in name else 1
    return attributes


def nvidia_networks(channels, group=8, clamp=0.7, **root):
    """Tensors of a generator and a discriminator, and what NVIDIA's programs pickle of them."""
    generator = generator_tensors("nvidia", channels)
    discriminator = discriminator_tensors("nvidia", channels)
    pickled = [
        persistent("Generator", generator, lambda name: nvidia_attributes(name, "skip", clamp, **root)),
        persistent("Discriminator", discriminator, lambda name: nvidia_attributes(name, "resnet", clamp, **root)),
    ]
    epilogue = pickled[1].meta["state"]["_modules"]["b4"].meta["state"]["_modules"]
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, "group_size": group, "num_channels": 1}
    epilogue["mbstd"] = Persistent("MinibatchStdLayer", state)
    return generator, discriminator, *pickled


def dump(contents, path, monkeypatch):
    """Pickles with NVIDIA's modules in place, which are gone when the test reads the file."""
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    modules = {name: types.ModuleType(name) for name in names}

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the pickle's own function was called")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    vars(modules["torch_utils.persistence"])["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
    vars(modules["dnnlib.util"])["EasyDict"] = easy
    with monkeypatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        path.write_bytes(pickle.dumps({"training_set_kwargs": easy(resolution=32), **contents}))
