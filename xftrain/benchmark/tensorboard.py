"""Logs a benchmark to TensorBoard: time and memory by length, plots, and tables as text.

All tags begin with `benchmark/`, so that they form one group. A curve with a single point is only
in the plots and tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import TensorBoardLogger

from xftrain.benchmark.base import BenchmarkPlan, Context
from xftrain.benchmark.cells import Row
from xftrain.benchmark.rows import as_lines, as_markdown
from xftrain.benchmark.verdict import TITLE, verdict
from xftrain.utils.plot_style import pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xftrain.benchmark.base import BenchmarkPlan, Context

_GROUP = "benchmark"
_SCALARS = ("ms", "extra_mib", "tokens_per_s", "cache_mib")
_NAMES = ("bias", "heads", "ffn", "layout", "backend")  # fields that name a curve


def log_benchmark(
    context: Context,
    benchmark: BenchmarkPlan,
    rows: Sequence[Row],
    peak: float | None,
    figures: Mapping[str, Figure],
) -> None:
    """Logs a benchmark to the run's TensorBoard logger; other loggers get nothing."""
    for logger in context.loggers:
        if not isinstance(logger, TensorBoardLogger):
            continue
        writer = logger.experiment
        for (field, curve), points in curves(rows).items():
            for length, value in points:
                writer.add_scalar(f"{_GROUP}/{benchmark.name}/{field}/{curve}", value, length)
        for name, figure in figures.items():
            tag = f"{_GROUP}/{benchmark.name}/{name}"
            writer.add_image(tag, pixels(figure), dataformats="HWC")
        text = benchmark.summary([as_markdown(row) for row in rows], peak)
        writer.add_text(f"{_GROUP}/{benchmark.name}", text)
        writer.flush()


def log_verdict(context: Context, rows: Sequence[Row]) -> None:
    """Logs the verdict, with a tag that sorts before those of the benchmarks."""
    for logger in context.loggers:
        if isinstance(logger, TensorBoardLogger):
            text = verdict([as_markdown(row) for row in rows])
            logger.experiment.add_text(f"{_GROUP}/{TITLE}", text)
            logger.experiment.flush()


def curves(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """The points (length, value) of curves with several lengths, by field and curve name."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in map(as_lines, rows):
        shown = ("way",) if row.get("way") else _NAMES
        names = [str(row[name]) for name in shown if row.get(name) is not None]
        for field in _SCALARS:
            if isinstance(row.get(field), float) and isinstance(row.get("M"), int):
                found.setdefault((field, " ".join(names)), {})[row["M"]] = row[field]
    return {key: sorted(points.items()) for key, points in found.items() if len(points) > 1}
