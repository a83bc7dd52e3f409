"""The table of a sweep: a row for each job, from the results that are there."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xftrain import markdown
from xftrain.errors import SweepRefused
from xftrain.files import read_json, real_path, replace_text, write_json
from xftrain.printable import one_line
from xftrain.redaction import hidden_throughout

_MAX_CHARACTERS = 1000  # of a cell
_JOBS = ".jobs"  # of a sweep's folder: a file for each of its jobs
_ENTRY = re.compile(r"\d+\.json", re.ASCII)
_FORMULA = re.compile(r"[=+\-@]")  # at the beginning of a cell, for a spreadsheet
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.ASCII | re.IGNORECASE)
_FIGURES = {  # of a job, by column: where result.json has them
    "val/loss": ("metrics", "val/loss"),
    "val/accuracy": ("metrics", "val/accuracy"),
    "tokens_per_s": ("tokens_per_s",),
    "peak_memory_mib": ("peak_memory_mib",),
    "wall_s": ("wall_s",),
}

Row = dict[str, Any]


def forget_jobs(folder: Path) -> None:
    """Makes the place for the jobs of a sweep, without those of an earlier one there.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    place = folder / _JOBS
    if place.is_symlink():
        raise NotADirectoryError(f"{place} is a link")
    place.mkdir(parents=True, exist_ok=True)
    for path in place.iterdir():
        if _ENTRY.fullmatch(path.name):
            path.unlink()


def note_job(folder: Path, number: int, run_dir: Path) -> None:
    """Lists a job of the sweep, with the number that it has there.

    Raises:
        SweepRefused: the job's folder is not below the sweep's.
    """
    if not _is_below(run_dir, folder):
        raise SweepRefused(
            f"hydra.sweep.subdir must name a folder below hydra.sweep.dir={folder}, got {run_dir}."
        )
    entry = {"job": number, "run_dir": str(run_dir.absolute())}
    write_json(entry, folder / _JOBS / f"{number}.json")


def _is_below(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder, links followed."""
    place, top = real_path(path), real_path(folder)
    return place is not None and top is not None and place != top and place.is_relative_to(top)


def write_summary(folder: Path) -> list[Row]:
    """`summary.csv` and `summary.md` of a sweep's folder, from the results that are there."""
    rows = read_rows(folder)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = hidden_throughout(rows)
    replace_text(folder / "summary.csv", _csv(shown, columns))
    replace_text(folder / "summary.md", table(shown, is_file=True) + "\n")
    return rows


def read_rows(folder: Path) -> list[Row]:
    """A row for each job of the sweep that has a result, in the jobs' order."""
    rows: list[Row] = []
    for path in (folder / _JOBS).iterdir() if (folder / _JOBS).is_dir() else ():
        entry = read_json(path) if _ENTRY.fullmatch(path.name) else None
        number, run_dir = (entry or {}).get("job"), (entry or {}).get("run_dir")
        if not isinstance(number, int) or not isinstance(run_dir, str):
            continue
        if not _is_below(Path(run_dir), folder):
            continue
        result = read_result(Path(run_dir))
        if result is None:
            continue
        row: Row = {"job": number, "status": result["status"]}
        for override in result["overrides"]:
            key, _, value = override.partition("=")
            row[key.lstrip("+").replace("/", ".")[:_MAX_CHARACTERS]] = value[:_MAX_CHARACTERS]
        for column, place in _FIGURES.items():
            row[column] = _figure(result, place)
        row["run_dir"] = run_dir
        row["error"] = one_line(" ".join(str(result.get("error") or "").split()))[:_MAX_CHARACTERS]
        rows.append(row)
    return sorted(rows, key=lambda row: row["job"])


def table(rows: Sequence[Row], *, is_file: bool = False) -> str:
    """The rows in Markdown: what differs between the jobs, their figures, and why some failed.

    Args:
        rows: see `read_rows`.
        is_file: for a file that a browser may show, rather than for the console.
    """

    def shown(value: Any) -> str:
        return _escaped(_shown(value)) if is_file else _shown(value)

    changed = changed_keys(rows) or _overridden(rows)
    columns = ["job", "status", *changed, *_FIGURES, "run_dir"]
    lines = [[shown(row.get(column)) for column in columns] for row in rows]
    made = [markdown.table([shown(column) for column in columns], lines, left=True)]
    made += [f"- job {row['job']}: {shown(row['error'])}" for row in rows if row["error"]]
    return "\n".join(made)


def changed_keys(rows: Sequence[Row]) -> list[str]:
    """The overridden keys that differ between the jobs."""
    return [key for key in _overridden(rows) if len({row.get(key) for row in rows}) > 1]


def _overridden(rows: Sequence[Row]) -> list[str]:
    known = {"job", "status", *_FIGURES, "run_dir", "error"}
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key not in known]


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """What `result.json` holds; None where there is none, half of one, or one of another shape."""
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
    """The last validation loss, null where it was NaN; a file may hold anything in its place."""
    return _figure(result, _FIGURES["val/loss"])


def _figure(result: Mapping[str, Any], place: Sequence[str]) -> float | None:
    value: Any = result
    for name in place:
        value = value.get(name) if isinstance(value, Mapping) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and _is_float(value) else None


def _is_float(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer of hundreds of digits
        return False


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return one_line(str(value))


def _escaped(text: str) -> str:
    """Without what Markdown takes for a column, HTML, a link or an image."""
    for mark, entity in (("&", "&amp;"), ("|", "&#124;"), ("<", "&lt;"), ("](", "]&#40;")):
        text = text.replace(mark, entity)
    return text


def _cell(value: Any) -> Any:
    """As a spreadsheet is to show it: text is text, and no formula."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({column: _cell(column) for column in columns})
    writer.writerows({column: _cell(value) for column, value in row.items()} for row in rows)
    return text.getvalue()
