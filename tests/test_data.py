"""Training images: order, fitting, what is left out, workers, pairs, the blind degradation."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gleansr.data.degradation import degrade_blind
from gleansr.data.sources import open_source
from gleansr.errors import ImageError, RequestError
from gleansr.images.resize import degrade, resize
from gleansr.training.batches import Share, TrainingBatches, batch_order
from gleansr.training.config import DataConfig
from gleansr.training.data import TrainingImages, fit_image, open_images

CPU = torch.device("cpu")


def save(path: Path, width: int, height: int, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of 16x16."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        save(folder / f"{i}.png", 16, 16, i)
    return folder


def batches(folder: Path, config: DataConfig | None = None, **changes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    config = config or DataConfig(train=(str(folder),))
    values = {"in_size": 4, "start": 0, "end": 40, "batch_size": 4, "seed": 3, "device": CPU}
    return list(TrainingBatches(open_images(config, 16, 4), **(values | changes)))


def test_order_shuffles_each_epoch_and_depends_on_the_position_alone():
    whole = batch_order(5, range(15), seed=3)
    for epoch in whole.view(3, 5):
        assert sorted(epoch.tolist()) == [0, 1, 2, 3, 4]
    assert len({tuple(epoch.tolist()) for epoch in whole.view(3, 5)}) > 1
    assert torch.equal(torch.cat([batch_order(5, range(start, start + 3), seed=3) for start in range(0, 15, 3)]), whole)
    assert not torch.equal(batch_order(5, range(15), seed=4), whole)


def test_images_are_cut_and_resized(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 20, 3), np.uint8)
            with archive.open(f"{i}.png", "w") as file:
                Image.fromarray(pixels).save(file, "PNG")
        archive.writestr("readme.txt", "no image")
    loaded = TrainingImages([str(tmp_path / "images.zip")], 16, DataConfig()).load(0)
    assert loaded.shape == (3, 3, 16, 16)
    assert loaded.dtype == torch.uint8
    original = np.random.default_rng(0).integers(0, 255, (16, 20, 3), np.uint8)
    assert torch.equal(loaded[0], torch.from_numpy(original[:, 2:18]).permute(2, 0, 1))
    assert TrainingImages([str(tmp_path / "images.zip")], 8, DataConfig(), limit=2).load(0).shape == (2, 3, 8, 8)
    with pytest.raises(RequestError, match="no such file or folder"):
        TrainingImages([str(tmp_path / "none")], 8, DataConfig()).load(0)
    with pytest.raises(RequestError, match="no source of images"):
        TrainingImages([], 8, DataConfig()).load(0)


def test_ways_to_fit():
    tall = torch.randint(256, (3, 40, 24), generator=torch.Generator().manual_seed(0)).double() / 255
    expected = (resize(tall, size=16).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(fit_image(tall, 16, DataConfig(aspect="squash")), expected)
    cars = fit_image(torch.ones(3, 48, 96), 32, DataConfig(aspect="bars", border="black"))
    assert torch.equal(cars[:, 4:28], torch.full((3, 24, 32), 255, dtype=torch.uint8))
    assert int(cars[:, :4].sum()) + int(cars[:, 28:].sum()) == 0
    barred = cars.float() / 255
    assert torch.equal(fit_image(barred, 32, DataConfig(aspect="bars", border="black")), cars)
    with pytest.raises(ImageError, match=r"24x40, not 16x16; --option data\.other_size"):
        fit_image(tall, 16, DataConfig(other_size="refuse"))
    with pytest.raises(ImageError, match=r"24x40 is too small for 32x32; --option data\.small"):
        fit_image(tall, 32, DataConfig())
    assert fit_image(tall, 32, DataConfig(small="enlarge")).shape == (3, 32, 32)


def test_what_is_left_out_is_named_and_replaced(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "3.png").write_text("text")
    save(folder / "4.png", 5, 5)
    source = (str(folder),)
    with pytest.raises(ImageError, match=r"3\.png.*data\.corrupt=skip"):
        open_images(DataConfig(train=source, small="skip"), 16)
    with pytest.raises(ImageError, match=r"4\.png.*5x5 is too small"):
        open_images(DataConfig(train=source, corrupt="skip"), 16)
    config = DataConfig(train=source, corrupt="skip", small="skip", workers=0)
    held = batches(folder, config)
    assert "skipped 2 images" in caplog.text
    assert "3.png" in caplog.text
    assert "4.png: 5x5" in caplog.text
    streamed = batches(folder, dataclasses.replace(config, memory=0))
    assert all(torch.equal(a, b) for x, y in zip(held, streamed, strict=True) for a, b in zip(x, y, strict=True))
    for path in folder.iterdir():
        path.write_text("text")
    with pytest.raises(ImageError, match="10 images in a row were skipped"):
        open_images(config, 16)


def test_workers_memory_and_processes_give_the_same_batches(folder: Path):
    held = batches(folder)
    streamed = batches(folder, DataConfig(train=(str(folder),), memory=0, workers=2))
    assert len(held) == 10
    for (gt, lr), (truth2, low2) in zip(held, streamed, strict=True):
        assert torch.equal(gt, truth2)
        assert torch.equal(lr, low2)
        assert lr.shape == (4, 3, 4, 4)
    later = batches(folder, start=12)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(held[3:], later, strict=True))
    shares = [batches(folder, share=Share(rank, 2)) for rank in range(2)]
    for whole, even, odd in zip(held, *shares, strict=True):
        for i in range(2):
            assert torch.equal(whole[i][0::2], even[i])
            assert torch.equal(whole[i][1::2], odd[i])


def test_half_are_mirrored_and_lr_images_with_them(folder: Path):
    mirrored = batches(folder, end=400, batch_size=400)[0]
    plain = batches(folder, DataConfig(train=(str(folder),), flip=False), end=400, batch_size=400)[0]
    count = 0
    for gt, lr, truth0, low0 in zip(*mirrored, *plain, strict=True):
        flipped = not torch.equal(gt, truth0)
        count += flipped
        assert torch.equal(gt, truth0.flip(2) if flipped else truth0)
        assert torch.equal(lr, low0.flip(2) if flipped else low0)
    assert 150 < count < 250
    assert float(plain[0].min()) >= -1
    assert float(plain[0].max()) <= 1


def test_turned_images_take_all_eight_ways_and_lr_images_with_them(folder: Path):
    turned = batches(folder, DataConfig(train=(str(folder),), rotate=True), end=400, batch_size=400)[0]
    plain = batches(folder, DataConfig(train=(str(folder),), flip=False), end=400, batch_size=400)[0]
    counts = [0] * 8
    for gt, lr, truth0, low0 in zip(*turned, *plain, strict=True):
        ways = [(p.flip(2) if k >= 4 else p).rot90(k, (1, 2)) for k in range(8) for p in (truth0,)]
        (way,) = [k for k, other in enumerate(ways) if torch.equal(gt, other)]
        assert torch.equal(lr, (low0.flip(2) if way >= 4 else low0).rot90(way, (1, 2)))
        counts[way] += 1
    assert min(counts) > 25


def test_patches_are_cut_on_the_grid_of_the_lr_images(folder: Path):
    cut = batches(folder, DataConfig(train=(str(folder),), patch=8), end=400, batch_size=400)[0]
    whole = batches(folder, end=400, batch_size=400)[0]
    assert (cut[0].shape, cut[1].shape) == ((400, 3, 8, 8), (400, 3, 2, 2))
    seen: set[tuple[int, int]] = set()
    for gt, lr, truth0, low0 in zip(*cut, *whole, strict=True):
        corners = [(y, x) for y in range(3) for x in range(3) if torch.equal(gt, truth0[:, 4 * y : 4 * y + 8, 4 * x : 4 * x + 8])]
        ((y, x),) = corners
        assert torch.equal(lr, low0[:, y : y + 2, x : x + 2])
        seen.add((y, x))
    assert len(seen) == 9


def test_turns_and_patches_follow_from_the_position_alone(folder: Path):
    config = DataConfig(train=(str(folder),), patch=8, rotate=True)
    whole, later = batches(folder, config), batches(folder, config, start=20)
    shares = [batches(folder, config, share=Share(rank, 2)) for rank in range(2)]
    for i in range(2):
        assert all(torch.equal(batch[i], other[i]) for batch, other in zip(whole[5:], later, strict=True))
        for batch, even, odd in zip(whole, *shares, strict=True):
            assert torch.equal(batch[i][0::2], even[i])
            assert torch.equal(batch[i][1::2], odd[i])


def test_prepared_pairs_equal_those_made_on_the_fly(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lr = tmp_path / "low"
    lr.mkdir()
    for i in range(10):
        gt = torch.from_numpy(np.array(Image.open(folder / f"{i}.png"))).permute(2, 0, 1)[None].float() / 127.5 - 1
        pixels = (degrade(gt, 4)[0] * 127.5 + 127.5).round().to(torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(lr / f"{i}.png")
    prepared = batches(folder, DataConfig(train=(str(folder),), train_low=(str(lr),)))
    assert all(torch.equal(a, b) for x, y in zip(batches(folder), prepared, strict=True) for a, b in zip(x, y, strict=True))
    opened: list[str] = []
    monkeypatch.setattr("gleansr.training.data.open_source", lambda spec: opened.append(spec) or open_source(spec))
    open_images(DataConfig(train=(str(folder),), train_low=(str(lr),)), 16, 4)
    assert opened == [str(folder), str(lr)]  # each is listed once
    save(lr / "0.png", 5, 5)
    with pytest.raises(ImageError, match=r"0\.png: is 5x5, but low-resolution images must be 4x4"):
        batches(folder, DataConfig(train=(str(folder),), train_low=(str(lr),)))
    (lr / "0.png").unlink()
    with pytest.raises(RequestError, match="have no partner"):
        batches(folder, DataConfig(train=(str(folder),), train_low=(str(lr),)))


def test_blind_degradation_depends_on_its_generator_and_keeps_brightness(folder: Path):
    gt = torch.full((3, 64, 64), 120, dtype=torch.uint8)
    means = [degrade_blind(gt, 8, torch.Generator().manual_seed(seed)).float().mean() for seed in range(20)]
    assert all(abs(float(mean) - 120) < 12 for mean in means)
    one, again = (degrade_blind(gt, 8, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, degrade_blind(gt, 8, torch.Generator().manual_seed(8)))
    config = DataConfig(train=(str(folder),), degradation="blind", workers=2)
    whole, later = batches(folder, config), batches(folder, config, start=12)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(whole[3:], later, strict=True))
    plain = batches(folder)
    assert torch.equal(whole[0][0], plain[0][0])
    assert not torch.equal(whole[0][1], plain[0][1])
