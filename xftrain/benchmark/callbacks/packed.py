"""Compares documents packed into one row with the same documents padded to the longest."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from xftrain.benchmark import tables
from xftrain.benchmark.attention import measure_attention
from xftrain.benchmark.benchmark import Benchmark, Context
from xftrain.benchmark.cells import AttentionCell, Row, attention_cell, node_of
from xftrain.benchmark.worker import Job
from xftrain.config.fields import Dtype, Option, PositiveFloat, PositiveInt, Seed

_LIMIT = 2.0  # largest ratio to the error of the documents run one by one
_SIGMA = 1.0  # standard deviation of the logarithm of a length
_ALL: dict[str, str | tables.Format] = {
    **tables.TIMES,
    **tables.MEMORY,
    "segments": lambda row: _verdict(row),
    "packed error": "error_packed",
    "alone error": "error_alone",
    **tables.KERNEL,
}


class Packed(Benchmark):
    """Measures padding, time and memory of both layouts, and the errors of packed documents.

    Args:
        backends: options of `model/attn`; None is all, and a user's own class in `model.attn`.
        bias: option of `model/bias`.
        heads: option of `model/heads`.
        lengths: document lengths in tokens, or how to draw them: `uniform` between 1 and
            `max_length`, or `lognormal`, like the lengths of texts.
        num_documents: number of documents to draw.
        max_length: longest document to draw, in tokens.
        seed: seed of the draw.
        num_heads: H.
        head_dim: K.
        dtype: `auto` is the dtype of the run.
        timeout_s: longest time without a message from a cell.
        resume: keep the rows that are in the run folder already.
    """

    modifies_weights = False

    name = "packed"
    title = "Packed against padded documents"

    def __init__(
        self,
        *,
        backends: list[Option] | None = None,
        bias: Option = "causal",
        heads: Option = "mha",
        lengths: tuple[PositiveInt, ...] | Literal["uniform", "lognormal"] = (37, 120, 8, 200),
        num_documents: PositiveInt = 64,
        max_length: PositiveInt = 2048,
        seed: Seed = 0,
        num_heads: PositiveInt = 8,
        head_dim: PositiveInt = 64,
        dtype: Dtype = "auto",
        timeout_s: PositiveFloat = 120.0,
        resume: bool = True,
    ) -> None:
        super().__init__(timeout_s=timeout_s, resume=resume)
        self.backends, self.dtype = backends, dtype
        self.bias, self.heads = node_of("model/bias", bias), node_of("model/heads", heads)
        self.lengths = (
            draw_lengths(lengths, num_documents, max_length, seed)
            if isinstance(lengths, str)
            else tuple(lengths)
        )
        self.shape: dict[str, Any] = {"num_heads": num_heads, "head_dim": head_dim}

    def jobs(self, context: Context) -> list[Job]:
        """Makes one job, which measures both layouts of all backends in turns."""
        dtype = context.dtype_for(self.dtype)
        cells: list[AttentionCell] = []
        for backend in context.backends(self.backends):
            for layout in ("packed", "padded"):
                is_packed = layout == "packed"
                cell = attention_cell(
                    self.name,
                    backend,
                    self.bias,
                    self.heads,
                    rows=1 if is_packed else len(self.lengths),
                    length=max(self.lengths),
                    seqlens=self.lengths if is_packed else None,
                    layout=layout,
                    dtype=dtype,
                    device=context.device.type,
                    check="segments" if is_packed else None,
                    **self.shape,
                )
                facts = waste_of(self.lengths, layout)
                cells.append(replace(cell, columns=cell.columns | facts))
        return [*self.peak_jobs(context, dtype), Job(measure_attention, tuple(cells))]

    @classmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders the table, the gain of packing, and whether packed documents are correct."""
        return _render(rows, _ALL)

    @classmethod
    def summary(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders the section with the main columns only."""
        return _render(rows, {"segments": _verdict, **tables.MAIN})


def draw_lengths(kind: str, number: int, longest: int, seed: int) -> tuple[int, ...]:
    """Draws document lengths, reproducibly by seed."""
    draw = random.Random(seed)
    if kind == "uniform":
        return tuple(draw.randint(1, longest) for _ in range(number))
    center = longest / 8  # so that only one document in fifty is too long and is clipped
    drawn = [draw.lognormvariate(0.0, _SIGMA) * center for _ in range(number)]
    return tuple(min(max(round(length), 1), longest) for length in drawn)


def _render(rows: Sequence[Row], shown: Mapping[str, str | tables.Format]) -> str:
    """Renders the section with these columns."""
    columns: dict[str, str | tables.Format] = {
        "backend": "backend",
        "layout": "layout",
        "tokens": "tokens",
        "waste": lambda row: f"{row['waste']:.0%}",
        "Mtoken/s": _speed,
        **shown,
    }
    if not rows:
        return ""
    real, num = rows[0]["real_tokens"], rows[0]["documents"]
    parts = [
        f"{num} documents of {rows[0]['shortest']} to {rows[0]['longest']} tokens, {real:,} in "
        "all. Speeds count these tokens alone, forward and backward.",
        tables.columns_of(rows, columns),
        "\n".join(_gain(rows)),
        f"Segments are right where the largest relative error of the packed documents against "
        f"float64 is at most {_LIMIT:g} x that of the same documents run one by one (sdpa runs "
        "those for a backend that would compile for each length).",
        tables.reasons(rows, lambda row: f"{row['backend']} {row['layout']}"),
    ]
    return "\n\n".join(part for part in parts if part)


def waste_of(lengths: Sequence[int], layout: str) -> dict[str, Any]:
    """The columns that describe how much of a layout is padding."""
    real, padded = sum(lengths), len(lengths) * max(lengths)
    tokens = real if layout == "packed" else padded
    return {
        "documents": len(lengths),
        "shortest": min(lengths),
        "longest": max(lengths),
        "real_tokens": real,
        "tokens": tokens,
        "waste": 1 - real / tokens,
    }


def _speed(row: Row) -> str:
    if row["status"] != "ok":
        return tables.STATUS[row["status"]]
    return tables.figure(row["real_tokens"] / row["ms"] / 1e3)


def _gain(rows: Sequence[Row]) -> list[str]:
    lines = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        pair = {row["layout"]: row for row in rows if row["backend"] == backend}
        if all(pair.get(layout, {}).get("status") == "ok" for layout in ("packed", "padded")):
            ratio = pair["padded"]["ms"] / pair["packed"]["ms"]
            saved = pair["packed"]["extra_mib"], pair["padded"]["extra_mib"]
            memory = ""
            if None not in saved:
                memory = f", memory {tables.figure(saved[0])} against {tables.figure(saved[1])} MiB"
            lines.append(f"- {backend}: packed is {ratio:.2f} x as fast as padded{memory}")
    return lines


def _verdict(row: Row) -> str:
    if row["status"] != "ok" or "error_packed" not in row:
        return "-"
    errors = [row["error_packed"], row["error_alone"]]
    if any(error is None or not math.isfinite(error) for error in errors):  # JSON has no infinity
        return "WRONG"
    return "right" if row["error_packed"] <= _LIMIT * row["error_alone"] else "WRONG"
