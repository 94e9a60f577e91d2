"""Figures of the models on held-out images, clean and as people have them: the tables of docs/results.md.

    python -m benchmarks.models DATA --mobilenet FILE [--models faces-8x cats-16x] [--limit 64] [--json figures.json]

DATA is a folder with a validation set CATEGORY.zip, or CATEGORY/val.zip, for each category. Each model is judged on those of its category;
a model of any category on all of them. Clean images are made by MATLAB's bicubic with 8 bits, real ones by `--degradation real` of `gleansr
evaluate`, both with fixed seeds. PSNR is a difference from bicubic's, distances are shares of bicubic's. The spectrum is that of 32-pixel
patches of 64 results: by how many dB it is, at the frequency where it is strongest, above that of the true images, in brightness and in two
differences of colour. A grid, a weave or hatching shows as 6 dB and more. Figures of models that --json has already, of the same file, are
not measured again.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gleansr.checkpoints import zoo
from gleansr.evaluation.entries import ComparedMethod
from gleansr.evaluation.evaluate import evaluate
from gleansr.evaluation.judges import MetricFiles
from gleansr.evaluation.plan import plan
from gleansr.evaluation.runner import ComputeConfig
from gleansr.files import replacing, sha256_of
from gleansr.inference.upscaler import load
from gleansr.training.losses import FLOOR, power_spectrum

CATEGORIES = ("faces", "cats", "cars", "bedrooms", "towers")
METRICS = ["psnr", "ssim", "squeezenet_distance", "mobilenet_distance", "squeezenet_frechet", "mobilenet_frechet"]
METHODS = {"glean": "glean", "residual": "plain"}
SIZE = 256
SPECTRA = 64
"""Images whose spectrum is looked at."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m benchmarks.models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path)
    made.add_argument("--models", nargs="+", help="names; by default all bundled GLEANs and plain networks")
    made.add_argument("--mobilenet", type=Path, required=True, help="torchvision's MobileNetV2, as of `gleansr evaluate`")
    made.add_argument("--limit", type=int, help="only the first so many images of each set")
    made.add_argument("--json", type=Path, help="figures of before, which are added to")
    return made


def held_out(data: Path, category: str) -> Path | None:
    """The validation set of a category, if it is there."""
    return next((path for path in (data / f"{category}.zip", data / category / "val.zip") if path.is_file()), None)


def measured(name: str, category: str, path: Path, degradation: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a model and of bicubic interpolation on one set."""
    upscaler, method = load(name, device="cpu"), METHODS[zoo.find(name).kind]
    # As images of cars are taken by their model, so are they by others.
    aspect = "bars" if category == "cars" else "crop"
    comparison = plan(
        str(path),
        [ComparedMethod("bicubic", "bicubic"), ComparedMethod("model", method, name)],
        scale=upscaler.scale,
        metrics=METRICS,
        files=MetricFiles(options.mobilenet, None, None, None),
        limit=options.limit,
        aspect=aspect,
        small="enlarge" if category == "towers" else "refuse",
        degradation="real" if degradation == "real" else "bicubic",
        place=ComputeConfig("cpu"),
        batch_size=8,
        size=None if method == "glean" else SIZE,
    )
    base, own = evaluate(comparison)["methods"]
    gts = comparison.gts
    examples = [gts[i] for i in range(min(SPECTRA, len(gts)))]
    results = torch.cat([example.inside(upscaler.method(example.lr).images.float().clamp(-1, 1)) for example in examples])
    return {
        "model": name,
        "category": category,
        "degradation": degradation,
        "scale": upscaler.scale,
        "pictures": own["pictures"],
        "bicubic": base["means"],
        "means": own["means"],
        "above_bicubic": own["above_bicubic"],
        "spectrum": spectrum(results, torch.cat([example.inside(example.gt) for example in examples])),
        "sha256": sha256_of(zoo.model_path(name)),
    }


def spectrum(results: Tensor, gts: Tensor) -> dict[str, float]:
    """By how many dB results (N, 3, H, W) have more power than ground truths, at the frequency where that is most."""
    own, wanted = (power_spectrum(images).mean(0) + FLOOR for images in (results, gts))
    excess = 10 * (own / wanted).log10()
    return {"brightness": float(excess[0].max()), "colour": float(excess[1:].max())}


def rows(figures: list[dict[str, Any]], degradation: str) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield "| | images | PSNR over bicubic | SSIM | SqueezeNet | MobileNetV2 | Fréchet, MobileNetV2 | PSNR above bicubic's | spectrum |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for entry in figures:
        if entry["degradation"] != degradation:
            continue
        own, base = entry["means"], entry["bicubic"]
        shares = [own[metric] / base[metric] for metric in ("squeezenet_distance", "mobilenet_distance", "mobilenet_frechet")]
        label = entry["model"] if entry["model"].startswith(entry["category"]) else f"{entry['model']} on {entry['category']}"
        psnr = f"{own['psnr'] - base['psnr']:+.2f} dB ({own['psnr']:.2f})"
        cells = [label, str(entry["pictures"]), psnr, f"{own['ssim']:.3f} ({base['ssim']:.3f})", *(f"{share:.2f}" for share in shares)]
        cells.append(f"{100 * entry['above_bicubic']:.0f} %")
        cells.append(f"{entry['spectrum']['brightness']:+.1f}, {entry['spectrum']['colour']:+.1f} dB")
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    options = parser().parse_args()
    bundled = [model for model in zoo.named_models() if model.asset and model.kind in METHODS and not model.name.startswith("plain-")]
    names = options.models or [model.name for model in bundled]
    known: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json and options.json.is_file() else []
    figures = []
    for name in names:
        category = zoo.find(name).category
        sha256 = sha256_of(zoo.model_path(name))
        for of in [category] if category in CATEGORIES else CATEGORIES:
            path = held_out(options.data, of)
            if path is None:
                continue
            for degradation in ("clean", "real"):
                key = {"model": name, "category": of, "degradation": degradation, "sha256": sha256}
                before = next((entry for entry in known if key.items() <= entry.items()), None)
                figures.append(before or measured(name, of, path, degradation, options))
                if options.json:
                    others = [entry for entry in known if (entry["model"], entry["category"]) != (name, of)]
                    with replacing(options.json) as temporary:
                        temporary.write_text(json.dumps([*others, *figures], indent=1))
    for degradation in ("clean", "real"):
        print(f"\n{degradation}\n")
        print("\n".join(rows(figures, degradation)))


if __name__ == "__main__":
    main()
