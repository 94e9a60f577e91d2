"""`python -m benchmarks.skin_tones`: groups of portraits for `gleansr evaluate --groups`."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import skin_tones
from gleansr.data.sources import open_source
from gleansr.evaluation.plan import read_groups

SKIN = {"light": (245, 219, 200), "intermediate": (200, 150, 120), "tan": (180, 130, 100), "dark": (90, 60, 45)}


@pytest.mark.parametrize("group", SKIN)
def test_the_angle_orders_skin_from_light_to_dark(group: str):
    angle = skin_tones.typology_angle(np.full((9, 3), SKIN[group], np.uint8))
    assert skin_tones.group_of(angle) == group


def test_the_angle_of_a_known_colour():
    # sRGB (200, 150, 120) is L* 66.1, b* 23.1.
    assert skin_tones.typology_angle(np.array([[200, 150, 120]], np.uint8)) == pytest.approx(34.8, abs=0.1)


def test_cheeks_lie_below_the_eyes_and_beside_the_nose():
    image = np.zeros((100, 100, 3), np.uint8)
    image[45:65, 20:45] = image[45:65, 55:80] = 200
    landmarks = [(75, 40), (60, 40), (25, 40), (40, 40), (50, 58)]
    assert (skin_tones.cheeks(image, landmarks) == 200).all()


def test_the_file_serves_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("dlib")
    face = Image.open("examples/astronaut-face-256.png").convert("RGB")
    (tmp_path / "portraits").mkdir()
    face.save(tmp_path / "portraits" / "astronaut.png")
    Image.new("RGB", (256, 256), (90, 90, 90)).save(tmp_path / "portraits" / "empty.png")
    monkeypatch.setattr("sys.argv", ["skin_tones", str(tmp_path / "portraits"), "-o", str(tmp_path / "groups.csv")])
    skin_tones.main()
    groups = read_groups(tmp_path / "groups.csv", open_source(str(tmp_path / "portraits")).names)
    with (tmp_path / "groups.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert groups == {"astronaut.png": groups["astronaut.png"], "empty.png": "no face found"}
    assert groups["astronaut.png"] in {name for _, name in skin_tones.CLASSES}
    assert float(rows[0]["angle"]) > 0
