"""Progress in logs, where there is no terminal."""

import io

import pytest
from rich.console import Console

from gleansr.cli.progress import CountedProgress, Pace, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, in a list to change it."""
    now = [100.0]
    monkeypatch.setattr("gleansr.cli.progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_30_seconds_or_5_percent(clock: list[float]):
    pace, printed = Pace(), []
    for second in range(1, 200):
        clock[0] = 100 + second
        if pace.is_due(second, 1000):  # 5 % after 50 s, so that each 30 s are first
            printed.append(second)
    assert printed == [30, 60, 90, 120, 150, 180]
    pace, printed = Pace(), []
    start = clock[0]
    for step in range(1, 101):  # 5 % after half a second
        clock[0] = start + step / 10
        if pace.is_due(step, 100):
            printed.append(step)
    assert printed == [20, 40, 60, 80]  # at 100 it is finished
    clock[0] += 1000
    assert not pace.is_due(80, 100)  # nothing since


def test_bars_are_lines_without_a_terminal(clock: list[float]):
    log = io.StringIO()
    with CountedProgress(Console(file=log)) as bars:
        task, hidden = bars.add_task("bicubic", total=None), bars.add_task("steps", total=None, visible=False)
        bars.update(task, completed=1)  # of nobody knows how many
        clock[0] += 40
        bars.update(task, completed=10, total=100)
        bars.update(hidden, completed=1, total=2)
        bars.reset(task, description="[glean]", total=4, completed=0)
        clock[0] += 3
        bars.advance(task)
        clock[0] += 3
        bars.advance(task, 3)
    assert log.getvalue().splitlines() == ["bicubic: 10 of 100 (10%), about 6 min left", "[glean]: 1 of 4 (25%), about 9.0 s left"]
    resumed = io.StringIO()
    with CountedProgress(Console(file=resumed)) as bars:
        task = bars.add_task("listing", total=None)
        bars.reset(task, description="preparing", total=100, completed=80)  # by an earlier run: it says nothing of this one's speed
        clock[0] += 40
        bars.update(task, completed=90)
    assert resumed.getvalue() == "preparing: 90 of 100 (90%), about 40.0 s left\n"
    quiet = io.StringIO()
    with CountedProgress(Console(file=quiet), lines=False) as bars:
        task = bars.add_task("upscaling", total=3)
        clock[0] += 40
        bars.advance(task)
    assert quiet.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min"), (3570, "1 h 0 min"), (3660, "1 h 1 min"), (7500, "2 h 5 min")]
)
def test_durations_are_for_people(seconds: float, text: str):
    assert duration(seconds) == text
