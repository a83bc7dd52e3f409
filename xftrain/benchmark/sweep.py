"""A sweep: cells, measured in processes of their own when training has ended, and their report."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from xftrain.attention.backends.auto import all_backends
from xftrain.benchmark import board, environment, report
from xftrain.benchmark.cells import Cell, Row, nodes_of
from xftrain.benchmark.compiling import compile_ahead
from xftrain.benchmark.matmul import peak_job, peak_tflops
from xftrain.benchmark.pool import Pool
from xftrain.benchmark.progress import Progress
from xftrain.benchmark.rows import RowStore, read_rows
from xftrain.benchmark.tables import STATUS
from xftrain.benchmark.worker import Job
from xftrain.errors import ConfigError
from xftrain.training.hardware import compute_dtype
from xftrain.training.module import training_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

_COMPILE_S = 300.0  # for one kernel on a slow host
_MAX_PROCESSES = 12  # each keeps about half a GiB of the GPU
_FORWARD_SHARE = 2 / 7  # of the operations of forward and backward together


@dataclass(frozen=True)
class Context:
    """Where a sweep runs.

    Attributes:
        run_dir: gets the rows and the report.
        device: what is measured.
        dtype: in which the run computes, as in `bfloat16`.
        options: the run's whole configuration, checked; empty for `doctor` alone.
        loggers: the run's.
    """

    run_dir: Path
    device: torch.device
    dtype: str
    options: Mapping[str, Any]
    loggers: Sequence[Logger]

    def dtype_for(self, asked: str) -> str:
        """What `auto` stands for: the dtype of the run."""
        return self.dtype if asked == "auto" else asked

    def backends(self, asked: list[str | dict[str, Any]] | None) -> list[dict[str, Any]]:
        """Nodes of the backends asked for; for None all built-in ones, and the run's own class."""
        if asked is not None:
            return nodes_of("model/attn", asked)
        own = self.options.get("model", {}).get("attn", {})
        built_in: list[str | dict[str, Any]] = [b.name for b in all_backends()]
        return nodes_of("model/attn", built_in) + ([dict(own)] if "_target_" in own else [])


class Sweep(Callback, ABC):
    """Measures its cells when training has ended, and adds to the report of the run folder.

    Rows go to `rows.jsonl` as they are known, so that a sweep that was stopped goes on where it
    was.

    Args:
        timeout_s: longest time without a sign of life from a cell.
        resume: keep the rows that are in the run folder already.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # of its section in the report
    is_timed: ClassVar[bool] = True  # then one process measures at a time; several else

    def __init__(self, *, timeout_s: float, resume: bool) -> None:
        self.timeout_s, self.resume = timeout_s, resume

    @abstractmethod
    def jobs(self, context: Context) -> list[Job]:
        """What to measure, and together with what."""

    @classmethod
    @abstractmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        """The report on these rows, in Markdown, without its title and plots."""

    @classmethod
    def summary(cls, rows: Sequence[Row], peak: float | None) -> str:
        """What the console shows: by default the section of the report."""
        return cls.section(rows, peak)

    @classmethod
    def figures(cls, rows: Sequence[Row]) -> dict[str, Figure]:
        """Plots, by the name of their file."""
        return {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first of the run's sweeps does all of them; the model has left the GPU by now."""
        sweeps = [c for c in trainer.callbacks if isinstance(c, Sweep)]  # type: ignore[attr-defined]
        if self is not sweeps[0] or not trainer.is_global_zero:
            return
        precision = str(trainer.precision)
        context = Context(
            run_dir=Path(trainer.default_root_dir),
            device=trainer.strategy.root_device,
            dtype=str(compute_dtype(precision)).removeprefix("torch."),
            options=training_module(pl_module).saved["config"],
            loggers=trainer.loggers,
        )
        run_sweeps(sweeps, context)

    def sweep(self, context: Context, pool: Pool) -> list[Row]:
        """Measures what has no row yet, and returns all rows in the order of the cells.

        Raises:
            ConfigError: an option that does not exist, or rows of another device in the folder.
            RunError: the rows cannot be written.
        """
        store = RowStore(context.run_dir, environment.row_fields(context.device))
        if not self.resume:
            store.forget(self.name)
        jobs = self.jobs(context)
        cells = [cell for job in jobs for cell in job.cells]
        keys = [cell.key for cell in cells]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ConfigError(f"callbacks.{self.name} lists {twice!r} twice: leave one out.")
        done = {row["cell"] for row in store.rows}
        todo = [Job(job.measure, tuple(c for c in job.cells if c.key not in done)) for job in jobs]
        own = [cell for cell in cells if cell.sweep == self.name]
        num_done = sum(cell.key in done for cell in own)
        if num_done:
            log.info(
                "%s: %d of %d cells are in the run folder already; callbacks.%s.resume=false "
                "measures them again",
                *(self.name, num_done, len(own), self.name),
            )
        on_gpu = context.device.type == "cuda"
        with Progress(self.name, len(own), num_done) as progress:
            for cell, measured in pool.run(
                todo,
                timeout_s=self.timeout_s,
                num_workers=1 if self.is_timed or not on_gpu else _num_processes(),
                on_begin=progress.begin,
            ):
                store.add(_row(cell, measured, store.rows))
                progress.advance(cell)
        by_key = {row["cell"]: row for row in store.rows}
        rows = [by_key[cell.key] for cell in own]
        self._tell(context, store, rows)
        return rows

    def _tell(self, context: Context, store: RowStore, rows: list[Row]) -> None:
        """Console, report, plots, TensorBoard."""
        figures = self.figures(rows)
        report.write(context.run_dir, store.rows, context.device, self, figures)
        peak = peak_tflops(store.rows, rows[0].get("dtype") if rows else None)
        board.log_sweep(context, self, rows, peak, figures)
        log.info("%s\n%s", self.title, self.summary(rows, peak))
        log.info("%s: %s", self.name, count(rows))

    @staticmethod
    def peak_jobs(context: Context, *dtypes: str) -> list[Job]:
        """Matrix products to compare with, first."""
        return [peak_job(dtype, context.device) for dtype in dict.fromkeys(dtypes)]


def run_sweeps(sweeps: Sequence[Sweep], context: Context) -> None:
    """One sweep after the other, all with the same processes."""
    if context.device.type == "cuda":
        torch.cuda.empty_cache()  # the processes need it
    log_file = context.run_dir / "worker.log"
    with Pool(log_file, deterministic=torch.are_deterministic_algorithms_enabled()) as pool:
        if context.device.type == "cuda":
            cells = [cell for s in sweeps for job in s.jobs(context) for cell in job.cells]
            done = {row["cell"] for row in read_rows(context.run_dir)}
            compile_ahead(
                [cell for cell in cells if cell.key not in done],
                pool,
                timeout_s=_COMPILE_S,
                num_workers=_num_processes(),
            )
        for sweep in sweeps:
            sweep.sweep(context, pool)
    log.info("report: %s", context.run_dir / "report.md")


def _num_processes() -> int:
    """Side by side on one GPU: they compile and check, which takes little of it."""
    return max(1, min(_MAX_PROCESSES, (os.cpu_count() or 2) - 2))


def count(rows: Sequence[Row]) -> str:
    """How many rows ended how: `58 ok, 2 out of memory`."""
    statuses = [row["status"] for row in rows]
    parts = [
        f"{statuses.count(status)} {words}"
        for status, words in {"ok": "ok", **STATUS}.items()
        if status in statuses
    ]
    return ", ".join(parts) or "no cells"


def _row(cell: Cell, measured: Mapping[str, Any], rows: Sequence[Row]) -> Row:
    """The row of a cell, with what follows from its figures."""
    row: Row = {"sweep": cell.sweep, "cell": cell.key, **cell.columns, **measured}
    if row.get("ms") and row.get("gflop"):
        row["tflops"] = row["gflop"] / row["ms"]
        row["fwd_tflops"] = row["gflop"] * _FORWARD_SHARE / row["fwd_ms"]
    if row.get("tflops") and (peak := peak_tflops(rows, row.get("dtype"))):
        row["peak_share"] = row["tflops"] / peak
    return row
