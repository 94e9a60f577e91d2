"""`gleansr serve` as a child process, for benchmarks and tests."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Running:
    """A service process; its output goes to a file, since an unread pipe would block it."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def running(*options: str | Path, program: Sequence[str | Path] = ("-m", "gleansr"), **environment: str) -> Iterator[Running]:
    """Runs the service until the end of the context, on a free local port unless the options give one.

    `program` is what Python runs as `gleansr`. The environment variable GLEANSR_TOKEN is not inherited. Raises RuntimeError with the
    service's output if it does not start.
    """
    command = [sys.executable, *map(str, program), "serve", "--offline", *map(str, options)]
    command += [] if "--port" in options else ["--port", "0"]
    inherited = {name: value for name, value in os.environ.items() if name != "GLEANSR_TOKEN"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, env=inherited | environment) as process:
            try:
                while not (match := re.search(r" at (http://\S+) ", log.read_text(encoding="utf-8"))):
                    if process.poll() is not None:
                        raise RuntimeError(f"the service did not start: {log.read_text(encoding='utf-8')}")
                    time.sleep(0.05)
                yield Running(match[1], process, log)
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
