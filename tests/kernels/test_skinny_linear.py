"""Norm, matmul, activation and residual in one kernel are what they are one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xftrain.kernels.skinny_linear import (
    RowNorm,
    SkinnyWeights,
    skinny_linear,
    supports,
    with_torch,
)


def arguments(B, I, O, *, norm, gated, bias, residual, activation, device="cpu"):  # noqa: E741
    torch.manual_seed(0)
    rows = 2 * O if gated else O
    kind = {"device": device, "dtype": torch.float64}
    scale, shift = torch.randn(I, **kind), torch.randn(I, **kind)
    norms = {
        "layernorm": RowNorm(scale, shift, 1e-5, True),
        "rmsnorm": RowNorm(scale, None, 1e-5, False),
        "none": None,
    }
    return (
        torch.randn(B, I, **kind) + 0.5,
        torch.randn(rows, I, **kind) * I**-0.5,
        torch.randn(rows, **kind) if bias else None,
        norms[norm],
        activation,
        gated,
        torch.randn(B, O, **kind) if residual else None,
    )


CASES = [
    ("layernorm", False, True, False, "gelu_tanh"),
    ("layernorm", False, False, False, "gelu"),
    ("rmsnorm", True, True, False, "silu"),
    ("rmsnorm", False, False, False, "none"),
    ("none", True, False, True, "gelu_tanh"),
    ("none", False, True, True, "none"),
    ("none", False, False, False, "relu2"),
]


@pytest.mark.parametrize(("norm", "gated", "bias", "residual", "activation"), CASES)
def test_the_reference_is_what_the_modules_compute(norm, gated, bias, residual, activation):
    given = arguments(
        3, 24, 40, norm=norm, gated=gated, bias=bias, residual=residual, activation=activation
    )
    x, weight, b, row_norm, _, _, added = given
    if norm == "layernorm":
        x = F.layer_norm(x, (24,), row_norm.weight, row_norm.bias)
    elif norm == "rmsnorm":
        x = F.rms_norm(x, (24,), row_norm.weight, 1e-5)
    out = F.linear(x, weight, b)
    act = {
        "silu": nn.SiLU(),
        "gelu": nn.GELU(),
        "gelu_tanh": nn.GELU(approximate="tanh"),
        "relu2": lambda y: y.relu() ** 2,
        "none": nn.Identity(),
    }[activation]
    out = act(out[:, :40]) * out[:, 40:] if gated else act(out)
    found = with_torch(given[0], SkinnyWeights.of(weight, b, row_norm), *given[4:])
    assert torch.allclose(found, out if added is None else out + added)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("B", "I", "O"), [(1, 768, 2304), (16, 768, 100), (5, 96, 48), (40, 2100, 64)]
)
@pytest.mark.parametrize(("norm", "gated", "bias", "residual", "activation"), CASES)
def test_the_kernel_agrees(norm, gated, bias, residual, activation, B, I, O, dtype):  # noqa: E741
    assert supports(dtype, torch.device("cuda"), B)
    words = {"norm": norm, "gated": gated, "bias": bias, "residual": residual}
    x, weight, b, row_norm, *rest, added = arguments(
        B, I, O, **words, activation=activation, device="cuda"
    )
    x, weight, b, added = (None if one is None else one.to(dtype) for one in (x, weight, b, added))
    if row_norm is not None:
        shift = row_norm.bias if row_norm.bias is None else row_norm.bias.to(dtype)
        row_norm = RowNorm(row_norm.weight.to(dtype), shift, 1e-5, row_norm.is_centered)
    weights = SkinnyWeights.of(weight, b, row_norm)
    out = skinny_linear(x, weights, activation=activation, is_gated=gated, residual_BO=added)
    want = with_torch(x, weights, *rest, added)
    assert torch.allclose(out.float(), want.float(), rtol=2e-2, atol=4e-2)
