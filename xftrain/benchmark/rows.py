"""The rows of a benchmark on disk: a line each in `rows.jsonl`, written as soon as it is known."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xftrain.benchmark.cells import Row
from xftrain.errors import ConfigError, RunError

FILE = "rows.jsonl"
# Of rows that may stand together.
_SAME = ("device", "host", "torch", "xformers", "xftrain", "deterministic")
KEPT = ("ok", "unsupported", "oom")  # what a sweep that is run again does not measure again


def read_rows(run_dir: Path) -> list[Row]:
    """The rows of a folder; a last line that a killed process left unfinished is no row.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run_dir / FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # a finished line ends with a newline
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{path}, line {number}, is damaged ({error}): delete the line, or choose another "
                "hydra.run.dir."
            ) from None
    return rows


class RowStore:
    """The rows of a run folder.

    Args:
        run_dir: the folder.
        environment: fields that every row gets: what it was measured on.
    """

    def __init__(self, run_dir: Path, environment: Mapping[str, Any]) -> None:
        self.run_dir, self.environment = run_dir, dict(environment)
        self.rows = read_rows(run_dir)
        for row in self.rows:
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
            self._write([full], "a")
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        path = self.run_dir / FILE
        partial = path.with_name(f".{FILE}.partial")
        self._write(self.rows, "w", partial)
        partial.replace(path)

    def _write(self, rows: Iterable[Row], mode: str, path: Path | None = None) -> None:
        path = path or self.run_dir / FILE
        try:
            with path.open(mode, encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"{path} could not be written ({error}): free space on its disk or choose another "
                "hydra.run.dir; the rows before are kept, and the same command goes on."
            ) from error


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """All rows, a column for every field that any of them has."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _finite(row: Row) -> Row:
    """JSON has no NaN and no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
