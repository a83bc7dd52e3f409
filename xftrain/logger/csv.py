"""Writes `metrics.csv` in the run folder, each row as soon as it is logged."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from xftrain.errors import RunError
from xftrain.logger._hidden_records import hidden_values
from xftrain.utils.files import open_plain, replacing
from xftrain.utils.redaction import hidden_throughout

log = logging.getLogger(__name__)

# Limits of an existing file, which is untrusted: every row takes time to read.
_MAX_BYTES, _MAX_ROWS, _MAX_COLUMNS = 256 << 20, 2_000_000, 10_000
_MAX_LINE = 1 << 20  # bytes

Row = Mapping[str, Any]


class CSV(CSVLogger):
    """Lightning's CSV logger, which here keeps the rows of the resumed run.

    It also writes each row at once; Lightning would lose buffered rows if the run is killed.
    """

    records = "metrics.csv"
    empty_position = 0

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    @rank_zero_only
    def close(self) -> None:
        """Discards the writer; the next record opens the file again."""
        self._experiment = None

    @rank_zero_only
    def position(self) -> int:
        """The number of rows so far, for `cut_back`."""
        return int(self.experiment.num_rows)

    @rank_zero_only
    def cut_back(self, step: int, num_rows: int | None) -> None:
        """Removes the rows that a run resumed at `step` will write again.

        Args:
            step: step of the checkpoint.
            num_rows: value of `position` at its save; None if unknown.
        """
        _cut_back(Path(self.log_dir, ExperimentWriter.NAME_METRICS_FILE), step, num_rows)


class _Writer(ExperimentWriter):
    """Appends rows to the existing file, one at a time."""

    def __init__(self, log_dir: str) -> None:
        self.num_rows = 0
        self._has_failed = False
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        if Path(self.metrics_file_path).is_file():
            self.metrics_keys, rows = _read(Path(self.metrics_file_path))
            self.num_rows = sum(1 for _ in rows)

    def log_metrics(self, metrics_dict: Mapping[str, Any], step: int | None = None) -> None:
        """Writes a row, with secrets in names of metrics hidden.

        If the disk is full, the row is kept, and written with the next one or at the end.
        """
        super().log_metrics(
            hidden_throughout(metrics_dict), self.num_rows if step is None else step
        )
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

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Writes `hparams.yaml`, with secrets hidden."""
        super().log_hparams(hidden_values(params))

    def save(self) -> None:
        """Writes the rows that could not be written so far.

        Raises:
            OSError: they still cannot be written.
        """
        if self.metrics:
            self._write()

    def _write(self) -> None:
        path = Path(self.metrics_file_path)
        is_new = not path.is_file()
        if self._record_new_keys() or is_new:
            former = () if is_new else _read(path)[1]
            _replace(path, self.metrics_keys, chain(former, self.metrics))
        else:
            text = io.StringIO(newline="")
            csv.DictWriter(text, self.metrics_keys).writerows(self.metrics)
            _append(path, text.getvalue().encode("utf-8"))
        self.metrics = []


def _append(path: Path, content: bytes) -> None:
    """Appends all of the content or nothing."""
    with open_plain(path, "ab") as file:
        size, number = os.fstat(file.fileno()).st_size, file.fileno()
        try:
            while content:  # unbuffered, as Python's buffer would write again when it is closed
                content = content[os.write(number, content) :]
        except OSError:
            os.truncate(number, size)
            raise


def _read(path: Path) -> tuple[list[str], Iterator[Row]]:
    """The columns and the complete rows of the file; a killed process may leave incomplete ones.

    Rows are read lazily, so that the file is never in memory as a whole.

    Raises:
        RunError: xftrain did not write the file, or it is too large; also raised while rows are
            read.
    """
    cells = _cells(path)
    columns = next(cells, [])
    return columns, (
        dict(zip(columns, row, strict=True)) for row in cells if row and len(row) == len(columns)
    )


def _cells(path: Path) -> Iterator[list[str]]:
    """The cells of each line, including the header line."""
    try:
        for number, row in enumerate(csv.reader(_lines(path))):
            if number > _MAX_ROWS:
                raise csv.Error(f"it has more than {_MAX_ROWS:,} rows")
            if number == 0 and len(row) > _MAX_COLUMNS:
                raise csv.Error(f"it has more than {_MAX_COLUMNS:,} columns")
            yield row
    except csv.Error as error:
        raise RunError(
            f"the records {path} cannot be read ({error}): move the file away, or choose another "
            "hydra.run.dir."
        ) from error


def _lines(path: Path) -> Iterator[str]:
    """The complete lines of the file."""
    with open_plain(path) as file:
        num_bytes = 0
        while (line := file.readline(_MAX_LINE)).endswith(b"\n"):
            num_bytes += len(line)
            if num_bytes > _MAX_BYTES:
                raise csv.Error(f"it has more than {_MAX_BYTES:,} bytes")
            yield line.decode("utf-8", "replace").replace("\0", "")
        if len(line) == _MAX_LINE:
            raise csv.Error(f"it has a line of more than {_MAX_LINE:,} bytes")


def _write_rows(file: Any, columns: Sequence[str], rows: Iterable[Row]) -> None:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)


def _replace(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Replaces the file; the rows may be read from the file itself."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        _write_rows(file, columns, rows)


def _cut_back(path: Path, step: int, num_rows: int | None) -> None:
    if not path.is_file():
        return
    num_all, num_kept, written = sum(1 for _ in _read(path)[1]), 0, _Digest()

    def kept_rows() -> Iterator[Row]:
        nonlocal num_kept
        num_kept = 0
        for row in islice(_read(path)[1], num_rows):
            if _step(row) <= step:
                num_kept += 1
                yield row

    columns = _read(path)[0]
    if columns:
        _write_rows(written, columns, kept_rows())
    if _file_digest(path) == written.digest():
        return
    if num_kept:
        _replace(path, columns, kept_rows())
    else:
        path.unlink()
    if removed := num_all - num_kept:
        log.info(
            "metrics.csv: rows removed after step %d, which will be written again: %d",
            step,
            removed,
        )


class _Digest:
    """A file-like object that computes the digest of the text written to it."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.digest = self._sha256.digest

    def write(self, text: str) -> None:
        self._sha256.update(text.encode("utf-8"))


def _file_digest(path: Path) -> bytes:
    sha256 = hashlib.sha256()
    with open_plain(path) as file:
        while content := file.read(_MAX_LINE):
            sha256.update(content)
    return sha256.digest()


def _step(row: Row) -> float:
    """The step of a row; infinite if the row is damaged."""
    try:
        return int(row.get("step", ""))
    except ValueError:
        return float("inf")
