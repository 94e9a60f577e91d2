"""Drives the page of `gleansr serve` in Chromium, for the tests of the page."""

import base64
import io
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
UNTIL = """(milliseconds) => new Promise((resolve, reject) => {
  const end = performance.now() + milliseconds;
  const look = () => {
    try {
      const value = EXPRESSION;
      if (value || performance.now() > end) resolve(value); else setTimeout(look, 20);
    } catch (error) { reject(error); }
  };
  look();
})"""
"""Looks in the page: to ask from here, fifty times a second, takes much of a core."""


@dataclass
class Driver:
    """A page, and what went wrong in it."""

    page: Any
    address: str
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        own = urlsplit(self.address).netloc

        def requested(request: Any) -> None:
            if urlsplit(request.url).scheme not in ("blob", "data") and urlsplit(request.url).netloc != own:
                self.errors.append(f"a request to another host: {request.url}")

        self.page.on("request", requested)
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, mode: str = "retouch") -> None:
        self.page.goto(self.address)
        self.until("document.querySelector('#model').options.length > 0")
        self.choose(mode)

    def load(self, path: Path) -> None:
        """Opens an image and waits until it can be edited."""
        self.page.set_input_files("#file", str(path))
        self.says(path.name)

    def until(self, expression: str, seconds: float = 60) -> Any:
        """The value of a JavaScript expression as soon as it is true.

        The page's policy forbids Playwright's own way, which evaluates text in the page.
        """
        value = self.page.evaluate(UNTIL.replace("EXPRESSION", expression), 1000 * seconds)
        if not value:
            self.shot("timeout")
            pytest.fail(f"never true: {expression}; status: {self.status()!r}; errors: {self.errors}")
        return value

    def says(self, start: str) -> None:
        """Waits until the status line starts so."""
        self.until(f"document.querySelector('#status').textContent.startsWith({start!r})")

    def status(self) -> str:
        return self.page.inner_text("#status")

    def shot(self, name: str) -> None:
        """Keeps an image of the page, to be looked at, in the folder that the environment variable GLEANSR_SHOTS names."""
        if folder := os.environ.get("GLEANSR_SHOTS"):
            self.page.screenshot(path=Path(folder, f"{name}.png"))

    def refined(self) -> int:
        """How many strokes were refined and shown so far."""
        return self.page.evaluate("performance.getEntriesByName('stroke-to-refined').length")

    def drag(self, *points: tuple[float, float]) -> None:
        """Draws with the mouse, in parts of the canvas."""
        box = self.page.locator("#canvas").bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=8)
        self.page.mouse.up()

    def stroke(self, *points: tuple[float, float]) -> None:
        """Draws and waits until the refined image is shown."""
        before = self.refined()
        self.drag(*points)
        self.until(f"performance.getEntriesByName('stroke-to-refined').length > {before}")

    def choose(self, value: str) -> None:
        """Chooses a tool, what is shown, or a mode."""
        self.page.locator(f"input[type=radio][value={value}]").check(force=True)

    def save(self, path: Path) -> Path:
        with self.page.expect_download() as download:
            self.page.click("#save")
        download.value.save_as(path)
        return path

    def canvas(self) -> np.ndarray:
        """What is drawn on the canvas, without what lies over it: (rows, columns, 4)."""
        self.page.wait_for_timeout(50)
        data = self.page.evaluate("document.querySelector('#canvas').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))))
