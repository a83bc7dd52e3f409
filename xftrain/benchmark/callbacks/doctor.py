"""Finds the attention kernels that run on this machine by calling them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import torch

from xftrain.benchmark import tables
from xftrain.benchmark.benchmark import Benchmark, Context
from xftrain.benchmark.cells import Cell, Row
from xftrain.benchmark.kernels import Kernel, kernels
from xftrain.benchmark.reference import exact, output_and_grads, relative_error
from xftrain.benchmark.worker import Job, Reporter, Unsupported
from xftrain.config.fields import PositiveFloat
from xftrain.interfaces import AttnBias

_SHAPE = (2, 128, 4, 64)  # B, M, H, K
_RIGHT = 0.05  # relative error: far above rounding, far below a wrong mask


@dataclass(frozen=True)
class KernelCell(Cell):
    """One kernel in one dtype."""

    kernel: str
    dtype: str
    device: str


class Doctor(Benchmark):
    """Calls each kernel, forward and backward, on a small causal attention.

    Args:
        dtypes: the dtypes in which each kernel is called.
        timeout_s: longest time without a message from a cell.
        resume: keep the rows that are in the run folder already.
    """

    modifies_weights = False

    name = "doctor"
    title = "Which kernels run here"
    is_timed = False

    def __init__(
        self,
        *,
        dtypes: tuple[Literal["float32", "float16", "bfloat16"], ...] = (
            "float32",
            "float16",
            "bfloat16",
        ),
        timeout_s: PositiveFloat = 120.0,
        resume: bool = True,
    ) -> None:
        super().__init__(timeout_s=timeout_s, resume=resume)
        self.dtypes = dtypes

    def jobs(self, context: Context) -> list[Job]:
        """Makes a job for each kernel and dtype."""
        kind, names = context.device.type, list(kernels(context.device))
        return [
            Job(
                measure_kernels,
                (KernelCell(self.name, {"kernel": name, "dtype": dtype}, name, dtype, kind),),
            )
            for dtype, name in product(self.dtypes, names)
        ]

    @classmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders a table of kernels and dtypes, and the reasons of failures."""
        dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
        found = {(row["kernel"], row["dtype"]): row for row in rows}
        lines = [
            [kernel, *(_verdict(found.get((kernel, dtype))) for dtype in dtypes)]
            for kernel in dict.fromkeys(row["kernel"] for row in rows)
        ]
        parts = [
            "Each kernel was called, forward and backward, and its results compared with float64.",
            tables.table(["kernel", *dtypes], lines),
            "\n".join(
                f"- forward only: {row['kernel']} {row['dtype']}: {row['backward_reason']}"
                for row in rows
                if row.get("backward_reason")
            ),
            tables.reasons(rows, lambda row: f"{row['kernel']} {row['dtype']}"),
        ]
        return "\n\n".join(part for part in parts if part)


def measure_kernels(cells: Sequence[KernelCell], reporter: Reporter) -> None:
    """Calls kernels and reports rows with `backward` and the largest error."""
    found = kernels(torch.device(cells[0].device))
    for index, cell in enumerate(cells):
        row = reporter.attempt(index, _try, found[cell.kernel], cell)
        if row is not None:
            reporter.row(index, "ok", **row)


def _try(kernel: Kernel, cell: KernelCell) -> dict[str, Any]:
    dtype = getattr(torch, cell.dtype)
    q, k, v, grad = (torch.randn(_SHAPE, device=cell.device).to(dtype) for _ in range(4))
    exactly = partial(exact, bias=AttnBias())
    truth = output_and_grads(exactly, (q.double(), k.double(), v.double()), grad.double())
    leaves = [x.requires_grad_() for x in (q, k, v)]
    try:
        out = kernel(*leaves)
    except NotImplementedError as error:
        raise Unsupported(_line(error)) from error
    results = [out.detach()]
    backward = out.requires_grad
    why = None if backward else "an operator for inference"
    if backward:
        try:
            results += torch.autograd.grad(out, leaves, grad)
        except NotImplementedError as error:
            backward, why = False, _line(error)
    worst = max(relative_error(x, right) for x, right in zip(results, truth, strict=False))
    return {"backward": backward, "backward_reason": why, "error": worst, "right": worst < _RIGHT}


def _verdict(row: Row | None) -> str:
    if row is None:
        return "-"
    if row["status"] != "ok":
        return "no" if row["status"] == "unsupported" else tables.STATUS[row["status"]]
    if not row["right"]:
        return "WRONG"
    return "runs" if row["backward"] else "forward only"


def _line(error: Exception) -> str:
    """The error's text as one line; for xFormers only the reasons, without its list of inputs."""
    text = str(error).rpartition("is not supported because:")[2]
    lines = [line.strip().partition(" - see `python")[0] for line in text.splitlines()]
    kept = [line for line in lines if line and ": shape=" not in line]
    return "; ".join(kept)[:400] or type(error).__name__
