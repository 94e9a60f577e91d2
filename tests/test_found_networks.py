"""Checkpoints as people have them: a network under any key, behind any beginning of names, beside whatever else a program saves."""

import argparse
import datetime
import functools
import pathlib
import pickle
import re
import typing
from collections import Counter, OrderedDict, defaultdict

import foreign_layouts as layouts
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gleansr.checkpoints import load_model, read
from gleansr.errors import CheckpointError
from gleansr.models.rrdb import RRDBNet

CHANNELS = (4, 6, 5)
SIGN = "conv_first.bias"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def network():
    return layouts.rrdbnet_tensors(4)


def prefixed(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def other(tensors):
    return {name: tensor + 1 for name, tensor in tensors.items()}


def assert_is(path, network):
    model = load_model(path)
    assert isinstance(model, RRDBNet)
    assert torch.equal(model.get_parameter("trunk.first.bias"), network[SIGN])


WRAPPED = {
    "a key of one's own": lambda n: {"net_g": n, "iteration": 3},
    "an average of an odd name": lambda n: {"weights": other(n), "my-EMA": n},
    "an average before the plain one": lambda n: {"ema": n, "model": other(n)},
    "what is no weight among the names": lambda n: {**n, "epoch": 3, "path": pathlib.PurePosixPath("a"), "body._extra_state": None},
    "a shadow beside": lambda n: {"model": {name: tensor + 1 for name, tensor in n.items()}, "shadow": n},
    "keys within keys": lambda n: {"run": {"models": {"generator": {"weights": n}}}, "epoch": 7},
    "a beginning": lambda n: prefixed("model.", n),
    "torch.compile": lambda n: prefixed("_orig_mod.", n),
    "torch.compile of a part": lambda n: {name.replace("body.", "body._orig_mod.", 1): t for name, t in n.items()},
    "parallel training of what is compiled": lambda n: {"params": prefixed("module._orig_mod.", n)},
    "Lightning": lambda n: {
        "epoch": 3,
        "global_step": 10,
        "pytorch-lightning_version": "2.4",
        "state_dict": prefixed("net_g.", n) | {"loss.vgg.mean": torch.zeros(3), "net_d.head.weight": torch.zeros(2, 2)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
        "lr_schedulers": [{"milestones": Counter({400_000: 1})}],
        "callbacks": {},
    },
    "Lightning with an average": lambda n: {"state_dict": prefixed("model.", other(n)) | prefixed("ema_model.", n)},
    "AveragedModel": lambda n: {"model": other(n), "swa": {"n_averaged": torch.tensor(3), **prefixed("module.", n)}},
    "AveragedModel of no telling name": lambda n: {"a": other(n), "b": {"n_averaged": torch.tensor(3), **prefixed("module.", n)}},
    "objects beside": lambda n: {
        "params_ema": OrderedDict(n),
        "opt": argparse.Namespace(path=pathlib.PurePosixPath("a/b"), scale=4),
        "psnr": np.float64(3.5),
        "rng": np.random.RandomState(0).get_state(),
        "date": datetime.datetime(2024, 1, 1),
        "history": defaultdict(list, {"loss": [1.0, 2.0]}),
        "best": float("nan"),
        "names": {"a", "b"},
        ("a", "pair"): 1,
        3: None,
    },
    "Lightning's options": lambda n: {
        "state_dict": prefixed("net.", n),
        "hyper_parameters": {
            "optimizer": functools.partial(torch.optim.Adam, lr=1e-4),
            "types": [typing.Any, dict[str, int], typing.Dict[str, int]],  # noqa: UP006, as OmegaConf has it
            "counts": defaultdict(int),
            "ignored": re.compile("a"),
        },
    },
    "parameters": lambda n: {"params": {name: torch.nn.Parameter(t) for name, t in n.items()}},
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_network_is_found(wrapping, form, network, tmp_path):
    path, contents = tmp_path / "a.ckpt", WRAPPED[wrapping](network)
    if form == "pickle":
        path.write_bytes(pickle.dumps(contents, protocol=4))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=form == "zip")
    assert_is(path, network)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_protocols_of_pickle(protocol, zipped, network, tmp_path):
    torch.save(network, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_is(tmp_path / "a.pth", network)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_arrays_of_numpy(protocol, zipped, network, tmp_path):
    contents = {"iteration": np.int64(3), "params": {name: tensor.numpy() for name, tensor in network.items()}}
    contents["params"]["conv_first.weight"] = np.asfortranarray(contents["params"]["conv_first.weight"])
    torch.save(contents, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(contents, protocol))
    for name in ("a.pth", "a.pkl"):
        assert_is(tmp_path / name, network)
        weight = load_model(tmp_path / name).get_parameter("trunk.first.weight")
        assert torch.equal(weight, network["conv_first.weight"])
    contents["params"]["conv_first.weight"] = np.zeros(3, ">f4")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(contents, protocol))
    with pytest.raises(CheckpointError, match=r"not tensors: conv_first\.weight"):
        read(tmp_path / "a.pkl")


def test_bytes_in_older_pickles_are_bounded(tmp_path):
    many = pickle.BINUNICODE + (2**20).to_bytes(4, "little") + b"a" * 2**20 + b"q\0"
    again = b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R"
    (tmp_path / "a.pkl").write_bytes(b"\x80\2(" + many + again * 200 + b"t.")
    with pytest.raises(CheckpointError, match="bytes of text"):
        read(tmp_path / "a.pkl")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"modelspec.title": "4x"}])
@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_plain_safetensors(prefix, metadata, network, tmp_path):
    save_file(prefixed(prefix, network), tmp_path / "a.safetensors", metadata)
    assert_is(tmp_path / "a.safetensors", network)


def test_what_is_found_is_read_strictly(network, saved):
    del network["conv_hr.bias"]
    with pytest.raises(CheckpointError, match=r"missing run\.ema\.module\.conv_hr\.bias \[6\]"):
        load_model(saved({"run": {"ema": prefixed("module.", network)}}))
    network["conv_hr.bias"] = torch.zeros(6)
    network["conv_hr.extra"] = torch.zeros(6)
    with pytest.raises(CheckpointError, match=r"unexpected model\.conv_hr\.extra \[6\]"):
        load_model(saved(prefixed("model.", network)))


def test_a_glean_keeps_its_bank(saved):
    """The bank in a GLEAN looks like a generator too; it is part of the network."""
    tensors = layouts.glean_tensors(8, CHANNELS)
    contents = prefixed("net.", tensors) | prefixed("critic.", layouts.discriminator_tensors("mmagic", CHANNELS))
    checkpoint = read(saved({"state_dict": contents | {"teacher.weight": torch.zeros(1)}}))
    assert {part: network.kind for part, network in checkpoint.networks.items()} == {
        "generator": "glean",
        "discriminator": "stylegan2-discriminator",
    }


def test_a_w_avg_is_found_beside_its_network(saved):
    tensors, mean = layouts.generator_tensors("rosinality", CHANNELS), torch.randn(16)
    checkpoint = read(saved({"latent_avg": mean, "nets": {"G": prefixed("module.", tensors)}}))
    assert torch.equal(checkpoint.networks["generator"].tensors["w_avg"], mean)


def test_other_types_of_numbers_and_strides(network, saved):
    strided = {
        name: t.to(torch.float64).to(memory_format=torch.channels_last) if t.ndim == 4 else t.bfloat16() for name, t in network.items()
    }
    model = load_model(saved({"params": strided}))
    assert torch.equal(model.get_parameter("trunk.first.weight"), network["conv_first.weight"])
    assert torch.equal(model.get_parameter("trunk.first.bias"), network[SIGN].bfloat16().float())


def test_a_loaded_network_can_be_changed_and_the_file_stays(network, saved):
    path = saved({"params": network})
    before = path.read_bytes()
    model = load_model(path)
    with torch.no_grad():
        model.get_parameter("trunk.first.bias").add_(1)
    assert torch.equal(model.get_parameter("trunk.first.bias"), network[SIGN] + 1)
    assert path.read_bytes() == before
    assert_is(path, network)
