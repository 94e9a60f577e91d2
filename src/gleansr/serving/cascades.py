"""OpenCV's cascades for the page: their XML as compact JSON, which `static/engine/cascade.js` reads."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

FILES = {"faces": "haarcascade_frontalface_alt2.xml", "cats": "haarcascade_frontalcatface_extended.xml"}
"""By category."""


def folder() -> Path | None:
    """Where OpenCV keeps its cascades; None if it is not installed, or is version 5, which has none."""
    spec = importlib.util.find_spec("cv2")
    found = Path(spec.origin).parent / "data" if spec and spec.origin else None
    return found if found and all((found / name).is_file() for name in FILES.values()) else None


def compact(file: Path) -> dict[str, Any]:
    """A cascade of Haar features as JSON values; see `cascade.js`.

    Numbers are rounded to float32, as OpenCV keeps them.
    """
    # The file is part of an installed package.
    root = ElementTree.parse(file).getroot().find("cascade")  # noqa: S314
    assert root is not None  # noqa: S101
    stages = [
        {
            "threshold": _number(stage.findtext("stageThreshold", "")),
            "trees": [
                {
                    "nodes": [[int(a), int(b), int(c), _number(d)] for a, b, c, d in _quadruples(tree.findtext("internalNodes", ""))],
                    "leaves": [_number(value) for value in tree.findtext("leafValues", "").split()],
                }
                for tree in stage.iterfind("weakClassifiers/_")
            ],
        }
        for stage in root.iterfind("stages/_")
    ]
    features = [
        [int(feature.findtext("tilted", "0")), *(_whole(value) for rectangle in feature.iterfind("rects/_") for value in _words(rectangle))]
        for feature in root.iterfind("features/_")
    ]
    return {"side": int(root.findtext("width", "")), "features": features, "stages": stages}


def licence(file: Path) -> str:
    """What the file says about its author and licence: the comment at its beginning."""
    found = re.search("<!--(.*?)-->", file.read_text(encoding="utf-8"), re.DOTALL)
    assert found  # noqa: S101
    return found[1].strip("\n")


def text(file: Path) -> str:
    """A cascade as the file of the site."""
    return json.dumps(compact(file), separators=(",", ":"))


def _quadruples(words: str) -> list[tuple[str, ...]]:
    return list(zip(*[iter(words.split())] * 4, strict=True))


def _words(element: ElementTree.Element) -> list[str]:
    return (element.text or "").split()


def _number(value: str) -> float:
    """The shortest number of the same float32."""
    return float(f"{float(value):.9g}")


def _whole(value: str) -> int | float:
    number = float(value)
    return int(number) if number.is_integer() else number
