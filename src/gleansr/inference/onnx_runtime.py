"""Networks exported to ONNX, run by ONNX Runtime. Wants `pip install 'gleansr[export]'`."""

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
"""Of the file's metadata; its value is the JSON of an `OnnxModel`'s name, scale, in_size, fold, batch and about."""

LONGEST_FACTS = 2**20
"""Characters of that JSON."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's names of devices."""


def is_onnx(path: str | Path) -> bool:
    """Whether a file begins like a model of ONNX."""
    try:
        with Path(path).open("rb") as file:
            return begins_as_onnx(file.read(HEAD))
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a file's metadata tell of its network."""

    name: str
    scale: int
    """Height and width of the results over those of what goes in, 1 to 64."""
    in_size: int | None
    """Height and width of what goes in, None: any."""
    fold: int
    """Height and width of what goes in must be multiples of this, 1 to 16."""
    batch: int | None
    """How many go in at once, None: any number."""
    about: About

    def __post_init__(self) -> None:
        for field, most in (("scale", 64), ("in_size", 4096), ("fold", 16), ("batch", 4096)):
            value = getattr(self, field)
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{field} must be 1 to {most}, not {value}")

    def disagreement(self, lr: Any, sr: Any) -> str | None:
        """What the network's only input and output, as ONNX Runtime describes them, have otherwise; None if nothing."""
        sizes = (self.in_size, self.in_size)
        made = (self.in_size and self.in_size * self.scale,) * 2
        for end, name, expected in ((lr, "low", (self.batch, 3, *sizes)), (sr, "high", (self.batch, 3, *made))):
            if end.name != name or end.type != "tensor(float)" or len(end.shape) != 4:
                return f"it has {end.name[:50]!r} of {end.type} and {len(end.shape)} axes, not {name!r} of tensor(float) and 4 axes"
            for found, wanted in zip(end.shape, expected, strict=True):
                # What the file leaves open is a name; of results it may leave open what the metadata tell.
                if (isinstance(found, int) and found != wanted) or (not isinstance(found, int) and wanted is not None and end is lr):
                    return f"its metadata tell of {name} {_shown(expected)}, but it is {_shown(end.shape)}"
        return None


def _shown(shape: Any) -> str:
    return "x".join(str(size) if isinstance(size, int) else "any" for size in shape)


class OnnxModel:
    """A network in a file that `gleansr.inference.export` wrote, called like a module.

    Its input is lr (N, 3, h, w) and its output (N, 3, scale * h, scale * w), float32 RGB in [-1, 1], the output not clamped.
    """

    input_range = SIGNED

    def __init__(self, path: str | Path, device: torch.device):
        """`device`: where ONNX Runtime computes. Images go in and come out as tensors on the CPU.

        Raises:
            RequestError: onnxruntime is not installed, or not for the device.
            CheckpointError: the file is broken, or another program wrote it.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise RequestError("ONNX files want onnxruntime: pip install 'gleansr[export]'")
        import onnxruntime

        provider, available = PROVIDERS.get(device.type), onnxruntime.get_available_providers()
        if provider not in available:
            known = ", ".join(available)
            raise RequestError(f"the installed onnxruntime does not support {device.type}, only {known}; give --device cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads would keep torch's from the cores
        options.log_severity_level = 4  # its warnings tell of its own optimisations, its errors are raised too
        onnx_file.check(path)
        try:
            chosen: Any = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[chosen], enable_fallback=0)
        except Exception as error:  # all that onnxruntime's errors have in common
            raise CheckpointError(f"{path}: ONNX Runtime cannot load it: {' '.join(str(error).split())[:500]}") from error
        try:
            text = self._session.get_modelmeta().custom_metadata_map.get(KEY, "")
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            if not text or len(text) > LONGEST_FACTS:
                raise ValueError(f"{len(text):,} characters of metadata")
            facts = from_dict(Facts, parse_json(text, "its metadata"), "its metadata")
        except (RequestError, TypeError, ValueError) as error:
            advice = "`gleansr export MODEL -o FILE.onnx` makes one"
            raise CheckpointError(f"{path}: gleansr did not write this ONNX file ({str(error)[:300]}); {advice}") from error
        if len(inputs) != 1 or len(outputs) != 1:
            raise CheckpointError(f"{path}: it takes {len(inputs)} and makes {len(outputs)} tensors, not one of each; export it again")
        if problem := facts.disagreement(inputs[0], outputs[0]):
            raise CheckpointError(f"{path}: {problem}; export it again")
        self._path = path
        self.about, self.name, self.scale, self.fold = facts.about, facts.name, facts.scale, facts.fold
        self.in_size, self.batch = facts.in_size, facts.batch

    def __call__(self, lr: Tensor) -> Tensor:
        """Raises CheckpointError where the network fails or makes what its metadata do not tell, MemoryError where memory is short."""
        made = []
        for part in lr.split(self.batch or len(lr)):
            missing = (self.batch or len(part)) - len(part)
            full = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
            sr = self._run(full)
            expected = (len(full), 3, full.shape[2] * self.scale, full.shape[3] * self.scale)
            if sr.shape != expected or sr.dtype != torch.float32:
                raise CheckpointError(
                    f"{self._path}: made {_shown(sr.shape)} of {_shown(full.shape)}, not {_shown(expected)}; export it again"
                )
            made.append(sr[: len(part)])
        return torch.cat(made)

    def _run(self, lr: Tensor) -> Tensor:
        try:
            [sr] = self._session.run(None, {"low": lr.contiguous().numpy()})
        except Exception as error:  # all that onnxruntime's errors have in common
            text = " ".join(str(error).split())[:300]
            if "allocate" in text or "bad_alloc" in text:
                raise MemoryError(text) from error
            raise CheckpointError(f"{self._path}: ONNX Runtime cannot run it: {text}") from error
        return torch.from_numpy(sr)
