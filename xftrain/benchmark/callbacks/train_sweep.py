"""Measures training steps of the run's model: attention x bias x heads x feed-forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from xftrain.benchmark import tables
from xftrain.benchmark.benchmark import Benchmark, Context
from xftrain.benchmark.cells import Row, name_of, nodes_of
from xftrain.benchmark.training import TrainCell, measure_training
from xftrain.benchmark.worker import Job
from xftrain.config.fields import Option, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STEPS_CUDA, _STEPS_CPU = 10, 1
_NAMES = ("backend", "bias", "heads", "ffn")  # fields that identify a row
_ALL: dict[str, str | tables.Format] = {
    "tokens/s": "tokens_per_s",
    "p10 to p90": lambda row: tables.span(row, "tokens_per_s"),
    "step ms": "step_ms",
    "n": "repetitions",
    "MFU": lambda row: f"{row['mfu']:.1%}" if row["mfu"] else "-",
    "of peak": lambda row: f"{row['peak_share']:.1%}" if row.get("peak_share") else "-",
    "peak MiB": "peak_mib",
    "kernel": "kernel",
}
_MAIN = ("tokens/s", "MFU", "peak MiB", "kernel")  # the main columns


class TrainSweep(Benchmark):
    """Trains short variants of the run's own configuration, with other options in its model.

    Args:
        attn: options of `model/attn`; None is all that need no compilation, and the run's own.
        bias: options of `model/bias`.
        heads: options of `model/heads`.
        ffn: options of `model/ffn`.
        interval_steps: optimizer steps of one timed interval, six of which make a row; None is 10
            on a GPU and 1 on a CPU.
        timeout_s: longest time without a message from a cell.
        resume: keep the rows that are in the run folder already.
    """

    modifies_weights = False

    name = "train_sweep"
    title = "Training steps"
    needs_model = True

    def __init__(
        self,
        *,
        attn: list[Option] | None = None,
        bias: tuple[Option, ...] = ("causal",),
        heads: tuple[Option, ...] = ("mha", "gqa"),
        ffn: tuple[Option, ...] = ("swiglu", "gelu"),
        interval_steps: PositiveInt | None = None,
        timeout_s: PositiveFloat = 300.0,
        resume: bool = True,
    ) -> None:
        super().__init__(timeout_s=timeout_s, resume=resume)
        self.attn, self.interval_steps = attn, interval_steps
        self.bias = nodes_of("model/bias", list(bias))
        self.heads = nodes_of("model/heads", list(heads))
        self.ffn = nodes_of("model/ffn", list(ffn))

    def jobs(self, context: Context) -> list[Job]:
        """Makes one job of all runs, in turns."""
        steps = _STEPS_CUDA if context.device.type == "cuda" else _STEPS_CPU
        cells = []
        groups = (context.backends(self.attn, compiled=False), self.bias, self.heads, self.ffn)
        for attn, bias, heads, ffn in product(*groups):
            chosen = {"attn": attn, "bias": bias, "heads": heads, "ffn": ffn}
            columns = {
                **{"backend" if k == "attn" else k: name_of(node) for k, node in chosen.items()},
                "seq": context.run_config().seq,
                "dtype": context.dtype,
            }
            changed = {**context.options, "model": {**context.model_node(), **chosen}}
            cells.append(TrainCell(self.name, columns, changed, self.interval_steps or steps))
        return [*self.peak_jobs(context, context.dtype), Job(measure_training, tuple(cells))]

    @classmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders one table, the fastest first."""
        return _render(rows, _ALL)

    @classmethod
    def summary(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders the section with the main columns only."""
        return _render(rows, {title: _ALL[title] for title in _MAIN})

    @classmethod
    def figures(cls, rows: Sequence[Row]) -> dict[str, Figure]:
        """Draws the speed, the fastest first."""
        from xftrain.benchmark.plots import bars

        return {"speed": bars(rows, "tokens_per_s", "training, tokens/s", _NAMES)}


def _render(rows: Sequence[Row], shown: Mapping[str, str | tables.Format]) -> str:
    """Renders the section with these columns."""
    ran = [row for row in rows if row["status"] == "ok"]
    ran.sort(key=lambda row: -row["tokens_per_s"])
    parts = [
        "The run's own model, data, optimizer and precision, the fastest first. MFU is against "
        "the vendor's peak, `of peak` against the matmul measured here.",
        tables.columns_of(ran, {**{name: name for name in _NAMES}, **shown}) if ran else "",
        tables.reasons(rows, lambda row: " ".join(row[n] for n in _NAMES)),
    ]
    return "\n\n".join(part for part in parts if part)
