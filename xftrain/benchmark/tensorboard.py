"""A benchmark in TensorBoard: times and memory over the length, plots, and its tables as text.

All of it has `benchmark/` before its name, so that it folds into one group. Points that no other
of their curve joins are in the plots and tables alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import TensorBoardLogger

from xftrain.benchmark.cells import Row
from xftrain.benchmark.rows import as_lines, as_markdown
from xftrain.benchmark.sweep_plan import Context, SweepPlan
from xftrain.benchmark.verdict import TITLE, verdict
from xftrain.plot_style import pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xftrain.benchmark.sweep_plan import Context, SweepPlan

_GROUP = "benchmark"
_SCALARS = ("ms", "extra_mib", "tokens_per_s")
_NAMES = ("bias", "heads", "ffn", "layout", "backend")  # of a curve


def log_sweep(
    context: Context,
    sweep: SweepPlan,
    rows: Sequence[Row],
    peak: float | None,
    figures: Mapping[str, Figure],
) -> None:
    """Adds what the run's TensorBoard logger can show; other loggers have no place for it."""
    for logger in context.loggers:
        if not isinstance(logger, TensorBoardLogger):
            continue
        writer = logger.experiment
        for (field, curve), points in curves(rows).items():
            for length, value in points:
                writer.add_scalar(f"{_GROUP}/{sweep.name}/{field}/{curve}", value, length)
        for name, figure in figures.items():
            tag = f"{_GROUP}/{sweep.name}/{name}"
            writer.add_image(tag, pixels(figure), dataformats="HWC")
        said = sweep.summary([as_markdown(row) for row in rows], peak)
        writer.add_text(f"{_GROUP}/{sweep.name}", said)
        writer.flush()


def log_verdict(context: Context, rows: Sequence[Row]) -> None:
    """Adds the verdict, whose title stands before the names of sweeps."""
    for logger in context.loggers:
        if isinstance(logger, TensorBoardLogger):
            said = verdict([as_markdown(row) for row in rows])
            logger.experiment.add_text(f"{_GROUP}/{TITLE}", said)
            logger.experiment.flush()


def curves(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Points (length, value) by field and name of the curve, of curves with several lengths."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in map(as_lines, rows):
        shown = ("way",) if row.get("way") else _NAMES
        names = [str(row[name]) for name in shown if row.get(name) is not None]
        for field in _SCALARS:
            if isinstance(row.get(field), float) and isinstance(row.get("M"), int):
                found.setdefault((field, " ".join(names)), {})[row["M"]] = row[field]
    return {key: sorted(points.items()) for key, points in found.items() if len(points) > 1}
