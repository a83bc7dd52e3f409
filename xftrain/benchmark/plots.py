"""Plots rows, without pyplot and its global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from xftrain.benchmark.cells import Row
from xftrain.benchmark.tables import STATUS, figure
from xftrain.utils.plot_style import (
    COLORS,
    CROSS,
    INK,
    MARKERS,
    RING,
    legend_marker,
    new_figure,
    style_axis,
)

_KNOWN = ("sdpa", "xformers", "flex", "naive")  # backends with a fixed color
_EDGE = 0.95  # relative height in a panel at which the end of a curve is marked
_MAX_BARS = 24
Better = Literal["low", "high"]


def over_length(
    rows: Sequence[Row],
    field: str,
    label: str,
    *,
    curves: str = "backend",
    panels: str = "bias",
    better: Better = "low",
) -> Figure:
    """Plots a field against M on logarithmic axes, with a panel per bias and a curve per backend.

    A ring marks the best point of each length. A cross at the upper edge marks a length at which
    memory or time ran out.
    """
    titles = list(dict.fromkeys(str(row[panels]) for row in rows))
    names = list(dict.fromkeys(str(row[curves]) for row in rows))
    num_columns = min(len(titles), 2)  # viewers shrink wider pictures until they are unreadable
    num_lines = -(-len(titles) // num_columns)
    made = new_figure(6.6 if num_columns == 1 else 8.0, 0.8 + 2.8 * num_lines)
    grid = made.subplots(num_lines, num_columns, squeeze=False, sharey=True)
    axes: list[Axes] = list(grid.flat)
    for unused in axes[len(titles) :]:
        unused.remove()
    axes = axes[: len(titles)]
    for axis, title in zip(axes, titles, strict=True):
        own = [row for row in rows if str(row[panels]) == title]
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        for name in names:
            _curve(axis, [row for row in own if str(row[curves]) == name], field, name, names)
        if len(names) > 1:
            _ring(axis, own, field, better)
        style_axis(axis, title)
        lengths = sorted({row["M"] for row in own})
        axis.set_xticks(lengths, [_short(m) for m in lengths], fontsize=8, rotation=45)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: figure(value)))
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high * (high / low) ** 0.1)  # room for the crosses on all shared axes
    made.supylabel(label, fontsize=9)
    made.supxlabel("sequence length in tokens", fontsize=9)
    _legend(made, axes, rows, has_best=len(names) > 1)
    return made


def heat_map(
    rows: Sequence[Row],
    field: str,
    label: str,
    *,
    better: Better | None = None,
    limit: float | None = None,
) -> Figure:
    """Draws a field by backend and bias, each cell with its value or the reason why it has none.

    Args:
        rows: a row for each backend and bias.
        field: the field to draw.
        label: the title.
        better: whether high or low is better, to frame the best of each bias; None frames none.
        limit: the largest correct value, at which the color scale ends; larger values, and rows
            with faults, are orange.
    """
    backends = list(dict.fromkeys(str(row["backend"]) for row in rows))
    biases = list(dict.fromkeys(str(row["bias"]) for row in rows))
    found = {(str(row["backend"]), str(row["bias"])): row for row in rows}
    values = np.full((len(backends), len(biases)), np.nan)
    for (backend, bias), row in found.items():
        if row["status"] == "ok" and (row.get(field) is not None or row.get("faults")):
            value = row[field] if row.get(field) is not None else math.inf
            wrong = limit is not None and row.get("faults")
            values[backends.index(backend), biases.index(bias)] = math.inf if wrong else value
    finite = values[np.isfinite(values)]
    top = float(limit or max(finite, default=1.0))
    values[np.isposinf(values)] = 2 * top  # above the scale; matplotlib does not draw infinity
    made = new_figure(3.0 + 1.5 * len(biases), 1.4 + 0.6 * len(backends))
    axis = made.subplots()
    image = axis.imshow(values, cmap=_colors(), vmin=0, vmax=top, aspect="auto")
    bar = made.colorbar(image, ax=axis, extend="max" if limit else "neither", pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    if limit is not None:
        bar.set_ticks([0, 1, limit], labels=["0", "1: torch's", f"{limit:g}: the limit"])
    axis.set_xticks(range(len(biases)), biases)
    axis.set_yticks(range(len(backends)), backends)
    for y, backend in enumerate(backends):
        for x, bias in enumerate(biases):
            row = found.get((backend, bias), {"status": ""})
            dark = np.isfinite(values[y, x]) and values[y, x] > 0.6 * top
            color = "white" if dark else INK
            axis.text(x, y, _cell(row, field), ha="center", va="center", color=color, fontsize=9)
    if better:
        for x in range(len(biases)):
            if np.isfinite(values[:, x]).any():
                best = np.nanargmin if better == "low" else np.nanargmax
                place = (x - 0.48, int(best(values[:, x])) - 0.48)
                frame = Rectangle(place, 0.96, 0.96, fill=False, edgecolor=COLORS[1], linewidth=2)
                axis.add_patch(frame)
        label += " (framed: the best of each bias)"
    axis.set_title(label, loc="left", fontsize=10)
    axis.tick_params(length=0, labelsize=9)
    axis.spines[:].set_visible(False)
    return made


def bars(rows: Sequence[Row], field: str, label: str, names: Sequence[str]) -> Figure:
    """Draws a field of the rows that ran as bars, with the highest first and marked as the best.

    Args:
        rows: rows of one benchmark.
        field: the field; its percentiles are drawn if there are any.
        label: the title.
        names: fields that name a bar; those that are equal in all rows are put into the title.
    """
    ran = sorted((r for r in rows if r["status"] == "ok" and r.get(field)), key=lambda r: -r[field])
    differing = [name for name in names if len({str(row[name]) for row in rows}) > 1]
    differing = differing or [names[0]]
    same = " ".join(str(rows[0][name]) for name in names if name not in differing)
    left_out = f", the first {_MAX_BARS} of {len(ran)}" if len(ran) > _MAX_BARS else ""
    ran = ran[:_MAX_BARS]
    made = new_figure(7.0, 1.1 + 0.32 * max(len(ran), 1))
    axis = made.subplots()
    for place, row in enumerate(ran):
        color = _look(str(row["backend"]), sorted({str(r["backend"]) for r in rows}))[0]
        axis.barh(place, row[field], color=color, height=0.7)
        ends: list[Any] = [row.get(f"{field}_{end}") for end in ("p10", "p90")]
        if None not in ends:
            axis.plot(ends, [place, place], color=INK, linewidth=1)
        is_best = place == 0 and len(ran) > 1
        text = f"  {figure(row[field])}{'  best' if is_best else ''}"
        highest = max([row[field], *(end for end in ends if end is not None)])
        weight = "bold" if is_best else "normal"
        axis.text(highest, place, text, va="center", fontsize=8, fontweight=weight)
    axis.set_yticks(range(len(ran)), [" ".join(str(row[n]) for n in differing) for row in ran])
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_xlim(left=0)
    style_axis(axis, f"{label}{left_out}" + (f", {same}" if same else ""))
    axis.grid(visible=False, axis="y")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: figure(value)))
    axis.locator_params(axis="x", nbins=5)
    return made


def _cell(row: Row, field: str) -> str:
    """The text of a cell: its value, with a mark if it is wrong, or its status."""
    if row["status"] != "ok":
        return STATUS.get(row["status"], "-")
    if field not in row:
        return "-"
    text = "inf" if row[field] is None else figure(row[field])
    return f"{text}\nWRONG" if row.get("faults") else text


def _colors() -> Colormap:
    from matplotlib import colormaps

    return colormaps["Blues"].with_extremes(over=COLORS[1])


def _look(name: str, names: Sequence[str]) -> tuple[str, str]:
    """The color and the marker of a curve."""
    place = _KNOWN.index(name) if name in _KNOWN else len(_KNOWN) + names.index(name)
    return COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]


def _curve(axis: Axes, rows: Sequence[Row], field: str, name: str, names: list[str]) -> None:
    ran = _known(rows, field)
    color, marker = _look(name, names)
    after = max((row["M"] for row in ran), default=0)
    ended = [row["M"] for row in rows if row["status"] in ("oom", "timeout") and row["M"] > after]
    if ended:
        aside = 2 ** (0.12 * names.index(name))  # shifts the crosses of several curves apart
        edge = axis.get_xaxis_transform()
        axis.plot(min(ended) * aside, _EDGE, transform=edge, **{**CROSS, "color": color})
    if not ran:
        return
    xs, ys = [r["M"] for r in ran], [r[field] for r in ran]
    # earlier curves are wider, so that they remain visible below later ones
    width = 1.4 + 0.6 * max(3 - names.index(name), 0)
    axis.plot(xs, ys, color=color, marker=marker, markersize=3 + width, linewidth=width, label=name)
    low, high = f"{field}_p10", f"{field}_p90"
    if all(low in r and high in r for r in ran):
        axis.fill_between(
            xs, [r[low] for r in ran], [r[high] for r in ran], color=color, alpha=0.2, linewidth=0
        )


def _ring(axis: Axes, rows: Sequence[Row], field: str, better: Better) -> None:
    """Marks the best of each length, without rows of `ranked: False`, which are a baseline."""
    choose = min if better == "low" else max
    ran = [row for row in _known(rows, field) if row.get("ranked", True)]
    for length in {row["M"] for row in ran}:
        best = choose((row for row in ran if row["M"] == length), key=lambda row: row[field])
        axis.plot(length, best[field], **RING)


def _known(rows: Sequence[Row], field: str) -> list[Row]:
    """The rows that have the field, sorted by length."""
    return sorted((r for r in rows if r["status"] == "ok" and r.get(field)), key=lambda r: r["M"])


def _legend(made: Figure, axes: Sequence[Axes], rows: Sequence[Row], *, has_best: bool) -> None:
    """Adds one legend to the figure: each curve once, the ring and the cross."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    handles = list(found.values())
    if not handles:
        return
    if has_best:
        handles.append(legend_marker("best", RING))
    ended = [STATUS[s] for s in ("oom", "timeout") if any(row["status"] == s for row in rows)]
    if ended:
        handles.append(legend_marker(" or ".join(ended), CROSS))
    place: dict[str, Any] = {"loc": "outside right upper"}
    if len(axes) > 1:
        place = {"loc": "outside upper right", "ncols": len(handles)}
    made.legend(handles=handles, frameon=False, fontsize=9, **place)


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)
