"""The parity rule by which a backend counts as correct.

The error of the output and of each gradient against float64 is at most twice that of torch's own
attention at the same dtype, and each value is within xFormers' own tolerances.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from xftrain.benchmark.reference import (
    RESULTS,
    exact,
    output_and_grads,
    poisoned,
    ratio,
    relative_error,
    torch_errors,
)
from xftrain.interfaces import AttnCall, Backend

LIMIT = 2.0  # times torch's error
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


@dataclass
class Verdict:
    """The result of the comparison of one backend.

    Attributes:
        errors: relative errors against float64 of out, dq, dk and dv.
        torch_errors: relative errors of torch's own attention.
        faults: violations of the rule; empty if the backend is correct.
    """

    errors: dict[str, float] = field(default_factory=dict)
    torch_errors: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """The largest ratio of an error to torch's error."""
        return max(ratio(self.errors[name], self.torch_errors[name]) for name in self.errors)


def check_parity(
    backend: Backend,
    call: AttnCall,
    generator: torch.Generator,
) -> Verdict:
    """Runs the backend forward and backward on inputs that are surrounded by NaN in memory."""
    bias, shape, dtype, device = call
    heads = (shape.H, shape.G, shape.G)
    qkv = tuple(poisoned(shape, n, dtype, device, generator) for n in heads)
    grad = poisoned(shape, shape.H, dtype, device, generator)
    truth = output_and_grads(
        lambda q, k, v: exact(q, k, v, bias), tuple(x.double() for x in qkv), grad.double()
    )
    handle = backend.prepare_handle(call)
    results = output_and_grads(lambda q, k, v: backend(q, k, v, handle), qkv, grad)
    baseline = torch_errors(qkv, grad, bias, truth)

    verdict = Verdict()
    for name, mine, torchs, right in zip(RESULTS, results, baseline, truth, strict=True):
        if mine.dtype != dtype or mine.shape != right.shape:
            verdict.faults.append(f"{name} is {mine.dtype} {list(mine.shape)}")
            continue
        verdict.errors[name] = error = relative_error(mine, right)
        verdict.torch_errors[name] = torchs
        if mine.isnan().any():
            verdict.faults.append(f"{name} has NaN")
            continue
        atol, rtol = (FORWARD_TOLERANCE if name == "out" else BACKWARD_TOLERANCE)[dtype]
        if not torch.allclose(mine.double(), right, atol=atol, rtol=rtol):
            verdict.faults.append(f"{name} is outside xFormers' tolerances {atol:g}, {rtol:g}")
        if not error <= LIMIT * torchs:
            times = ratio(error, torchs)
            verdict.faults.append(
                f"the error of {name}, {error:.2e}, is {times:.1f} x torch's {torchs:.2e}"
            )
    return verdict
