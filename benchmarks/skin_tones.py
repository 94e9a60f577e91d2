"""Groups of portraits by the skin tone that is measured in them, for `gleansr evaluate --groups`.

    python -m benchmarks.skin_tones PORTRAITS -o groups.csv
    gleansr evaluate faces-8x PORTRAITS --groups groups.csv

PORTRAITS is a folder or an archive, one face in each image. The tone is the individual typology angle (Chardon, Cretois, Hourseau, "Skin
colour typology and suntanning pathways", 1991) of the median colour below the eyes, which dlib finds: arctan((L* - 50) / b*) in degrees,
large for light skin. It depends on the light and the camera too, and says nothing about who somebody is.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from skimage.color import rgb2lab

from benchmarks.measure import errors_in_one_line
from gleansr.data.sources import open_source
from gleansr.evaluation.ground_truth import read_image
from gleansr.files import replacing
from gleansr.photos.faces import Faces

CLASSES = ((41.0, "light"), (28.0, "intermediate"), (10.0, "tan"), (-90.0, "dark"))
"""Smallest angle of each group, in degrees. Chardon's very light and light, and his brown and dark, are one group each."""


def typology_angle(pixels: np.ndarray) -> float:
    """The individual typology angle, in degrees, of the median colour of pixels (N, 3), uint8, sRGB."""
    lightness, _, yellow = np.median(rgb2lab(pixels[None])[0], axis=0)
    return float(np.degrees(np.arctan2(lightness - 50, yellow)))


def cheeks(image: np.ndarray, landmarks: Sequence[tuple[float, float]]) -> np.ndarray:
    """The pixels (N, 3) of two squares below the eyes of a face, beside the nose.

    Args:
        image: (H, W, 3) uint8.
        landmarks: see `gleansr.photos.faces.LANDMARKS`, in pixels of the image.
    """
    outer_right, inner_right, outer_left, inner_left, nose = (np.array(point) for point in landmarks)
    eyes = (outer_right + inner_right) / 2, (outer_left + inner_left) / 2
    below = 0.8 * (nose - sum(eyes) / 2)
    reach = max(1.0, 0.12 * float(np.hypot(*(eyes[0] - eyes[1]))))
    squares = []
    for x, y in (eye + below for eye in eyes):
        rows = slice(max(0, round(y - reach)), round(y + reach) + 1)
        squares.append(image[rows, max(0, round(x - reach)) : round(x + reach) + 1].reshape(-1, 3))
    return np.concatenate(squares)


def group_of(angle: float) -> str:
    """The name in `CLASSES` of an angle in degrees."""
    return next(name for smallest, name in CLASSES if angle > smallest or smallest == CLASSES[-1][0])


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.skin_tones", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("portraits")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the CSV file: name, group and angle of each portrait")
    options = parser.parse_args()
    faces, rows = Faces(), []
    with errors_in_one_line(parser):
        source = open_source(options.portraits)
        for i, name in enumerate(source.names):
            image = read_image(source, i)[0]
            found = faces.detect(image, rotated=False) or faces.detect(image, min_score=-1.0, rotated=False)
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            angle = typology_angle(cheeks(pixels, found[0].landmarks or ())) if found else None
            rows.append((name, "no face found" if angle is None else group_of(angle), "" if angle is None else f"{angle:.1f}"))
        with replacing(options.output) as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows([("name", "group", "angle"), *rows])
    for group, count in Counter(row[1] for row in rows).most_common():
        print(f"{group}: {count}")


if __name__ == "__main__":
    main()
