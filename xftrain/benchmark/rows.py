"""Stores the rows of a benchmark in `rows.jsonl`, one line each, as soon as they are measured."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from xftrain.benchmark.cells import Row, Status
from xftrain.errors import ConfigError, RunError, first_line
from xftrain.utils.files import open_plain, replace_text
from xftrain.utils.markdown import escaped
from xftrain.utils.printable import one_line, shortened
from xftrain.utils.spreadsheet import csv_text

FILE = "rows.jsonl"
# Limits of an untrusted file; a row has a few KiB, and takes far more memory once parsed.
_MAX_BYTES, _MAX_ROWS, _MAX_ROW_BYTES = 16 << 20, 3_000, 1 << 20
_MAX_FIELDS = 300
_MAX_NUMBER = 1 << 62  # largest number of bytes, tokens or repetitions in a row
_MAX_CHARACTERS = 1000  # longest text that is shown
_STATUSES = get_args(Status)
_REQUIRED_FIELDS = ("sweep", "cell", "status")  # fields of every row
# Environment fields that must be equal in all rows of a folder.
_MACHINE_FIELDS = ("device", "host", "torch", "xformers", "xftrain", "deterministic")
# Statuses of cells that a resumed benchmark does not measure again.
FINAL_STATUSES = ("ok", "unsupported", "oom")


def read_rows(run_dir: Path) -> list[Row]:
    """Reads the rows of a folder, without an unfinished last line of a killed process.

    Raises:
        ConfigError: the file is damaged.
    """
    path, rows = run_dir / FILE, []
    names: set[str] = set()
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not a row of a benchmark")
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}, line {number}, is damaged ({one_line(str(error))}): delete the line, or "
                "choose another hydra.run.dir."
            ) from None
        rows.append({one_line(name): _plain(value) for name, value in row.items()})
        names |= rows[-1].keys()
        if len(names) > _MAX_FIELDS:  # results.csv has a column for each, in every row
            raise ConfigError(
                f"{path} has more than {_MAX_FIELDS} different fields in its rows, which no "
                "benchmark writes: delete it, or choose another hydra.run.dir."
            )
    return rows


def _lines(path: Path) -> Iterator[str]:
    """Yields the complete lines of the file, if it exists.

    Raises:
        ConfigError: the file cannot be read, or is larger than a benchmark writes.
    """
    try:
        with open_plain(path) as file:
            num_rows = num_bytes = 0
            while (line := file.readline(_MAX_ROW_BYTES)).endswith(b"\n"):
                num_rows, num_bytes = num_rows + 1, num_bytes + len(line)
                if num_rows > _MAX_ROWS or num_bytes > _MAX_BYTES:
                    raise ValueError(f"it has more than {_MAX_ROWS:,} rows or {_MAX_BYTES:,} bytes")
                yield line.decode("utf-8")
            if len(line) == _MAX_ROW_BYTES:
                raise ValueError(f"it has a row of more than {_MAX_ROW_BYTES:,} bytes")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({one_line(str(error))}): delete it, or choose another "
            "hydra.run.dir."
        ) from error


def _plain(value: Any) -> Any:
    """Sanitizes a value of an untrusted row: text to one line, numbers to the allowed range."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        return None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {one_line(name): _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RowStore:
    """The rows of a run folder.

    Args:
        run_dir: the run folder.
        environment: fields of every row that describe the machine.
    """

    def __init__(self, run_dir: Path, environment: Mapping[str, Any]) -> None:
        self.run_dir, self.environment = run_dir, dict(environment)
        self.rows = read_rows(run_dir)
        self._has_read_rows = bool(self.rows)
        for row in self.rows:
            if any(type(row.get(name)) is not str for name in _REQUIRED_FIELDS):
                raise ConfigError(
                    f"{run_dir / FILE} has a row without {', '.join(_REQUIRED_FIELDS)}: delete it, "
                    "or choose another hydra.run.dir."
                )
            if row["status"] not in _STATUSES:
                raise ConfigError(
                    f"{run_dir / FILE} has a row with a status that is none of "
                    f"{', '.join(_STATUSES)}: delete it, or choose another hydra.run.dir."
                )
            for name in _MACHINE_FIELDS:
                if row.get(name) != self.environment.get(name):
                    raise ConfigError(
                        f"the rows in {run_dir / FILE} were measured with {name} {row.get(name)}, "
                        f"and here it is {self.environment.get(name)}: choose another "
                        "hydra.run.dir, or delete the file."
                    )
        if self.rows:
            self._rewrite()  # drops an unfinished line

    def measured_cells(self) -> set[str]:
        """The keys of cells that need not be measured again."""
        return {row["cell"] for row in self.rows if row["status"] in FINAL_STATUSES}

    def drop(self, benchmark: str) -> None:
        """Drops the rows of one benchmark."""
        self.rows = [row for row in self.rows if row["sweep"] != benchmark]
        self._rewrite()

    def add(self, row: Row) -> None:
        """Adds a row with the environment, in place of an earlier row of the same cell."""
        full = {**row, **self.environment}
        others = [other for other in self.rows if other["cell"] != full["cell"]]
        is_new = len(others) == len(self.rows)
        self.rows = [*others, full]
        if is_new:
            self._append(full)
        else:
            self._rewrite()

    @contextmanager
    def malformed_rows_refused(self) -> Iterator[None]:
        """Turns errors from malformed rows into ConfigError while rows are shown.

        Raises:
            ConfigError: a row that was read lacks a field, or has text in place of a figure.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            if not self._has_read_rows or isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{self.run_dir / FILE} has rows that no benchmark of this version wrote "
                f"({first_line(error)}): delete it, or choose another hydra.run.dir."
            ) from error

    def _rewrite(self) -> None:
        with self._write_errors_explained():
            replace_text(self.run_dir / FILE, "".join(map(_line, self.rows)))

    def _append(self, row: Row) -> None:
        with self._write_errors_explained(), open_plain(self.run_dir / FILE, "ab") as file:
            file.write(_line(row).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _write_errors_explained(self) -> Iterator[None]:
        """Within this context, an OSError becomes a RunError that says what to do."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.run_dir / FILE} could not be written ({error}): free space on its disk or "
                "choose another hydra.run.dir; earlier rows are kept, and the same command "
                "resumes."
            ) from error


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """Writes all rows as CSV, with a column for every field of any row."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    replace_text(path, csv_text(rows, columns))


def as_lines(row: Row) -> Row:
    """Sanitizes a row for the console and a log: each text becomes one short line."""
    return {name: _short(value) if _is_text(value) else value for name, value in row.items()}


def as_markdown(row: Row) -> Row:
    """Sanitizes a row for a report: HTML, links and table separators in texts are escaped."""
    return {
        name: escaped(_short(value)) if _is_text(value) else value for name, value in row.items()
    }


def _is_text(value: Any) -> bool:
    """Whether a value is neither a number nor None; untrusted rows may have lists or mappings."""
    return value is not None and not isinstance(value, bool | int | float)


def _short(value: Any) -> str:
    return shortened(one_line(str(value)), _MAX_CHARACTERS)


def _line(row: Row) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(row: Row) -> Row:
    """Replaces NaN and infinity, which JSON lacks."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
