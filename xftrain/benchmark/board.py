"""A sweep in TensorBoard: scalars over the length, plots, and the report as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import TensorBoardLogger

from xftrain.benchmark.cells import Row
from xftrain.benchmark.plots import pixels
from xftrain.benchmark.rows import as_lines, as_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xftrain.benchmark.sweep import Context, Sweep

_SCALARS = (
    *("fwd_ms", "ms", "loop_ms", "extra_mib", "peak_mib", "tflops", "peak_share", "error_out"),
    *("tokens_per_s", "step_ms", "mfu"),
)
# Of a curve, whose points stand at their length.
_NAMES = ("bias", "heads", "ffn", "layout", "way", "backend", "kernel")


def log_sweep(
    context: Context,
    sweep: Sweep,
    rows: Sequence[Row],
    peak: float | None,
    figures: Mapping[str, Figure],
) -> None:
    """Adds what the run's TensorBoard logger can show; other loggers have no place for it."""
    for logger in context.loggers:
        if not isinstance(logger, TensorBoardLogger):
            continue
        writer = logger.experiment
        for row in map(as_lines, rows):
            names = [str(row[n]) for n in _NAMES if row.get(n) is not None and n != "kernel"]
            curve = " ".join(names) or str(row.get("kernel"))
            for field in _SCALARS:
                if isinstance(row.get(field), float):
                    writer.add_scalar(f"{sweep.name} {field}/{curve}", row[field], row.get("M", 0))
        for name, figure in figures.items():
            writer.add_image(f"{sweep.name}/{name}", pixels(figure), dataformats="HWC")
        writer.add_text(sweep.name, sweep.section([as_markdown(row) for row in rows], peak))
        writer.flush()
