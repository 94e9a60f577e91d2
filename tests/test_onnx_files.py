"""ONNX files of others: what they say of themselves is held against what they are, and what could not end is not begun."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gleansr.errors import CheckpointError
from gleansr.inference.onnx_runtime import KEY, OnnxModel

FACTS = {"name": "GLEAN", "scale": 2, "in_size": 4, "fold": 1, "batch": 1, "about": {"name": "tiny"}}
CPU = torch.device("cpu")


def ends(lr: list[Any], sr: list[Any]) -> tuple[Any, Any]:
    lr_end, sr_end = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("low", lr), ("high", sr)))
    return lr_end, sr_end


def network(**facts: Any) -> onnx.ModelProto:
    """Doubles images of 4x4."""
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    node = helper.make_node("Resize", ["low", "", "scales"], ["high"], mode="nearest")
    lr, sr = ends([1, 3, 4, 4], [1, 3, 8, 8])
    model = helper.make_model(helper.make_graph([node], "g", [lr], [sr], [scales]), ir_version=10)
    model.opset_import[0].version = 20
    helper.set_model_props(model, {KEY: json.dumps(FACTS | facts)})
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    return folder / "a.onnx"


def refusal(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        OnnxModel(path, CPU)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_an_honest_file_runs(tmp_path: Path):
    lr = torch.rand(3, 3, 4, 4)
    assert torch.equal(OnnxModel(saved(network(), tmp_path), CPU)(lr), lr.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"fold": 0}, "fold must be 1 to 16, not 0"),
        ({"fold": -1}, "fold must be 1 to 16, not -1"),
        ({"scale": 0}, "scale must be 1 to 64, not 0"),
        ({"scale": float("inf")}, "has Infinity, which is not a JSON number"),
        ({"scale": float("nan")}, "has NaN, which is not a JSON number"),
        ({"scale": True}, "scale must be int, not True"),
        ({"scale": "2"}, "scale must be int"),
        ({"scale": 10**400}, "an integer beyond 64 bits"),
        ({"scale": 4}, "its metadata give high as 1x3x16x16, but it is 1x3x8x8"),
        ({"in_size": 8}, "its metadata give low as 1x3x8x8, but it is 1x3x4x4"),
        ({"in_size": -4}, "in_size must be 1 to 4096"),
        ({"batch": 2}, "its metadata give low as 2x3x4x4"),
        ({"batch": 0}, "batch must be 1 to 4096"),
        ({"about": None}, r"about\.? must be a table"),
        ({"about": {"colour": "red"}}, "unknown key about.colour"),
        ({"more": 1}, "unknown key more"),
    ],
)
def test_facts_that_are_wrong(facts: dict[str, Any], match: str, tmp_path: Path):
    refusal(saved(network(**facts), tmp_path), match)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "9" * 10_000, '{"name": "' + "x" * 2_000_000 + '"}'])
def test_metadata_that_are_none(text: str, tmp_path: Path):
    model = network()
    helper.set_model_props(model, {KEY: text})
    refusal(saved(model, tmp_path), "gleansr did not write this ONNX file")


def loop(model: onnx.ModelProto) -> None:
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), condition],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    trips = numpy_helper.from_array(np.array(2**62), "trips")
    model.graph.initializer.extend([trips, numpy_helper.from_array(np.array(True), "on")])
    model.graph.node.append(helper.make_node("Loop", ["trips", "on"], [], body=body))


def hidden_loop(model: onnx.ModelProto) -> None:
    loop(model)
    model.graph.node[-1].op_type = "Relu"


def function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("of.others", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 20)]))


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def expanded(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**16, 2**16], np.int64), "shape"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.float32), "one"))
    model.graph.node.append(helper.make_node("Expand", ["one", "shape"], ["wide"]))


def shaped(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("ConstantOfShape", ["scales"], ["wide"]))


def padded(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Conv", ["low", "w"], ["wide"], pads=[60_000] * 4))


def many(model: onnx.ModelProto) -> None:
    model.graph.node.extend([helper.make_node("Identity", ["low"], [f"x{i}"]) for i in range(30_000)])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (loop, "uses the operator 'Loop'|contains a loop"),
        (hidden_loop, "contains a loop or a condition"),
        (function, "contains functions"),
        (external, "weights are in another file"),
        (domain, "operators of 'com.microsoft'"),
        (expanded, "a shape is"),
        (shaped, "uses the operator 'ConstantOfShape'"),
        (padded, "a size or an attribute is 60,000"),
        (many, "more than 20,000 layers"),
    ],
)
def test_what_is_not_begun(change: Callable[[onnx.ModelProto], None], match: str, tmp_path: Path):
    model = network()
    change(model)
    refusal(saved(model, tmp_path), match)


def test_a_network_of_other_ends(tmp_path: Path):
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("low", TensorProto.FLOAT, [1, 3, 4, 4]))
    refusal(saved(model, tmp_path), "has 1 inputs and 2 outputs")
    model = network()
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"
    refusal(saved(model, tmp_path), "it has 'picture' of tensor")


def test_results_of_another_size(tmp_path: Path):
    """Where a file leaves its sizes open, what it makes is looked at."""
    model = network(in_size=None, scale=4)
    for end, name in zip([*model.graph.input, *model.graph.output], "lh", strict=True):
        for axis, size in enumerate(end.type.tensor_type.shape.dim):
            if axis > 1:
                size.dim_param = f"{name}{axis}"
    loaded = OnnxModel(saved(model, tmp_path), CPU)
    with pytest.raises(CheckpointError, match=r"a\.onnx: returned 1x3x8x10 for 1x3x4x5, not 1x3x16x20"):
        loaded(torch.zeros(1, 3, 4, 5))


def test_a_run_that_fails(tmp_path: Path):
    model = network()
    model.graph.node[0].output[0] = "large"
    model.graph.initializer.append(numpy_helper.from_array(np.array([5], np.int64), "places"))
    model.graph.node.append(helper.make_node("Slice", ["large", "zero", "end", "places"], ["high"]))
    for name, value in (("zero", 0), ("end", 8)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    with pytest.raises(CheckpointError, match=r"ONNX Runtime cannot (load|run) it"):
        OnnxModel(saved(model, tmp_path), CPU)(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_files_that_are_cut_off(part: float, tmp_path: Path):
    data = network().SerializeToString()
    (tmp_path / "a.onnx").write_bytes(data[: int(len(data) * part)])
    refusal(tmp_path / "a.onnx", "cannot load it|did not write")
