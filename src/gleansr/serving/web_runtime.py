"""ONNX Runtime for browsers, the npm package onnxruntime-web: from a folder, or fetched once by npm."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from gleansr.checkpoints.zoo import cache_folder, offline_by_environment
from gleansr.errors import DownloadError, RequestError
from gleansr.files import sha256_of

VERSION = "1.30.0"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
"""Of npm's archive of that version."""

SCRIPT, GLUE, WASM = "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
GPU_SCRIPT, GPU_GLUE, GPU_WASM = "ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.mjs", "ort-wasm-simd-threaded.jspi.wasm"
"""With WebGPU, for browsers whose WebAssembly can wait for it (JSPI)."""
FILES = (SCRIPT, GLUE, WASM, GPU_SCRIPT, GPU_GLUE, GPU_WASM)
"""Files of the package's folder dist/ that the page uses."""

_TIMEOUT = 600


def runtime_files(folder: Path | None = None) -> dict[str, bytes]:
    """The contents of `FILES`.

    Args:
        folder: of the unpacked package, or its dist/; None: the pinned version, fetched by npm at the first call.

    Raises:
        RequestError: the folder lacks a file, or npm is not installed.
        DownloadError: npm failed, or fetched another file than the pinned one.
    """
    if folder is None:
        return _unpacked(_archive())
    for place in (folder, folder / "dist", folder / "package" / "dist"):
        if all((place / name).is_file() for name in FILES):
            return {name: (place / name).read_bytes() for name in FILES}
    raise RequestError(f"{folder}: holds no onnxruntime-web: expected dist/{WASM}; unpack the npm package, or leave --runtime out")


def _archive() -> Path:
    path = cache_folder() / "page" / f"onnxruntime-web-{VERSION}.tgz"
    if path.is_file() and sha256_of(path) == SHA256:
        return path
    advice = "or unpack the npm package onnxruntime-web yourself and give --runtime FOLDER"
    if offline_by_environment():
        raise RequestError(f"onnxruntime-web {VERSION} is not on this machine and downloads are switched off: allow them, {advice}")
    npm = shutil.which("npm")
    if npm is None:
        raise RequestError(f"onnxruntime-web {VERSION} is fetched by npm, which is not installed: install Node.js, {advice}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DownloadError(f"npm pack onnxruntime-web@{VERSION} failed: {error}; {advice}") from None
        fetched = next(Path(folder).glob("*.tgz"), None)
        if done.returncode or fetched is None:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise DownloadError(f"npm pack onnxruntime-web@{VERSION} failed: {reason}; {advice}")
        if (found := sha256_of(fetched)) != SHA256:
            raise DownloadError(f"npm fetched another onnxruntime-web {VERSION} than expected: SHA-256 {found}, not {SHA256}; {advice}")
        fetched.replace(path)
    return path


def _unpacked(archive: Path) -> dict[str, bytes]:
    contents = {}
    with tarfile.open(archive) as tar:
        for name in FILES:
            file = tar.extractfile(f"package/dist/{name}")
            if file is None:
                raise RequestError(f"{archive}: has no {name}")
            contents[name] = file.read()
    return contents
