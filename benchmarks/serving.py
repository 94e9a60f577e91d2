"""Load test of the service with a check of every response.

    python -m benchmarks.serving --clients 50 --seconds 60 [--model cats-8x] [--queue 32] [--batch-size N] [--json FILE]

Starts `gleansr serve` on a free local port. Each client sends its own images, to upscale and to retouch in turn, and compares each response
with the library's result; the results of different clients must differ by more than the tolerance. A 429 is retried after its Retry-After.
Then SIGTERM under load: the service must complete every response that it has begun. Prints a table and JSON, and exits with 1 if a check
fails. Needs `pip install 'gleansr[serve]' httpx`; memory is measured on Linux.
"""

import argparse
import asyncio
import io
import itertools
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageDraw

import gleansr
from benchmarks.service import Running, running

TOLERANCE = 2
"""Maximum difference of 255 between a response and the library's result; the batch size changes the last bits."""


@dataclass(frozen=True)
class Work:
    """A request and the expected result."""

    route: str
    files: dict[str, bytes]
    expected: np.ndarray


@dataclass
class Tally:
    """Results of all clients."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"upscale": [], "retouch": []})
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unbegun: int = 0
    """Requests after SIGTERM without any response."""
    tried_again: int = 0
    refused_again: int = 0
    stopping: bool = False


def make_work(upscaler: gleansr.Upscaler, client: int) -> list[Work]:
    """The requests of one client, with random smooth images."""
    rng = np.random.default_rng(client)
    side, lr = upscaler.output_size or 0, upscaler.input_size or 0
    seeds = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    small, original = seeds.resize((lr, lr), Image.Resampling.BICUBIC), seeds.resize((side, side), Image.Resampling.BICUBIC)
    edited = original.copy()
    x, y, radius = (int(value) for value in rng.integers(side // 4, side // 2, 3))
    ImageDraw.Draw(edited).ellipse((x, y, x + radius, y + radius), fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    return [
        Work("upscale", {"image": png(small)}, np.asarray(upscaler(small))),
        Work("retouch", {"edited": png(edited), "original": png(original)}, np.asarray(gleansr.retouch(edited, original, model=upscaler))),
    ]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def distance(first: np.ndarray, second: np.ndarray) -> int:
    """The largest difference of a value, of 255."""
    return int(np.abs(first.astype(int) - second).max()) if first.shape == second.shape else 255


def nearest(work: list[list[Work]]) -> int:
    """The least distance between the expected results of two clients on a route; above the tolerance swapped responses are detected."""
    least = 255
    for route in range(len(work[0])):
        for one, other in itertools.combinations(work, 2):
            least = min(least, distance(one[route].expected, other[route].expected))
    return least


async def run_client(number: int, url: str, work: list[Work], tally: Tally) -> None:
    """Sends requests in turn until the service ends."""
    async with httpx.AsyncClient(base_url=url, timeout=120, verify=False, trust_env=False) as client:  # noqa: S501, plain HTTP
        for job in itertools.cycle(work):
            retried = False
            while True:
                begun, start = False, time.monotonic()
                files = {name: ("image.png", contents, "image/png") for name, contents in job.files.items()}
                try:
                    async with client.stream("POST", f"/v1/{job.route}", files=files) as response:
                        begun = True
                        contents = await response.aread()
                except httpx.TransportError as error:
                    if begun or not tally.stopping:
                        tally.lost.append(f"client {number}: {error!r}")
                    else:
                        tally.unbegun += 1
                    if tally.stopping:
                        return
                    continue
                tally.statuses[str(response.status_code)] += 1
                if response.status_code == 429:
                    tally.tried_again += not retried
                    tally.refused_again += retried
                    retried = True
                    await asyncio.sleep(float(response.headers["Retry-After"]))
                    continue
                tally.seconds[job.route].append(time.monotonic() - start)
                await check(number, job, response.status_code, contents, tally)
                break


async def check(number: int, job: Work, status: int, contents: bytes, tally: Tally) -> None:
    if status != 200:
        tally.wrong.append(f"client {number}, {job.route}: {status} {contents[:200]!r}")
        return
    with Image.open(io.BytesIO(contents)) as image:
        difference = distance(np.asarray(image), job.expected)
    if difference > TOLERANCE:
        tally.wrong.append(f"client {number}, {job.route}: differs from the expected result by {difference} of 255")


async def watch_memory(process: int, samples: list[tuple[float, float]]) -> None:
    """Samples the resident memory in MiB."""
    status = Path(f"/proc/{process}/status")
    while True:
        if match := re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None:
            samples.append((time.monotonic(), int(match[1]) / 1024))
        await asyncio.sleep(0.25)


async def measure(options: argparse.Namespace, service: Running, work: list[list[Work]]) -> dict[str, Any]:
    """Puts the service under load and stops it."""
    tally, memory = Tally(), []
    watching = asyncio.create_task(watch_memory(service.process.pid, memory))
    started = time.monotonic()
    clients = [asyncio.create_task(run_client(i, service.url, one, tally)) for i, one in enumerate(work)]
    await asyncio.sleep(options.seconds)
    ended = time.monotonic()
    done = {route: len(seconds) for route, seconds in tally.seconds.items()}
    async with httpx.AsyncClient(trust_env=False) as client:
        metrics = (await client.get(f"{service.url}/metrics")).text
    tally.statuses["200"] += 1
    tally.stopping = True
    service.process.terminate()
    status = await asyncio.to_thread(service.process.wait)
    await asyncio.gather(*clients)
    watching.cancel()
    lines = [line for line in service.said.splitlines() if not line.startswith("{")]  # without the access log
    said = re.search(r"(\d+) of (\d+) requests were answered", "\n".join(lines))
    return {
        "clients": options.clients,
        "seconds": round(ended - started, 1),
        "model": options.model,
        "queue": options.queue,
        "pictures_per_second": round(sum(done.values()) / (ended - started), 2),
        "mean_batch": round(total(metrics, "gleansr_batch_size_sum") / max(1, total(metrics, "gleansr_batch_size_count")), 2),
        "statuses": dict(tally.statuses),
        "latency_seconds": {route: quantiles(seconds) for route, seconds in tally.seconds.items()},
        "memory_mib": thirds(memory, started, ended),
        "tried_again": tally.tried_again,
        "refused_again": tally.refused_again,
        "wrong": tally.wrong,
        "lost": tally.lost,
        "exit_status": status,
        "answers_received": sum(tally.statuses.values()),
        "requests_answered": int(said[1]) if said else None,
        "requests_begun": int(said[2]) if said else None,
        "not_taken_after_sigterm": tally.unbegun,
        "log": [line for line in lines[1:] if "requests were answered" not in line],
    }


def total(metrics: str, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", metrics, re.MULTILINE))


def quantiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(seconds, share)), 3) for share in (50, 95, 99)} if seconds else {}


def thirds(samples: list[tuple[float, float]], started: float, ended: float) -> dict[str, float]:
    """Mean resident memory in the second and last third of the load, and the maximum."""
    third = (ended - started) / 3
    parts = [[mib for at, mib in samples if started + i * third <= at < started + (i + 1) * third] for i in (1, 2)]
    if not all(parts):
        return {}
    second, last = (float(np.mean(part)) for part in parts)
    return {
        "second_third": round(second),
        "last_third": round(last),
        "growth": round(last / second - 1, 4),
        "most": round(max(m for _, m in samples)),
    }


def failures(report: dict[str, Any], least: int) -> list[str]:
    """The failed checks."""
    answered = report["answers_received"]
    checks = {
        "images of clients are too similar to detect swapped responses": least > 2 * TOLERANCE,
        "some responses are wrong": not report["wrong"],
        "some responses were lost": not report["lost"],
        "the service returned errors": not any(status.startswith("5") for status in report["statuses"]),
        "not all begun requests were answered": report["requests_begun"] == report["requests_answered"] == answered,
        "the service exited with an error": report["exit_status"] == 0,
        "the service logged problems": not report["log"],
        "memory grew": abs(report["memory_mib"].get("growth", 0)) <= 0.05 or report["seconds"] < 30,  # before that it still fills caches
        "no requests were completed": all(report["latency_seconds"].values()),
    }
    return [problem for problem, holds in checks.items() if not holds]


def table(report: dict[str, Any]) -> str:
    rows = [
        ("images per second", report["pictures_per_second"]),
        ("mean batch", report["mean_batch"]),
        *((f"{route}: p50, p95, p99, s", ", ".join(map(str, values.values()))) for route, values in report["latency_seconds"].items()),
        ("statuses", ", ".join(f"{status}: {count}" for status, count in sorted(report["statuses"].items()))),
        ("429s tried again, refused again", f"{report['tried_again']}, {report['refused_again']}"),
        ("wrong or swapped, lost answers", f"{len(report['wrong'])}, {len(report['lost'])}"),
        ("MiB: second third, last third, growth", ", ".join(map(str, list(report["memory_mib"].values())[:3]))),
        ("begun, answered, received", f"{report['requests_begun']}, {report['requests_answered']}, {report['answers_received']}"),
    ]
    head = f"| {report['clients']} clients, {report['seconds']} s, {report['model']}, queue {report['queue']} | |\n| --- | --- |\n"
    return head + "\n".join(f"| {name} | {value} |" for name, value in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--model", default="cats-8x", help="name or file of a GLEAN")
    parser.add_argument("--queue", type=int, default=32, help="queue of the service; below the number of clients some get 429")
    parser.add_argument("--batch-size", type=int, help="batch size of the service")
    parser.add_argument("--json", type=Path, help="file for the report")
    options = parser.parse_args()
    upscaler = gleansr.load(options.model)
    work = [make_work(upscaler, i) for i in range(options.clients)]
    del upscaler
    batches = ("--batch-size", str(options.batch_size)) if options.batch_size else ()
    with running("--models", options.model, "--queue", str(options.queue), *batches) as service:
        report = asyncio.run(measure(options, service, work))
    report["failures"] = failures(report, nearest(work))
    print(table(report))
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    sys.exit(bool(report["failures"]))


if __name__ == "__main__":
    main()
