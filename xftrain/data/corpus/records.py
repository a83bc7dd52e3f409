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
from typing import IO, TYPE_CHECKING, Any

from xftrain.data.corpus.formats import Format, LargeWindowError, damaged_errors, decompressed
from xftrain.data.corpus.selection import Conversations, RecordError, Selection, selection_of
from xftrain.data.corpus.skipped import LARGE_WINDOW, WITHOUT_LINES, Skipped

if TYPE_CHECKING:  # it takes a while to import, and few corpora have tables
    import pyarrow as pa

MAX_RECORD_BYTES = 64 << 20  # of a line or a document; more would take memory without a bound
_ROWS = 1024  # of a table, read at a time
_PYTHON_BYTES = 4 << 20  # of a table's column, converted to Python's objects at a time
_BUFFER_BYTES = 1 << 20  # of each column of a Parquet file
_SPOOLED_BYTES = 16 << 20  # of a compressed table, kept in memory before it goes to a file
_MAX_KEYS = 20  # of a record, to be named

_Read = Callable[[IO[bytes], Format, Selection, "_Counted"], Iterator[Any]]


class _Counted:
    """Counts skipped records of one file, and remembers the keys of the first without text."""

    def __init__(self, name: str, skipped: Skipped, keys: list[str]) -> None:
        self.name, self.skipped, self.keys, self.number = name, skipped, keys, 0

    def add(self, reason: str, skipped: Skipped | None = None) -> None:
        """Counts the current record."""
        counts = self.skipped if skipped is None else skipped
        counts.add(reason, f"{self.name}:{self.number}")

    def remember(self, record: Any) -> None:
        """Remembers the keys of a record, unless it has those of an earlier one."""
        if not self.keys:
            self.keys += [key[:100] for key in _dotted_keys(record)][:_MAX_KEYS]


def _dotted_keys(record: Any) -> Iterator[str]:
    """The keys of a record, and those of mappings in it, or the names of columns."""
    for key in record:
        value = record[key] if isinstance(record, Mapping) else None
        if isinstance(value, Mapping) and value:
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield str(key)


class _NoColumn(ValueError):
    """A table lacks a column of what is read."""


def read_records(
    file: IO[bytes],
    form: Format,
    text_key: str | Conversations,
    name: str,
    skipped: Skipped,
    keys: list[str] | None = None,
) -> Iterator[str]:
    """The text of each record of a file, in order.

    Args:
        file: the opened file.
        form: its format, of a kind other than `text`.
        text_key: the key of the text in a record, with dots that lead into nested records; or the
            keys of its conversation, which is read as JSON of its turns.
        name: the file's name, for what is skipped.
        skipped: gets the number of skipped records and damaged files.
        keys: if it is empty, it gets the keys of the first record without text.
    """
    counted = _Counted(name, skipped, [] if keys is None else keys)
    selection = selection_of(text_key)
    try:
        for value in _READERS[form.kind](file, form, selection, counted):
            if value is None:
                counted.add(selection.without_value)
                continue
            try:
                text = selection.text(value)
            except RecordError as error:
                counted.add(str(error))
                continue
            if len(text) <= MAX_RECORD_BYTES:
                yield text
            else:
                counted.add("record that is too long")
    except _NoColumn:
        skipped.add(selection.without_columns, name)
    except LargeWindowError:
        skipped.add(LARGE_WINDOW, f"{name} after {counted.number} records")
    except _errors_of_damage(form) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the content
        skipped.add("damaged", f"{name} after {counted.number} records ({type(error).__name__})")


def _errors_of_damage(form: Format) -> tuple[type[Exception], ...]:
    """What reading a damaged file of this format raises."""
    errors: list[type[Exception]] = [ValueError, KeyError, IndexError, TypeError]
    errors += [NotImplementedError, OverflowError]
    errors.append(MemoryError)  # a damaged size asks for more than there is
    if form.kind in ("parquet", "arrow"):
        import pyarrow as pa

        errors.append(pa.ArrowException)
    return (*damaged_errors(), *errors)


def _lines(stream: IO[bytes], counted: _Counted) -> Iterator[bytes]:
    """The lines of a stream in bounded memory; one that is too long is cut to its beginning."""
    while line := stream.readline(MAX_RECORD_BYTES):
        counted.number += 1
        if not line.endswith(b"\n") and len(line) == MAX_RECORD_BYTES:
            while (rest := stream.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
                pass
        yield line


def _json_lines(
    file: IO[bytes], form: Format, selection: Selection, counted: _Counted
) -> Iterator[Any]:
    """What is read of each record of a file of JSON lines.

    A file with one JSON value over all its lines is skipped as a whole: its first line begins a
    list or is a brace alone, and no other line is a mapping.
    """
    first, has_records = b"", False
    broken = Skipped()  # before the first record; of a whole file, it is not told
    for line in _lines(decompressed(file, form.compression), counted):
        line = line.removeprefix(b"\xef\xbb\xbf") if counted.number == 1 else line
        start = line[:2].strip()
        if not start and not line.strip():
            continue
        first = first or line[:100].strip()
        if first == b"[":
            break
        record, reason = _json_record(line)
        if reason is not None:
            counted.add(reason, None if has_records else broken)
            continue
        if not has_records:
            counted.skipped.add_all(broken)
            has_records = True
        value = selection.value(record)
        if value is None:
            counted.remember(record)
        yield value
    if has_records:
        return
    if first.startswith(b"[") or first == b"{":
        counted.skipped.add(WITHOUT_LINES, counted.name)
    else:
        counted.skipped.add_all(broken)


def _json_record(line: bytes) -> tuple[Mapping[str, Any], None] | tuple[None, str]:
    """The record of a line, or the reason why there is none."""
    if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
        return None, "record that is too long"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None, "record that is no JSON"
    if isinstance(record, Mapping):
        return record, None
    return None, "record that is no JSON mapping"


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lets `csv` read long fields; its limit is of the process, and guards other files."""
    limit = csv.field_size_limit(MAX_RECORD_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _csv_rows(
    file: IO[bytes], form: Format, selection: Selection, counted: _Counted
) -> Iterator[Any]:
    stream = io.TextIOWrapper(
        io.BufferedReader(decompressed(file, form.compression)),  # type: ignore[type-var]
        encoding="utf-8-sig",
        errors="surrogateescape",  # such a row is skipped, and the others are read
        newline="",
    )
    rows = csv.reader(stream, delimiter=form.delimiter)
    with _long_fields():
        header = next(rows, [])
    names = _columns(header, selection, counted, nested=False)
    columns = {name: header.index(name) for name in names}
    while True:
        counted.number += 1
        try:
            with _long_fields():
                row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            counted.add("row that is no CSV")
            continue
        if row:
            cells = {name: row[at] for name, at in columns.items() if at < len(row)}
            yield selection.value(cells)


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


def _parquet(
    file: IO[bytes], form: Format, selection: Selection, counted: _Counted
) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with _seekable(file, form) as content:
        table = pq.ParquetFile(content, buffer_size=_BUFFER_BYTES)
        columns = _columns(table.schema_arrow.names, selection, counted, nested=True)
        for batch in table.iter_batches(_ROWS, columns=columns, use_threads=False):
            yield from _values_of(batch, selection, counted)


def _arrow(file: IO[bytes], form: Format, selection: Selection, counted: _Counted) -> Iterator[Any]:
    from pyarrow import ipc

    with _seekable(file, form) as content:
        is_file = content.read(6) == b"ARROW1"
        content.seek(0)
        if is_file:
            table = ipc.open_file(content)
            batches = (table.get_batch(n) for n in range(table.num_record_batches))
        else:
            batches = iter(ipc.open_stream(content))
        for batch in batches:
            yield from _values_of(batch, selection, counted)


def _columns(
    names: list[str], selection: Selection, counted: _Counted, *, nested: bool
) -> list[str]:
    """The columns of a table that are read."""
    columns = selection.columns(names, nested=nested)
    if not columns:
        counted.remember(names)
        raise _NoColumn
    return columns


def _values_of(batch: pa.RecordBatch, selection: Selection, counted: _Counted) -> Iterator[Any]:
    names = batch.schema.names
    roots = _columns(names, selection, counted, nested=True)
    columns = [batch.column(names.index(root)) for root in roots]
    for column in columns:
        column.validate(full=True)  # offsets of a damaged file would be read outside its memory
    num_bytes = sum(column.nbytes for column in columns)
    rows = max(1, batch.num_rows * _PYTHON_BYTES // max(num_bytes, 1))
    for start in range(0, batch.num_rows, rows):
        lists = (column.slice(start, rows).to_pylist() for column in columns)
        for row in zip(*lists, strict=True):
            counted.number += 1
            record = dict(zip(roots, row, strict=True))
            value = selection.value(record)
            if value is None:
                counted.remember({**dict.fromkeys(names), **record})
            yield value


_READERS: dict[str, _Read] = {
    "jsonl": _json_lines,
    "csv": _csv_rows,
    "parquet": _parquet,
    "arrow": _arrow,
}
