"""The data sets of the paper's Table 1 as they are published: where their images lie, and which part of each is used."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from gleansr.data.fit import Aspect, Small
from gleansr.data.sources import FileItem, Item, Source, stem
from gleansr.documents import parse_json
from gleansr.errors import ImageError, RequestError

Crop = Literal["none", "head", "box"]
KindName = Literal["ffhq", "celeba-hq", "lsun", "lsun-cars", "cat", "cars", "folder"]


@dataclass(frozen=True)
class NamedDataset:
    """A data set that is known by name, with what `gleansr data prepare` does to it unless told otherwise."""

    name: KindName
    shows: str
    """What its images show, and what the paper uses it for."""
    where: str
    """Where to get it."""
    licence: str
    """What may be done with it, as far as its publisher says."""
    size: int | None
    """Side of the images in the paper's experiments."""
    aspect: Aspect
    """What is done with images that are not square."""
    small: Small
    """What is done with images that would have to be enlarged."""
    crop: Crop | None = None
    """The cut-out that its annotations allow."""


KINDS = (
    NamedDataset(
        "ffhq",
        "human faces: training",
        "https://github.com/NVlabs/ffhq-dataset (images1024x1024)",
        "CC BY-NC-SA 4.0 by NVIDIA; each photograph has its own Creative Commons or public-domain licence",
        1024,
        "squash",
        "enlarge",
    ),
    NamedDataset(
        "celeba-hq",
        "human faces: test (100 images)",
        "https://github.com/tkarras/progressive_growing_of_gans",
        "non-commercial research, by the terms of CelebA (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)",
        1024,
        "squash",
        "enlarge",
    ),
    NamedDataset(
        "lsun",
        "cats, bedrooms, towers: training; bedrooms, towers: test (the validation sets)",
        "https://github.com/fyu/lsun (scenes), https://www.yf.io/p/lsun (objects)",
        "research; the photographs belong to their authors",
        256,
        "squash",
        "enlarge",
    ),
    NamedDataset(
        "lsun-cars",
        "cars: training",
        "https://www.yf.io/p/lsun (car, of the objects)",
        "research; the photographs belong to their authors",
        512,
        "bars",
        "skip",
    ),
    NamedDataset(
        "cat",
        "cats: test (100 images)",
        "https://archive.org/details/CAT_DATASET",
        "none stated; the photographs are from Flickr",
        256,
        "squash",
        "enlarge",
        "head",
    ),
    NamedDataset(
        "cars",
        "cars: test",
        "Stanford Cars; its page https://ai.stanford.edu/~jkrause/cars/car_dataset.html has closed, copies go round",
        "none stated; research use is customary",
        512,
        "bars",
        "skip",
        "box",
    ),
    NamedDataset("folder", "an own category", "whatever --data takes: a folder, archives, WebDataset, LMDB", "yours", None, "crop", "skip"),
)


def find_kind(name: str) -> NamedDataset:
    """The kind of that name. Raises RequestError that lists the known ones."""
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise RequestError(f"no kind of data set is named {name!r}; expected one of {', '.join(kind.name for kind in KINDS)}")


@dataclass(frozen=True)
class CropBox:
    """A part of an image, in pixels from its upper left corner."""

    left: float
    top: float
    width: float
    height: float

    def within(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the nearest box of whole pixels in an image of that size.

        It is moved inside, and made smaller where that is not enough, a square one to a square. Raises ImageError where it holds no
        pixel.
        """
        rows, columns = round(self.height), round(self.width)
        if rows < 1 or columns < 1 or self.left >= width or self.top >= height or self.left + columns <= 0 or self.top + rows <= 0:
            raise ImageError(f"its annotation is for {columns}x{rows} at ({self.left:g}, {self.top:g}) of an image of {width}x{height}")
        if rows == columns:
            rows = columns = min(rows, height, width)
        rows, columns = min(rows, height), min(columns, width)
        top = min(max(round(self.top + (self.height - rows) / 2), 0), height - rows)
        left = min(max(round(self.left + (self.width - columns) / 2), 0), width - columns)
        return slice(top, top + rows), slice(left, left + columns)


@dataclass(frozen=True)
class Original:
    """An image of a data set before it is prepared."""

    name: str
    item: Item
    box: CropBox | None
    """The part to cut out, None for all."""
    problem: str = ""
    """Why it cannot be used, such as a missing annotation."""


class Dataset:
    """The chosen images of a data set, sorted by name."""

    def __init__(self, source: Source, chosen: Sequence[int], missing: Sequence[str], annotate: Callable[[Item], CropBox | None]):
        self.source, self.chosen, self.annotate = source, chosen, annotate
        self.missing = missing
        """The names in the list that the source does not have."""
        self.names = [source.names[i] for i in chosen]

    def __iter__(self) -> Iterator[Original]:
        for index in self.chosen:
            name, item = self.source.names[index], self.source.item(index)
            try:
                yield Original(name, item, self.annotate(item))
            except ImageError as error:
                yield Original(name, item, None, str(error))


def open_dataset(source: Source, spec: str, crop: Crop = "none", names: Sequence[str] | None = None) -> Dataset:
    """The images of a data set.

    Args:
        source: the images at `spec`.
        crop: which cut-out: "head" of CAT's landmarks, "box" of Stanford Cars' boxes.
        names: take these only, see `read_list`.

    Raises RequestError where annotations are wanted that are not there, or a name in `names` fits several images.
    """
    chosen, missing = (range(len(source)), []) if names is None else _choose(source, names)
    annotate = _CarBoxes(spec) if crop == "box" else _head if crop == "head" else _whole
    return Dataset(source, chosen, missing, annotate)


def _whole(_: Item) -> None:
    return None


# ------------------------------------------------------------------------------------------------------------------ lists


def read_list(path: Path) -> list[str]:
    """The names in a text file, one a line: `NAME` or, as in MMagic's lists, `NAME (H,W,C)`. Raises RequestError if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read as a list of names: {getattr(error, 'strerror', None) or error}") from None
    names = [_first_field(line) for line in lines if line.strip()]
    if not names:
        raise RequestError(f"{path}: is an empty list; expected one name a line")
    return list(dict.fromkeys(names))


def _first_field(line: str) -> str:
    """The name in a line; it may hold blanks where nothing but a size in brackets follows."""
    first = line.split()[0]
    return first if stem(first) != first else re.sub(r"\s+\([\d,\s]*\)$", "", line.strip())


def _choose(source: Source, names: Sequence[str]) -> tuple[list[int], list[str]]:
    """The indices of the images named, sorted, and the names that fit none. Suffixes need not agree, and folders may be left out."""
    exact: dict[str, int] = {}
    similar: dict[str, list[int]] = {}
    asked, by_stem = set(names), {stem(name): name for name in names}
    for i, name in enumerate(source.names):
        if name in asked:
            exact[name] = i
            continue
        key = stem(name)
        if wanted := by_stem.get(key) or by_stem.get(PurePosixPath(key).name):
            similar.setdefault(wanted, []).append(i)
    chosen, missing = [], []
    for name in names:
        fitting = [exact[name]] if name in exact else similar.get(name, [])
        if len(fitting) > 1:
            fits = " or ".join(source.names[i] for i in fitting[:2])
            raise RequestError(f"the list's {name} may be {fits}: write names in the list with their folders and suffixes")
        chosen += fitting
        missing += [] if fitting else [name]
    return sorted(chosen), missing


# ------------------------------------------------------------------------------------------------------------ annotations

HEAD = 1.4
"""Side of the square around a cat's head, relative to the longer side of its landmarks' bounding box. The box ends at the tips of the ears
and at the mouth, and this leaves room for chin and cheeks."""


def _head(item: Item) -> CropBox:
    """The square around a cat's head, by the landmark file beside the image: `9 x y x y …`, eyes, mouth and three points an ear."""
    if not isinstance(item, FileItem):
        raise RequestError(f"{item.label}: --crop head reads the landmark files beside the images: unpack the archive")
    file = item.path.with_name(f"{item.path.name}.cat")
    try:
        count, *values = (int(number) for number in file.read_text(encoding="ascii").split())
    except FileNotFoundError:
        raise ImageError(f"has no landmark file {file.name}") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{file.name} cannot be read: {error}") from None
    if count != 9 or len(values) != 18:
        raise ImageError(f"{file.name} holds {len(values)} numbers after {count}; expected 18 after 9")
    x, y = np.array(values).reshape(9, 2).T
    side = HEAD * float(max(np.ptp(x), np.ptp(y)))
    if side < 1:
        raise ImageError(f"{file.name}: all landmarks are one point")
    return CropBox((x.min() + x.max() - side) / 2, (y.min() + y.max() - side) / 2, side, side)


class _CarBoxes:
    """The bounding boxes of Stanford Cars, by the name of an image's folder and its own.

    Two layouts: `cars_annos.mat`, whose field relative_im_path holds both names, and the development kit's `cars_train_annos.mat` and
    `cars_test_annos.mat` (or …_withlabels), whose field fname belongs into cars_train and cars_test.
    """

    def __init__(self, spec: str):
        root = Path(spec).expanduser()
        places = (root, root / "devkit", root.parent, root.parent / "devkit")
        self.files = [file for place in places for file in sorted(place.glob("cars_*annos*.mat"))]
        if not self.files:
            raise RequestError(
                f"{spec}: --crop box wants cars_annos.mat or the folder devkit/ with cars_test_annos.mat in or beside this folder"
            )
        self.boxes = {name: box for file in self.files for name, box in _boxes(file)}

    def __call__(self, item: Item) -> CropBox:
        if not isinstance(item, FileItem):
            raise RequestError(f"{item.label}: --crop box knows images by their folders: unpack the archive")
        path = item.path.absolute()
        if (box := self.boxes.get(f"{path.parent.name}/{path.name}")) is None:
            raise ImageError(f"has no bounding box in {', '.join(file.name for file in self.files)}")
        return box


_READER = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
except (ImportError, ValueError, OSError):
    pass
import numpy
from scipy.io import loadmat
rows = numpy.atleast_1d(loadmat(sys.argv[1], squeeze_me=True)["annotations"])
name = "relative_im_path" if "relative_im_path" in (rows.dtype.names or ()) else "fname"
json.dump([[str(row[name]), *(int(row["bbox_" + corner]) for corner in ("x1", "y1", "x2", "y2"))] for row in rows], sys.stdout)
"""
_READER_SECONDS = 300


def _boxes(file: Path) -> Iterator[tuple[str, CropBox]]:
    """(folder/name, box) of each annotation."""
    if importlib.util.find_spec("scipy") is None:
        raise RequestError(f"{file}: reading it wants a package: pip install 'gleansr[train]'")
    try:
        with file.open("rb") as opened:
            head = opened.read(128)
    except OSError as error:
        raise RequestError(f"{file}: cannot be read: {error.strerror}") from None
    wanted = f"{file}: is not an annotation file of Stanford Cars"
    if head.startswith(b"MATLAB 7.3"):
        raise RequestError(f"{wanted}: it is of MATLAB 7.3; save it there with the option -v7")
    if len(head) < 128 or head[124:] not in (b"\0\1IM", b"\1\0MI"):
        raise RequestError(f"{wanted}: it does not begin like a MAT file of version 5")
    # SciPy's reader trusts what such a file says of itself, and a damaged one can kill the process that reads it.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _READER, str(file)]
    try:
        reader = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=_READER_SECONDS)  # noqa: S603, ours
    except subprocess.TimeoutExpired:
        raise RequestError(f"{file}: is damaged: reading it takes more than {_READER_SECONDS} seconds; fetch it again") from None
    if reader.returncode < 0:
        name = signal.Signals(-reader.returncode).name
        raise RequestError(f"{file}: is damaged (its reader died of {name}); fetch it again")
    if reader.returncode:
        said = reader.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {reader.returncode}"]
        raise RequestError(f"{wanted}: {said[0][:300]}")
    folder = file.name.partition("_annos")[0]
    for path, left, top, right, bottom in parse_json(reader.stdout, str(file)):
        path = PurePosixPath(folder, path)
        # MATLAB counts from 1, and the right and bottom pixels belong to the box.
        yield f"{path.parent.name}/{path.name}", CropBox(left - 1, top - 1, right - left + 1, bottom - top + 1)
