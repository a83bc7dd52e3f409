"""The rows of a benchmark on disk: a line each in `rows.jsonl`, written as soon as it is known."""

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
from xftrain.files import open_plain, replace_text
from xftrain.markdown import escaped
from xftrain.printable import one_line, shortened
from xftrain.spreadsheet import csv_text

FILE = "rows.jsonl"
# Of a file of rows, a row of which has some KiB; values in memory take many times their bytes.
_MOST_BYTES, _MOST_ROWS, _MOST_BYTES_OF_ROW = 16 << 20, 100_000, 1 << 20
_LARGEST = 1 << 62  # bytes, tokens or repetitions; no row has more
_MAX_CHARACTERS = 1000  # of a text that is shown
_STATUSES = get_args(Status)
_TEXTS = ("sweep", "cell", "status")  # fields of every row
# Of rows that may stand together.
_SAME = ("device", "host", "torch", "xformers", "xftrain", "deterministic")
KEPT = ("ok", "unsupported", "oom")  # what a sweep that is run again does not measure again


def read_rows(run_dir: Path) -> list[Row]:
    """The rows of a folder; a last line that a killed process left unfinished is no row.

    Raises:
        ConfigError: the file is damaged.
    """
    path, rows = run_dir / FILE, []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is no row of a benchmark")
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}, line {number}, is damaged ({one_line(str(error))}): delete the line, or "
                "choose another hydra.run.dir."
            ) from None
        rows.append({one_line(name): _plain(value) for name, value in row.items()})
    return rows


def _lines(path: Path) -> Iterator[str]:
    """The finished lines, which end with a newline; none where there is no file.

    Raises:
        ConfigError: it cannot be read, or has more than a benchmark writes.
    """
    try:
        with open_plain(path) as file:
            num_rows = num_bytes = 0
            while (line := file.readline(_MOST_BYTES_OF_ROW)).endswith(b"\n"):
                num_rows, num_bytes = num_rows + 1, num_bytes + len(line)
                if num_rows > _MOST_ROWS or num_bytes > _MOST_BYTES:
                    raise ValueError(
                        f"it has more than {_MOST_ROWS:,} rows or {_MOST_BYTES:,} bytes"
                    )
                yield line.decode("utf-8")
            if len(line) == _MOST_BYTES_OF_ROW:
                raise ValueError(f"it has a row of more than {_MOST_BYTES_OF_ROW:,} bytes")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({one_line(str(error))}): delete it, or choose another "
            "hydra.run.dir."
        ) from error


def _plain(value: Any) -> Any:
    """A value of a row that anyone may have written: a text is one line, a number a plain one."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, int) and abs(value) > _LARGEST:
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RowStore:
    """The rows of a run folder.

    Args:
        run_dir: the folder.
        environment: fields that every row gets: what it was measured on.
    """

    def __init__(self, run_dir: Path, environment: Mapping[str, Any]) -> None:
        self.run_dir, self.environment = run_dir, dict(environment)
        self.rows = read_rows(run_dir)
        self._was_read = bool(self.rows)
        for row in self.rows:
            if any(type(row.get(name)) is not str for name in _TEXTS):
                raise ConfigError(
                    f"{run_dir / FILE} has a row without {', '.join(_TEXTS)}: delete it, or choose "
                    "another hydra.run.dir."
                )
            if row["status"] not in _STATUSES:
                raise ConfigError(
                    f"{run_dir / FILE} has a row with a status that is none of "
                    f"{', '.join(_STATUSES)}: delete it, or choose another hydra.run.dir."
                )
            for name in _SAME:
                if row.get(name) != self.environment.get(name):
                    raise ConfigError(
                        f"the rows in {run_dir / FILE} were measured with {name} {row.get(name)}, "
                        f"and here it is {self.environment.get(name)}: choose another "
                        "hydra.run.dir, or delete the file."
                    )
        if self.rows:
            self._rewrite()  # without an unfinished line

    def kept(self) -> set[str]:
        """The cells that need not be measured again."""
        return {row["cell"] for row in self.rows if row["status"] in KEPT}

    def forget(self, sweep: str) -> None:
        """Drops the rows of one sweep."""
        self.rows = [row for row in self.rows if row["sweep"] != sweep]
        self._rewrite()

    def add(self, row: Row) -> None:
        """Adds a row, with the environment, or puts it in the place of the cell's former one."""
        full = {**row, **self.environment}
        others = [other for other in self.rows if other["cell"] != full["cell"]]
        is_new = len(others) == len(self.rows)
        self.rows = [*others, full]
        if is_new:
            self._append(full)
        else:
            self._rewrite()

    @contextmanager
    def refusing_what_no_benchmark_wrote(self) -> Iterator[None]:
        """While rows are shown: rows that were read may lack a field, or have a text as a figure.

        Raises:
            ConfigError: of such rows.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            if not self._was_read or isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{self.run_dir / FILE} has rows that no benchmark of this version wrote "
                f"({first_line(error)}): delete it, or choose another hydra.run.dir."
            ) from error

    def _rewrite(self) -> None:
        with self._saying_what_failed():
            replace_text(self.run_dir / FILE, "".join(map(_line, self.rows)))

    def _append(self, row: Row) -> None:
        with self._saying_what_failed(), open_plain(self.run_dir / FILE, "ab") as file:
            file.write(_line(row).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _saying_what_failed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.run_dir / FILE} could not be written ({error}): free space on its disk or "
                "choose another hydra.run.dir; the rows before are kept, and the same command goes "
                "on."
            ) from error


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """All rows, a column for every field that any of them has."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    replace_text(path, csv_text(rows, columns))


def as_lines(row: Row) -> Row:
    """The row for the console and a log: each text is one line that is not too long."""
    return {name: _short(value) if _is_text(value) else value for name, value in row.items()}


def as_markdown(row: Row) -> Row:
    """The row for a report: its texts have no HTML, no link and no column of a table."""
    return {
        name: escaped(_short(value)) if _is_text(value) else value for name, value in row.items()
    }


def _is_text(value: Any) -> bool:
    """Whether it is neither a figure nor nothing; a foreign row may have a list or a mapping."""
    return value is not None and not isinstance(value, bool | int | float)


def _short(value: Any) -> str:
    return shortened(one_line(str(value)), _MAX_CHARACTERS)


def _line(row: Row) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(row: Row) -> Row:
    """JSON has no NaN and no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
