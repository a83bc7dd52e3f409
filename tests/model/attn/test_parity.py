"""Every backend against float64, wherever it says that it runs (DESIGN 7).

The rule: the error of the output and of each gradient is at most twice that of torch's own
attention at the same dtype, and within xFormers' own tolerances.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Callable

import pytest
import torch

from tests.model.attn.cells import CELLS, Cell, backend_named, listed_refusal
from xftrain.benchmark.reference import torch_sdpa
from xftrain.benchmark.tolerances import check_parity
from xftrain.interfaces import AttnBias, AttnCall, Backend


def check(cell: Cell, device: str, head_dim: int) -> tuple[str, float]:
    """The kernel that ran and its worst error as a multiple of torch's; "refused" if listed."""
    call, backend = cell.call(device, head_dim), backend_named(cell.backend)
    listed = listed_refusal(device, cell)
    reasons = backend.unsupported(*call)
    if listed is not None:
        assert any(re.search(listed, reason) for reason in reasons), f"no longer refused: {reasons}"
        return "refused", 0.0
    assert not reasons, f"refused, and not on the list: {reasons}"

    seed = secrets.randbelow(2**31)  # fresh each run; named where it fails
    generator = torch.Generator().manual_seed(seed)
    verdict = check_parity(backend, call, generator)
    assert not verdict.faults, f"{verdict.faults}, seed {seed}"
    return backend.kernel(*call), verdict.worst


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cpu(cell: Cell) -> None:
    kernel, _ = check(cell, "cpu", head_dim=16)
    assert kernel


@pytest.mark.cuda
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cuda(cell: Cell, record_property: Callable[[str, object], None]) -> None:
    # a compilation for every width would take flex most of an hour
    for head_dim in (64,) if backend_named(cell.backend).needs_compilation else (16, 64, 128):
        kernel, worst = check(cell, "cuda", head_dim)
        record_property(f"K={head_dim}", f"{worst:.2f}")  # for the table in docs/benchmarks/
    record_property("kernel", kernel)


class _Wrong(Backend):
    """Torch's attention with one fault."""

    name = "wrong"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        return []

    def handle_for(self, call: AttnCall) -> AttnBias:
        bias = call.bias
        if self.fault == "window":
            assert bias.window is not None
            return dataclasses.replace(bias, window=bias.window + 1)
        return bias

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, handle: AttnBias
    ) -> torch.Tensor:
        out = torch_sdpa(q * 1.05 if self.fault == "scale" else q, k, v, handle)
        return out.float() if self.fault == "dtype" else out

    def kernel_for(self, call: AttnCall) -> str:
        return "wrong"


@pytest.mark.parametrize(
    ("fault", "said"),
    [("none", None), ("scale", "x torch's"), ("window", "x torch's"), ("dtype", "float32")],
)
def test_the_rule_can_fail(fault: str, said: str | None) -> None:
    # a kernel that forgets the scale, and one that sees one key too many, must not pass
    cell = next(c for c in CELLS if str(c) == "naive-window-mha-rows-bfloat16")
    generator = torch.Generator().manual_seed(0)
    verdict = check_parity(_Wrong(fault), cell.call("cpu", head_dim=16), generator)
    assert bool(verdict.faults) == (said is not None)
    assert (said or "") in " ".join(verdict.faults)
