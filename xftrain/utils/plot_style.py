"""The style that all plots share: colors, markers, axes, numbers and the ring of the best point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's color-blind-safe palette.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
INK, GRAY = "#222222", "#888888"
CROSS: dict[str, Any] = {"marker": "x", "color": "#444444", "linestyle": "none"}
RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 11,
    "markerfacecolor": "none",
    "markeredgecolor": INK,
    "markeredgewidth": 1.2,
    "linestyle": "none",
}
_DECADE = 10.0  # smallest ratio of maximum to minimum for a logarithmic axis


def new_figure(width: float, height: float) -> Figure:
    """Makes an empty figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def pixels(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Renders the figure to an array [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def style_axis(axis: Axes, title: str = "") -> None:
    """Gives an axis its title, a light grid, and no lines above and to the right."""
    if title:
        axis.set_title(title, loc="left", fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def legend_at_right(axis: Axes, handles: Sequence[Any]) -> None:
    """Adds a legend to the right of the axis."""
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    axis.legend(handles=handles, frameon=False, fontsize=8, **place)


def legend_marker(label: str, look: dict[str, Any]) -> Line2D:
    """Makes a legend entry for a marker."""
    return Line2D([], [], label=label, **{**look, "markersize": 7})


def spans_decades(values: Sequence[float]) -> bool:
    """Whether the values are positive and span a decade, so that a logarithmic axis suits them."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= _DECADE


def use_log_ticks(axis: Any) -> None:
    """Puts the ticks of a logarithmic axis at 1, 2 and 5 of each decade.

    Args:
        axis: the `xaxis` or `yaxis`.
    """
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))


def format_number(value: float) -> str:
    """Formats a number with three significant digits, or all digits of an integer below 10**7."""
    if value == int(value) and abs(value) < 1e7:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{float(text):,.0f}" if 1000 <= abs(value) < 1e7 else text
