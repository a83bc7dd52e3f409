"""Writes the table of a sweep: a row for each job with a result, the best first."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xftrain.commands.sweep_data import JOBS_FOLDER, make_jobs_folder
from xftrain.errors import SweepRefused
from xftrain.multirun.order import (
    BITS,
    FIGURES,
    LOSS,
    Row,
    changed_keys,
    differ_by_seed,
    minimized,
    ordered,
    overridden,
    settings,
)
from xftrain.utils import markdown
from xftrain.utils.files import read_json, real_path, replace_text, write_json
from xftrain.utils.printable import one_line
from xftrain.utils.redaction import hidden_throughout
from xftrain.utils.spreadsheet import csv_text

_MAX_CHARACTERS = 1000  # longest text of a cell
_MAX_OVERRIDES = 1000  # most overrides of a job
_MAX_INTEGER = 1 << 62
_ENTRY = re.compile(r"\d+\.json", re.ASCII)
_RESULT_KEYS = {  # by column, the keys of a job's figure in result.json
    **{name: ("metrics", name) for name in FIGURES if name.startswith("val/")},
    "parameters": ("num_parameters",),
}
_IF_KNOWN = (BITS, "parameters")  # columns that are omitted if no job has them
_DRAWN = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.ASCII)
_MAX_TYPED = 8  # a longer number is assumed to be drawn by a search


def clear_jobs(folder: Path) -> None:
    """Makes an empty list of jobs in a sweep's folder, in place of an earlier sweep's list.

    Raises:
        OSError: the subfolder cannot be made, or its name is taken by something else.
    """
    for path in make_jobs_folder(folder).iterdir():
        if _ENTRY.fullmatch(path.name):
            path.unlink()


def register_job(folder: Path, number: int, run_dir: Path) -> None:
    """Adds a job, with its number, to the list of a sweep's jobs.

    Raises:
        SweepRefused: the job's folder is not below the sweep's folder, or is another job's.
    """
    if not _is_below(run_dir, folder):
        raise SweepRefused(
            f"hydra.sweep.subdir must name a folder below hydra.sweep.dir={folder}, got {run_dir}."
        )
    path = real_path(run_dir)
    for other, other_dir in _registered_jobs(folder):
        if other != number and real_path(other_dir) == path:
            raise SweepRefused(shared_folder(other, number, run_dir))
    entry = {"job": number, "run_dir": str(run_dir.absolute())}
    write_json(entry, folder / JOBS_FOLDER / f"{number}.json")


def shared_folder(first: int, second: int, run_dir: Path) -> str:
    """The error message for two jobs that would write to the same folder."""
    return (
        "hydra.sweep.subdir must name a folder of its own for each job, and jobs "
        f"{first} and {second} both have {one_line(str(run_dir))}: put ${{hydra.job.num}} into it."
    )


def _registered_jobs(folder: Path) -> Iterator[tuple[int, Path]]:
    """The numbers and the folders of the jobs that are listed."""
    for path in (folder / JOBS_FOLDER).iterdir() if (folder / JOBS_FOLDER).is_dir() else ():
        entry = read_json(path) if _ENTRY.fullmatch(path.name) else None
        number, run_dir = (entry or {}).get("job"), (entry or {}).get("run_dir")
        if isinstance(number, int) and isinstance(run_dir, str):
            yield number, Path(run_dir)


def _is_below(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder after resolving links."""
    place, top = real_path(path), real_path(folder)
    return place is not None and top is not None and place != top and place.is_relative_to(top)


def write_summary(folder: Path) -> list[Row]:
    """Writes `summary.csv` and `summary.md` of a sweep's folder from the jobs' results."""
    rows = ordered(read_rows(folder))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = hidden_throughout(rows)
    replace_text(folder / "summary.csv", csv_text(shown, columns))
    replace_text(folder / "summary.md", table(shown, is_file=True) + "\n")
    return rows


def read_rows(folder: Path) -> list[Row]:
    """Reads a row for each job of the sweep that has a result, in the order of the jobs."""
    rows: list[Row] = []
    for number, run_dir in _registered_jobs(folder):
        if not _is_below(run_dir, folder):
            continue
        result = read_result(run_dir)
        if result is None:
            continue
        row: Row = {"job": number, "status": result["status"][:_MAX_CHARACTERS]}
        for override in result["overrides"][:_MAX_OVERRIDES]:
            key, _, value = override.partition("=")
            row[key.lstrip("+").replace("/", ".")[:_MAX_CHARACTERS]] = value[:_MAX_CHARACTERS]
        for column in FIGURES:
            row[column] = _figure(result, _RESULT_KEYS.get(column, (column,)))
        row["run_dir"] = _short_path(run_dir, folder)[:_MAX_CHARACTERS]
        row["error"] = one_line(" ".join(str(result.get("error") or "").split()))[:_MAX_CHARACTERS]
        rows.append(row)
    unknown = [name for name in _IF_KNOWN if all(row[name] is None for row in rows)]
    for row in rows:
        for name in unknown:
            del row[name]
    return sorted(rows, key=lambda row: row["job"])


def _short_path(run_dir: Path, folder: Path) -> str:
    """A job's folder relative to the sweep's folder; the full path if that is impossible."""
    place, top = real_path(run_dir), real_path(folder)
    return str(place.relative_to(top) if place and top and _is_below(place, top) else run_dir)


def table(rows: Sequence[Row], *, is_file: bool = False) -> str:
    """Renders the rows in Markdown: what differs between jobs, their figures, and their errors.

    If jobs differ only by seed, a table of means over the seeds comes first.

    Args:
        rows: the rows, sorted by `order.ordered`.
        is_file: whether the table is for a file, which a browser may show, and is escaped.
    """

    def shown(value: Any) -> str:
        return markdown.escaped(_shown(value)) if is_file else _shown(value)

    changed = changed_keys(rows) or overridden(rows)
    figures = [name for name in FIGURES if any(name in row for row in rows)]
    columns = ["best", "job", "status", *changed, *figures, "run_dir"]
    lines = [[shown(row.get(column)) for column in columns] for row in rows]
    made = [*_over_seeds(rows, shown)]
    made.append(markdown.table([shown(column) for column in columns], lines, left=True))
    made += [f"- job {row['job']}: {shown(row['error'])}" for row in rows if row["error"]]
    return "\n".join(made)


def _over_seeds(rows: Sequence[Row], shown: Callable[[Any], str]) -> list[str]:
    """Tabulates mean and spread of each setting over its seeds; empty if no seeds differ."""
    found, column = settings(rows), minimized(rows)
    if not differ_by_seed(found):
        return []
    keys = [key for key in changed_keys(rows) if key != "seed"]
    lines = []
    for setting in found:
        spread, num_ran = setting.spread, len(setting.values)
        mean = _shown(setting.mean) if num_ran else "-"
        lines.append(
            [
                "best" if setting is found[0] and num_ran and len(found) > 1 else "",
                *(shown(setting.rows[0].get(key)) for key in keys),
                mean + ("" if spread is None else f" ± {spread:.2g}"),
                f"{num_ran} of {len(setting.rows)}",
            ]
        )
    header = ["best", *map(shown, keys), f"{column}, mean ± std", "jobs"]
    said = ["Over the seeds:\n", markdown.table(header, lines, left=True)]
    if len(found) > 1 and found[1].values and (spread := found[0].spread) is not None:
        ahead, noise = found[1].mean - found[0].mean, max(spread, found[1].spread or 0.0)
        if ahead <= noise:
            said.append(f"- the best is ahead of the next by {ahead:.2g}, within the spread")
    return [*said, "\nEach job:\n"]


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """Reads `result.json`; None if it is missing, incomplete or malformed."""
    result = read_json(run_dir / "result.json")
    if result is None or not isinstance(result.get("status"), str):
        return None
    overrides = result.get("overrides")
    if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
        return None
    return {
        **result,
        "metrics": metrics if isinstance(metrics := result.get("metrics"), dict) else {},
    }


def val_loss_of(result: Mapping[str, Any]) -> float | None:
    """The last validation loss; None if it was NaN or the untrusted file has no number there."""
    return _figure(result, _RESULT_KEYS[LOSS])


def _figure(result: Mapping[str, Any], place: Sequence[str]) -> float | None:
    value: Any = result
    for name in place:
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:  # it may have hundreds of digits
        return None
    return value if math.isfinite(value) else None


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    text = one_line(str(value))
    is_drawn = len(text) > _MAX_TYPED and _DRAWN.fullmatch(text)  # a number of a search
    return f"{float(text):.3g}" if is_drawn else text
