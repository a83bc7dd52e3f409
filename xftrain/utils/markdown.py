"""Tables in Markdown, aligned so that they also read well on a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    figures: Sequence[str] = (),
    left: bool = False,
) -> str:
    """Renders a table, with columns of figures right-aligned.

    Args:
        header: titles of the columns.
        rows: their cells.
        figures: cells that count as figures, such as `n/a`.
        left: whether to left-align all columns.
    """
    replacements = ("", "-", *figures)

    def is_figure(cell: str) -> bool:
        return cell in replacements or cell[0].isdigit() or cell[0] == "-"

    columns = [[row[n] for row in rows] for n in range(len(header))]
    widths = [max(3, *map(len, (title, *c))) for title, c in zip(header, columns, strict=True)]
    right = [not left and any(column) and all(map(is_figure, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        columns = zip(cells, widths, right, strict=True)
        padded = [f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in columns]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (w - 1)}:" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    return "\n".join([line(header), f"| {' | '.join(rule)} |", *map(line, rows)])


def escaped(text: str) -> str:
    """Escapes untrusted text, so that Markdown sees no column, HTML, link or image in it."""
    for mark, entity in (
        ("&", "&amp;"),
        ("|", "&#124;"),
        ("<", "&lt;"),
        ("[", "&#91;"),
        ("]", "&#93;"),
    ):
        text = text.replace(mark, entity)
    return text
