"""Plots of rows, without pyplot and its global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from xftrain.benchmark.cells import Row
from xftrain.benchmark.tables import STATUS, figure

# Okabe and Ito's colors, which people tell apart whatever their eyes; a backend keeps its own.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS = "osD^vPX*"
_KNOWN = ("sdpa", "xformers", "flex", "naive")
_DPI = 110


def over_length(
    rows: Sequence[Row], field: str, label: str, *, curves: str = "backend", panels: str = "bias"
) -> Figure:
    """A field against M, both axes logarithmic: a panel for each bias, a curve for each backend.

    Where memory or time ran out at a greater length, the end of the curve says so.
    """
    titles = list(dict.fromkeys(str(row[panels]) for row in rows))
    names = list(dict.fromkeys(str(row[curves]) for row in rows))
    made, axes = _panels(len(titles))
    for axis, title in zip(axes, titles, strict=True):
        own = [row for row in rows if str(row[panels]) == title]
        for name in names:
            _curve(axis, [row for row in own if str(row[curves]) == name], field, name, names)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        lengths = sorted({row["M"] for row in own})
        axis.set_xticks(lengths, [_short(m) for m in lengths], fontsize=8, rotation=45)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: figure(value)))
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel(label)
    made.supxlabel("sequence length in tokens", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    for axis in axes[1:]:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            if name not in labels:
                handles.append(handle)
                labels.append(name)
    if handles:
        place: dict[str, Any] = {"loc": "outside right upper"}
        if len(axes) > 1:
            place = {"loc": "outside upper right", "ncols": len(labels)}
        made.legend(handles, labels, frameon=False, fontsize=9, **place)
    return made


def heat_map(rows: Sequence[Row], field: str, label: str) -> Figure:
    """A field by backend and bias at one length, each cell with its figure or why it has none."""
    backends = list(dict.fromkeys(str(row["backend"]) for row in rows))
    biases = list(dict.fromkeys(str(row["bias"]) for row in rows))
    found = {(str(row["backend"]), str(row["bias"])): row for row in rows}
    values = np.full((len(backends), len(biases)), np.nan)
    for (backend, bias), row in found.items():
        if row["status"] == "ok" and row.get(field) is not None:
            values[backends.index(backend), biases.index(bias)] = row[field]
    made = Figure(
        figsize=(2.2 + 1.5 * len(biases), 1.4 + 0.6 * len(backends)), layout="constrained", dpi=_DPI
    )
    axis = made.subplots()
    axis.imshow(values, cmap="Blues", vmin=0, aspect="auto")
    axis.set_xticks(range(len(biases)), biases)
    axis.set_yticks(range(len(backends)), backends)
    highest = np.nanmax(values) if np.isfinite(values).any() else 1.0
    for y, backend in enumerate(backends):
        for x, bias in enumerate(biases):
            row = found.get((backend, bias), {"status": ""})
            is_number = np.isfinite(values[y, x])
            text = figure(values[y, x]) if is_number else STATUS.get(row["status"], "-")
            if row["status"] == "ok" and not is_number and field in row:
                text = "inf"
            dark = is_number and values[y, x] > 0.6 * highest
            axis.text(x, y, text, ha="center", va="center", color="white" if dark else "#222222")
    axis.set_title(label, loc="left", fontsize=10)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return made


def pixels(made: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The picture as [height, width, 3]."""
    canvas = FigureCanvasAgg(made)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    made = Figure(figsize=(4.2 + 3.0 * max(number - 1, 0.8), 3.6), layout="constrained", dpi=_DPI)
    return made, list(made.subplots(1, number, squeeze=False, sharey=True)[0])


def _curve(axis: Axes, rows: Sequence[Row], field: str, name: str, names: list[str]) -> None:
    ran = sorted((r for r in rows if r["status"] == "ok" and r.get(field)), key=lambda r: r["M"])
    if not ran:
        return
    place = _KNOWN.index(name) if name in _KNOWN else len(_KNOWN) + names.index(name)
    color, marker = _COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)]
    xs, ys = [r["M"] for r in ran], [r[field] for r in ran]
    axis.plot(xs, ys, color=color, marker=marker, markersize=4, linewidth=1.6, label=name)
    low, high = f"{field}_p10", f"{field}_p90"
    if all(low in r and high in r for r in ran):
        axis.fill_between(
            xs, [r[low] for r in ran], [r[high] for r in ran], color=color, alpha=0.2, linewidth=0
        )
    ended = [r for r in rows if r["status"] in ("oom", "timeout") and r["M"] > xs[-1]]
    if ended:
        axis.annotate(
            STATUS[ended[0]["status"]],
            (xs[-1], ys[-1]),
            textcoords="offset points",
            xytext=(4, 4),
            fontsize=7,
            color=color,
        )


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)
