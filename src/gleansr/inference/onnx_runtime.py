"""Runs exported networks with ONNX Runtime. Requires `pip install 'gleansr[export]'`."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gleansr.checkpoints.file_types import HEAD
from gleansr.checkpoints.file_types import is_onnx as begins_as_onnx
from gleansr.checkpoints.native import About
from gleansr.configs import from_dict
from gleansr.documents import parse_json
from gleansr.errors import CheckpointError, RequestError
from gleansr.inference import onnx_file
from gleansr.models.network import SIGNED

KEY = "gleansr"
"""Key of the file's metadata; the value is the JSON of `Facts`."""

MAX_METADATA = 2**20
"""Largest number of characters of that JSON."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's names of devices."""


def is_onnx(path: str | Path) -> bool:
    """Whether a file begins like an ONNX model."""
    try:
        with Path(path).open("rb") as file:
            return begins_as_onnx(file.read(HEAD))
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class Facts:
    """A network's metadata in its file."""

    name: str
    scale: int
    """Scale of the result, 1 to 64."""
    in_size: int | None
    """Height and width of the input, None: any."""
    fold: int
    """Height and width of the input must be multiples of this, 1 to 16."""
    batch: int | None
    """Images per batch, None: any number."""
    about: About

    def __post_init__(self) -> None:
        for field, largest in (("scale", 64), ("in_size", 4096), ("fold", 16), ("batch", 4096)):
            value = getattr(self, field)
            if value is not None and not 1 <= value <= largest:
                raise ValueError(f"{field} must be 1 to {largest}, not {value}")

    def disagreement(self, lr: Any, sr: Any) -> str | None:
        """How the network's input and output, as ONNX Runtime describes them, contradict the metadata; None if they agree."""
        sizes = (self.in_size, self.in_size)
        output = (self.in_size and self.in_size * self.scale,) * 2
        for port, name, expected in ((lr, "low", (self.batch, 3, *sizes)), (sr, "high", (self.batch, 3, *output))):
            if port.name != name or port.type != "tensor(float)" or len(port.shape) != 4:
                return f"it has {port.name[:50]!r} of {port.type} and {len(port.shape)} axes, not {name!r} of tensor(float) and 4 axes"
            for size, required in zip(port.shape, expected, strict=True):
                # Open dimensions are names. The output may leave open what the metadata give.
                if (isinstance(size, int) and size != required) or (not isinstance(size, int) and required is not None and port is lr):
                    return f"its metadata give {name} as {_shown(expected)}, but it is {_shown(port.shape)}"
        return None


def _shown(shape: Any) -> str:
    return "x".join(str(size) if isinstance(size, int) else "any" for size in shape)


class OnnxModel:
    """A network in a file of `gleansr.inference.export`, called like a module.

    lr (N, 3, h, w) -> (N, 3, scale * h, scale * w), float32 RGB in [-1, 1], not clamped.
    """

    input_range = SIGNED

    def __init__(self, path: str | Path, device: torch.device):
        """`device`: where ONNX Runtime computes. Input and output tensors are on the CPU.

        Raises:
            RequestError: onnxruntime is not installed, or not for the device.
            CheckpointError: the file is damaged, or another program wrote it.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise RequestError("ONNX files require onnxruntime: pip install 'gleansr[export]'")
        import onnxruntime

        provider, available = PROVIDERS.get(device.type), onnxruntime.get_available_providers()
        if provider not in available:
            known = ", ".join(available)
            raise RequestError(f"the installed onnxruntime does not support {device.type}, only {known}; give --device cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.force_spinning_stop", "1")  # spinning threads would take cores from torch
        options.log_severity_level = 4  # warnings concern its own optimisations, errors are raised too
        onnx_file.check(path)
        try:
            chosen: Any = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[chosen], enable_fallback=0)
        except Exception as error:  # onnxruntime's errors have no other base class
            raise CheckpointError(f"{path}: ONNX Runtime cannot load it: {' '.join(str(error).split())[:500]}") from error
        try:
            text = self._session.get_modelmeta().custom_metadata_map.get(KEY, "")
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            if not text or len(text) > MAX_METADATA:
                raise ValueError(f"{len(text):,} characters of metadata")
            facts = from_dict(Facts, parse_json(text, "its metadata"), "its metadata")
        except (RequestError, TypeError, ValueError) as error:
            advice = "`gleansr export MODEL -o FILE.onnx` makes one"
            raise CheckpointError(f"{path}: gleansr did not write this ONNX file ({str(error)[:300]}); {advice}") from error
        if len(inputs) != 1 or len(outputs) != 1:
            raise CheckpointError(f"{path}: it has {len(inputs)} inputs and {len(outputs)} outputs, not one of each; export it again")
        if problem := facts.disagreement(inputs[0], outputs[0]):
            raise CheckpointError(f"{path}: {problem}; export it again")
        self._path = path
        self.about, self.name, self.scale, self.fold = facts.about, facts.name, facts.scale, facts.fold
        self.in_size, self.batch = facts.in_size, facts.batch

    def __call__(self, lr: Tensor) -> Tensor:
        """Raises CheckpointError if the network fails or its output contradicts the metadata, MemoryError if memory is short."""
        results = []
        for part in lr.split(self.batch or len(lr)):
            missing = (self.batch or len(part)) - len(part)
            full = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
            sr = self._run(full)
            expected = (len(full), 3, full.shape[2] * self.scale, full.shape[3] * self.scale)
            if sr.shape != expected or sr.dtype != torch.float32:
                raise CheckpointError(
                    f"{self._path}: returned {_shown(sr.shape)} for {_shown(full.shape)}, not {_shown(expected)}; export it again"
                )
            results.append(sr[: len(part)])
        return torch.cat(results)

    def _run(self, lr: Tensor) -> Tensor:
        try:
            [sr] = self._session.run(None, {"low": lr.contiguous().numpy()})
        except Exception as error:  # onnxruntime's errors have no other base class
            text = " ".join(str(error).split())[:300]
            if "allocate" in text or "bad_alloc" in text:
                raise MemoryError(text) from error
            raise CheckpointError(f"{self._path}: ONNX Runtime cannot run it: {text}") from error
        return torch.from_numpy(sr)
