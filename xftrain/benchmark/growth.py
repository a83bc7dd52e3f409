"""Fits how time and memory grow with the sequence length, and describes the exponent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from xftrain.benchmark import tables

_MAX_POINTS = 4  # number of lengths to fit; the shortest ones are dominated by constant overhead
_MIN_POINTS = 3


class Growth(NamedTuple):
    """A fit of `y ~ length ** exponent`, by least squares on logarithms.

    Attributes:
        exponent: the slope.
        deviation: the standard error of the exponent; 0 if the fit is exact.
        first: the shortest length of the fit.
        last: the longest length of the fit.
    """

    exponent: float
    deviation: float
    first: int
    last: int


def fit(points: Sequence[tuple[int, float]]) -> Growth | None:
    """Fits the growth over the longest lengths; None for fewer than three points.

    Args:
        points: (length in tokens, value) pairs; values that are not positive are ignored.
    """
    chosen = sorted((length, value) for length, value in points if value > 0)[-_MAX_POINTS:]
    if len(chosen) < _MIN_POINTS:
        return None
    xs = [math.log(length) for length, _ in chosen]
    ys = [math.log(value) for _, value in chosen]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    if spread == 0:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    deviation = math.sqrt(rest / (len(xs) - 2) / spread)
    return Growth(slope, deviation, chosen[0][0], chosen[-1][0])


def describe(growth: Growth) -> str:
    """Describes a fit as an adverbial phrase, such as `in proportion to the length`."""
    exponent = growth.exponent
    if abs(exponent - 2) <= 0.2:
        return "with the square of the length"
    if abs(exponent - 1) <= 0.2:
        return "in proportion to the length"
    if exponent < 0.2:
        return "hardly at all"
    if exponent < 0.8:
        return "more slowly than the length"
    if exponent < 1.8:
        return "faster than the length, more slowly than its square"
    return "faster than the square of the length"


def section(grown: Sequence[tuple[tuple[str, ...], Growth | None, Growth | None]]) -> str:
    """Renders the exponents of memory and time, with standard errors and descriptions.

    Args:
        grown: (names (backend, bias, heads), growth of memory, growth of time) of each curve.
    """
    known = [item for item in grown if item[1] or item[2]]
    if not known:
        return ""
    lines = [[*names, _power(memory), _power(time)] for names, memory, time in known]
    header = ["backend", "bias", "heads", "memory", "time"]
    sentences = [
        f"- {what} grows {how}: {', '.join(' '.join(names[:2]) for names in all_names)}"
        for what, index in (("memory", 1), ("time", 2))
        for how, all_names in _grouped(known, index).items()
    ]
    return (
        f"Growth with the length M, fitted over up to {_MAX_POINTS} of the longest lengths that "
        "ran (in brackets):\n\n" + tables.table(header, lines) + "\n\n" + "\n".join(sentences)
    )


def _grouped(
    known: Sequence[tuple[tuple[str, ...], Growth | None, Growth | None]], index: int
) -> dict[str, list[tuple[str, ...]]]:
    found: dict[str, list[tuple[str, ...]]] = {}
    for item in known:
        growth = item[index]
        if isinstance(growth, Growth):
            found.setdefault(describe(growth), []).append(item[0])
    return found


def _power(growth: Growth | None) -> str:
    if growth is None:
        return "-"
    return f"M^{growth.exponent:.2f} ± {growth.deviation:.2f} ({growth.first:,} to {growth.last:,})"
