"""Commands that are killed, or whose disk is full or fails, at a random one of their changes of files.

Must hold: the command, run again, ends well with what a run without faults writes, bit for bit; nothing temporary stays behind; inputs are
unchanged; a command that is not killed ends within a minute with 0 or 1 and one line for each fault, and with 0 only if all is written.

Changes are counted by `faults.c`, a library that is preloaded into a process in which gleansr is imported and which forks for each command.
"""

import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gleansr.files import sha256_of
from tests.fuzz import finding

_SET = ["--size", 8, "--scales", 2, "--workers", 1]
_EXISTS = "already exists; use --overwrite"
MODES = {"killed": 1, "killed in the middle of a write": 2, "disk full": 3, "EIO": 4, "half written": 5}
PATIENCE = 60.0
"""Seconds that a command may take."""


@dataclass(frozen=True)
class Activity:
    """A command, and what of its output is the same in every run."""

    name: str
    arguments: Callable[[Path, Path], list[object]]
    """The command line, of the folder of inputs and that of outputs."""
    result: Callable[[Path], str]
    """What the outputs are, as one line."""


def activities() -> list[Activity]:
    return [
        Activity("folder", lambda a, b: ["upscale", a / "in", "-o", b / "out", *_model(a), "--batch-size", 2], _files("*.png")),
        Activity("images", lambda a, b: ["upscale", *sorted((a / "in").glob("*.png"))[:3], "-o", b / "out", *_model(a)], _files("*.png")),
        Activity("one image", lambda a, b: ["upscale", a / "in" / "0.png", "-o", b / "out.webp", *_model(a)], _files("*.webp")),
        Activity("retouch", lambda a, b: ["retouch", a / "in" / "0.png", "-o", b / "out.png", *_model(a)], _files("*.png")),
        Activity("video", lambda a, b: ["upscale", a / "clip.mkv", "-o", b / "out.mkv", *_model(a)], _video),
        Activity(
            "data",
            lambda a, b: ["data", "prepare", "folder", a / "in", b / "set", "--size", 8, "--scales", 2, "--workers", 1],
            _files("*.png"),
        ),
        Activity("convert", lambda a, b: ["models", "convert", a / "tiny.safetensors", "-o", b / "new.safetensors"], _tensors),
        Activity("training", lambda a, b: ["train", a / "glean.toml", "-o", b / "run", "--device", "cpu"], _training),
        Activity("training of a bank", lambda a, b: ["train-bank", a / "bank.toml", "-o", b / "run", "--device", "cpu"], _training),
    ]


def _model(folder: Path) -> list[object]:
    return ["-m", folder / "tiny.safetensors", "--device", "cpu"]


def run(chances: Iterable[random.Random], names: Iterable[str] = ()) -> Counter[str]:
    """One command a trial, with one to three faults one after the other, of the activities with these `names`, by default of all."""
    counts: Counter[str] = Counter()
    chosen = [one for one in activities() if not names or one.name in names]
    with tempfile.TemporaryDirectory() as name, commands() as call:
        inputs, outputs = Path(name, "inputs"), Path(name, "outputs")
        make_inputs(inputs)
        before = _files("*")(inputs)
        whole: dict[str, tuple[str, int]] = {}
        for one in chosen:
            shutil.rmtree(outputs, ignore_errors=True)
            outputs.mkdir()
            status, said, changes = call(one.arguments(inputs, outputs), outputs, 0, 0)
            if status or not changes:
                raise RuntimeError(f"{one.name}: ended with {status}: {said}")
            whole[one.name] = one.result(outputs), changes
        for rng in chances:
            one = rng.choice(chosen)
            _try(one, rng, call, inputs, outputs, whole[one.name], counts)
            if _files("*")(inputs) != before:
                finding(counts, f"{one.name}: inputs are changed")
                return counts
    return counts


Call = Callable[[list[object], Path, int, int], tuple[int, str, int]]


def _try(one: Activity, rng: random.Random, call: Call, inputs: Path, outputs: Path, whole: tuple[str, int], counts: Counter[str]) -> None:
    expected, changes = whole
    shutil.rmtree(outputs, ignore_errors=True)
    outputs.mkdir()
    history = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        mode, at = rng.choice(list(MODES)), rng.randint(1, changes)
        status, said, _ = call(one.arguments(inputs, outputs), outputs, at, MODES[mode])
        history.append(f"{mode} at {at}: {status}: {said}")
        counts[f"{one.name}, {mode}: {'ended by SIGKILL' if status == -signal.SIGKILL else f'status {status}'}"] += 1
        data = "\n".join(history).encode()
        if status == -signal.SIGALRM:
            finding(counts, f"{one.name}, {mode}: hangs", data)
        elif status == 2 and _EXISTS in said:
            pass  # an earlier one has written the result
        elif status not in (0, 1, -signal.SIGKILL) or (status == -signal.SIGKILL and not mode.startswith("killed")):
            finding(counts, f"{one.name}, {mode}: status {status}", data)
        elif "Traceback" in said or "internal error" in said:
            finding(counts, f"{one.name}, {mode}: a traceback", data)
        elif status == 0 and (found := one.result(outputs)) != expected:
            finding(counts, f"{one.name}, {mode}: status 0, but other results", data + f"\n{found}\n{expected}".encode())
    status, said, _ = call(one.arguments(inputs, outputs), outputs, 0, 0)
    data = "\n".join([*history, f"again: {status}: {said}"]).encode()
    left = [path.name for path in outputs.rglob("*") if path.name.endswith((".part", ".tmp"))]
    if status and _EXISTS not in said:
        finding(counts, f"{one.name}, then run again: status {status}", data)
    elif (found := one.result(outputs)) != expected:
        finding(counts, f"{one.name}, then run again: other results", data + f"\n{found}\n{expected}".encode())
    if left and not status:  # else it wrote nothing: what stays is deleted by the next one that does
        finding(counts, f"{one.name}, then run again: temporary files are left", data + f"\n{left}".encode())


@contextmanager
def commands() -> Iterator[Call]:
    """Runs command lines: in (arguments, folder of outputs, number of the change, mode), out (status, what was said, number of changes)."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "faults.so")
        source = Path(__file__).with_name("faults.c")
        subprocess.run([shutil.which("cc") or "cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.kills"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        requests, answers = process.stdin, process.stdout
        assert requests
        assert answers

        def call(arguments: list[object], outputs: Path, at: int, mode: int) -> tuple[int, str, int]:
            requests.write(json.dumps([[str(one) for one in arguments], str(outputs), at, mode]) + "\n")
            requests.flush()
            status, said, changes = json.loads(answers.readline())
            return status, said, changes

        try:
            yield call
        finally:
            requests.close()
            process.wait()
            answers.close()


def _serve() -> None:
    """Runs the commands of standard input, each in a fork of this process."""
    from gleansr.cli import main

    library = ctypes.CDLL(None)
    library.faults_calls.restype = ctypes.c_long
    for line in sys.stdin:
        arguments, outputs, at, mode = json.loads(line)
        with tempfile.TemporaryFile() as said:
            if (child := os.fork()) == 0:
                signal.alarm(int(PATIENCE))
                os.setpgid(0, 0)
                for descriptor, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, said.fileno()), (2, said.fileno())):
                    os.dup2(file, descriptor)
                library.faults_arm(outputs.encode(), ctypes.c_long(at), mode)
                try:
                    main(arguments)
                except SystemExit as end:
                    status = end.code if isinstance(end.code, int) else int(end.code is not None)
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            text = said.read().decode(errors="replace")
        print(json.dumps([status, text[-4000:], library.faults_calls()]), flush=True)


def make_inputs(folder: Path) -> None:
    """Images, a clip, a tiny GLEAN 8 -> 32, and recipes of a few steps."""
    from gleansr.checkpoints import native
    from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator
    from tests.serving_parts import save_vivid
    from tests.video_parts import clip, numbered

    (folder / "in" / "deep").mkdir(parents=True)
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((16, 16)).save(folder / "in" / ("deep" if i > 5 else "") / f"{i}.png")
    clip(folder / "clip.mkv", numbered(4, (8, 8)))
    save_vivid(folder / "tiny.safetensors")
    config = StyleGAN2Config((8, 8, 4), code_dim=8, mapping_layers=1)
    networks = {"generator": StyleGAN2(config), "discriminator": StyleGAN2Discriminator(config)}
    native.save(folder / "bank.safetensors", networks, native.About("bank"))
    common = (
        f'[data]\ntrain = ["{folder / "in"}"]\n'
        "[run]\niterations = 4\nbatch_size = 4\ncheckpoint_every = 4\nlog_every = 4\ntensorboard = false\n"
    )
    (folder / "glean.toml").write_text(
        f'bank_file = "{folder / "bank.safetensors"}"\nlr = 1e-3\nema_half_life = 8\n[about]\nname = "model"\n'
        f"[network]\nin_size = 4\nout_size = 16\nn_rrdb = 1\nfeatures = 4\ngrowth = 3\n{common}"
    )
    (folder / "bank.toml").write_text(
        f'lr = 1e-3\nema_half_life = 8\nada_target = 0.5\nada_images = 100\n[about]\nname = "model"\n'
        f"[network]\nchannels = [8, 8, 4]\ncode_dim = 8\nmapping_layers = 1\n{common}"
    )


def _files(pattern: str) -> Callable[[Path], str]:
    def result(folder: Path) -> str:
        paths = sorted(path for path in folder.rglob(pattern) if path.is_file() and not path.name.endswith(".part"))
        return " ".join(f"{path.relative_to(folder)}:{sha256_of(path)}" for path in paths)

    return result


def _video(folder: Path) -> str:
    """Its frames: the container has a random identifier."""
    from tests.video_parts import planes

    path = folder / "out.mkv"
    return _sha256(*(np.asarray(plane).tobytes() for plane in planes(path))) if path.is_file() else ""


def _tensors(folder: Path) -> str:
    from gleansr.checkpoints import native

    found = []
    for path in sorted(folder.rglob("*.safetensors")):
        networks = native.read(path).networks
        found += [f"{path.name}/{name}:{_tensor_hash(network.tensors)}" for name, network in sorted(networks.items())]
    return " ".join(found)


def _training(folder: Path) -> str:
    """The model, and the images of the lines of the log."""
    lines = (
        [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
        if (folder / "run" / "log.jsonl").is_file()
        else []
    )
    return f"{_tensors(folder)} {[line['images'] for line in lines if 'seconds' in line]}"


def _tensor_hash(tensors: dict[str, Any]) -> str:
    return _sha256(*(tensor.contiguous().numpy().tobytes() for _, tensor in sorted(tensors.items())))


def _sha256(*contents: bytes) -> str:
    total = hashlib.sha256()
    for one in contents:
        total.update(one)
    return total.hexdigest()[:16]


if __name__ == "__main__":
    _serve()
