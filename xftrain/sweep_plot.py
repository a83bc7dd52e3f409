"""A picture of a sweep: its figures against each key that was changed.

Imported where a sweep has ended and nowhere else, as matplotlib takes a while; imports no torch.
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
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from xftrain.files import replace_bytes
from xftrain.printable import one_line
from xftrain.sweep_table import Row, changed_keys

_TITLES = {"val/loss": "val/loss", "tokens_per_s": "tokens/s"}  # by column of a row
# Okabe and Ito's colors, which people tell apart whatever their eyes.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS = "osD^vPX*"
_CROSS: dict[str, Any] = {"marker": "x", "color": "#444444", "linestyle": "none"}
_DPI = 110
_LONGEST = 20  # characters of a value
_EVENTS = "events.out.tfevents.{}.sweep"


@dataclass(frozen=True)
class _Key:
    """A changed key: what was typed for it, in order, and the numbers if all of it is numbers."""

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


def draw(rows: Sequence[Row], folder: Path) -> Path | None:
    """Writes `summary.png` into a sweep's folder, and the same picture for TensorBoard.

    Args:
        rows: the jobs, see `sweep_table.read_rows`.
        folder: of the sweep; an earlier picture there is removed.

    Returns:
        The picture's place; None where there is nothing to compare.
    """
    path = folder / "summary.png"
    for earlier in (path, *folder.glob(_EVENTS.format("*"))):
        earlier.unlink(missing_ok=True)
    made = figure(rows)
    if made is None:
        return None
    png = io.BytesIO()
    made.savefig(png, format="png")
    replace_bytes(path, png.getvalue())
    records = _records(png.getvalue(), *made.canvas.get_width_height())
    # a name of its own, as TensorBoard does not read a file from its beginning again
    replace_bytes(folder / _EVENTS.format(f"{int(time.time()):010d}"), records)
    return path


def figure(rows: Sequence[Row]) -> Figure | None:
    """A line of panels for each changed key, a panel for each figure, a point for each job.

    Where one or two other keys were changed too, they are the color and the marker of a point.
    None where no two jobs differ or no job has a figure.
    """
    keys = [_Key.of(rows, name) for name in changed_keys(rows)]
    columns = [c for c in _TITLES if any(_value(row, c) is not None for row in rows)]
    if not keys or not columns:
        return None
    size = (2.0 + 3.8 * len(columns), 0.4 + 2.6 * len(keys))
    made = Figure(figsize=size, layout="constrained", dpi=_DPI)
    panels = made.subplots(len(keys), len(columns), squeeze=False, sharey="col")
    for key, line in zip(keys, panels, strict=True):
        others = [o for o in keys if o is not key and len(o.values) <= len(_COLORS)]
        if len(others) > 2:
            others = []
        for column, axis in zip(columns, line, strict=True):
            _panel(made, axis, rows, key, column, others)
        handles = _legend(others, has_failed=any(map(_has_failed, rows)))
        if handles:
            place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
            line[-1].legend(handles=handles, frameon=False, fontsize=8, **place)
    for column, axis in zip(columns, panels[0], strict=True):
        axis.set_title(_TITLES[column], loc="left", fontsize=10)
    return made


def _panel(
    made: Figure, axis: Axes, rows: Sequence[Row], key: _Key, column: str, others: Sequence[_Key]
) -> None:
    """One column against one key; a job that failed is a cross at the upper edge."""
    values = [value for row in rows if (value := _value(row, column)) is not None]
    if _spans_decades(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_locator(NullLocator())
    if key.numbers and _spans_decades(key.numbers):
        axis.set_xscale("log")
    for row in rows:
        style = _style(row, others)
        index = key.index(row)
        place = key.numbers[index] if key.numbers else index
        value, lines = _value(row, column), []
        if value is not None:
            lines = axis.plot(place, value, markeredgecolor="white", markeredgewidth=0.5, **style)
        elif _has_failed(row):
            lines = axis.plot(place, 0.96, transform=axis.get_xaxis_transform(), **_CROSS)
        for line in lines:  # a few pixels for each color, or equal values would hide each other
            aside = ScaledTranslation(_aside(row, others), 0, made.dpi_scale_trans)
            line.set_transform(line.get_transform() + aside)
    if len(key.values) <= len(_COLORS) or key.numbers is None:
        ticks = key.numbers or range(len(key.values))
        slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        is_wide = sum(map(len, map(_shown, key.values))) > 36
        axis.set_xticks(ticks, [_shown(v) for v in key.values], **(slanted if is_wide else {}))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(0.08, 0.12)
    if key.numbers is None:
        axis.set_xlim(-0.5, len(key.values) - 0.5)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_xlabel(_shown(key.name, longest=60), fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _style(row: Row, others: Sequence[_Key]) -> dict[str, Any]:
    """How a job's point looks: the first of the other keys is its color, the second its marker."""
    indices = [other.index(row) for other in others] + [0, 0]
    return {"color": _COLORS[indices[0]], "marker": _MARKERS[indices[1]], "markersize": 7}


def _aside(row: Row, others: Sequence[_Key]) -> float:
    """How far from its place a point stands, in inches."""
    return 0.1 * (others[0].index(row) - (len(others[0].values) - 1) / 2) if others else 0.0


def _legend(others: Sequence[_Key], *, has_failed: bool) -> list[Line2D]:
    handles = []
    for other, name in zip(others, ("color", "marker"), strict=False):
        for index, value in enumerate(other.values):
            style: dict[str, Any] = {"color": "#888888", "marker": "o", "linestyle": "none"}
            style[name] = (_COLORS if name == "color" else _MARKERS)[index]
            label = f"{other.name.rpartition('.')[2]}={_shown(value)}"
            handles.append(Line2D([], [], label=label, **style))
    if has_failed:
        handles.append(Line2D([], [], label="not completed", **_CROSS))
    return handles


def _typed(row: Row, name: str) -> str:
    return str(row.get(name, "-"))


def _value(row: Row, column: str) -> float | None:
    """A job's figure; a job that failed may have one, of where it was when it did."""
    value = row.get(column)
    is_number = isinstance(value, int | float) and _can_be_drawn(value)
    return value if is_number and not _has_failed(row) else None


def _can_be_drawn(value: float) -> bool:
    """Whether the ticks of an axis can be computed; a file may hold any figure."""
    return value == 0 or 1e-30 <= abs(value) <= 1e30


def _has_failed(row: Row) -> bool:
    return row["status"] != "completed"


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 10


def _shown(text: str, longest: int = _LONGEST) -> str:
    """Short, and without the dollars that matplotlib takes for mathematics."""
    text = one_line(text)
    short = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return short.replace("$", r"\$")


def _records(png: bytes, width: int, height: int) -> bytes:
    """An event file with the picture; TensorBoard shows the sweep's folder as one more run."""
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
