"""The page as a static site: a folder for any file server, whose models run in the browser."""

import gzip
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from gleansr.checkpoints.int8 import round_weights
from gleansr.checkpoints.zoo import asset, cache_folder, file_of, find
from gleansr.errors import ImageError, RequestError
from gleansr.files import sha256_of
from gleansr.inference import export_parts
from gleansr.inference.categories import WEIGHTS
from gleansr.inference.export import check_installed, export
from gleansr.inference.router import GENERAL
from gleansr.inference.runner import FeedForwardModel
from gleansr.inference.upscaler import Upscaler, load
from gleansr.models.network import SRNetwork
from gleansr.models.residual import ResidualNet
from gleansr.serving import cascades
from gleansr.serving.page import PAGE, html
from gleansr.serving.web_runtime import GLUE, GPU_GLUE, GPU_SCRIPT, GPU_WASM, SCRIPT, WASM, runtime_files
from gleansr.version import version

MODELS = ("faces-8x", "faces-4x", "faces-16x", "cats-8x-light", "cats-4x", "cars-8x", "bedrooms-8x", "towers-8x", GENERAL)
"""The light bundled models."""

LIST = "models.json"
_SCRIPTS = {SCRIPT: "ort.js", GLUE: "ort-wasm.js", GPU_SCRIPT: "ort-gpu.js", GPU_GLUE: "ort-gpu-wasm.js"}
"""Names on the site: some servers do not know that .mjs is JavaScript."""
_PACKED_WASM = {WASM: "ort.wasm.packed", GPU_WASM: "ort-gpu.wasm.packed"}
"""No server takes files of these names for something to unpack."""
_PROBED = 256
"""Values of a network's result that the page compares with a GPU's."""
_PROBE_SIDE = 24
"""Of the image for that, for a network of any input size."""
_HEAD_MODELS = 3
"""Of a photo at most, see `static/engine/upscale.js`."""
_FORMAT = 5
"""Of exported files in the cache: changes when models are exported otherwise."""

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
)
"""The page loads from and sends to its own host only."""

_MANIFEST = {
    "name": "gleansr: enlarge and retouch images",
    "short_name": "gleansr",
    "description": "Enlarges any image with real-looking detail, and makes rough retouches look real.",
    "start_url": "./",
    "scope": "./",
    "display": "standalone",
    "background_color": "#f4f4f2",
    "theme_color": "#0b63b5",
    "icons": [
        {"src": "static/icon.svg", "sizes": "any", "type": "image/svg+xml"},
        {"src": "static/icon-512.png", "sizes": "512x512", "type": "image/png"},
    ],
}
Report = Callable[[str], None]
"""Is told what is made."""


@dataclass(frozen=True)
class Site:
    """A site that was written."""

    folder: Path
    models: tuple[str, ...]
    size: int
    """Of all files, in bytes."""
    first_use: int
    """Bytes that a browser loads at most until a first image is enlarged."""


def write_site(
    folder: Path, models: Sequence[str] = MODELS, runtime: Path | None = None, *, overwrite: bool = False, report: Report = print
) -> Site:
    """Writes the page with its models and ONNX Runtime into a folder.

    Args:
        folder: is made. One that a former call wrote is replaced, if `overwrite`.
        models: names of bundled models with an input size, and general-4x.
        runtime: folder of the npm package onnxruntime-web; by default npm fetches it.
        overwrite: replace the files of a former site.
        report: is told what is made.

    Raises:
        RequestError: the folder is not empty, a model does not suit the page, or a package is missing.
        DownloadError: npm failed.
    """
    check_installed()
    names = list(dict.fromkeys(models))
    for name in names:
        if not find(name).asset:
            raise RequestError(f"{name} is not bundled with gleansr; the page takes bundled models, such as {', '.join(MODELS)}")
    if not [name for name in names if name != GENERAL]:
        raise RequestError(f"the page needs a model of a category beside {GENERAL}, such as {MODELS[0]}")
    if os.path.lexists(folder) and not folder.is_dir():
        raise RequestError(f"{folder}: is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite and (folder / LIST).is_file()):
        raise RequestError(f"{folder}: is not empty; give another folder, or --overwrite for one that `gleansr page` wrote")
    contents = runtime_files(runtime)
    exported = _Exports(report)
    try:
        for part in ("static", "runtime", "models"):
            shutil.rmtree(folder / part, ignore_errors=True)
            (folder / part).mkdir(parents=True)
        listed = _write_models(folder, names, exported)
        listed["runtime"], listed["gpu_runtime"] = (_write_runtime(folder, contents, name) for name in (WASM, GPU_WASM))
        for name, ours in _SCRIPTS.items():
            (folder / "runtime" / ours).write_bytes(contents[name])
        listed["cascades"] = _write_cascades(folder, report)
        (folder / LIST).write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _write_page(folder)
    except OSError as error:
        raise ImageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    size = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    shared = sum(count for path, count in size.items() if path.suffix != ".onnx")
    shared -= min(listed["runtime"]["size"], listed["gpu_runtime"]["size"])  # a browser loads one of the two
    classifier = listed["classifier"]["features"]["size"] + listed["classifier"]["head"]["size"]
    return Site(folder, tuple(names), sum(size.values()), shared + classifier + _largest_use(listed))


def _largest_use(listed: dict[str, Any]) -> int:
    """Bytes of the models that an image needs at most: a thumbnail one, a photo the general one and some for heads."""
    heads = sorted(model["size"] for model in listed["models"] if model["category"] in listed["cascades"])
    photo = listed["general"]["size"] + sum(heads[-_HEAD_MODELS:]) if listed["general"] else 0
    return max(photo, *(model["size"] for model in listed["models"]))


class _Exports:
    """ONNX files of the bundled models, kept in the cache: each takes a quarter of a minute."""

    def __init__(self, report: Report):
        self._folder = cache_folder() / "page"
        self._report = report

    def file(self, name: str, source: Path, write: Callable[[Path], object]) -> Path:
        """The exported file of a source."""
        key = hashlib.sha256(f"{_FORMAT} {version()} {sha256_of(source)}".encode()).hexdigest()[:16]
        path = self._folder / f"{name}-{key}.onnx"
        if not path.is_file():
            self._report(f"{name}: written as ONNX and compared")
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        return path

    def model(self, name: str, upscaler: Upscaler) -> Path:
        """The exported file of a model without self-ensemble, which the page computes where it is worth its time.

        Its weights are rounded to 8 bits: half of the size, the same images to about 60 dB.
        """
        network = cast("SRNetwork", cast("FeedForwardModel", upscaler.method).model)
        source = file_of(find(name))
        round_weights(network)
        if isinstance(network, ResidualNet):
            return self.file(name, source, lambda path: export_parts.export_residual(network, path))
        return self.file(name, source, lambda path: export(upscaler, path, small_file=True))

    def classifier(self) -> tuple[Path, Path]:
        """Its features, and the head that reads them."""
        features = self.file("features", asset("efficientnet-lite0.safetensors"), export_parts.export_features)
        return features, self.file("categories", asset(WEIGHTS), export_parts.export_head)


def _write_models(folder: Path, names: Sequence[str], exports: _Exports) -> dict[str, Any]:
    listed, general = [], None
    for name in sorted(names, key=_place):
        upscaler = load(name, device="cpu", precision="float32")
        file = exports.model(name, upscaler.one_pass)
        entry = {**_facts(upscaler), **_network(folder, name, file), "probe": probe(file, upscaler.input_size or _PROBE_SIDE)}
        if name == GENERAL:
            general = entry
        elif upscaler.input_size is None or not upscaler.category:
            raise RequestError(f"{name} takes images of any size; the page takes models of a category, and {GENERAL}")
        else:
            listed.append({**entry, "default": not listed})
    features, head = exports.classifier()
    classifier = {
        "features": _network(folder, "the classifier", features),
        "head": _network(folder, "the classifier", head),
        "threshold": export_parts.threshold(),
    }
    return {"gleansr": version(), "models": listed, "general": general, "classifier": classifier, "automatic": True}


def _place(name: str) -> int:
    """The place of a model in the list of those shown: that of `MODELS`, then that of the zoo."""
    return MODELS.index(name) if name in MODELS else len(MODELS)


def _facts(upscaler: Upscaler) -> dict[str, Any]:
    return {
        "category": upscaler.category,
        "scale": upscaler.scale,
        "input_size": upscaler.input_size,
        "output_size": upscaler.output_size,
        "content_height": upscaler.content_height,
        "border": upscaler.border,
        "self_ensemble": upscaler.about.self_ensemble,
        "licence": upscaler.about.licence,
        "credit": upscaler.about.credit,
        "loaded": True,
    }


def _stored(folder: Path, name: str, file: str, contents: bytes) -> dict[str, Any]:
    """Writes a file of the site, and returns its entry in the list. For a * in its name come digits that change with its contents."""
    digest = hashlib.sha256(contents).hexdigest()
    file = file.replace("*", digest[:8])
    (folder / file).write_bytes(contents)
    return {"name": name, "file": file, "size": len(contents), "sha256": digest}


def _network(folder: Path, name: str, source: Path) -> dict[str, Any]:
    return _stored(folder, name, f"models/{source.stem.rpartition('-')[0]}-*.onnx", source.read_bytes())


def probe(file: Path, side: int) -> dict[str, Any]:
    """What a network's file makes of `noise`, evenly spaced: a GPU on which the page runs the network must make the same."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    result = np.asarray(session.run(None, {"low": noise(side)})[0]).ravel()
    return {"side": side, "values": [round(float(result[i * len(result) // _PROBED]), 4) for i in range(_PROBED)]}


def noise(side: int) -> np.ndarray:
    """Noise (1, 3, side, side) in [-1, 1], float32, that the page makes too: Lehmer's generator of Park and Miller (1988)."""
    states = itertools.accumulate(range(3 * side * side), lambda state, _: state * 16807 % (2**31 - 1), initial=1)
    values = np.fromiter(itertools.islice(states, 1, None), np.float64)
    return (2 * values / (2**31 - 1) - 1).astype(np.float32).reshape(1, 3, side, side)


def _write_runtime(folder: Path, contents: dict[str, bytes], name: str) -> dict[str, Any]:
    return _stored(folder, "ONNX Runtime", f"runtime/{_PACKED_WASM[name]}", gzip.compress(contents[name], 9, mtime=0))


def _write_cascades(folder: Path, report: Report) -> dict[str, Any]:
    """The detectors of heads, by category: JSON for the page, and the licences that their files state."""
    source = cascades.folder()
    if source is None:
        report("heads are not looked for: pip install 'gleansr[photos]' adds the detectors")
        return {}
    return {
        category: _stored(folder, f"the detector of {category}", f"models/heads-{category}-*.json", cascades.text(source / name).encode())
        for category, name in cascades.FILES.items()
    }


def _licences() -> str:
    """Those of the package, and of the detectors, whose files state them."""
    texts, source = [asset("LICENSES.md").read_text(encoding="utf-8")], cascades.folder()
    if source:
        for name in cascades.FILES.values():
            texts.append(f"## Licence of the detector from OpenCV\u2019s {name}\n\n```\n{cascades.licence(source / name)}\n```\n")
    return "\n".join(texts)


def _write_page(folder: Path) -> None:
    for source in sorted(PAGE.rglob("*")):
        target = folder / "static" / source.relative_to(PAGE)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        elif source.name != "sw.js":
            shutil.copyfile(source, target)
    (folder / "LICENSES.md").write_text(_licences(), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(_MANIFEST, indent=1) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(html(models=LIST, policy=POLICY), encoding="utf-8")
    _write_service_worker(folder)


def _write_service_worker(folder: Path) -> None:
    """Its version changes with any file of the page, so that browsers fetch the page anew."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "models" and path.suffix != ".packed" and path.name != "sw.js"
    ]
    program = (PAGE / "sw.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(program.encode())
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    names = [path.relative_to(folder).as_posix() for path in files]
    names = ["./", *(name for name in names if name not in ("index.html", "LICENSES.md"))]
    constants = {"VERSION": digest.hexdigest()[:16], "FILES": names, "POLICY": POLICY}
    lines = [f"const {name} = {json.dumps(value)};\n" for name, value in constants.items()]
    (folder / "sw.js").write_text("".join(lines) + program, encoding="utf-8")
