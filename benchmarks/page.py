"""Time from the end of a stroke to the refined image in the browser, compared with the bare forward pass.

    python -m benchmarks.page [--strokes 30] [--image FILE] [--model cats-8x] [--json FILE]
    python -m benchmarks.page --site DIRECTORY [--image FILE]
    python -m benchmarks.page --screenshot docs/page.jpg

Starts `gleansr serve` on a free local port and draws strokes in headless Chromium. The bare forward pass of one image is timed in this
process before and after the strokes, when the cores are free. Needs `pip install 'gleansr[serve]' playwright` and Chromium; CHROMIUM is its
path if it is not called chromium. With --site the strokes are those of a page that `gleansr page -o DIRECTORY` wrote: the browser computes
them, by the model that the page chooses. The screenshot is of the guide's last step, with the bundled models.
"""

import argparse
import contextlib
import functools
import http.server
import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Page, sync_playwright

import gleansr
from benchmarks.service import running
from gleansr.evaluation.runner import machine

CAT = Path(__file__).parent.parent / "examples" / "chelsea-256.png"
BOUND = "1.2 x forward + 100 ms"


def forward_seconds(model: str, rounds: int) -> list[float]:
    """Seconds of forward passes of one image."""
    upscaler = gleansr.load(model, device="cpu").one_pass  # as for strokes
    lr = torch.rand(1, 3, upscaler.method.in_size or 1, upscaler.method.in_size or 1) * 2 - 1
    upscaler.method(lr)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        upscaler.method(lr)
        seconds.append(time.perf_counter() - start)
    return seconds


def strokes(page: Page, count: int) -> list[dict[str, float]]:
    """Draws strokes. Returns for each the seconds until the refined image is drawn, and of the forward pass in the service."""
    box: dict[str, float] = page.evaluate("document.querySelector('#canvas').getBoundingClientRect().toJSON()")
    for i in range(count + 2):
        x, y = box["x"] + box["width"] * (0.3 + 0.4 * (i * 0.618 % 1)), box["y"] + box["height"] * (0.3 + 0.4 * (i * 0.383 % 1))
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 25, y + 10, steps=6)
        page.mouse.up()
        while page.evaluate("performance.getEntriesByName('stroke-to-refined').length") <= i:
            page.wait_for_timeout(20)
        page.wait_for_timeout(100)
    entries = page.evaluate("performance.getEntriesByName('stroke-to-refined').map(e => [e.duration / 1000, e.detail.forward])")
    return [{"seconds": seconds, "forward": forward} for seconds, forward in entries[2:]]  # the first strokes are a warm-up


def screenshot(file: Path) -> None:
    """Draws the page as it compares the guide's bad edit with what refining makes of it."""
    with running() as service, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.goto(service.url)
        while not page.evaluate("document.querySelector('#model').options.length"):
            page.wait_for_timeout(20)
        page.click("#guide-sample")
        while not page.inner_text("#status").startswith("Refined"):
            page.wait_for_timeout(20)
        page.click("#guide-next")
        page.locator("input[value=compare]").check(force=True)
        page.locator("#split").fill("44")
        page.wait_for_timeout(300)
        page.screenshot(path=file, type="jpeg", quality=85)
        browser.close()


def chromium() -> str | None:
    """The browser's path."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


def measure(image: Path, model: str, count: int) -> dict[str, Any]:
    before = forward_seconds(model, count // 2)
    with running("--models", model) as service:
        drawn = stroke_times(service.url, image, count)
    forward = statistics.median(before + forward_seconds(model, count // 2))
    return {"model": model, **facts(image, drawn), "forward_seconds_median": forward, "bound_seconds": 1.2 * forward + 0.1}


def measure_site(folder: Path, image: Path, count: int) -> dict[str, Any]:
    """Times of a static page, from a plain file server."""
    with served(folder) as url:
        return facts(image, stroke_times(url, image, count))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A plain file server, while it is needed. Gives its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def stroke_times(url: str, image: Path, count: int) -> list[dict[str, float]]:
    """Opens the page, and an image in it to retouch, and draws strokes; see `strokes`."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.locator("input[value=retouch]").check(force=True)
        page.set_input_files("#file", str(image))
        while not page.inner_text("#status").startswith(image.name):
            page.wait_for_timeout(20)
        drawn = strokes(page, count)
        browser.close()
    return drawn


def facts(image: Path, drawn: list[dict[str, float]]) -> dict[str, Any]:
    seconds = [stroke["seconds"] for stroke in drawn]
    return {
        "image": image.name,
        "strokes": len(drawn),
        "machine": machine(torch.device("cpu")),
        "stroke_seconds_median": statistics.median(seconds),
        "stroke_seconds_min_max": (min(seconds), max(seconds)),
        "forward_in_service_median": statistics.median(stroke["forward"] for stroke in drawn),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--strokes", type=int, default=30)
    parser.add_argument("--image", type=Path, default=CAT)
    parser.add_argument("--model", default="cats-8x")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--site", type=Path, help="a static page, instead of a service")
    parser.add_argument("--screenshot", type=Path, help="draw this file instead")
    arguments = parser.parse_args()
    if arguments.screenshot:
        screenshot(arguments.screenshot)
        return
    if arguments.site:
        report = measure_site(arguments.site, arguments.image, arguments.strokes)
        columns = {"stroke to refined, ms": "stroke_seconds_median", "in the network, ms": "forward_in_service_median"}
    else:
        report = measure(arguments.image, arguments.model, arguments.strokes)
        columns = {"stroke to refined, ms": "stroke_seconds_median", "in the service, ms": "forward_in_service_median"}
        columns |= {"bare forward pass, ms": "forward_seconds_median", BOUND: "bound_seconds"}
    print("| " + " | ".join(columns) + " |\n|" + " ---: |" * len(columns))
    print(f"| {' | '.join(f'{1000 * report[key]:.0f}' for key in columns.values())} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
