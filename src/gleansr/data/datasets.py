"""The data sets of the paper's Table 1 as published, with their annotations and image lists."""

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

from gleansr.data.choices import Aspect, Small
from gleansr.data.sources import FileItem, Item, Source, stem
from gleansr.documents import parse_json
from gleansr.errors import ImageError, RequestError

Crop = Literal["none", "head", "box"]
KindName = Literal["ffhq", "celeba-hq", "lsun", "lsun-cars", "cat", "cars", "folder"]


@dataclass(frozen=True)
class NamedDataset:
    """A published data set, with the defaults of `gleansr data prepare`."""

    name: KindName
    description: str
    """Subject of its images, and its use in the paper."""
    origin: str
    """Where to get it."""
    licence: str
    """Terms of use, as stated by its publisher."""
    size: int | None
    """Side of the images in the paper's experiments."""
    aspect: Aspect
    """Fitting of images that are not square."""
    small: Small
    """Handling of images that would have to be enlarged."""
    crop: Crop | None = None
    """The crop that its annotations allow."""


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
        "Stanford Cars; its page https://ai.stanford.edu/~jkrause/cars/car_dataset.html is closed, copies exist",
        "none stated; research use is customary",
        512,
        "bars",
        "skip",
        "box",
    ),
    NamedDataset("folder", "a custom category", "any source of --data: folder, archives, WebDataset, LMDB", "yours", None, "crop", "skip"),
)


def find_kind(name: str) -> NamedDataset:
    """Returns the data set of that name. Raises RequestError with the known names."""
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise RequestError(f"no data set is named {name!r}; expected one of {', '.join(kind.name for kind in KINDS)}")


@dataclass(frozen=True)
class CropBox:
    """A part of an image, in pixels from its upper left corner."""

    left: float
    top: float
    width: float
    height: float

    def within(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the box in an image of that size, rounded to whole pixels.

        The box is moved inside and shrunk if necessary; a square stays a square. Raises ImageError if it holds no pixel.
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
    """The part to crop; None for all."""
    problem: str = ""
    """Reason why it cannot be used, such as a missing annotation."""


class Dataset:
    """The selected images of a data set, sorted by name."""

    def __init__(self, source: Source, indices: Sequence[int], missing: Sequence[str], find_box: Callable[[Item], CropBox | None]):
        self.source, self.indices, self.find_box = source, indices, find_box
        self.missing = missing
        """Listed names that the source does not have."""
        self.names = [source.names[i] for i in indices]

    def __iter__(self) -> Iterator[Original]:
        for index in self.indices:
            name, item = self.source.names[index], self.source.item(index)
            try:
                yield Original(name, item, self.find_box(item))
            except ImageError as error:
                yield Original(name, item, None, str(error))


def open_dataset(source: Source, spec: str, crop: Crop = "none", names: Sequence[str] | None = None) -> Dataset:
    """Selects and annotates the images of a data set.

    Args:
        source: the images at `spec`.
        crop: "head", by CAT's landmarks; "box", by Stanford Cars' bounding boxes.
        names: the images to select, see `read_list`; None: all.

    Raises RequestError if annotations are missing, or a name in `names` matches several images.
    """
    indices, missing = (range(len(source)), []) if names is None else _select(source, names)
    find_box = _CarBoxes(spec) if crop == "box" else _head if crop == "head" else lambda _: None
    return Dataset(source, indices, missing, find_box)


# ------------------------------------------------------------------------------------------------------------------ lists


def read_list(path: Path) -> list[str]:
    """Reads names from a text file, one per line: `NAME` or, as in MMagic's lists, `NAME (H,W,C)`. Raises RequestError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read as a list of names: {getattr(error, 'strerror', None) or error}") from None
    names = [_first_field(line) for line in lines if line.strip()]
    if not names:
        raise RequestError(f"{path}: is an empty list; expected one name per line")
    return list(dict.fromkeys(names))


def _first_field(line: str) -> str:
    """The name in a line; it may contain spaces if at most a size in brackets follows."""
    first = line.split()[0]
    return first if stem(first) != first else re.sub(r"\s+\([\d,\s]*\)$", "", line.strip())


def _select(source: Source, names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Sorted indices of the named images, and the names without a match. Suffixes may differ, and folders may be omitted."""
    exact: dict[str, int] = {}
    similar: dict[str, list[int]] = {}
    requested, by_stem = set(names), {stem(name): name for name in names}
    for i, name in enumerate(source.names):
        if name in requested:
            exact[name] = i
            continue
        key = stem(name)
        if match := by_stem.get(key) or by_stem.get(PurePosixPath(key).name):
            similar.setdefault(match, []).append(i)
    indices, missing = [], []
    for name in names:
        matches = [exact[name]] if name in exact else similar.get(name, [])
        if len(matches) > 1:
            candidates = " or ".join(source.names[i] for i in matches[:2])
            raise RequestError(f"the list's {name} may be {candidates}: list names with their folders and suffixes")
        indices += matches
        missing += [] if matches else [name]
    return sorted(indices), missing


# ------------------------------------------------------------------------------------------------------------ annotations

HEAD_SCALE = 1.4
"""Side of the square around a cat's head, relative to the longer side of its landmarks' bounding box. The box ends at the tips of the ears
and at the mouth; the margin includes chin and cheeks."""


def _head(item: Item) -> CropBox:
    """The square around a cat's head, by the image's landmark file: `9 x y x y …`, eyes, mouth and three points per ear."""
    if not isinstance(item, FileItem):
        raise RequestError(f"{item.label}: --crop head needs the landmark files next to the images: unpack the archive")
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
    side = HEAD_SCALE * float(max(np.ptp(x), np.ptp(y)))
    if side < 1:
        raise ImageError(f"{file.name}: all landmarks coincide")
    return CropBox((x.min() + x.max() - side) / 2, (y.min() + y.max() - side) / 2, side, side)


class _CarBoxes:
    """The bounding boxes of Stanford Cars, by the names of an image and its folder.

    Two layouts: `cars_annos.mat`, whose field relative_im_path holds both names, and the development kit's `cars_train_annos.mat` and
    `cars_test_annos.mat` (or …_withlabels), whose field fname is relative to cars_train and cars_test.
    """

    def __init__(self, spec: str):
        root = Path(spec).expanduser()
        folders = (root, root / "devkit", root.parent, root.parent / "devkit")
        self.files = [file for folder in folders for file in sorted(folder.glob("cars_*annos*.mat"))]
        if not self.files:
            raise RequestError(
                f"{spec}: --crop box needs cars_annos.mat, or devkit/ with cars_test_annos.mat, in this folder or its parent"
            )
        self.boxes = {name: box for file in self.files for name, box in _boxes(file)}

    def __call__(self, item: Item) -> CropBox:
        if not isinstance(item, FileItem):
            raise RequestError(f"{item.label}: --crop box identifies images by their folders: unpack the archive")
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
    """Reads (folder/name, box) of each annotation."""
    if importlib.util.find_spec("scipy") is None:
        raise RequestError(f"{file}: reading it needs scipy: pip install 'gleansr[train]'")
    try:
        with file.open("rb") as stream:
            head = stream.read(128)
    except OSError as error:
        raise RequestError(f"{file}: cannot be read: {error.strerror}") from None
    problem = f"{file}: is not an annotation file of Stanford Cars"
    if head.startswith(b"MATLAB 7.3"):
        raise RequestError(f"{problem}: it has the format of MATLAB 7.3; save it with the option -v7")
    if len(head) < 128 or head[124:] not in (b"\0\1IM", b"\1\0MI"):
        raise RequestError(f"{problem}: it does not begin like a MAT file of version 5")
    # SciPy trusts the file's sizes and offsets: a damaged file can kill the process that reads it.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _READER, str(file)]
    try:
        reader = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=_READER_SECONDS)  # noqa: S603, a fixed command
    except subprocess.TimeoutExpired:
        raise RequestError(f"{file}: is damaged: reading it takes more than {_READER_SECONDS} seconds; fetch it again") from None
    if reader.returncode < 0:
        name = signal.Signals(-reader.returncode).name
        raise RequestError(f"{file}: is damaged (its reader was killed by {name}); fetch it again")
    if reader.returncode:
        lines = reader.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {reader.returncode}"]
        raise RequestError(f"{problem}: {lines[0][:300]}")
    folder = file.name.partition("_annos")[0]
    for path, left, top, right, bottom in parse_json(reader.stdout, str(file)):
        path = PurePosixPath(folder, path)
        # MATLAB counts from 1, and the box includes its right and bottom pixels.
        yield f"{path.parent.name}/{path.name}", CropBox(left - 1, top - 1, right - left + 1, bottom - top + 1)
