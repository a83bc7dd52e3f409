"""Compares every backend x bias x head grouping, and torch's own attention, with float64."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch

from xftrain.benchmark import tables
from xftrain.benchmark.benchmark import Benchmark, Context
from xftrain.benchmark.cells import AttentionCell, Row, attention_cell, nodes_of
from xftrain.benchmark.measure import warm_up
from xftrain.benchmark.reference import RESULTS
from xftrain.benchmark.tolerances import LIMIT, check_parity
from xftrain.benchmark.worker import Job, Reporter, Unsupported
from xftrain.config.fields import Dtype, Option, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PACKED = (37, 120, 8, 91)  # document lengths of the packed layout, for a row of 256 tokens
_BIASES = (
    "full",
    "causal",
    {"name": "window", "window": 64},
    "alibi",
    {"name": "alibi", "impl": "dense"},
)


class Parity(Benchmark):
    """Checks output and gradients on random inputs that are surrounded by NaN in memory.

    Args:
        backends: options of `model/attn`; None is all, and a user's own class in `model.attn`.
        biases: options of `model/bias`.
        heads: options of `model/heads`.
        layouts: `rows` of equal length, `packed` documents in one row.
        rows: B.
        length: M.
        num_heads: H.
        head_dim: K.
        dtype: `auto` is the dtype of the run.
        timeout_s: longest time without a message from a cell.
        resume: keep the rows that are in the run folder already.
    """

    modifies_weights = False

    name = "parity"
    title = "Parity with float64"
    is_timed = False

    def __init__(
        self,
        *,
        backends: list[Option] | None = None,
        biases: tuple[Option, ...] = _BIASES,
        heads: tuple[Option, ...] = ("mha", "gqa", "mqa"),
        layouts: tuple[Literal["rows", "packed"], ...] = ("rows", "packed"),
        rows: PositiveInt = 1,
        length: PositiveInt = 256,
        num_heads: PositiveInt = 8,
        head_dim: PositiveInt = 64,
        dtype: Dtype = "auto",
        timeout_s: PositiveFloat = 120.0,
        resume: bool = True,
    ) -> None:
        super().__init__(timeout_s=timeout_s, resume=resume)
        self.backends, self.layouts, self.dtype = backends, layouts, dtype
        self.biases = nodes_of("model/bias", list(biases))
        self.heads = nodes_of("model/heads", list(heads))
        self.rows, self.length = rows, length
        self.shape: dict[str, Any] = {"num_heads": num_heads, "head_dim": head_dim}

    def jobs(self, context: Context) -> list[Job]:
        """Makes jobs of both layouts, which share a compilation and run in parallel."""
        common: dict[str, Any] = {
            **self.shape,
            "dtype": context.dtype_for(self.dtype),
            "device": context.device.type,
        }
        jobs = []
        for axes in product(context.backends(self.backends), self.biases, self.heads):
            cells = []
            for layout in self.layouts:
                seqlens = _documents(self.length) if layout == "packed" else None
                rows = self.rows if seqlens is None else 1
                cells.append(
                    attention_cell(
                        self.name,
                        *axes,
                        rows=rows,
                        length=self.length,
                        seqlens=seqlens,
                        layout=layout,
                        **common,
                    )
                )
            jobs.append(Job(measure_parity, tuple(cells)))
        return jobs

    @classmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders the verdict, the worst error of each backend, and all rows."""
        columns: dict[str, str | tables.Format] = {
            **{name: name for name in ("backend", "bias", "heads", "layout", "dtype")},
            "verdict": _verdict,
            **{f"{name} error": f"error_{name}" for name in RESULTS},
            "worst x torch's": "worst",
            "kernel": "kernel",
        }
        return f"{cls.summary(rows, peak)}\n\n{tables.columns_of(rows, columns)}"

    @classmethod
    def summary(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders the verdict and the worst error of each backend."""
        wrong = [row for row in rows if row["status"] == "ok" and row["faults"]]
        lines = []
        for backend in dict.fromkeys(row["backend"] for row in rows):
            own = [row for row in rows if row["backend"] == backend]
            ran = [row for row in own if row["status"] == "ok"]
            known = [row["worst"] for row in ran if row["worst"] is not None]
            worst = max(known, default=None) if len(known) == len(ran) else None
            right = sum(not row["faults"] for row in ran)
            lines.append(
                [
                    backend,
                    f"{right} of {len(ran)}",
                    tables.show(worst),
                    str(sum(row["status"] == "unsupported" for row in own)),
                    str(sum(row["status"] not in ("ok", "unsupported") for row in own)),
                ]
            )
        header = ["backend", "right", "worst x torch's", "refused", "lost"]
        said = [
            f"Relative errors of out, dq, dk and dv against float64. Right is at most {LIMIT:g} x "
            "the error of torch's own attention at the same dtype, by its least accurate kernel, "
            "and within xFormers' tolerances.",
            tables.table(header, lines),
            *(f"- WRONG: {_name(row)}: {row['faults']}" for row in wrong),
            tables.reasons(rows, _name),
        ]
        return "\n\n".join(part for part in said if part)

    @classmethod
    def figures(cls, rows: Sequence[Row]) -> dict[str, Figure]:
        """Draws the worst error by backend and bias."""
        from xftrain.benchmark.plots import heat_map

        if len({row["bias"] for row in rows}) < 2:
            return {}  # the summary has the worst error of each backend
        worst: dict[tuple[str, str], Row] = {}
        for row in rows:
            place = (row["backend"], row["bias"])
            if place not in worst or _size(row) > _size(worst[place]):
                worst[place] = row
        label = f"worst error as a multiple of torch's (up to {LIMIT:g} is right)"
        return {"errors": heat_map(list(worst.values()), "worst", label, limit=LIMIT)}


def measure_parity(cells: Sequence[AttentionCell], reporter: Reporter) -> None:
    """Compares cells with float64 and reports rows with the errors and faults."""
    warm_up(cells[0].torch_device)
    for index, cell in enumerate(cells):
        row = reporter.attempt(index, _compare, cell)
        if row is not None:
            reporter.row(index, "ok", **row)


def _compare(cell: AttentionCell) -> dict[str, Any]:
    call, backend = cell.call(), cell.build_backend()
    if reasons := backend.unsupported_reasons(call):
        raise Unsupported("; ".join(reasons))
    seed = secrets.randbelow(2**31)  # a new seed for each run, recorded in the row
    generator = torch.Generator().manual_seed(seed)
    verdict = check_parity(backend, call, generator)
    return {
        "kernel": backend.kernel_name(call),
        **{f"error_{name}": error for name, error in verdict.errors.items()},
        **{f"torch_error_{name}": error for name, error in verdict.torch_errors.items()},
        "worst": verdict.worst,
        "faults": "; ".join(verdict.faults),
        "seed": seed,
    }


def _documents(length: int) -> tuple[int, ...]:
    """The document lengths of the packed layout, scaled to fill a row."""
    ends = [round(length * sum(_PACKED[: n + 1]) / sum(_PACKED)) for n in range(len(_PACKED))]
    lengths = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return tuple(n for n in lengths if n)


def _size(row: Row) -> float:
    """The worst error as a sort key: inf if wrong or missing, -1 if the row did not run."""
    if row["status"] != "ok":
        return -1.0
    return math.inf if row["faults"] or row["worst"] is None else float(row["worst"])


def _verdict(row: Row) -> str:
    if row["status"] != "ok":
        return tables.STATUS[row["status"]]
    return "WRONG" if row["faults"] else "right"


def _name(row: Row) -> str:
    return f"{row['backend']} {row['bias']} {row['heads']} {row['layout']}"
