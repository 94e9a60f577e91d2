"""VGG16 and MobileNetV2 against plain functional code on the same weights, and the reading and fetching of their files."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.checkpoints import torchvision
from gleansr.checkpoints.torchvision import load_mobilenet_v2, load_vgg16
from gleansr.errors import CheckpointError, DownloadError, RequestError
from gleansr.models.features import VGG16, InputRange, MobileNetV2

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
        (lambda w: w.update({"epoch": 3}), "not named tensors"),
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


def test_vgg16_is_fetched_once(served: type[Handler], home: Path, vgg16_weights: dict[str, Tensor]):
    steps = []
    first = load_vgg16(progress=lambda received, total: steps.append((received, total)))
    second = load_vgg16(offline=True)
    assert served.asked == ["/vgg16-random.pth"]
    assert steps[-1] == (len(served.body), len(served.body))
    assert (home / "models" / "vgg16-random.pth").read_bytes() == served.body
    for network in (first, second):
        assert torch.equal(network.get_parameter("features.21.weight"), vgg16_weights["features.21.weight"])


def test_a_fetched_file_of_another_hash_is_refused(served: type[Handler], home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torchvision, "VGG16_SHA256_PREFIX", "397923af")
    with pytest.raises(DownloadError, match="should begin with 397923af"):
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


def test_the_official_file_carries_its_hash_in_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert torchvision.VGG16_URL.endswith(f"/vgg16-{torchvision.VGG16_SHA256_PREFIX}.pth")


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
