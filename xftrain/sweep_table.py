"""The table of a sweep: a row for each job, from the results that are there."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xftrain import markdown
from xftrain.files import read_json, replace_text, write_json
from xftrain.redaction import hidden_throughout

_JOBS = ".jobs"  # of a sweep's folder: a file for each of its jobs
_FIGURES = {  # of a job, by column: where result.json has them
    "val/loss": ("metrics", "val/loss"),
    "val/accuracy": ("metrics", "val/accuracy"),
    "tokens_per_s": ("tokens_per_s",),
    "peak_memory_mib": ("peak_memory_mib",),
    "wall_s": ("wall_s",),
}

Row = dict[str, Any]


def forget_jobs(folder: Path) -> None:
    """Makes the place for the jobs of a sweep, without those of an earlier one there."""
    (folder / _JOBS).mkdir(parents=True, exist_ok=True)
    for path in (folder / _JOBS).iterdir():
        path.unlink()


def note_job(folder: Path, number: int, run_dir: Path) -> None:
    """Lists a job of the sweep, with the number that it has there."""
    entry = {"job": number, "run_dir": str(run_dir.absolute())}
    write_json(entry, folder / _JOBS / f"{number}.json")


def write_summary(folder: Path) -> list[Row]:
    """`summary.csv` and `summary.md` of a sweep's folder, from the results that are there."""
    rows = read_rows(folder)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = hidden_throughout(rows)
    replace_text(folder / "summary.csv", _csv(shown, columns))
    replace_text(folder / "summary.md", table(shown) + "\n")
    return rows


def read_rows(folder: Path) -> list[Row]:
    """A row for each job of the sweep that has a result, in the jobs' order."""
    rows: list[Row] = []
    for path in (folder / _JOBS).glob("*.json"):
        entry = read_json(path)
        result = read_result(Path(entry["run_dir"])) if entry else None
        if entry is None or result is None:
            continue
        row: Row = {"job": entry["job"], "status": result["status"]}
        for override in result["overrides"]:
            key, _, value = override.partition("=")
            row[key.lstrip("+").replace("/", ".")] = value
        for column, place in _FIGURES.items():
            row[column] = _at(result, place)
        row["run_dir"] = entry["run_dir"]
        row["error"] = " ".join(str(result.get("error") or "").split())
        rows.append(row)
    return sorted(rows, key=lambda row: row["job"])


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown: what differs between the jobs, their figures, and why some failed."""
    shown = changed_keys(rows) or _overridden(rows)
    columns = ["job", "status", *shown, *_FIGURES, "run_dir"]
    lines = [[_shown(row.get(column)) for column in columns] for row in rows]
    made = [markdown.table(columns, lines, left=True)]
    made += [f"- job {row['job']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join(made)


def changed_keys(rows: Sequence[Row]) -> list[str]:
    """The overridden keys that differ between the jobs."""
    return [key for key in _overridden(rows) if len({row.get(key) for row in rows}) > 1]


def _overridden(rows: Sequence[Row]) -> list[str]:
    known = {"job", "status", *_FIGURES, "run_dir", "error"}
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key not in known]


def read_result(run_dir: Path) -> dict[str, Any] | None:
    """What `result.json` holds; None where there is none, or half of one."""
    return read_json(run_dir / "result.json")


def _at(result: Mapping[str, Any], place: Sequence[str]) -> Any:
    value: Any = result
    for name in place:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
