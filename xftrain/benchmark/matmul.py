"""Measures a large matmul, as the reference for achieved TF/s in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from xftrain.benchmark.cells import Cell, Row
from xftrain.benchmark.measure import Stopwatch, spread
from xftrain.benchmark.worker import Job, Reporter
from xftrain.utils.timing import interleaved_times_ms

BENCHMARK = "peak"
_SIZE_CUDA, _SIZE_CPU = 8192, 2048
_BUDGET_S = 0.5


@dataclass(frozen=True)
class MatmulCell(Cell):
    """A matmul of square random matrices."""

    size: int
    dtype: str
    device: str


def peak_job(dtype: str, device: torch.device) -> Job:
    """The job that measures the reference matmul."""
    size = _SIZE_CUDA if device.type == "cuda" else _SIZE_CPU
    columns = {"kernel": "matmul", "size": size, "dtype": dtype}
    return Job(measure_matmul, (MatmulCell(BENCHMARK, columns, size, dtype, device.type),))


def measure_matmul(cells: Sequence[MatmulCell], reporter: Reporter) -> None:
    """Measures matmuls and reports rows with `tflops`."""
    for index, cell in enumerate(cells):
        row = reporter.attempt(index, _measure, cell)
        if row is not None:
            reporter.row(index, "ok", **row)


def peak_tflops(rows: Sequence[Row], dtype: str | None) -> float | None:
    """The TF/s of the reference matmul in this dtype; None if it was not measured."""
    for row in rows:
        if row["sweep"] == BENCHMARK and row.get("dtype") == dtype and row["status"] == "ok":
            tflops = row.get("tflops")
            return tflops if isinstance(tflops, float) else None
    return None


def _measure(cell: MatmulCell) -> dict[str, Any]:
    device, dtype = torch.device(cell.device), getattr(torch, cell.dtype)
    a, b = (torch.randn(cell.size, cell.size, device=device).to(dtype) for _ in range(2))
    (times,) = interleaved_times_ms(
        [Stopwatch(device).once(lambda: a @ b)], budget_s=_BUDGET_S, min_repeats=5, max_repeats=50
    )
    fields = spread("ms", times)
    return {
        **fields,
        "repetitions": len(times),
        "tflops": 2 * cell.size**3 / fields["ms"] / 1e9,
    }
