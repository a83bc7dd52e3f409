"""Reads the documents of files that hold one in each record: JSON lines, CSV, Parquet and Arrow.

A record that is none is skipped and counted, and the others are read all the same. Where a file is
damaged, reading it ends there, and its documents before that place count.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from xftrain.data.corpus.formats import Format, damaged_errors, decompressed
from xftrain.data.corpus.skipped import Skipped

MAX_RECORD_BYTES = 64 << 20  # of a line or a document; more would take memory without a bound
_ROWS = 256  # of a table, read at a time
_SPOOLED_BYTES = 64 << 20  # of a compressed table, kept in memory before it goes to a file

_Read = Callable[[IO[bytes], Format, str, "_Counted"], Iterator[Any]]


class _Counted:
    """Counts skipped records of one file."""

    def __init__(self, name: str, skipped: Skipped) -> None:
        self.name, self.skipped, self.number = name, skipped, 0

    def add(self, reason: str) -> None:
        """Counts the current record."""
        self.skipped.add(reason, f"{self.name}:{self.number}")


def read_records(
    file: IO[bytes], form: Format, text_key: str, name: str, skipped: Skipped
) -> Iterator[str]:
    """The text of each record of a file, in order.

    Args:
        file: the opened file.
        form: its format, of a kind other than `text`.
        text_key: the key of the text in a record; dots lead into nested records.
        name: the file's name, for what is skipped.
        skipped: gets the number of skipped records and damaged files.
    """
    counted = _Counted(name, skipped)
    try:
        for value in _READERS[form.kind](file, form, text_key, counted):
            if isinstance(value, str) and _is_text(value):
                yield value
            elif value is None:
                counted.add("record without text")
            else:
                counted.add("record whose text is no text")
    except (*damaged_errors(), pa.ArrowException, ValueError) as error:
        skipped.add("damaged", f"{name} after {counted.number} records ({type(error).__name__})")


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON may hold half of a surrogate pair."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def value_at(record: Any, text_key: str) -> Any:
    """The value at a dotted key; None if there is none. A key that has dots itself comes first."""
    if isinstance(record, Mapping) and text_key in record:
        return record[text_key]
    for part in text_key.split("."):
        if not isinstance(record, Mapping):
            return None
        record = record.get(part)
    return record


def _lines(stream: IO[bytes], counted: _Counted) -> Iterator[bytes]:
    """The lines of a stream in bounded memory; a line that is too long is skipped."""
    while line := stream.readline(MAX_RECORD_BYTES):
        counted.number += 1
        if not line.endswith(b"\n") and len(line) == MAX_RECORD_BYTES:
            counted.add("record that is too long")
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_RECORD_BYTES)
            continue
        yield line


def _json_lines(file: IO[bytes], form: Format, text_key: str, counted: _Counted) -> Iterator[Any]:
    for line in _lines(decompressed(file, form.compression), counted):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            counted.add("record that is no JSON")
            continue
        if isinstance(record, Mapping):
            yield value_at(record, text_key)
        else:
            counted.add("record that is no JSON mapping")


def _csv_rows(file: IO[bytes], form: Format, text_key: str, counted: _Counted) -> Iterator[Any]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    stream = io.TextIOWrapper(
        io.BufferedReader(decompressed(file, form.compression)),  # type: ignore[type-var]
        encoding="utf-8-sig",
        errors="surrogateescape",  # such a row is skipped, and the others are read
        newline="",
    )
    rows = csv.reader(stream, delimiter=form.delimiter)
    header = next(rows, [])
    if text_key not in header:
        raise ValueError(f"no column {text_key}")
    column = header.index(text_key)
    while True:
        counted.number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            counted.add("row that is no CSV")
            continue
        if row:
            yield row[column] if column < len(row) else None


@contextmanager
def _seekable(file: IO[bytes], form: Format) -> Iterator[IO[bytes]]:
    """The content as a file that can be sought, which tables need."""
    if form.compression is None:
        yield file
        return
    with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as spooled:
        stream = decompressed(file, form.compression)
        while block := stream.read(1 << 20):
            spooled.write(block)
        spooled.seek(0)
        yield spooled


def _parquet(file: IO[bytes], form: Format, text_key: str, counted: _Counted) -> Iterator[Any]:
    with _seekable(file, form) as content:
        table = pq.ParquetFile(content)
        root = _column(table.schema_arrow.names, text_key)
        for batch in table.iter_batches(_ROWS, columns=[root]):
            yield from _texts_of(batch, text_key, counted)


def _arrow(file: IO[bytes], form: Format, text_key: str, counted: _Counted) -> Iterator[Any]:
    with _seekable(file, form) as content:
        is_file = content.read(6) == b"ARROW1"
        content.seek(0)
        if is_file:
            table = pa.ipc.open_file(content)
            batches = (table.get_batch(n) for n in range(table.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(content))
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield from _texts_of(batch.slice(start, _ROWS), text_key, counted)


def _column(names: list[str], text_key: str) -> str:
    """The column of a table in which the text is."""
    root = text_key if text_key in names else text_key.partition(".")[0]
    if root not in names:
        raise ValueError(f"no column {text_key}")
    return root


def _texts_of(batch: pa.RecordBatch, text_key: str, counted: _Counted) -> Iterator[Any]:
    names = batch.schema.names
    root = _column(names, text_key)
    for value in batch.column(names.index(root)).to_pylist():
        counted.number += 1
        yield value if root == text_key else value_at({root: value}, text_key)


_READERS: dict[str, _Read] = {
    "jsonl": _json_lines,
    "csv": _csv_rows,
    "parquet": _parquet,
    "arrow": _arrow,
}
