"""The table, the plot and the CSV file of a comparison of curves."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from learning.curve import Point, reaches
from xftrain.utils import markdown
from xftrain.utils.files import replace_text
from xftrain.utils.plot_style import COLORS, new_figure, style_axis

HEADER = ["run", "seeds", "loss at the end", "ms/step", "start-up s"]


@dataclass(frozen=True)
class Curve:
    """A run that has ended.

    Attributes:
        name: name of the run.
        seed: its seed.
        points: its points, by step.
        start_up_s: time of the first steps beyond that of later ones, such as compilation.
        reason: why there are no points, or "".
    """

    name: str
    seed: int
    points: tuple[Point, ...]
    start_up_s: float = 0.0
    reason: str = ""

    @property
    def ms_per_step(self) -> float:
        """Mean time of a step."""
        return 1000 * self.points[-1].seconds / self.points[-1].step


def ratio(curve: Curve, baseline: Curve, measure: Callable[[Point], float]) -> float | None:
    """The share of the baseline's cost after which a curve reaches the baseline's final loss.

    Args:
        curve: the curve.
        baseline: the curve whose final loss is to be reached.
        measure: the cost of a point, such as its seconds.

    Returns:
        The share, or None if the curve does not reach that loss.
    """
    end = baseline.points[-1]
    found = reaches(curve.points, end.loss)
    return None if found is None else measure(found) / measure(end)


def table(curves: Sequence[Curve], baseline: str) -> str:
    """Returns the table in Markdown: means over the seeds that ran, and the range of ratios."""
    header = [*HEADER, f"share of {baseline}'s steps to its loss", "of its seconds"]
    lines, reasons = [], []
    for name in dict.fromkeys(curve.name for curve in curves):
        own = [curve for curve in curves if curve.name == name]
        reasons += [f"- `{name}`, seed {c.seed}: {c.reason}" for c in own if c.reason]
        ran = [curve for curve in own if curve.points]
        if not ran:
            lines.append([name, "0", *["-"] * 5])
            continue
        pairs = [(c, b) for c in ran for b in curves if is_of(b, baseline, c.seed)]
        lines.append(
            [
                name,
                str(len(ran)),
                f"{statistics.mean(c.points[-1].loss for c in ran):.4f}",
                f"{statistics.mean(c.ms_per_step for c in ran):.2f}",
                f"{statistics.mean(c.start_up_s for c in ran):.1f}",
                shown(ratio(c, b, lambda point: point.step) for c, b in pairs),
                shown(ratio(c, b, lambda point: point.seconds) for c, b in pairs),
            ]
        )
    return "\n\n".join(filter(None, [markdown.table(header, lines), "\n".join(reasons)]))


def is_of(curve: Curve, name: str, seed: int) -> bool:
    """Whether a curve is that of a run and a seed, and has points."""
    return bool(curve.points) and (curve.name, curve.seed) == (name, seed)


def shown(ratios: Iterable[float | None]) -> str:
    """The mean of ratios with their range; `not reached` if one of them is None."""
    found = list(ratios)
    if not found:
        return "-"
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        return "not reached" if not known else f"not reached by {len(found) - len(known)} seed(s)"
    mean = f"{statistics.mean(known):.3f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.3f} to {max(known):.3f})"


def plot(curves: Sequence[Curve]) -> Figure:
    """Draws the loss against steps and against seconds, one color for each run."""
    figure = new_figure(11, 4.5)
    colors = {name: COLORS[n % len(COLORS)] for n, name in enumerate(dict.fromkeys(names(curves)))}
    panels = (("optimizer steps", "step"), ("seconds", "seconds"))
    for axis, (label, field) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        known = set[str]()
        for curve in curves:
            x = [getattr(point, field) for point in curve.points]
            y = [point.loss for point in curve.points]
            legend = curve.name if curve.name not in known else None
            known.add(curve.name)
            axis.plot(x, y, color=colors[curve.name], label=legend, linewidth=1.4)
        style_axis(axis, f"validation loss, nats per token, against {label}")
        axis.set_xlabel(label, fontsize=8)
        axis.legend(fontsize=8, frameon=False)
    return figure


def names(curves: Sequence[Curve]) -> list[str]:
    """The names of the runs that have points."""
    return [curve.name for curve in curves if curve.points]


def write(out: Path, curves: Sequence[Curve], baseline: str, info: Mapping[str, str]) -> str:
    """Writes learning.csv, learning.md and learning.png; returns the text below the title."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "seed", *Point._fields])
    writer.writerows([c.name, c.seed, *point] for c in curves for point in c.points)
    replace_text(out / "learning.csv", file.getvalue())
    text = f"{info['setting']}\n\n{table(curves, baseline)}\n"
    replace_text(out / "learning.md", f"# {info['device']}, torch {info['torch']}\n\n{text}")
    if names(curves):
        FigureCanvasAgg(plot(curves)).print_png(out / "learning.png")
    return text
