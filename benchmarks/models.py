"""Metrics of the models on held-out images, clean and with realistic degradation: the tables of docs/results.md.

    python -m benchmarks.models DATA --mobilenet FILE [--models faces-8x cats-16x] [--limit 64] [--json figures.json]

DATA is a folder with a validation set CATEGORY.zip or CATEGORY/val.zip for each category. Each model is evaluated on its category, models
of any category on all. Clean images are made by MATLAB's bicubic with 8 bits, real ones by `--degradation real` of `gleansr evaluate` with
fixed seeds. PSNR is a difference from bicubic's, distances are ratios to bicubic's. The spectrum is the largest excess in dB, over
frequencies, of the power of 32-pixel patches of 64 results over that of ground truths, in brightness and in two colour differences: a grid
or hatching shows as 6 dB and more. Results of the same model file in --json are not computed again.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gleansr.checkpoints import zoo
from gleansr.evaluation.config import ComputeConfig, GroundTruthConfig, MetricConfig
from gleansr.evaluation.entries import ComparedMethod
from gleansr.evaluation.evaluate import evaluate
from gleansr.evaluation.plan import plan
from gleansr.files import replacing, sha256_of
from gleansr.inference.upscaler import load
from gleansr.training.losses import FLOOR, power_spectrum

CATEGORIES = ("faces", "cats", "cars", "bedrooms", "towers")
METRICS = "psnr,ssim,squeezenet_distance,mobilenet_distance,squeezenet_frechet,mobilenet_frechet"
METHODS = {"glean": "glean", "residual": "plain"}
SIZE = 256
SPECTRA = 64
"""Number of images for the spectrum."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="+", help="names; default: all bundled GLEANs and plain networks")
    parser.add_argument("--mobilenet", type=Path, required=True, help="torchvision's MobileNetV2, as for `gleansr evaluate`")
    parser.add_argument("--limit", type=int, help="number of images of each set, from the first")
    parser.add_argument("--json", type=Path, help="file of results, which is extended")
    return parser


def held_out(data: Path, category: str) -> Path | None:
    """The validation set of a category, None if it is missing."""
    return next((path for path in (data / f"{category}.zip", data / category / "val.zip") if path.is_file()), None)


def evaluate_model(name: str, category: str, path: Path, degradation: str, options: argparse.Namespace) -> dict[str, Any]:
    """Results of a model and of bicubic interpolation on one set."""
    upscaler, method = load(name, device="cpu"), METHODS[zoo.find(name).kind]
    comparison = plan(
        str(path),
        [ComparedMethod("bicubic", "bicubic"), ComparedMethod("model", method, name)],
        scale=upscaler.scale,
        images=GroundTruthConfig(
            size=None if method == "glean" else SIZE,
            limit=options.limit,
            # All models get images of cars in the form that the model of cars takes.
            aspect="bars" if category == "cars" else "crop",
            small="enlarge" if category == "towers" else "refuse",
            degradation="real" if degradation == "real" else "bicubic",
        ),
        metrics=MetricConfig(METRICS, mobilenet=options.mobilenet),
        compute=ComputeConfig("cpu", batch_size=8),
    )
    bicubic, model = evaluate(comparison)["methods"]
    gts = comparison.gts
    examples = [gts[i] for i in range(min(SPECTRA, len(gts)))]
    results = torch.cat([example.inside(upscaler.method(example.lr).images.float().clamp(-1, 1)) for example in examples])
    return {
        "model": name,
        "category": category,
        "degradation": degradation,
        "scale": upscaler.scale,
        "pictures": model["pictures"],
        "bicubic": bicubic["means"],
        "means": model["means"],
        "above_bicubic": model["above_bicubic"],
        "spectrum": spectrum(results, torch.cat([example.inside(example.gt) for example in examples])),
        "sha256": sha256_of(zoo.model_path(name)),
    }


def spectrum(results: Tensor, gts: Tensor) -> dict[str, float]:
    """The largest excess of the power of results (N, 3, H, W) over that of ground truths, over frequencies, in dB."""
    power, gt_power = (power_spectrum(images).mean(0) + FLOOR for images in (results, gts))
    excess = 10 * (power / gt_power).log10()
    return {"brightness": float(excess[0].max()), "colour": float(excess[1:].max())}


def rows(results: list[dict[str, Any]], degradation: str) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| | images | PSNR over bicubic | SSIM | SqueezeNet | MobileNetV2 | Fréchet, MobileNetV2 | PSNR above bicubic's | spectrum |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for entry in results:
        if entry["degradation"] != degradation:
            continue
        means, bicubic = entry["means"], entry["bicubic"]
        ratios = [means[metric] / bicubic[metric] for metric in ("squeezenet_distance", "mobilenet_distance", "mobilenet_frechet")]
        label = entry["model"] if entry["model"].startswith(entry["category"]) else f"{entry['model']} on {entry['category']}"
        psnr = f"{means['psnr'] - bicubic['psnr']:+.2f} dB ({means['psnr']:.2f})"
        cells = [label, str(entry["pictures"]), psnr, f"{means['ssim']:.3f} ({bicubic['ssim']:.3f})", *(f"{ratio:.2f}" for ratio in ratios)]
        cells.append(f"{100 * entry['above_bicubic']:.0f} %")
        cells.append(f"{entry['spectrum']['brightness']:+.1f}, {entry['spectrum']['colour']:+.1f} dB")
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    options = build_parser().parse_args()
    bundled = [model for model in zoo.named_models() if model.asset and model.kind in METHODS and not model.name.startswith("plain-")]
    names = options.models or [model.name for model in bundled]
    known: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json and options.json.is_file() else []
    results = []
    for name in names:
        category = zoo.find(name).category
        sha256 = sha256_of(zoo.model_path(name))
        for tested in [category] if category in CATEGORIES else CATEGORIES:
            path = held_out(options.data, tested)
            if path is None:
                continue
            for degradation in ("clean", "real"):
                key = {"model": name, "category": tested, "degradation": degradation, "sha256": sha256}
                known_entry = next((entry for entry in known if key.items() <= entry.items()), None)
                results.append(known_entry or evaluate_model(name, tested, path, degradation, options))
                if options.json:
                    others = [entry for entry in known if (entry["model"], entry["category"]) != (name, tested)]
                    with replacing(options.json) as temporary:
                        temporary.write_text(json.dumps([*others, *results], indent=1))
    for degradation in ("clean", "real"):
        print(f"\n{degradation}\n")
        print("\n".join(rows(results, degradation)))


if __name__ == "__main__":
    main()
