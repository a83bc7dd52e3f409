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

from tests.attention.cells import CELLS, Cell, backend_named, listed_refusal
from tests.attention.reference import (
    exact,
    output_and_grads,
    poisoned,
    relative_error,
    torch_errors,
    torch_sdpa,
)

NAMES = ("out", "dq", "dk", "dv")
# xFormers' absolute and relative tolerances (tests/test_mem_eff_attention.py, v0.0.35)
FORWARD_TOLERANCE = {
    torch.float32: (3e-4, 2e-5),
    torch.float16: (4e-3, 4e-4),
    torch.bfloat16: (2e-2, 5e-3),
}
BACKWARD_TOLERANCE = {
    torch.float32: (9e-4, 1e-4),
    torch.float16: (0.2, 2e-2),
    torch.bfloat16: (0.9, 0.1),
}


def check(cell: Cell, device: str, head_dim: int) -> tuple[str, float]:
    """The kernel that ran and its worst error as a multiple of torch's; "refused" if listed."""
    facts, shape = cell.facts(), cell.shape(head_dim)
    backend = backend_named(cell.backend)
    place = torch.device(device)
    listed = listed_refusal(device, cell)
    reasons = backend.unsupported(facts, shape, cell.dtype, place)
    if listed is not None:
        assert any(re.search(listed, reason) for reason in reasons), f"no longer refused: {reasons}"
        return "refused", 0.0
    assert not reasons, f"refused, and not on the list: {reasons}"

    seed = secrets.randbelow(2**31)  # fresh each run; named where it fails
    generator = torch.Generator().manual_seed(seed)
    heads = (shape.H, shape.G, shape.G)
    qkv = tuple(poisoned(shape, n, cell.dtype, device, generator) for n in heads)
    grad = poisoned(shape, shape.H, cell.dtype, device, generator)
    truth = output_and_grads(
        lambda q, k, v: exact(q, k, v, facts), tuple(x.double() for x in qkv), grad.double()
    )
    handle = backend.prepare(facts, shape, cell.dtype, place)
    ours = output_and_grads(lambda q, k, v: backend(q, k, v, handle), qkv, grad)
    yardstick = torch_errors(qkv, grad, facts, truth)

    worst = 0.0
    for name, mine, torchs, right in zip(NAMES, ours, yardstick, truth, strict=True):
        where = f"{name}, seed {seed}"
        assert mine.dtype == cell.dtype and mine.shape == right.shape, where
        assert not mine.isnan().any(), where
        atol, rtol = (FORWARD_TOLERANCE if name == "out" else BACKWARD_TOLERANCE)[cell.dtype]
        assert torch.allclose(mine.double(), right, atol=atol, rtol=rtol), where
        error, allowed = relative_error(mine, right), 2 * torchs
        assert error <= allowed, f"{where}: error {error:.2e}, twice torch's is {allowed:.2e}"
        worst = max(worst, error / torchs)
    return backend.kernel(facts, shape, cell.dtype, place), worst


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


def test_the_rule_can_fail() -> None:
    # a kernel that forgets the scale, and one that sees one key too many, must not pass
    cell = next(c for c in CELLS if str(c) == "naive-window-mha-rows-bfloat16")
    facts, shape = cell.facts(), cell.shape(16)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (poisoned(shape, 8, cell.dtype, "cpu", generator) for _ in range(4))
    truth = output_and_grads(
        lambda *x: exact(*x, facts), (q.double(), k.double(), v.double()), grad.double()
    )
    yardstick = torch_errors((q, k, v), grad, facts, truth)
    wider = dataclasses.replace(facts, window=facts.window + 1)
    wrong = {
        "scale": output_and_grads(
            lambda a, b, c: torch_sdpa(a * 1.05, b, c, facts), (q, k, v), grad
        ),
        "window": output_and_grads(lambda *x: torch_sdpa(*x, wider), (q, k, v), grad),
    }
    for name, results in wrong.items():
        ratios = [
            relative_error(mine, right) / torchs
            for mine, torchs, right in zip(results, yardstick, truth, strict=True)
        ]
        assert max(ratios) > 2, name
