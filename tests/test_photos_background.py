"""The background: bands, tiles and the fast bicubic."""

import threading

import pytest
import torch
from torch import Tensor, nn

from gleansr.checkpoints.native import About
from gleansr.errors import ImageError
from gleansr.images.back_projection import consistency, consistency_db
from gleansr.images.codec import DecodedImage
from gleansr.images.resize import resize
from gleansr.inference.method import ModelOutput, StepReport
from gleansr.inference.runner import FeedForwardModel
from gleansr.inference.upscaler import Upscaler
from gleansr.models.residual import ResidualNet, ResidualNetConfig
from gleansr.photos import Photo, PhotoConfig, run
from gleansr.photos.background import BackgroundModel, bicubic_bands
from gleansr.photos.sampling import enlarge, mirrored_indices, shrink, shrink_stored
from tests.photo_parts import photo, pixels, smooth, upscaler


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_the_fast_bicubic_is_the_exact_one(factor: int):
    planes = torch.rand(4, 13, 29, generator=torch.Generator().manual_seed(0))
    wanted = resize(planes.double(), scale=factor)
    assert torch.allclose(enlarge(planes, factor).double(), wanted, atol=2e-6)
    assert torch.allclose(enlarge(planes, factor, 3, 11).double(), wanted[:, 3 * factor : 11 * factor], atol=2e-6)
    large = torch.rand(3, 6 * factor, 5 * factor, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(shrink(large, factor).double(), resize(large.double(), scale=1 / factor), atol=2e-6)


def test_mirrored_indices_repeat():
    assert mirrored_indices(-4, 8, 3).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]


def test_consistency_equals_that_of_the_exact_bicubic():
    lr = smooth(16, 16, cell=2) * 2 - 1
    sr = resize(lr, scale=8) + 0.1 * torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0))
    value = consistency_db(lr, shrink_stored(sr, 8))
    assert value == pytest.approx(float(consistency(lr[None], sr[None])), abs=0.02)
    stored = (lr * 127.5 + 127.5).round() / 127.5 - 1
    assert consistency_db(stored, shrink_stored(stored, 1)) is None


def test_bands_equal_the_enlarged_photo(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gleansr.photos.background._ROWS", 7)
    planes = torch.rand(4, 30, 20)
    bands = list(bicubic_bands(planes, 3))
    assert [(band.first, band.rows) for band in bands] == [(0, 21), (21, 21), (42, 21), (63, 21), (84, 6)]
    assert torch.allclose(torch.cat([band.compute() for band in bands], 1), enlarge(planes, 3), atol=1e-6)


def network(scale: int = 2, seed: int = 0) -> Upscaler:
    """A residual network with a receptive field of about 17 pixels and random weights."""
    torch.manual_seed(seed)
    model = ResidualNet(ResidualNetConfig(scale=scale, features=6, n_blocks=3))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Upscaler(FeedForwardModel(model, device="cpu"), About("plain"))


def whole(behind: BackgroundModel, planes: Tensor, factor: int) -> Tensor:
    return torch.cat([band.compute() for band in behind.bands(planes, factor)], 1)


@pytest.mark.parametrize(("factor", "scale"), [(2, 2), (3, 2), (1, 2)])
def test_the_result_does_not_depend_on_the_tiles(factor: int, scale: int):
    behind = network(scale)
    planes = smooth(70, 83, cell=2)
    at_once = whole(BackgroundModel(behind, tile=96, overlap=32), planes, factor)
    assert at_once.shape == (3, 70 * factor, 83 * factor)
    made = behind.method((planes * 2 - 1)[None]).images[0].clamp(-1, 1)
    assert torch.allclose(at_once, resize((made + 1) / 2, size=(70 * factor, 83 * factor)), atol=1e-5)
    for tile in (32, 40, 64):
        assert torch.allclose(whole(BackgroundModel(behind, tile=tile, overlap=32), planes, factor), at_once, atol=2e-5)
    assert not torch.allclose(whole(BackgroundModel(behind, tile=32, overlap=8), planes, factor), at_once, atol=2e-5)  # too small


def test_windows_sum_to_one():
    behind = BackgroundModel(network(), tile=40, overlap=16)
    for length in (5, 40, 41, 97, 200):
        total = torch.zeros(length * 3)
        for first, last, window in behind._windows(length, 3):
            total[first * 3 : last * 3] += window
        assert torch.allclose(total, torch.ones(()), atol=1e-6)


def test_a_network_for_the_background():
    image = DecodedImage(photo(50, 60).pixels, smooth(50, 60, channels=1, seed=5, cell=8).clamp(min=0.1))
    behind = network(2)
    task = Photo(upscaler(8, 8), PhotoConfig(((10, 10, 20, 20),), scale=2), background=behind)
    result = pixels(run(task, image).image)
    assert result.shape == (4, 100, 120)
    assert task.options["background"] == {"name": "plain", "scale": 2}
    made = whole(BackgroundModel(behind), image.premultiplied(), 2)
    alpha = enlarge(image.alpha, 2).clamp(0, 1) if image.alpha is not None else made
    wanted = (torch.minimum(made, alpha) / alpha).clamp(0, 1) * 255
    assert float((result[:3] - wanted).abs().max()) <= 1  # a model that adds nothing changes nothing here either


@pytest.mark.parametrize("cores", [1, 2])
def test_the_network_runs_for_one_tile_per_core(cores: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: cores)

    class Watched:
        lock = threading.Lock()
        name, scale, device = "watched", 1, torch.device("cpu")
        in_size: int | None = None
        running = 0
        most = 0

        def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:  # noqa: ARG002
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            threading.Event().wait(0.005)
            with self.lock:
                self.running -= 1
            return ModelOutput(lr)

    method = Watched()
    task = Photo(upscaler(8, 2), PhotoConfig(aligned=True, scale=1), background=Upscaler(method, About("watched")))
    threads = [threading.Thread(target=run, args=(task, photo(40, 40))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert method.most == cores


def test_a_failing_background_network_is_an_error():
    broken = upscaler(None, 2, lambda sr: sr * float("nan"))
    with pytest.raises(ImageError, match="the background network made NaN or infinite values"):
        run(Photo(upscaler(8, 2), PhotoConfig(aligned=True), background=broken), photo(20, 20))
