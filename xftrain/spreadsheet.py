"""Comma-separated values that a spreadsheet shows as they are, whoever wrote the texts."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from xftrain.printable import one_line

_SIGNS = "=+\\-@＝＋－＠"  # with the wide forms, which some spreadsheets take for the same
_FORMULA = re.compile(rf"\s*[{_SIGNS}]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.ASCII | re.IGNORECASE)
# A spreadsheet that separates cells by these rather than by a comma knows no quotes within one.
_AFTER_SEPARATOR = re.compile(rf"([;|]\W*?)(?=[{_SIGNS}])")


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A line of titles and a line for each row; a field that a row has not is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A value as a cell: a text is one line, and an apostrophe is before what were a formula."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = _AFTER_SEPARATOR.sub(r"\1'", one_line(str(value)))
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
