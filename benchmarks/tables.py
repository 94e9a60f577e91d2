"""Numbers and tables as text."""

import statistics
from collections.abc import Iterable, Sequence


def digits(value: float | None, count: int = 3) -> str:
    """A number with at least `count` significant digits and all digits before the point."""
    if value is None:
        return "-"
    places = max(0, count - 1 - int(f"{value:.{count - 1}e}".partition("e")[2])) if value else 0
    return f"{value:,.{places}f}"


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{digits(statistics.median(values))} ({digits(min(values))} to {digits(max(values))})"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a text column and number columns, without columns of "-" only."""
    rows = list(rows)
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] != "-" for row in rows)]
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line[i] for i in kept)} |" for line in lines)
