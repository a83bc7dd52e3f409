"""Plots the figures of a sweep against each changed key.

This module is imported only at the end of a sweep, since matplotlib is slow to import; it must not
import torch.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from xftrain.multirun.order import Row, best_row, changed_keys, minimized
from xftrain.utils.files import replace_bytes
from xftrain.utils.plot_style import (
    COLORS,
    CROSS,
    GRAY,
    MARKERS,
    RING,
    format_number,
    legend_at_right,
    legend_marker,
    new_figure,
    spans_decades,
    style_axis,
    use_log_ticks,
)
from xftrain.utils.printable import one_line

_HIGHEST = ("tokens_per_s",)  # columns in which the highest figure is the best
_TITLES = {"tokens_per_s": "tokens/s"}  # titles that differ from the column's name
_MAX_CHARACTERS = 20  # longest value, in characters
_EVENTS = "events.out.tfevents.{}.sweep"


@dataclass(frozen=True)
class _Key:
    """A changed key: its values as typed, sorted, and as numbers if all are numbers."""

    name: str
    values: list[str]
    numbers: list[float] | None

    @classmethod
    def of(cls, rows: Sequence[Row], name: str) -> _Key:
        values = list(dict.fromkeys(_typed(row, name) for row in rows))
        try:
            values.sort(key=float)
            numbers = [float(value) for value in values]
        except ValueError:
            return cls(name, values, None)
        return cls(name, values, numbers if all(map(_can_be_drawn, numbers)) else None)

    def index(self, row: Row) -> int:
        return self.values.index(_typed(row, self.name))

    def label(self, index: int) -> str:
        """Formats a value for a tick or the legend; drawn numbers have three significant digits."""
        if self.numbers:
            return format_number(self.numbers[index])
        return _shown(self.values[index])

    @property
    def are_round(self) -> bool:
        """Whether the numbers were typed, not drawn by a search, so that each can be a tick."""
        return all(float(format_number(n).replace(",", "")) == n for n in self.numbers or [])


def draw(rows: Sequence[Row], folder: Path) -> Path | None:
    """Writes `summary.png` into a sweep's folder, and the same picture for TensorBoard.

    Args:
        rows: the jobs, see `table.read_rows`.
        folder: the sweep's folder; an earlier plot there is removed.

    Returns:
        The path of the plot; None if there is nothing to compare.
    """
    path = folder / "summary.png"
    for earlier in (path, *folder.glob(_EVENTS.format("*"))):
        earlier.unlink(missing_ok=True)
    plot = figure(rows)
    if plot is None:
        return None
    png = io.BytesIO()
    plot.savefig(png, format="png")
    replace_bytes(path, png.getvalue())
    records = _records(png.getvalue(), *plot.canvas.get_width_height())
    # a new name, since TensorBoard does not read a replaced file from its beginning
    replace_bytes(folder / _EVENTS.format(f"{int(time.time()):010d}"), records)
    return path


def figure(rows: Sequence[Row]) -> Figure | None:
    """Draws a row of panels for each changed key, a panel for each metric, a point for each job.

    One or two other changed keys determine the color and the marker of a point. Returns None if no
    two jobs differ or no job has a figure.
    """
    keys = [_Key.of(rows, name) for name in changed_keys(rows)]
    wanted = (minimized(rows), *_HIGHEST)
    columns = [c for c in wanted if any(_value(row, c) is not None for row in rows)]
    if not keys or not columns:
        return None
    plot = new_figure(2.0 + 3.8 * len(columns), 0.4 + 2.6 * len(keys))
    panels = plot.subplots(len(keys), len(columns), squeeze=False, sharey="col")
    for key, line in zip(keys, panels, strict=True):
        others = [o for o in keys if o is not key and len(o.values) <= len(COLORS)]
        if len(others) > 2:
            others = []
        for column, axis in zip(columns, line, strict=True):
            _panel(plot, axis, rows, key, column, others)
        handles: list[Any] = _legend(others)
        if key is keys[0]:  # the legend is equal for all rows of panels
            has_best = any(best_row(rows, column) for column in columns)
            handles += [legend_marker("best", RING)] * has_best
            handles += [legend_marker("not completed", CROSS)] * any(map(_has_failed, rows))
        if handles:
            legend_at_right(line[-1], handles)
    for column, axis in zip(columns, panels[0], strict=True):
        axis.set_title(_TITLES.get(column, column), loc="left", fontsize=10)
    return plot


def _panel(
    plot: Figure, axis: Axes, rows: Sequence[Row], key: _Key, column: str, others: Sequence[_Key]
) -> None:
    """Draws one column against one key; a failed job is a cross at the upper edge."""
    values = [value for row in rows if (value := _value(row, column)) is not None]
    if spans_decades(values):
        axis.set_yscale("log")
        use_log_ticks(axis.yaxis)
    else:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    if key.numbers and spans_decades(key.numbers):
        axis.set_xscale("log")
    best = best_row(rows, column, highest=column in _HIGHEST)
    for row in rows:
        index = key.index(row)
        place = key.numbers[index] if key.numbers else index
        value, lines = _value(row, column), []
        if value is not None:
            look = _style(row, others)
            lines = axis.plot(place, value, markeredgecolor="white", markeredgewidth=0.5, **look)
            lines += axis.plot(place, value, **RING) if row is best else []
        elif _has_failed(row):
            lines = axis.plot(place, 0.96, transform=axis.get_xaxis_transform(), **CROSS)
        for line in lines:  # shift by a few pixels per color, so that equal values stay visible
            shift = ScaledTranslation(_shift(row, others), 0, plot.dpi_scale_trans)
            line.set_transform(line.get_transform() + shift)
    _name_values(axis, key)
    axis.margins(0.08, 0.12)
    if key.numbers is None:
        axis.set_xlim(-0.5, len(key.values) - 0.5)
    axis.set_xlabel(_shown(key.name, longest=60), fontsize=9)
    style_axis(axis)


def _name_values(axis: Axes, key: _Key) -> None:
    """Sets the ticks of a key: its values, or round numbers if there are many or drawn values."""
    if key.numbers and (len(key.numbers) > len(COLORS) or not key.are_round):
        if spans_decades(key.numbers):
            use_log_ticks(axis.xaxis)
        else:
            axis.locator_params(axis="x", nbins=6)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
        return
    labels = [key.label(index) for index in range(len(key.values))]
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    is_wide = sum(map(len, labels)) > 36
    axis.set_xticks(key.numbers or range(len(labels)), labels, **(slanted if is_wide else {}))
    axis.xaxis.set_minor_locator(NullLocator())


def _style(row: Row, others: Sequence[_Key]) -> dict[str, Any]:
    """The style of a job's point: one other key sets the color, a second one the marker."""
    indices = [other.index(row) for other in others] + [0, 0]
    return {"color": COLORS[indices[0]], "marker": MARKERS[indices[1]], "markersize": 7}


def _shift(row: Row, others: Sequence[_Key]) -> float:
    """The horizontal shift of a point, in inches."""
    return 0.1 * (others[0].index(row) - (len(others[0].values) - 1) / 2) if others else 0.0


def _legend(others: Sequence[_Key]) -> list[Any]:
    """Legend entries for colors, as patches, and for markers, so that each shape appears once."""
    handles: list[Any] = []
    for other, name in zip(others, ("color", "marker"), strict=False):
        for index in range(len(other.values)):
            label = f"{other.name.rpartition('.')[2]}={other.label(index)}"
            if name == "color":
                handles.append(Patch(color=COLORS[index], label=label))
            else:
                look: dict[str, Any] = {
                    "color": GRAY,
                    "marker": MARKERS[index],
                    "linestyle": "none",
                }
                handles.append(Line2D([], [], label=label, **look))
    return handles


def _typed(row: Row, name: str) -> str:
    return str(row.get(name, "-"))


def _value(row: Row, column: str) -> float | None:
    """A job's figure; the figure of a failed job, which is of an earlier step, is ignored."""
    value = row.get(column)
    is_number = isinstance(value, int | float) and _can_be_drawn(value)
    return value if is_number and not _has_failed(row) else None


def _can_be_drawn(value: float) -> bool:
    """Whether matplotlib can compute ticks for a value, which is from an untrusted file."""
    return value == 0 or 1e-30 <= abs(value) <= 1e30


def _has_failed(row: Row) -> bool:
    return row["status"] != "completed"


def _shown(text: str, longest: int = _MAX_CHARACTERS) -> str:
    """Shortens a text and escapes dollar signs, which matplotlib treats as math mode."""
    text = one_line(text)
    short = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return short.replace("$", r"\$")


def _records(png: bytes, width: int, height: int) -> bytes:
    """Builds an event file with the plot; TensorBoard shows the sweep's folder as another run."""
    image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    value = Summary.Value(tag="sweep/summary", image=image)
    now, records = time.time(), io.BytesIO()
    writer = RecordWriter(records)
    for event in (
        Event(wall_time=now, file_version="brain.Event:2"),
        Event(wall_time=now, summary=Summary(value=[value])),
    ):
        writer.write(event.SerializeToString())
    return records.getvalue()
