"""Resuming: only from intact checkpoints, with the same recipe and the same inputs, wherever these lie."""

import errno
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from made_images import smooth_images
from torch import Tensor

from gleansr.checkpoints import native
from gleansr.errors import CheckpointError, GleansrError
from gleansr.models.stylegan2 import StyleGAN2Config
from gleansr.training.bank import train_bank
from gleansr.training.checkpoint import Checkpoints
from gleansr.training.config import AboutConfig, BankRecipe, DataConfig, NetworkRecipe, PlainNetworkConfig, RunConfig
from gleansr.training.devices import launch
from gleansr.training.enlarge import train_network
from gleansr.training.log import Log
from gleansr.training.parts import describe_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return smooth_images(tmp_path_factory.mktemp("data") / "images.zip", (5, 4), (16, 16))


def run_config(iterations: int, **changes: Any) -> RunConfig:
    return RunConfig(**({"iterations": iterations, "batch_size": 2, "checkpoint_every": 2, "tensorboard": False, "keep": 3} | changes))


def bank(images: str, folder: Path, iterations: int, resume: str = "auto", run: dict[str, Any] | None = None, **changes: Any) -> Path:
    network = StyleGAN2Config((4, 4, 4), code_dim=4, mapping_layers=1)
    recipe = BankRecipe(AboutConfig("b"), network, run_config(iterations, **run or {}), data=DataConfig(train=(images,)), **changes)
    return train_bank(recipe, folder, CPU, resume=resume)


def plain_recipe(images: str, iterations: int, **changes: Any) -> NetworkRecipe:
    network = PlainNetworkConfig(in_size=4, out_size=16, features=4, n_blocks=1)
    values = {"adversarial_weight": 0.0, "perceptual_weight": 0.0, "data": DataConfig(train=(images,))}
    return NetworkRecipe(AboutConfig("p"), network, run_config(iterations), **(values | changes))


def plain(images: str, folder: Path, iterations: int, resume: str = "auto", **changes: Any) -> Path:
    return train_network(plain_recipe(images, iterations, **changes), folder, launch("cpu", 1), resume=resume)


def tensors(path: Path) -> dict[str, Tensor]:
    return {f"{part}.{n}": t for part, network in native.read(path).networks.items() for n, t in network.tensors.items()}


def assert_same(one: Path, other: Path) -> None:
    expected = tensors(other)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(one).items())


def first_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of facts in a log, one for each start."""
    return [line for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "device" in line]


def flip(path: Path, position: int | None = None) -> None:
    """Flips a bit, by default one in the middle of the largest tensor."""
    contents = bytearray(path.read_bytes())
    if position is None:
        with zipfile.ZipFile(path) as archive:
            tensor = archive.read(max(archive.infolist(), key=lambda record: record.file_size))
        position = contents.index(tensor) + len(tensor) // 2
    contents[position] ^= 1 << position % 8
    path.write_bytes(contents)


# ------------------------------------------------------------------------------------------------------------ damaged checkpoints


def state(images: int) -> dict[str, Any]:
    return {"images": images, "recipe": {"lr": 1.0}, "weights": torch.arange(64.0) + images, "more": torch.full((5,), images)}


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(tmp_path: Path):
    Checkpoints(tmp_path, keep=2).save(state(4))
    Checkpoints(tmp_path, keep=2).save(state(8))
    newest = tmp_path / "000000008.pt"
    whole = newest.read_bytes()
    noticed = 0
    for position in range(0, len(whole), 7):
        flip(newest, position)
        checkpoints = Checkpoints(tmp_path, keep=2)
        loaded = checkpoints.load({"lr": 1.0}, CPU)
        assert loaded is not None
        expected = state(4 if checkpoints.skipped else 8)
        assert loaded.keys() == expected.keys()
        assert loaded["images"] == expected["images"]
        assert loaded["recipe"] == expected["recipe"]
        assert all(torch.equal(loaded[name], expected[name]) for name in ("weights", "more"))
        noticed += bool(checkpoints.skipped)
        newest.write_bytes(whole)
    assert noticed > len(whole) / 7 / 4  # the rest is padding and dates


def test_a_state_with_a_flipped_byte_gives_way_to_the_one_before(images: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    whole = bank(images, tmp_path / "whole", 3)
    bank(images, tmp_path / "run", 2)
    newest = tmp_path / "run" / "states" / "000000004.pt"
    flip(newest)
    path = bank(images, tmp_path / "run", 3)
    assert "000000004.pt: the checkpoint cannot be read (it is damaged: the checksum of" in caplog.text
    assert "; the run resumes at image 2" in caplog.text
    facts_ = first_lines(tmp_path / "run")[-1]
    assert facts_["resumed"] == 2
    assert len(facts_["skipped"]) == 1
    assert str(newest) in facts_["skipped"][0]
    assert_same(path, whole)


def test_a_damaged_state_that_was_asked_for_is_an_error(images: str, tmp_path: Path):
    bank(images, tmp_path, 2)
    best = tmp_path / "states" / "best.pt"
    shutil.copy(tmp_path / "states" / "000000002.pt", best)
    flip(best)
    with pytest.raises(CheckpointError, match=r"best\.pt: the checkpoint cannot be read \(it is damaged"):
        bank(images, tmp_path, 3, resume=str(best))
    with pytest.raises(CheckpointError, match=r"none\.pt: the checkpoint cannot be read \(No such file"):
        bank(images, tmp_path, 3, resume=str(tmp_path / "none.pt"))
    torch.save({"folder": tmp_path}, best)
    with pytest.raises(CheckpointError, match=r"best\.pt: .* cannot be read \(it holds more than tensors and plain data\)$"):
        bank(images, tmp_path, 3, resume=str(best))
    torch.save({"weights": torch.zeros(2)}, best)
    with pytest.raises(CheckpointError, match=r"best\.pt: is not a checkpoint of this kind of run"):
        bank(images, tmp_path, 3, resume=str(best))
    plain(images, tmp_path / "plain", 1)
    with pytest.raises(CheckpointError, match="is not a checkpoint of this kind of run"):
        bank(images, tmp_path, 3, resume=str(tmp_path / "plain" / "states" / "000000002.pt"))


# --------------------------------------------------------------------------------------------------------- recipes and inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"batch_size": 4}}, r"run\.batch_size was 2 and is 4"),
        ({"run": {"precision": "bfloat16"}}, r'run\.precision was "float32" and is "bfloat16"'),
        ({"run": {"seed": 5}}, r"run\.seed was 0 and is 5"),
        ({"r1_every": 3}, r"r1_every was 16 and is 3"),
        ({"path_length_every": 3, "lr": 0.5}, r"lr was 0\.0025 and is 0\.5, path_length_every was 4 and is 3"),
    ],
)
def test_what_changes_the_course_is_refused_with_both_values(images: str, tmp_path: Path, changes: dict[str, Any], message: str):
    bank(images, tmp_path, 1)
    with pytest.raises(CheckpointError, match=f"another recipe: {message}; .*restore the old values, or choose another --output"):
        bank(images, tmp_path, 2, **changes)


def test_what_does_not_change_the_course_is_logged(images: str, tmp_path: Path):
    whole = bank(images, tmp_path / "whole", 2)
    bank(images, tmp_path / "run", 1)
    path = bank(images, tmp_path / "run", 2, run={"log_every": 3, "checkpoint_every": 7})
    changed = {"run.iterations": [1, 2], "run.log_every": [1000, 3], "run.checkpoint_every": [2, 7]}
    assert first_lines(tmp_path / "run")[-1]["changed"] == changed
    assert_same(path, whole)


def test_a_longer_run_with_a_cosine_schedule_warns(images: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    plain(images, tmp_path, 1)
    plain(images, tmp_path, 2)
    assert "run.iterations was 1 and is 2: the learning rate now falls to 0 there" in caplog.text


def test_a_run_resumes_when_its_files_have_moved(images: str, tmp_path: Path):
    teacher = plain(images, tmp_path / "teacher", 1)
    start = plain(images, tmp_path / "start", 2)
    data = str(shutil.copy(images, tmp_path / "here.zip"))
    whole = plain(images, tmp_path / "whole", 3, teacher=str(teacher), start=str(start))
    plain(data, tmp_path / "run", 1, teacher=str(teacher), start=str(start))  # a cosine over one step begins like any other
    start.unlink()
    moved = shutil.move(teacher, tmp_path / "moved.safetensors")
    data = str(shutil.move(data, tmp_path / "there.zip"))
    path = plain(data, tmp_path / "run", 3, teacher=str(moved), start=str(start))
    assert_same(path, whole)
    other = plain(images, tmp_path / "other", 2)
    with pytest.raises(CheckpointError, match=r"teacher, .*p\.safetensors, is another file than before \(SHA-256 "):
        plain(images, tmp_path / "run", 3, teacher=str(other))
    with pytest.raises(CheckpointError, match=r"another recipe: teacher was "):
        plain(images, tmp_path / "run", 3)


def test_other_images_are_refused(images: str, tmp_path: Path):
    bank(images, tmp_path / "run", 1)
    more = shutil.copy(images, tmp_path / "more.zip")
    with zipfile.ZipFile(more, "a") as archive:
        archive.writestr("6.png", archive.read("5.png"))
    with pytest.raises(CheckpointError, match=r"000000002\.pt: data\.train has 7 images, and had 6; resume with the original inputs"):
        bank(str(more), tmp_path / "run", 2)
    others = smooth_images(tmp_path / "others.zip", (5, 4), (17, 16))
    with pytest.raises(CheckpointError, match=r"data\.train has other images than before"):
        bank(others, tmp_path / "run", 2)


def test_a_bank_of_another_architecture_is_refused_in_one_line(images: str, tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(4))
    from gleansr.training.checkpoint import load_errors

    with pytest.raises(CheckpointError, match=r"4\.pt: does not fit the networks of this run") as raised, load_errors(checkpoints.last):
        torch.nn.Linear(2, 2).load_state_dict({"weight": torch.zeros(3, 3)})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("folder", ["/home/someone/runs/", "runs/3/", "C:\\\\Users\\\\someone\\\\"])
def test_no_folder_of_this_machine_is_published(folder: str):
    files = {"start": f"{folder}s.safetensors", "teacher": f"{folder}t.safetensors", "perceptual_file": f"{folder}vgg16.pth"}
    data = DataConfig(train=(f"{folder}a",), validation=(f"{folder}b",))
    written = json.dumps(describe_model(plain_recipe("", 1, data=data, **files), 2).training)
    assert "someone" not in written
    assert "runs" not in written
    assert all(name in written for name in ("s.safetensors", "t.safetensors", "vgg16.pth"))


# -------------------------------------------------------------------------------------------------------------------- saving


def test_a_failed_save_states_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def save(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(GleansrError, match=r"cannot be saved \(CUDA error: .*\); no checkpoint was saved yet$"):
        Checkpoints(tmp_path, keep=1).save(state(4))

    def fill(*_: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(GleansrError, match=r"cannot be saved \(No space left on device\)"):
        Checkpoints(tmp_path, keep=1).save(state(4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["plain", "bank"])
def test_a_whole_state_that_holds_something_else_is_refused_in_one_line(kind: str, images: str, tmp_path: Path):
    train = plain if kind == "plain" else bank
    train(images, tmp_path / "run", 1)
    whole = torch.load(tmp_path / "run" / "states" / "000000002.pt")
    trials = 0
    for key in whole:
        for value in (None, 7, "x", {}, torch.ones(2), [whole[key]]):
            torch.save(whole | {key: value}, tmp_path / "other.pt")
            try:
                train(images, tmp_path / "other", 1, resume=str(tmp_path / "other.pt"))
            except CheckpointError as error:
                assert str(error).startswith(str(tmp_path / "other.pt")), key  # noqa: PT017
                assert "\n" not in str(error)  # noqa: PT017
                trials += 1
    assert trials > 20


def test_a_log_with_bytes_that_are_no_text_loses_those_lines_alone(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"images": 2}\n\xff\xfe\x00\n{"images": 4}\n')
    Log(path, images=4)
    assert path.read_text() == '{"images": 2}\n{"images": 4}\n'


def test_only_files_named_as_states_are_checkpoints(tmp_path: Path):
    """Neither resumed from nor removed; and they are in the order of numbers, of which one has ten digits."""
    for name in ("1abc.pt", "2020 best.pt", "12.pt"):
        (tmp_path / name).write_text("mine")
    for number in (999_999_998, 1_000_000_000, 1_000_000_002):
        Checkpoints(tmp_path, keep=2).save(state(number))
    assert {path.name for path in tmp_path.iterdir()} == {"1abc.pt", "2020 best.pt", "12.pt", "1000000000.pt", "1000000002.pt"}
    loaded = Checkpoints(tmp_path, keep=2).load(state(0)["recipe"], CPU)
    assert loaded
    assert loaded["images"] == 1_000_000_002
