"""A linear layer for a few rows, with the norm before it and what follows it in the same kernel.

With few rows, a step of generation consists of many kernels that each take a few microseconds, most
of it latency. One Triton kernel computes norm, matmul, activation and residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.kernels.probe import runs_triton

Activation = Literal["none", "gelu_tanh", "gelu", "relu2", "silu"]

MAX_ROWS = 64


class Tiles(NamedTuple):
    """How the kernel divides its work.

    Attributes:
        block_i: elements of a row that are read at a time.
        block_o: output columns of a program.
        num_warps: warps of a program.
        num_stages: blocks of rows that are on their way at once.
    """

    block_i: int
    block_o: int
    num_warps: int
    num_stages: int


# Measured on an H200 with 16 rows: for many output columns, and for few.
_WIDE, _NARROW = Tiles(128, 16, 2, 4), Tiles(256, 16, 2, 4)
_WIDE_COLUMNS = 1536


@dataclass(frozen=True, eq=False)
class RowNorm:
    """A normalization of each row.

    Attributes:
        weight: scale, [I].
        bias: shift, [I]; None adds nothing.
        eps: added to the variance or to the mean square.
        is_centered: whether the mean is subtracted, as LayerNorm does and RMSNorm does not.
    """

    weight: Tensor
    bias: Tensor | None
    eps: float
    is_centered: bool


@dataclass(frozen=True, eq=False)
class SkinnyWeights:
    """The weights of a layer, and what of its norm can be computed before the rows are known.

    norm(x) W^T = (x s W^T - mean s W^T) / deviation + shift W^T, with the norm's scale s.

    Attributes:
        weight_OI: the weight, contiguous.
        bias_O: the bias, shift W^T included, in float32 if there is a norm; None adds nothing.
        norm: the norm of the rows; None for none.
        of_mean_O: s W^T in float32, if the norm subtracts the mean.
    """

    weight_OI: Tensor
    bias_O: Tensor | None
    norm: RowNorm | None
    of_mean_O: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(
        cls, weight_OI: Tensor, bias_O: Tensor | None, norm: RowNorm | None = None
    ) -> SkinnyWeights:
        """Computes what does not depend on the rows."""
        if norm is None:
            return cls(weight_OI, bias_O, None, None)
        wide = torch.promote_types(weight_OI.dtype, torch.float32)
        with torch.autocast(weight_OI.device.type, enabled=False):
            shift_O = None if bias_O is None else bias_O.to(wide)
            if norm.bias is not None:
                of_bias_O = F.linear(norm.bias.to(wide), weight_OI.to(wide))
                shift_O = of_bias_O if shift_O is None else shift_O + of_bias_O
            of_mean_O = F.linear(norm.weight.to(wide), weight_OI.to(wide))
        return cls(weight_OI, shift_O, norm, of_mean_O if norm.is_centered else None)


def supports(dtype: torch.dtype, device: torch.device, num_rows: int) -> bool:
    """Whether the kernel computes a layer of this dtype and number of rows."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return is_half and num_rows <= MAX_ROWS and device.type == "cuda" and _runs(device)


def skinny_linear(
    x_BI: Tensor,
    weights: SkinnyWeights,
    *,
    activation: Activation = "none",
    is_gated: bool = False,
    residual_BO: Tensor | None = None,
) -> Tensor:
    """`residual + activation(norm(x) weight^T + bias)`, [B, O], in the dtype of x.

    Args:
        x_BI: at most `MAX_ROWS` contiguous rows.
        weights: weight, bias and norm.
        activation: applied to the result, in float32.
        is_gated: the first half of the result is activated and multiplied with the second, so that
            the output has half as many columns.
        residual_BO: is added at the end; None adds nothing.
    """
    run = _with_triton if x_BI.device.type == "cuda" else with_torch
    return run(x_BI, weights, activation, is_gated, residual_BO)


def with_torch(
    x_BI: Tensor,
    weights: SkinnyWeights,
    activation: Activation,
    is_gated: bool,
    residual_BO: Tensor | None,
) -> Tensor:
    """`skinny_linear` in plain torch operations."""
    wide = torch.promote_types(x_BI.dtype, torch.float32)
    weight_OI, norm = weights.weight_OI.to(wide), weights.norm
    x = x_BI.to(wide)
    if norm is None:
        out = F.linear(x, weight_OI)
    else:
        out = F.linear(x * norm.weight.to(wide), weight_OI)
        mean_B1, square_B1 = x.mean(-1, keepdim=True), x.square().mean(-1, keepdim=True)
        if weights.of_mean_O is not None:
            out = out - mean_B1 * weights.of_mean_O
            square_B1 = (square_B1 - mean_B1.square()).clamp_min(0)
        out = out * (square_B1 + norm.eps).rsqrt()
    if weights.bias_O is not None:
        out = out + weights.bias_O.to(wide)
    first, *rest = out.chunk(2, dim=-1) if is_gated else (out,)
    first = _activated(first, activation)
    out = first * rest[0] if rest else first
    return (out if residual_BO is None else out + residual_BO.to(wide)).to(x_BI.dtype)


def _activated(x: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(x)
    if activation == "relu2":
        return F.relu(x).square()
    if activation == "none":
        return x
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


@cache
def _runs(device: torch.device) -> bool:
    def launch() -> None:
        x, weight = (torch.ones(n, 32, device=device, dtype=torch.float16) for n in (1, 32))
        norm = RowNorm(weight[0], weight[1], 1e-5, is_centered=True)
        for weights in (SkinnyWeights.of(weight, None), SkinnyWeights.of(weight, None, norm)):
            for is_gated in (False, True):
                _with_triton(x, weights, "silu", is_gated, None)

    return runs_triton(device, launch, "generation")


def _with_triton(
    x_BI: Tensor,
    weights: SkinnyWeights,
    activation: Activation,
    is_gated: bool,
    residual_BO: Tensor | None,
) -> Tensor:
    from xftrain.kernels.skinny_linear_triton import linear_kernel  # imports triton

    weight_OI, norm = weights.weight_OI, weights.norm
    assert x_BI.is_contiguous() and weight_OI.is_contiguous()
    (B, I), O = x_BI.shape, weight_OI.shape[0] // (2 if is_gated else 1)  # noqa: E741
    out_BO = torch.empty(B, O, dtype=x_BI.dtype, device=x_BI.device)
    tiles = _WIDE if O >= _WIDE_COLUMNS else _NARROW
    with torch.cuda.device(x_BI.device):
        linear_kernel[(-(-O // tiles.block_o),)](
            x_BI,
            weight_OI,
            x_BI if weights.bias_O is None else weights.bias_O,
            x_BI if norm is None else norm.weight,
            x_BI if weights.of_mean_O is None else weights.of_mean_O,
            x_BI if residual_BO is None else residual_BO,
            out_BO,
            B,
            O,
            0.0 if norm is None else norm.eps,
            I=I,
            HAS_NORM=norm is not None,
            IS_CENTERED=weights.of_mean_O is not None,
            HAS_BIAS=weights.bias_O is not None,
            HAS_RESIDUAL=residual_BO is not None,
            ACTIVATION=activation,
            IS_GATED=is_gated,
            ROWS=max(16, 1 << (B - 1).bit_length()),
            BLOCK_I=tiles.block_i,
            BLOCK_O=tiles.block_o,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return out_BO
