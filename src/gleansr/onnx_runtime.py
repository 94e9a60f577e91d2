"""Networks exported to ONNX, run by ONNX Runtime. Wants `pip install 'gleansr[export]'`."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gleansr.checkpoints.native import About
from gleansr.configs import from_dict
from gleansr.errors import CheckpointError, RequestError

KEY = "gleansr"
"""Of the file's metadata; its value is the JSON of an `OnnxModel`'s name, scale, in_size, fold, batch and about."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's names of devices."""


def is_onnx(path: str | Path) -> bool:
    """Whether a file begins like a model of ONNX: the version of its format, which is below 128, and then its producer."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(3)
    except OSError:
        return False
    return len(head) == 3 and head[0] == 0x08 and head[1] < 0x80 and head[2] == 0x12


class OnnxModel:
    """A network in a file that `gleansr.export` wrote, called like a module.

    Its input is low (N, 3, h, w) and its output (N, 3, scale * h, scale * w), float32 RGB in [-1, 1], the output not clamped.
    """

    def __init__(self, path: str | Path, device: torch.device):
        """`device`: where ONNX Runtime computes. Pictures go in and come out as tensors on the CPU.

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
        options.log_severity_level = 3  # its warnings tell of its own optimisations
        try:
            chosen: Any = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[chosen])
        except Exception as error:  # all that onnxruntime's errors have in common
            raise CheckpointError(f"{path}: ONNX Runtime cannot load it: {' '.join(str(error).split())[:500]}") from error
        try:
            facts = json.loads(self._session.get_modelmeta().custom_metadata_map[KEY])
            self.about = from_dict(About, facts["about"], "about")
            self.name, self.scale, self.fold = str(facts["name"]), int(facts["scale"]), int(facts["fold"])
            self.in_size = None if facts["in_size"] is None else int(facts["in_size"])
            """Height and width of the pictures that it takes, None: any."""
            self.batch = None if facts["batch"] is None else int(facts["batch"])
            """How many pictures it takes, None: any number."""
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: gleansr did not write this ONNX file; `gleansr export MODEL -o FILE.onnx` makes one") from error

    def __call__(self, low: Tensor) -> Tensor:
        made = []
        for part in low.split(self.batch or len(low)):
            missing = (self.batch or len(part)) - len(part)
            full = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
            [high] = self._session.run(None, {"low": full.contiguous().numpy()})
            made.append(torch.from_numpy(high)[: len(part)])
        return torch.cat(made)
