"""`metrics.csv` in the run folder: every record is in the file as soon as it is made."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from xftrain.errors import RunError
from xftrain.files import open_plain, read_plain, replace_bytes

log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 30  # of a file that is cut back, which is read as a whole


class CSV(CSVLogger):
    """Lightning's own, which would delete the rows of the run that this one resumes.

    It would also write the rows only now and then, and those in between would be lost by a kill.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Writes the file."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    @rank_zero_only
    def close(self) -> None:
        """Forgets the file; what is recorded next looks at it again."""
        self._experiment = None

    @rank_zero_only
    def position(self) -> int:
        """The number of rows so far, for `cut_back`."""
        return int(self.experiment.num_rows)

    @rank_zero_only
    def cut_back(self, step: int, num_rows: int | None) -> None:
        """Removes the rows that a run which resumes at `step` makes again.

        Args:
            step: of the checkpoint.
            num_rows: what `position` was when it was saved; None where that is not known.
        """
        _cut_back(Path(self.log_dir, ExperimentWriter.NAME_METRICS_FILE), step, num_rows)


class _Writer(ExperimentWriter):
    """Adds to the file that is there, a row at a time."""

    def __init__(self, log_dir: str) -> None:
        self.num_rows = 0
        self._has_failed = False
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        if Path(self.metrics_file_path).is_file():
            self.metrics_keys, rows = _read(Path(self.metrics_file_path))
            self.num_rows = len(rows)

    def log_metrics(self, metrics_dict: Mapping[str, Any], step: int | None = None) -> None:
        """Writes a row.

        Where the disk is full the row is kept, and written with the next one or at the end.
        """
        super().log_metrics(dict(metrics_dict), self.num_rows if step is None else step)
        self.num_rows += 1
        try:
            self._write()
        except OSError as error:
            if not self._has_failed:
                log.warning(
                    "%s could not be written (%s): its rows are kept in memory and written later.",
                    *(self.metrics_file_path, error),
                )
            self._has_failed = True

    def save(self) -> None:
        """Writes the rows that could not be written so far.

        Raises:
            OSError: they still cannot be.
        """
        if self.metrics:
            self._write()

    def _write(self) -> None:
        path = Path(self.metrics_file_path)
        is_new = not path.is_file()
        if self._record_new_keys() or is_new:
            rows = [] if is_new else _read(path)[1]
            replace_bytes(path, _text(self.metrics_keys, [*rows, *self.metrics], header=True))
        else:
            _append(path, _text(self.metrics_keys, self.metrics))
        self.metrics = []


def _append(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    with open_plain(path, "ab") as file:
        size, number = os.fstat(file.fileno()).st_size, file.fileno()
        try:
            while content:  # past Python's buffer, which would try again when it is closed
                content = content[os.write(number, content) :]
        except OSError:
            os.truncate(number, size)
            raise


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows that have a cell for each, as a killed process may leave others.

    Raises:
        RunError: it is no file of ours.
    """
    text = read_plain(path, _MAX_BYTES).decode("utf-8", "replace").replace("\0", "")
    whole = text[: text.rfind("\n") + 1]
    try:
        lines = csv.reader(io.StringIO(whole, newline=""))
        columns = next(lines, [])
        rows = [
            dict(zip(columns, cells, strict=True))
            for cells in lines
            if cells and len(cells) == len(columns)
        ]
    except csv.Error as error:
        raise RunError(
            f"the records {path} cannot be read ({error}): move the file away, or choose another "
            "hydra.run.dir."
        ) from error
    return columns, rows


def _text(
    columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, header: bool = False
) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def _cut_back(path: Path, step: int, num_rows: int | None) -> None:
    if not path.is_file():
        return
    columns, rows = _read(path)
    kept = [row for row in rows[:num_rows] if _step(row) <= step]
    content = _text(columns, kept, header=True) if columns else b""
    if content == read_plain(path, _MAX_BYTES):
        return
    if kept:
        replace_bytes(path, content)
    else:
        path.unlink()
    if removed := len(rows) - len(kept):
        log.info("metrics.csv: rows after step %d, which are made again: %d", step, removed)


def _step(row: Mapping[str, str]) -> float:
    """Of a row; infinite where it is damaged."""
    try:
        return int(row.get("step", ""))
    except ValueError:
        return float("inf")
