"""Sorts the jobs of a sweep, the best first; jobs that differ only by seed rank by their mean.

Every command imports this module, so it must not import torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # a job of a sweep: its number, status, overrides and figures

LOSS, BITS = "val/loss", "val/bits_per_byte"
FIGURES = (  # columns of a row that are figures
    *(LOSS, BITS, "val/accuracy", "tokens_per_s", "peak_memory_mib", "parameters", "wall_s"),
)
_OTHER_COLUMNS = {"best", "job", "status", *FIGURES, "run_dir", "error"}
_SEED = "seed"
_LARGEST = 1e30  # largest figure; the mean of larger ones may be out of range


@dataclass(frozen=True)
class Setting:
    """Jobs with equal overrides except for the seed.

    Attributes:
        rows: the jobs.
        values: the minimized metric of the completed jobs.
    """

    rows: Sequence[Row]
    values: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean metric of the completed jobs; infinite if there are none."""
        return statistics.fmean(self.values) if self.values else math.inf

    @property
    def spread(self) -> float | None:
        """The sample standard deviation of the metric; None for fewer than two jobs."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def overridden(rows: Sequence[Row]) -> list[str]:
    """The keys that any job overrides."""
    return [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if key not in _OTHER_COLUMNS
    ]


def changed_keys(rows: Sequence[Row]) -> list[str]:
    """The overridden keys whose values differ between the jobs."""
    return [key for key in overridden(rows) if len({row.get(key) for row in rows}) > 1]


def minimized(rows: Sequence[Row]) -> str:
    """The column by which jobs are compared.

    It is bits per byte, which is comparable between tokenizers, if all jobs with a loss have it;
    otherwise the validation loss.
    """
    ended = [row for row in rows if _metric(row, LOSS) is not None]
    return BITS if ended and all(_metric(row, BITS) is not None for row in ended) else LOSS


def settings(rows: Sequence[Row]) -> list[Setting]:
    """Groups jobs that differ only by seed, with the lowest mean first and no results last."""
    column = minimized(rows)
    keys = [key for key in changed_keys(rows) if key != _SEED]
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row.get(key)) for key in keys), []).append(row)
    made = []
    for own in found.values():
        values = [value for row in own if (value := _metric(row, column)) is not None]
        made.append(Setting(own, values))
    return sorted(made, key=lambda setting: setting.mean)


def differ_by_seed(found: Sequence[Setting]) -> bool:
    """Whether some jobs differ only by seed."""
    return any(len({str(row.get(_SEED)) for row in setting.rows}) > 1 for setting in found)


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Sorts the jobs, the best first, and marks those of the best setting in the column `best`."""
    found, column = settings(rows), minimized(rows)
    is_best = len(found) > 1 and bool(found[0].values)
    made = []
    for setting in found:
        own = sorted(setting.rows, key=lambda row: (_or_infinite(row, column), row["job"]))
        mark = "best" if is_best and setting is found[0] else ""
        made += [{"best": mark if _metric(row, column) is not None else "", **row} for row in own]
    return made


def best_row(rows: Sequence[Row], column: str, *, highest: bool = False) -> Row | None:
    """The completed job with the best figure in a column; None unless at least two have one."""
    ran = [row for row in rows if _metric(row, column) is not None]
    if len(ran) < 2:
        return None
    choose = max if highest else min
    return choose(ran, key=lambda row: float(row[column]))


def _metric(row: Row, column: str) -> float | None:
    """A figure of a completed job; None for a failed job, whose figure is of an earlier step."""
    value = row.get(column)
    is_figure = isinstance(value, int | float) and abs(value) <= _LARGEST
    return value if row["status"] == "completed" and is_figure else None


def _or_infinite(row: Row, column: str) -> float:
    value = _metric(row, column)
    return math.inf if value is None else value
