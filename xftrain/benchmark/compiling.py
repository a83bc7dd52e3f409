"""Compiles kernels in parallel ahead of time, so that the measuring process loads them from cache.

torch.compile caches compiled code on disk. Only one process at a time may measure, but compilation,
which dominates the time of a compiled backend, can run in several.
"""

from __future__ import annotations

from collections.abc import Sequence

from xftrain.benchmark.attention import build_call
from xftrain.benchmark.cells import AttentionCell, Cell
from xftrain.benchmark.pool import Pool
from xftrain.benchmark.progress import Progress
from xftrain.benchmark.worker import Job, Reporter
from xftrain.utils.timing import synchronize

NAME = "compiling"


def compile_ahead(cells: Sequence[Cell], pool: Pool, *, timeout_s: float, num_workers: int) -> None:
    """Compiles the cells of compiled backends; errors are ignored, as they recur when measured."""
    todo = [
        AttentionCell(**{**vars(cell), "benchmark": NAME})
        for cell in cells
        if type(cell) is AttentionCell and cell.is_timed and cell.build_backend().needs_compilation
    ]
    jobs = [Job(compile_cells, (cell,)) for cell in todo]
    with Progress(NAME, len(todo), 0) as progress:
        for cell, _ in pool.run(
            jobs, timeout_s=timeout_s, num_workers=num_workers, on_start=progress.start_cell
        ):
            progress.advance(cell)


def compile_cells(cells: Sequence[AttentionCell], reporter: Reporter) -> None:
    """Compiles the cells of a job, and reports rows without results."""
    for index, cell in enumerate(cells):
        if reporter.attempt(index, _call, cell):
            reporter.row(index, "ok")


def _call(cell: AttentionCell) -> bool:
    build_call(cell).both()
    synchronize(cell.torch_device)
    return True
