"""ALiBi folded into the features, as one dense tensor, and as a score function, by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xftrain.benchmark import tables
from xftrain.benchmark.attention import measure_attention
from xftrain.benchmark.benchmark import Benchmark, Context
from xftrain.benchmark.cells import Row, attention_cell, node_of
from xftrain.benchmark.reference import RESULTS
from xftrain.benchmark.worker import Job
from xftrain.config.fields import Dtype, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FOLDED, _DENSE = {"name": "alibi"}, {"name": "alibi", "impl": "dense"}
# Implementations of ALiBi, and plain causal attention as the upper bound of their speed.
_WAYS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("no bias, sdpa", "sdpa", {"name": "causal"}),
    ("folded, sdpa", "sdpa", _FOLDED),
    ("folded, xformers", "xformers", _FOLDED),
    ("score function, flex", "flex", _FOLDED),
    ("dense, xformers", "xformers", _DENSE),
    ("dense, sdpa", "sdpa", _DENSE),
    ("dense, naive", "naive", _FOLDED),
)
_LENGTHS_CUDA, _LENGTHS_CPU = (2048, 4096, 8192), (128, 256, 512)
_EXACT_CUDA, _EXACT_CPU = 2048, 512  # limits of M for the reference, with M x M scores per head
_ALL: dict[str, str | tables.Format] = {
    **tables.TIMES,
    **tables.MEMORY,
    **{f"{name} error": f"error_{name}" for name in RESULTS},
    **tables.KERNEL,
}


class Alibi(Benchmark):
    """Measures time, memory and error of each implementation of ALiBi.

    Args:
        lengths: M; None is 2,048 to 8,192 on a GPU and 128 to 512 on a CPU.
        rows: B.
        num_heads: H.
        head_dim: K.
        dtype: `auto` is the dtype of the run.
        timeout_s: longest time without a message from a cell.
        resume: keep the rows that are in the run folder already.
    """

    modifies_weights = False

    name = "alibi"
    title = "ALiBi by sequence length"

    def __init__(
        self,
        *,
        lengths: list[PositiveInt] | None = None,
        rows: PositiveInt = 2,
        num_heads: PositiveInt = 16,
        head_dim: PositiveInt = 64,
        dtype: Dtype = "auto",
        timeout_s: PositiveFloat = 120.0,
        resume: bool = True,
    ) -> None:
        super().__init__(timeout_s=timeout_s, resume=resume)
        self.lengths, self.dtype = lengths, dtype
        self.shape: dict[str, Any] = {"rows": rows, "num_heads": num_heads, "head_dim": head_dim}

    def jobs(self, context: Context) -> list[Job]:
        """Makes a job of all implementations at one length."""
        on_gpu = context.device.type == "cuda"
        dtype = context.dtype_for(self.dtype)
        lengths = sorted(self.lengths or (_LENGTHS_CUDA if on_gpu else _LENGTHS_CPU))
        exact_up_to = _EXACT_CUDA if on_gpu else _EXACT_CPU
        jobs = self.peak_jobs(context, dtype)
        for length in lengths:
            cells = [
                attention_cell(
                    self.name,
                    node_of("model/attn", backend),
                    bias,
                    node_of("model/heads", "mha"),
                    length=length,
                    dtype=dtype,
                    device=context.device.type,
                    check="exact" if length <= exact_up_to else None,
                    way=way,
                    **self.shape,
                )
                for way, backend, bias in _WAYS
            ]
            jobs.append(Job(measure_attention, tuple(cells)))
        return jobs

    @classmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders a table that includes the share of plain causal attention's speed."""
        return _render(rows, _ALL)

    @classmethod
    def summary(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders the section with the main columns only."""
        return _render(rows, tables.MAIN)

    @classmethod
    def figures(cls, rows: Sequence[Row]) -> dict[str, Figure]:
        """Plots time and memory against length."""
        from xftrain.benchmark.plots import over_length

        # attention without ALiBi is only the baseline
        as_one = [{**row, "panel": "ALiBi", "ranked": row["bias"] != "causal"} for row in rows]
        return {
            name: over_length(as_one, field, label, curves="way", panels="panel")
            for name, field, label in (
                ("time", "ms", "forward + backward, ms"),
                ("memory", "extra_mib", "memory above the inputs, MiB"),
            )
        }


def _render(rows: Sequence[Row], shown: Mapping[str, str | tables.Format]) -> str:
    """Renders the section with these columns."""
    if not rows:
        return ""
    plain = {r["M"]: r["ms"] for r in rows if r["bias"] == "causal" and r["status"] == "ok"}

    def of_plain(row: Row) -> str:
        if row["status"] != "ok" or row["M"] not in plain:
            return "-"
        return f"{plain[row['M']] / row['ms']:.0%}"

    columns: dict[str, str | tables.Format] = {
        "way": "way",
        "M": "M",
        "of plain": of_plain,
        **shown,
    }
    first = rows[0]
    parts = [
        f"B = {first['B']}, {first['H']} heads of width {first['K']}, {first['dtype']}. `of "
        "plain` is the speed as a share of causal attention without ALiBi; errors are relative "
        "to float64, at the lengths where that can be had.",
        tables.columns_of(rows, columns),
        tables.reasons(rows, lambda row: f"{row['way']} M={row['M']:,}"),
    ]
    return "\n\n".join(part for part in parts if part)
