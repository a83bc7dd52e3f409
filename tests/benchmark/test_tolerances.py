"""The rule by which a backend counts as right: its limits, its tolerances, its poison."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from xftrain.benchmark import growth, reference, tolerances
from xftrain.benchmark.reference import RESULTS, exact, output_and_grads, poisoned, torch_errors
from xftrain.interfaces import AttnBias, AttnCall, AttnShape
from xftrain.model.attn.naive import Naive

CPU = torch.device("cpu")
SHAPE = AttnShape(2, 24, 2, 2, 16)


def verdict(backend: Naive, dtype: torch.dtype = torch.bfloat16) -> tolerances.Verdict:
    generator = torch.Generator().manual_seed(0)
    return tolerances.check_parity(backend, AttnCall(AttnBias(), SHAPE, dtype, CPU), generator)


@pytest.mark.parametrize(("times", "is_right"), [(1.9, True), (2.1, False)])
def test_the_limit_is_twice_torchs_error(
    monkeypatch: pytest.MonkeyPatch, times: float, is_right: bool
) -> None:
    errors = verdict(Naive()).errors
    torchs = [errors[name] / times for name in RESULTS]
    monkeypatch.setattr(tolerances, "torch_errors", lambda *_: torchs)
    faults = verdict(Naive()).faults
    assert len(faults) == (0 if is_right else len(RESULTS))
    assert all(f"is {times:.1f} x torch's" in fault for fault in faults)


class _OneNumberOff(Naive):
    """A backend with one wrong number in its output, which hardly changes the norm."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, q: Any, k: Any, v: Any, handle: Any) -> Tensor:
        off = torch.zeros_like(q)
        off[0, 3, 1, 2] = self.by
        return super().__call__(q, k, v, handle) + off


@pytest.mark.parametrize(("by", "is_right"), [(0.0, True), (0.2, False)])
def test_the_output_has_tolerances_of_its_own(
    monkeypatch: pytest.MonkeyPatch, by: float, is_right: bool
) -> None:
    # those of gradients are 45 times as wide in bfloat16: 0.9 in place of 0.02
    monkeypatch.setattr(tolerances, "torch_errors", lambda *_: [1.0] * len(RESULTS))
    faults = verdict(_OneNumberOff(by)).faults
    assert faults == ([] if is_right else ["out is outside xFormers' tolerances 0.02, 0.005"])


class _ReadsOn(Naive):
    """A backend that reads one position past the end, and multiplies it by 0."""

    def __init__(self, which: int) -> None:
        self.which = which

    def __call__(self, *qkvh: Any) -> Tensor:
        *qkv, handle = qkvh
        x = qkv[self.which]
        behind = x.detach().as_strided((*x.shape[:1], 1, *x.shape[2:]), x.stride(), self._end(x))
        return super().__call__(*qkv, handle) + 0.0 * behind

    def _end(self, x: Tensor) -> int:
        return int(x.storage_offset() + x.shape[1] * x.stride(1))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_lies_behind_the_inputs_is_poison(which: int) -> None:
    assert "out has NaN" in verdict(_ReadsOn(which)).faults


def test_results_that_are_not_finite_are_no_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    # twice an infinite error let every backend pass: cuDNN's backward pass with a mask gives NaN
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (poisoned(SHAPE, 2, torch.bfloat16, CPU, generator) for _ in range(4))
    wide = tuple(x.double() for x in (q, k, v))
    truth = output_and_grads(lambda *qkv: exact(*qkv, AttnBias()), wide, grad.double())
    right = torch_errors((q, k, v), grad, AttnBias(), truth)
    calls = []

    def sometimes(*args: Any, **kwargs: Any) -> list[Tensor]:
        results = output_and_grads(*args, **kwargs)
        calls.append(1)
        return [results[0], results[1] * math.nan, *results[2:]] if len(calls) == 1 else results

    monkeypatch.setattr(reference, "output_and_grads", sometimes)
    found = torch_errors((q, k, v), grad, AttnBias(), truth)
    assert len(calls) > 1 and all(math.isfinite(error) for error in found)
    assert all(mine <= known for mine, known in zip(found, right, strict=True))


def test_a_fits_standard_error_is_that_of_a_line_through_few_points() -> None:
    # residuals +d, -d, -d, +d change no slope: their squares are divided by 4 points less 2
    d, lengths = 0.05, [2**n for n in range(7, 11)]
    values = [n * math.exp(sign * d) for n, sign in zip(lengths, (1, -1, -1, 1), strict=True)]
    found = growth.fit(list(zip(lengths, values, strict=True)))
    assert found is not None and found.exponent == pytest.approx(1.0)
    spread = 5 * math.log(2) ** 2  # of (-1.5, -0.5, 0.5, 1.5) log 2
    assert found.deviation == pytest.approx(math.sqrt(4 * d**2 / 2 / spread))
