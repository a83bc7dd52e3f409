"""Writes CSV that a spreadsheet shows without evaluating formulas in untrusted text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from xftrain.utils.printable import one_line

_SIGNS = "=+\\-@＝＋－＠"  # full-width forms included, which some spreadsheets treat alike
_FORMULA = re.compile(rf"\s*[{_SIGNS}]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.ASCII | re.IGNORECASE)
# A spreadsheet that splits cells at these rather than at commas ignores quotes inside a cell.
_AFTER_SEPARATOR = re.compile(rf"([;|]\W*?)(?=[{_SIGNS}])")


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Writes a header line and a line for each row; a missing field is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Writes a value as a one-line cell, with an apostrophe before text that starts a formula."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = _AFTER_SEPARATOR.sub(r"\1'", one_line(str(value)))
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
