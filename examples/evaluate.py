"""Compares a model with bicubic interpolation on ground-truth images, clean and as thumbnails are.

python examples/evaluate.py cats-8x images
"""

import sys
from typing import Literal

import gleansr
from gleansr.evaluation.config import GroundTruthConfig, MetricConfig
from gleansr.evaluation.entries import ComparedMethod
from gleansr.evaluation.evaluate import evaluate
from gleansr.evaluation.plan import plan

DEGRADATIONS: tuple[Literal["bicubic", "real"], ...] = ("bicubic", "real")


def main(model: str, images: str) -> None:
    methods = [ComparedMethod("model", "glean", model), ComparedMethod("bicubic", "bicubic")]
    scale = gleansr.load(model).scale
    for degradation in DEGRADATIONS:
        gts = GroundTruthConfig(degradation=degradation)
        report = evaluate(plan(images, methods, scale=scale, images=gts, metrics=MetricConfig("psnr,ssim,squeezenet_distance")))
        for method in report["methods"]:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in method["means"].items())
            print(f"{degradation}, {method['label']}: {figures}")


if __name__ == "__main__":
    main(*sys.argv[1:])
