"""Finds the longest sequence that fits into memory, by doubling and bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from xftrain.benchmark import tables
from xftrain.benchmark.attention import fits
from xftrain.benchmark.cells import AttentionCell, Row
from xftrain.benchmark.worker import Job, Reporter

_STEP = 128  # tested lengths are multiples of it
_PRECISION = 1 / 32  # relative precision at which the bisection ends


@dataclass(frozen=True)
class LongestCell(AttentionCell):
    """A search for the longest length, from the length of its shape up to `limit` tokens."""

    limit: int = 0

    @property
    def identity(self) -> Any:
        """Everything that determines the result of the cell, except the machine."""
        return (super().identity, self.limit)


def longest_job(cell: AttentionCell, limit: int) -> Job:
    """The job that searches the longest length of one backend, bias and head grouping."""
    columns = {k: v for k, v in cell.columns.items() if k != "M"} | {"longest_limit": limit}
    made = LongestCell(**{**vars(cell), "columns": columns, "is_timed": False, "limit": limit})
    return Job(measure_longest, (made,))


def measure_longest(cells: Sequence[LongestCell], reporter: Reporter) -> None:
    """Reports rows with `longest_tokens`, the longest length that ran forward and backward."""
    for index, cell in enumerate(cells):
        row = reporter.attempt(index, partial(_search, cell, partial(reporter.heartbeat, index)))
        if row is not None:
            reporter.row(index, "ok", **row)


def _search(cell: LongestCell, heartbeat: Callable[..., None]) -> dict[str, Any]:
    tried, good = 0, 0
    bad: int | None = None

    def runs(length: int) -> bool:
        nonlocal tried
        tried += 1
        # also reports the result so far, in case the next length kills the process
        heartbeat(longest_tokens=good, fails_tokens=bad, tried=tried)
        return fits(replace(cell, shape=replace(cell.shape, M=length)))

    length = min(cell.shape.M, cell.limit)
    while bad is None and good < cell.limit:
        if runs(length):
            good, length = length, min(2 * length, cell.limit)
        else:
            bad = length
    while bad is not None and bad - good > max(_STEP, int(good * _PRECISION)):
        middle = (good + bad) // 2 // _STEP * _STEP
        if middle <= good:
            break
        if runs(middle):
            good = middle
        else:
            bad = middle
    return {"longest_tokens": good, "fails_tokens": bad, "tried": tried}


def longest_section(rows: Sequence[Row]) -> str:
    """Renders a table of the searches."""
    return tables.columns_of(
        [row for row in rows if "longest_limit" in row],
        {
            "backend": "backend",
            "bias": "bias",
            "heads": "heads",
            "fits": lambda row: _fits(row),
            "does not fit": lambda row: (
                f"{row['fails_tokens']:,}" if row.get("fails_tokens") else "-"
            ),
            "tried": "tried",
        },
    )


def _fits(row: Row) -> str:
    if row["status"] != "ok":
        at_least_text = (
            f"at least {row['longest_tokens']:,}, then " if row.get("longest_tokens") else ""
        )
        return at_least_text + tables.STATUS[row["status"]]
    at_least = "" if row["fails_tokens"] else " (the limit)"
    return f"{row['longest_tokens']:,}{at_least}"
