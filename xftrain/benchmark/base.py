"""The base class of benchmarks: the cells to measure, and their section of the report."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch.loggers import Logger

from xftrain.benchmark.cells import Row, nodes_of
from xftrain.benchmark.matmul import peak_job
from xftrain.benchmark.worker import Job
from xftrain.config.run_config import RunConfig
from xftrain.errors import ConfigError
from xftrain.model.backends import all_backends

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Context:
    """The context of a benchmark.

    Attributes:
        run_dir: the folder for the rows and the report.
        device: the device to measure.
        dtype: dtype of the run's matmuls, such as `bfloat16`.
        options: the plain values of the configuration, as in checkpoints and with secrets hidden;
            they are part of the keys of rows on disk, and nothing else is read from them.
        loggers: the loggers of the run.
        cfg: the checked configuration of the run; None for `--config-name doctor`, which has none.
        vocab_size: rows of the embedding table of the run's model; None without one.
    """

    run_dir: Path
    device: torch.device
    dtype: str
    options: Mapping[str, Any]
    loggers: Sequence[Logger]
    cfg: RunConfig | None = None
    vocab_size: int | None = None

    def run_config(self) -> RunConfig:
        """The configuration of the run, for a benchmark with `needs_model`."""
        assert self.cfg is not None, "the benchmark lacks needs_model = True"
        return self.cfg

    def model_node(self) -> dict[str, Any]:
        """The plain values of the run's model, as in its checkpoints, for the keys of rows."""
        return dict(self.options.get("model", {}))

    def dtype_for(self, configured: str) -> str:
        """Resolves the dtype `auto` to the dtype of the run."""
        return self.dtype if configured == "auto" else configured

    def backends(
        self, configured: list[str | dict[str, Any]] | None, *, compiled: bool = True
    ) -> list[dict[str, Any]]:
        """The nodes of the requested backends, by default all built-in ones and the run's own.

        Args:
            configured: options of `model/attn`, or None for the default.
            compiled: whether the default includes backends that need compilation.
        """
        if configured is not None:
            return nodes_of("model/attn", configured)
        own = None if self.cfg is None else self.cfg.model.attn
        is_own_class = own is not None and own.target is not None
        built_in: list[str | dict[str, Any]] = [
            backend.name
            for backend in all_backends()
            if compiled or not backend.needs_compilation or (own and backend.name == own.name)
        ]
        nodes = nodes_of("model/attn", built_in)
        return [*nodes, dict(self.model_node()["attn"])] if is_own_class else nodes


class BenchmarkPlan(ABC):
    """The cells of a benchmark, and the section of the report about their rows.

    Rows are written to `rows.jsonl` as soon as they are measured, so that a stopped benchmark can
    be resumed.

    Args:
        timeout_s: maximum time without a message from a cell, in seconds.
        resume: whether to keep the rows that are already in the run folder, except those that
            failed, crashed or timed out.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # title of the section in the report
    is_timed: ClassVar[bool] = True  # timed cells run in one process, others in several
    needs_model: ClassVar[bool] = False  # whether the benchmark needs the run's model

    def __init__(self, *, timeout_s: float, resume: bool) -> None:
        self.timeout_s, self.resume = timeout_s, resume

    @abstractmethod
    def jobs(self, context: Context) -> list[Job]:
        """The jobs: which cells to measure, grouped by process."""

    @classmethod
    @abstractmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders these rows as the section of the report, without title and plots."""

    @classmethod
    def summary(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders these rows for the console and TensorBoard, by default like the section."""
        return cls.section(rows, peak)

    @classmethod
    def figures(cls, rows: Sequence[Row]) -> dict[str, Figure]:
        """Draws the plots, by file name."""
        return {}

    def checked_jobs(self, context: Context) -> list[Job]:
        """The jobs, checked for duplicate cells.

        Raises:
            ConfigError: an option does not exist, or is listed twice, or a list is empty.
        """
        self._refuse_empty_lists()
        jobs = self.jobs(context)
        seen: set[str] = set()
        for cell in (cell for job in jobs for cell in job.cells):
            if cell.key in seen:
                raise ConfigError(
                    f"callbacks.{self.name} lists {cell.label!r} twice: remove one of them."
                )
            seen.add(cell.key)
        return jobs

    def _refuse_empty_lists(self) -> None:
        """Refuses lists without values, with which nothing is measured, but for empty defaults."""
        for key, parameter in inspect.signature(type(self).__init__).parameters.items():
            value = getattr(self, key, None)
            if isinstance(value, list | tuple) and not value and parameter.default != value:
                raise ConfigError(
                    f"callbacks.{self.name}.{key} must have at least one value, got []: give one, "
                    "or leave the key out for its default."
                )

    @staticmethod
    def peak_jobs(context: Context, *dtypes: str) -> list[Job]:
        """The jobs that measure reference matmuls in these dtypes."""
        return [peak_job(dtype, context.device) for dtype in dict.fromkeys(dtypes)]
