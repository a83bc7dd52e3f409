"""Runs the benchmarks of a run one after the other, with shared worker processes and rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

import torch

from xftrain.benchmark import environment, report, tensorboard
from xftrain.benchmark.base import BenchmarkPlan, Context
from xftrain.benchmark.cells import Cell, Row
from xftrain.benchmark.compiling import compile_ahead
from xftrain.benchmark.matmul import BENCHMARK as PEAK
from xftrain.benchmark.matmul import peak_tflops
from xftrain.benchmark.pool import Pool
from xftrain.benchmark.progress import Progress
from xftrain.benchmark.rows import RowStore, as_lines
from xftrain.benchmark.tables import STATUS
from xftrain.benchmark.verdict import TITLE, verdict
from xftrain.benchmark.worker import Job
from xftrain.utils.processes import raising_stopped

log = logging.getLogger(__name__)

_COMPILE_S = 300.0  # timeout for compiling one kernel on a slow host
_MAX_PROCESSES, _PROCESS_GIB = 12, 1.0  # parallel processes on one GPU, and memory of each
_FORWARD_SHARE = 2 / 7  # share of the forward pass in the FLOPs of forward and backward


def run_suite(benchmarks: Sequence[BenchmarkPlan], context: Context) -> None:
    """Measures all cells without a row, and updates rows, report and TensorBoard per benchmark.

    Raises:
        ConfigError: an option that does not exist, or rows of another machine in the folder.
        RunError: the rows cannot be written.
        Stopped: a signal ended the benchmark; the rows so far are kept.
    """
    with raising_stopped():
        _Session(benchmarks, context).run()


class _Session:
    def __init__(self, benchmarks: Sequence[BenchmarkPlan], context: Context) -> None:
        self.benchmarks, self.context = benchmarks, context
        self.on_gpu = context.device.type == "cuda"
        self.store = RowStore(context.run_dir, environment.row_fields(context.device))
        self.shown: dict[
            str, tuple[type[BenchmarkPlan], list[Row]]
        ] = {}  # this run's rows by benchmark
        self.peaks: set[str] = set()  # keys of reference matmuls measured in this run
        for benchmark in benchmarks:
            if not benchmark.resume:
                self.store.drop(benchmark.name)

    def run(self) -> None:
        if self.on_gpu:
            torch.cuda.empty_cache()  # frees memory for the worker processes
        jobs = [benchmark.checked_jobs(self.context) for benchmark in self.benchmarks]
        environment.write(self.context.run_dir, self.context.device)
        with Pool(
            self.context.run_dir / "worker.log",
            device=self.context.device.type,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        ) as pool:
            if self.on_gpu:
                todo = [job for listed in jobs for job in self._todo(listed)]
                compile_ahead(
                    [cell for job in todo for cell in job.cells],
                    pool,
                    timeout_s=_COMPILE_S,
                    num_workers=self._num_processes(),
                )
            for benchmark, listed in zip(self.benchmarks, jobs, strict=True):
                self._measure(benchmark, listed, pool)
        self._log_verdict()
        log.info("report: %s", self.context.run_dir / "report.md")

    def _todo(self, jobs: Sequence[Job]) -> list[Job]:
        """Removes cells that have a row; keeps reference matmuls only if other cells remain."""
        done = self.store.measured_cells()
        todo = [
            Job(
                job.measure,
                tuple(c for c in job.cells if c.benchmark != PEAK and c.key not in done),
            )
            for job in jobs
        ]
        if not any(job.cells for job in todo):
            return []
        reference_jobs = [job for job in jobs if job.cells[0].benchmark == PEAK]
        return [job for job in reference_jobs if job.cells[0].key not in self.peaks] + todo

    def _measure(self, benchmark: BenchmarkPlan, jobs: Sequence[Job], pool: Pool) -> None:
        cells = [cell for job in jobs for cell in job.cells if cell.benchmark == benchmark.name]
        done = self.store.measured_cells()
        num_done = sum(cell.key in done for cell in cells)
        if num_done:
            log.info(
                "%s: %d of %d cells are in the run folder already; callbacks.%s.resume=false "
                "measures them again",
                *(benchmark.name, num_done, len(cells), benchmark.name),
            )
        with Progress(benchmark.name, len(cells), num_done) as progress:
            for cell, measured in pool.run(
                self._todo(jobs),
                timeout_s=benchmark.timeout_s,
                num_workers=1 if benchmark.is_timed or not self.on_gpu else self._num_processes(),
                on_start=progress.start_cell,
            ):
                if cell.benchmark == PEAK:
                    self.peaks.add(cell.key)
                self.store.add(_row(cell, measured, self.store.rows))
                progress.advance(cell)
        by_key = {row["cell"]: row for row in self.store.rows}
        # the cell's own columns override those that a process reported
        rows = [{**by_key[cell.key], **cell.columns} for cell in cells]
        self.shown[benchmark.name] = (type(benchmark), rows)
        with self.store.malformed_rows_refused():
            self._show(benchmark, rows)
        log.info("%s: %s", benchmark.name, count(rows))

    def _show(self, benchmark: BenchmarkPlan, rows: Sequence[Row]) -> None:
        """Writes plots, report and TensorBoard records, and logs the summary."""
        lines = [as_lines(row) for row in rows]
        figures = benchmark.figures(lines) if rows else {}
        report.write(self.context.run_dir, self.store.rows, self.shown, benchmark.name, figures)
        peak = peak_tflops(self.store.rows, rows[0].get("dtype") if rows else None)
        tensorboard.log_benchmark(self.context, benchmark, rows, peak, figures)
        log.info("%s\n%s", benchmark.title, benchmark.summary(lines, peak))

    def _log_verdict(self) -> None:
        """Logs the verdict as the last part of the benchmark's results."""
        with self.store.malformed_rows_refused():
            rows = report.rows_for_verdict(self.store.rows, self.shown)
            if text := verdict([as_lines(row) for row in rows]):
                tensorboard.log_verdict(self.context, rows)
                log.info("%s\n%s", TITLE, text)

    def _num_processes(self) -> int:
        """The number of processes for compiling and checking, which use little of a GPU."""
        free_gib = torch.cuda.mem_get_info(self.context.device)[0] / 2**30
        most = min(_MAX_PROCESSES, (os.cpu_count() or 2) - 2, int(free_gib / _PROCESS_GIB))
        return max(1, most)


def count(rows: Sequence[Row]) -> str:
    """Counts rows by status: `58 ok, 2 out of memory`."""
    statuses = [row["status"] for row in rows]
    parts = [
        f"{statuses.count(status)} {words}"
        for status, words in {"ok": "ok", **STATUS}.items()
        if status in statuses
    ]
    return ", ".join(parts) or "no cells"


def _row(cell: Cell, measured: Mapping[str, object], rows: Sequence[Row]) -> Row:
    """Builds the row of a cell, with the fields that are derived from its measurements."""
    row: Row = {"sweep": cell.benchmark, "cell": cell.key, **cell.columns, **measured}
    if row.get("ms") and row.get("gflop"):
        row["tflops"] = row["gflop"] / row["ms"]
        row["fwd_tflops"] = row["gflop"] * _FORWARD_SHARE / row["fwd_ms"]
    if row.get("tflops") and (peak := peak_tflops(rows, row.get("dtype"))):
        row["peak_share"] = row["tflops"] / peak
    return row
