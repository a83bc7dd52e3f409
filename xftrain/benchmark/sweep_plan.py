"""What a sweep measures and how it is reported, without a training run around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch.loggers import Logger

from xftrain.attention.backends.auto import all_backends
from xftrain.benchmark.cells import Row, nodes_of
from xftrain.benchmark.matmul import peak_job
from xftrain.benchmark.worker import Job
from xftrain.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Context:
    """Where a sweep runs.

    Attributes:
        run_dir: gets the rows and the report.
        device: what is measured.
        dtype: in which the run computes, as in `bfloat16`.
        options: the run's whole configuration as its checkpoints hold it, of which each cell
            trains a variant; empty for `doctor` alone.
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

    def backends(
        self, asked: list[str | dict[str, Any]] | None, *, compiled: bool = True
    ) -> list[dict[str, Any]]:
        """Nodes of the backends asked for; for None all built-in ones, and the run's own.

        Args:
            asked: options of `model/attn`.
            compiled: for None, also those that have to be compiled.
        """
        if asked is not None:
            return nodes_of("model/attn", asked)
        own = self.options.get("model", {}).get("attn", {})
        built_in: list[str | dict[str, Any]] = [
            backend.name
            for backend in all_backends()
            if compiled or not backend.needs_compilation or backend.name == own.get("name")
        ]
        return nodes_of("model/attn", built_in) + ([dict(own)] if "_target_" in own else [])


class SweepPlan(ABC):
    """The cells of a sweep, and the section of the report that their rows make.

    Rows go to `rows.jsonl` as they are known, so that a sweep that was stopped goes on where it
    was.

    Args:
        timeout_s: longest time without a sign of life from a cell.
        resume: keep the rows that are in the run folder already, but for those that failed,
            crashed or timed out.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # of its section in the report
    is_timed: ClassVar[bool] = True  # then one process measures at a time; several else
    needs_model: ClassVar[bool] = False  # of the run

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
        """What the console and TensorBoard show: by default the section of the report."""
        return cls.section(rows, peak)

    @classmethod
    def figures(cls, rows: Sequence[Row]) -> dict[str, Figure]:
        """Plots, by the name of their file."""
        return {}

    def checked_jobs(self, context: Context) -> list[Job]:
        """The jobs, no cell of which stands there twice.

        Raises:
            ConfigError: an option that does not exist, or one that is listed twice.
        """
        jobs = self.jobs(context)
        seen: set[str] = set()
        for cell in (cell for job in jobs for cell in job.cells):
            if cell.key in seen:
                raise ConfigError(
                    f"callbacks.{self.name} lists {cell.label!r} twice: leave one out."
                )
            seen.add(cell.key)
        return jobs

    @staticmethod
    def peak_jobs(context: Context, *dtypes: str) -> list[Job]:
        """Matrix products to compare with, first."""
        return [peak_job(dtype, context.device) for dtype in dict.fromkeys(dtypes)]
