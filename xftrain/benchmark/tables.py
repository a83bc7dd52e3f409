"""Renders rows as Markdown tables, aligned so that they are also readable on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xftrain.benchmark.cells import Row
from xftrain.utils import markdown

Format = Callable[[Row], str]

STATUS = {
    "oom": "out of memory",
    "unsupported": "refused",
    "failed": "failed",
    "crashed": "crashed",
    "timeout": "timed out",
}

LEGEND = (
    "`ms` is forward and backward on the device, with Python's overhead hidden, and `n` how often "
    "it was measured; `loop ms` is a call in a loop of calls, Python's overhead included. `extra` "
    "is memory above q, k, v and the output's gradient; `mask` is the cost of the kernel's mask or "
    "bias, once per batch."
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Renders a Markdown table; statuses are aligned like figures."""
    return markdown.table(header, rows, figures=tuple(STATUS.values()))


def columns_of(rows: Sequence[Row], columns: Mapping[str, str | Format]) -> str:
    """Renders a table of rows; `columns` maps a title to a field or a formatting function."""
    lines = [
        [show(row.get(f)) if isinstance(f, str) else f(row) for f in columns.values()]
        for row in rows
    ]
    return table(list(columns), lines)


def show(value: Any) -> str:
    """Formats a value as a cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return figure(value)
    return str(value).replace("|", "\\|")


def figure(value: float) -> str:
    """Formats a number with three significant digits, without an exponent if that is readable."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e15:
        return f"{value:.1e}"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.01 else f"{value:.1e}"


def span(row: Row, field: str) -> str:
    """Formats the range from the 10th to the 90th percentile."""
    low, high = row.get(f"{field}_p10"), row.get(f"{field}_p90")
    return "-" if low is None or high is None else f"{figure(low)} to {figure(high)}"


def outcome(field: str) -> Format:
    """A formatter that shows the field of a row that ran, and the status of any other row."""
    return lambda row: show(row.get(field)) if row["status"] == "ok" else STATUS[row["status"]]


def reasons(rows: Sequence[Row], name: Callable[[Row], str]) -> str:
    """Lists why rows have no figures: a line for each reason, with the rows that share it."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            by_reason.setdefault((row["status"], row["reason"] or ""), []).append(name(row))
    lines = []
    for (status, reason), names in by_reason.items():
        shown = ", ".join(list(dict.fromkeys(names))[:6]) + (" ..." if len(names) > 6 else "")
        lines.append(f"- {STATUS[status]} ({len(names)}): {shown}: {reason}")
    return "\n".join(lines)


# The columns of an attention call, by title.
TIMES: dict[str, str | Format] = {
    "ms": outcome("ms"),
    "p10 to p90": lambda row: span(row, "ms"),
    "n": "repetitions",
    "forward ms": "fwd_ms",
    "loop ms": "loop_ms",
    "TF/s": "tflops",
    "of peak": lambda row: f"{row['peak_share']:.0%}" if row.get("peak_share") else "-",
}
MEMORY: dict[str, str | Format] = {
    "extra MiB": "extra_mib",
    "peak MiB": "peak_mib",
    "mask ms": "mask_ms",
    "mask MiB": "mask_mib",
}
KERNEL: dict[str, str | Format] = {"kernel": "kernel"}
# The main columns, for the console and for TensorBoard, which squeezes wide tables.
MAIN: dict[str, str | Format] = {"ms": outcome("ms"), "extra MiB": "extra_mib", **KERNEL}
