"""The feature networks against plain functional code on the same weights, and the reading and fetching of their files."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gleansr.checkpoints import torchvision
from gleansr.checkpoints.bundled import efficientnet
from gleansr.checkpoints.torchvision import load_alexnet, load_mobilenet_v2, load_vgg16, load_vgg16_stages
from gleansr.errors import CheckpointError, DownloadError, RequestError
from gleansr.models.features import VGG16, AlexNet, EfficientNetLite0, InputRange, MobileNetV2

EXAMPLES = Path(__file__).parents[1] / "examples"
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

VGG16_CONVOLUTIONS = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)} | {
    17: (512, 256),
    19: (512, 512),
    21: (512, 512),
}
"""torchvision's numbers of VGG16's convolutions up to conv4_3, with their channels (out, in)."""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, and nothing to fetch from."""
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GLEANSR_OFFLINE", raising=False)
    monkeypatch.setattr(torchvision, "VGG16_URL", "http://127.0.0.1:9/vgg16-none.pth")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def vgg16_weights() -> dict[str, Tensor]:
    """Random weights of VGG16's convolutions up to conv4_3, and one number in place of each tensor behind it."""
    torch.manual_seed(0)
    weights: dict[str, Tensor] = {}
    for i, (n_out, n_in) in VGG16_CONVOLUTIONS.items():
        weights[f"features.{i}.weight"] = torch.randn(n_out, n_in, 3, 3) * (2 / (9 * n_in)) ** 0.5
        weights[f"features.{i}.bias"] = torch.randn(n_out) * 0.1
    for i in (24, 26, 28):
        weights |= {f"features.{i}.weight": torch.zeros(1).expand(512, 512, 3, 3), f"features.{i}.bias": torch.zeros(512)}
    for i, (n_out, n_in) in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
        weights |= {f"classifier.{i}.weight": torch.zeros(1).expand(n_out, n_in), f"classifier.{i}.bias": torch.zeros(n_out)}
    return weights


@pytest.fixture(scope="module")
def vgg16_file(vgg16_weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.pth"
    torch.save(vgg16_weights, path)
    return path


# ------------------------------------------------------------------------------------------------------------------- VGG16


def vgg16_by_hand(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    for i in VGG16_CONVOLUTIONS:
        if i in (5, 10, 17):
            x = F.max_pool2d(x, 2)
        x = F.conv2d(x, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], padding=1)
        if i < 21:
            x = F.relu(x)
    return x


@pytest.mark.parametrize("input_range", ["signed", "unit"])
def test_vgg16_is_conv4_3_before_its_relu(vgg16_file: Path, vgg16_weights: dict[str, Tensor], input_range: InputRange):
    image = torch.rand(2, 3, 32, 40) * 2 - 1
    found = load_vgg16(vgg16_file, input_range=input_range)(image)
    shown = image if input_range == "signed" else image / 2 + 0.5
    wanted = vgg16_by_hand((shown - MEAN) / DEVIATION, vgg16_weights)
    assert found.shape == (2, 512, 4, 5)
    assert float(found.min()) < 0
    assert torch.allclose(found, wanted, atol=1e-4)


def test_vgg16_is_frozen_and_lets_gradients_through(vgg16_file: Path):
    network = load_vgg16(str(vgg16_file))
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in network.parameters())
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image).square().sum(), image)
    assert gradient.abs().sum() > 0


def test_vgg16_needs_nothing_behind_conv4_3_and_takes_old_files_and_half_precision(vgg16_weights: dict[str, Tensor], tmp_path: Path):
    ours = {f"features.{i}.{leaf}" for i in VGG16_CONVOLUTIONS for leaf in ("weight", "bias")}
    half = {name: tensor.half() for name, tensor in vgg16_weights.items() if name in ours}
    torch.save(half, tmp_path / "half.pth", _use_new_zipfile_serialization=False)  # as old as the official file
    tensors = load_vgg16(tmp_path / "half.pth").state_dict()
    assert set(tensors) == ours
    assert all(torch.equal(t, vgg16_weights[name].half().float()) for name, t in tensors.items())


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda w: w.pop("features.21.weight"), r"missing features\.21\.weight"),
        (lambda w: w.update({"features.22.weight": torch.zeros(2)}), r"unexpected features\.22\.weight"),
        (lambda w: w.update({"features.0.bias": torch.zeros(65)}), r"features\.0\.bias is \[65\], not \[64\]"),
        (lambda w: w.update({"epoch": 3}), "not a state dict"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, spoil, problem: str):
    weights = {name: torch.zeros(1).expand(t.shape) for name, t in VGG16().state_dict().items()}
    spoil(weights)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=rf"other\.pth.*{problem}"):
        load_vgg16(tmp_path / "other.pth")


def test_a_missing_or_broken_file_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"none\.pth: cannot be read: No such file"):
        load_vgg16(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        load_vgg16(tmp_path / "text.pth")


# ------------------------------------------------------------------------------------------------------------------- VGG19


def test_vgg19_is_conv5_4_before_its_relu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    widths = {0: 64, 2: 64, 5: 128, 7: 128} | dict.fromkeys((10, 12, 14, 16), 256) | dict.fromkeys((19, 21, 23, 25, 28, 30, 32, 34), 512)
    image = torch.rand(1, 3, 16, 32) * 2 - 1
    weights: dict[str, Tensor] = {}
    x, n_in = (image / 2 + 0.5 - MEAN) / DEVIATION, 3
    for i, width in widths.items():  # torchvision's numbers of the convolutions, with their channels
        kernel, bias = torch.randn(width, n_in, 3, 3) * (2 / (9 * n_in)) ** 0.5, torch.randn(width) * 0.1
        weights |= {f"features.{i}.weight": kernel, f"features.{i}.bias": bias}
        x = F.conv2d(F.max_pool2d(x, 2) if i in (5, 10, 19, 28) else x, kernel, bias, padding=1)
        x, n_in = x if i == 34 else F.relu(x), width
    for i in (0, 3, 6):
        weights |= {f"classifier.{i}.weight": torch.zeros(1).expand(1000, 4096), f"classifier.{i}.bias": torch.zeros(1000)}
    torch.save(weights, tmp_path / "vgg19.pth")
    network = torchvision.load_vgg19(tmp_path / "vgg19.pth")
    found = network(image)
    assert found.shape == (1, 512, 1, 2)
    assert torch.allclose(found, x, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in network.parameters())
    monkeypatch.setenv("GLEANSR_OFFLINE", "1")
    with pytest.raises(RequestError, match=r"VGG19 is not on this machine .*download .*/vgg19-dcbb9e9d\.pth manually"):
        torchvision.load_vgg19()


# ------------------------------------------------------------------------------------------------------------------- fetching


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file."""

    body: bytes
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(vgg16_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Handler]]:
    """A server on this machine in place of torchvision's, with the file of random weights in place of its own."""
    monkeypatch.setenv("no_proxy", "*")
    handler = type("OneFile", (Handler,), {"body": vgg16_file.read_bytes(), "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(torchvision, "VGG16_URL", f"http://127.0.0.1:{server.server_port}/vgg16-random.pth")
        monkeypatch.setattr(torchvision, "VGG16_SHA256_PREFIX", hashlib.sha256(handler.body).hexdigest()[:8])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


def test_vgg16_is_fetched_once(served: type[Handler], home: Path, vgg16_weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch):
    steps = []
    first = load_vgg16(torchvision.vgg16_file(progress=lambda received, total: steps.append((received, total))))
    monkeypatch.setenv("GLEANSR_OFFLINE", "1")
    second = load_vgg16()
    assert served.asked == ["/vgg16-random.pth"]
    assert steps[-1] == (len(served.body), len(served.body))
    assert (home / "models" / "vgg16-random.pth").read_bytes() == served.body
    for network in (first, second):
        assert torch.equal(network.get_parameter("features.21.weight"), vgg16_weights["features.21.weight"])


def test_a_fetched_file_of_another_hash_is_refused(served: type[Handler], home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torchvision, "VGG16_SHA256_PREFIX", "397923af")
    with pytest.raises(DownloadError, match="expected 397923af"):
        load_vgg16()
    assert not (home / "models" / "vgg16-random.pth").exists()


def test_without_a_network_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch):
    def fail(*_, **__):
        raise DownloadError("cannot download it")

    monkeypatch.setattr(torchvision, "download", fail)
    way_out = r'choose perceptual = "squeezenet", which needs no download, or give the file'
    with pytest.raises(DownloadError, match=f"cannot download it; {way_out}"):
        load_vgg16()
    monkeypatch.setattr(torchvision, "download", lambda *_, **__: pytest.fail("a download was tried"))
    monkeypatch.setenv("GLEANSR_OFFLINE", "1")
    with pytest.raises(RequestError, match=f"switched off: {way_out}"):
        load_vgg16()


def test_the_official_files_carry_their_hashes_in_their_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    for network in ("vgg16", "vgg19", "alexnet-owt", "mobilenet_v2"):
        constants = network.removesuffix("-owt").upper()
        url, prefix = (getattr(torchvision, f"{constants}_{what}") for what in ("URL", "SHA256_PREFIX"))
        assert url.endswith(f"/{network}-{prefix}.pth")


@pytest.mark.parametrize("network", ["alexnet", "mobilenet_v2"])
def test_other_networks_are_fetched_once(served: type[Handler], home: Path, monkeypatch: pytest.MonkeyPatch, network: str):
    fetch = getattr(torchvision, f"{network}_file")
    for what in ("URL", "SHA256_PREFIX"):
        monkeypatch.setattr(torchvision, f"{network.upper()}_{what}", getattr(torchvision, f"VGG16_{what}"))
    monkeypatch.setenv("GLEANSR_OFFLINE", "1")
    with pytest.raises(RequestError, match=r"switched off: use another, or download http.* manually and save it as .*vgg16-random\.pth"):
        fetch(instead="use another")
    monkeypatch.delenv("GLEANSR_OFFLINE")
    assert fetch(instead="use another") == home / "models" / "vgg16-random.pth"
    monkeypatch.setenv("GLEANSR_OFFLINE", "1")
    assert fetch(instead="use another") == home / "models" / "vgg16-random.pth"
    assert served.asked == ["/vgg16-random.pth"]


# --------------------------------------------------------------------------------------------------------- what LPIPS looks at


def test_vgg16_stages_are_the_outputs_before_poolings_and_the_last(vgg16_weights: dict[str, Tensor], tmp_path: Path):
    torch.manual_seed(1)
    last = {f"features.{i}.weight": torch.randn(512, 512, 3, 3) * (2 / 4608) ** 0.5 for i in (24, 26, 28)}
    torch.save(vgg16_weights | last, tmp_path / "vgg16.pth")
    network = load_vgg16_stages(tmp_path / "vgg16.pth")
    assert not any(p.requires_grad for p in network.parameters())
    image = torch.rand(2, 3, 33, 40) * 2 - 1
    x, wanted = (image / 2 + 0.5 - MEAN) / DEVIATION, []
    for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        x = F.max_pool2d(x, 2) if wanted else x
        for i in stage:
            weights = vgg16_weights | last
            x = F.relu(F.conv2d(x, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], padding=1))
        wanted.append(x)
    found = network(image)
    assert [tuple(f.shape[1:]) for f in found] == [(64, 33, 40), (128, 16, 20), (256, 8, 10), (512, 4, 5), (512, 2, 2)]
    for f, w in zip(found, wanted, strict=True):
        assert torch.allclose(f, w, rtol=1e-4, atol=1e-4)
    assert network(image[:, :, :16, :16])[-1].shape == (2, 512, 1, 1)


def test_alexnet_agrees_with_plain_code(tmp_path: Path):
    torch.manual_seed(0)
    geometry = {0: (64, 3, 11, 4, 2), 3: (192, 64, 5, 1, 2), 6: (384, 192, 3, 1, 1), 8: (256, 384, 3, 1, 1), 10: (256, 256, 3, 1, 1)}
    weights: dict[str, Tensor] = {}
    for i, (n_out, n_in, kernel, _, _) in geometry.items():
        weights[f"features.{i}.weight"] = torch.randn(n_out, n_in, kernel, kernel) * (2 / (n_in * kernel**2)) ** 0.5
        weights[f"features.{i}.bias"] = torch.randn(n_out) * 0.1
    assert sum(p.numel() for p in AlexNet().parameters()) == sum(t.numel() for t in weights.values()) == 2_469_696  # as published
    classifier = {f"classifier.{i}.{leaf}": torch.zeros(1) for i in (1, 4, 6) for leaf in ("weight", "bias")}
    torch.save(weights | classifier, tmp_path / "alexnet.pth")
    network = load_alexnet(tmp_path / "alexnet.pth")
    image = torch.rand(2, 3, 63, 79) * 2 - 1
    x, wanted = (image / 2 + 0.5 - MEAN) / DEVIATION, []
    for i, (_, _, _, stride, padding) in geometry.items():
        x = F.max_pool2d(x, 3, 2) if i in (3, 6) else x
        x = F.relu(F.conv2d(x, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], stride, padding))
        wanted.append(x)
    found = network(image)
    assert [tuple(f.shape[1:]) for f in found] == [(64, 15, 19), (192, 7, 9), (384, 3, 4), (256, 3, 4), (256, 3, 4)]
    for f, w in zip(found, wanted, strict=True):
        assert torch.allclose(f, w, rtol=1e-4, atol=1e-4)
    assert network(image[:, :, :31, :31])[-1].shape == (2, 256, 1, 1)


# ------------------------------------------------------------------------------------------------------------- MobileNetV2


def mobilenet_v2_by_hand(x: Tensor, weights: dict[str, Tensor]) -> tuple[dict[int, Tensor], Tensor]:
    """The outputs of all layers by torchvision's numbers, and the pooled last one."""

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            weights[f"{name}.{leaf}"].view(-1, 1, 1) for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def activated(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.0.weight"]
        groups = len(kernel) if kernel.shape[1] == 1 else 1
        return normalised(F.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2, groups=groups), f"{name}.1").clamp(0, 6)

    outputs = {0: activated(x, "features.0", 2)}
    for i in range(1, 18):
        x = outputs[i - 1]
        stride = 2 if i in (2, 4, 7, 14) else 1
        if i == 1:  # not widened
            y, last = activated(x, "features.1.conv.0"), 1
        else:
            y, last = activated(activated(x, f"features.{i}.conv.0"), f"features.{i}.conv.1", stride), 2
        y = normalised(F.conv2d(y, weights[f"features.{i}.conv.{last}.weight"]), f"features.{i}.conv.{last + 1}")
        outputs[i] = x + y if x.shape == y.shape else y
    outputs[18] = activated(outputs[17], "features.18")
    return outputs, outputs[18].flatten(2).mean(2)


def test_mobilenet_v2_agrees_with_plain_code(tmp_path: Path):
    torch.manual_seed(0)
    template = MobileNetV2()
    assert sum(p.numel() for p in template.parameters()) == 3_504_872 - 1_281_000  # as published, without the classifier
    weights = {}
    for name, tensor in template.state_dict().items():
        scale = 2 / (tensor[0].numel() ** 0.5) if tensor.ndim == 4 else 1
        # Variances and scales of the normalisation are about 1.
        weights[name] = tensor if not tensor.is_floating_point() else torch.randn_like(tensor) * scale
        if tensor.ndim == 1 and name.endswith(("running_var", "weight")):
            weights[name] = torch.rand_like(tensor) + 0.5
    torch.save(weights | {"classifier.1.weight": torch.zeros(1000, 1280), "classifier.1.bias": torch.zeros(1000)}, tmp_path / "m.pth")
    # In float64, because 50 layers of random weights multiply the smallest difference.
    network = load_mobilenet_v2(tmp_path / "m.pth").double()
    image = torch.rand(2, 3, 64, 96, dtype=torch.float64) * 2 - 1
    features, pooled = network(image)
    weights = {name: tensor.double() for name, tensor in weights.items()}
    outputs, wanted_pooled = mobilenet_v2_by_hand((image / 2 + 0.5 - MEAN.double()) / DEVIATION.double(), weights)
    assert [tuple(f.shape[1:]) for f in features] == [(16, 32, 48), (24, 16, 24), (32, 8, 12), (96, 4, 6), (320, 2, 3)]
    for found, i in zip(features, (1, 3, 6, 13, 17), strict=True):
        assert torch.allclose(found, outputs[i], rtol=1e-9, atol=1e-9), i
    assert pooled.shape == (2, 1280)
    assert torch.allclose(pooled, wanted_pooled, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------- EfficientNet-Lite0


def test_efficientnet_agrees_with_plain_code_at_even_and_odd_sides():
    torch.manual_seed(0)
    network = EfficientNetLite0().double().requires_grad_(False)
    weights = network.state_dict()
    # As published, without the last convolution and the classifier; batch normalisation has two numbers for each bias here.
    counts = [tensor.numel() * (2 if name.endswith("bias") else 1) for name, tensor in weights.items()]
    assert sum(counts) == 4_652_008 - (320 + 2) * 1280 - 1_281_000

    def convolved(x: Tensor, name: str) -> Tensor:
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        stride = 2 if name == "stem" or name in {f"blocks.{i}.depthwise" for i in (1, 3, 5, 11)} else 1
        side = kernel.shape[2]
        # TensorFlow's "same": as many zeros as the last position needs, the odd one below and right.
        needed = [max((-(-n // stride) - 1) * stride + side - n, 0) for n in (x.shape[3], x.shape[2])]
        x = F.pad(x, [side for n in needed for side in (n // 2, n - n // 2)])
        return F.conv2d(x, kernel, bias, stride, groups=len(kernel) if kernel.shape[1] == 1 else 1)

    for height, width in ((64, 96), (63, 41)):
        image = torch.rand(2, 3, height, width, dtype=torch.float64) * 2 - 1
        x = convolved(((image + 1) * 127.5 - 127) / 128, "stem").clamp(0, 6)
        outputs = []
        for i in range(16):
            y = x if i == 0 else convolved(x, f"blocks.{i}.expand").clamp(0, 6)
            y = convolved(convolved(y, f"blocks.{i}.depthwise").clamp(0, 6), f"blocks.{i}.project")
            x = x + y if x.shape == y.shape else y
            outputs.append(x)
        found = network(image)
        assert [f.shape[1] for f in found] == [16, 24, 40, 112, 320]
        assert [f.shape[2] for f in found] == [-(-height // 2**n) for n in (1, 2, 3, 4, 5)]
        for f, i in zip(found, (0, 2, 4, 10, 15), strict=True):
            assert torch.allclose(f, outputs[i], rtol=1e-9, atol=1e-12), i


def test_the_bundled_efficientnet_is_the_published_one():
    image = torch.from_numpy(np.array(Image.open(EXAMPLES / "chelsea-256.png").convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
    network = efficientnet()
    assert not any(parameter.requires_grad for parameter in network.parameters())
    found = [float(feature.abs().mean()) for feature in network(image)]
    # Of the published weights in float32 with batch normalisation, of which the classifier says "Egyptian cat, tiger cat, tabby".
    assert found == pytest.approx([4.39375, 6.55866, 5.40736, 5.10211, 2.81144], rel=5e-3)
