"""Grouped heads through xFormers' FlashAttention-2 operators, without expanding K/V.

xFormers' own `memory_efficient_attention` needs one key head per query head (4-D inputs), or cannot
train (5-D inputs: `SUPPORTS_BMGHK` is false in every backward operator). The underlying kernels
read each K/V head for its whole group, so both operators are called here without those checks.
Source: xformers/ops/fmha/flash.py, `FwOp.apply` and `BwOp.apply` of 0.0.35.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xftrain.model.attn.xformers_ops.loading import xformers_ops

fmha = xformers_ops().fmha
_Forward, _Backward = fmha.flash.FwOp, fmha.flash.BwOp


def runs_grouped(forward: Any, backward: Any) -> bool:
    """Whether these operators, which xFormers chose for expanded K/V, take grouped K/V too."""
    return bool(forward is _Forward and backward is _Backward)


def grouped_attention(
    q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, *, attn_bias: Any, scale: float, op: Any
) -> Tensor:
    """Attention like `memory_efficient_attention`, with H a multiple of G; `op` must be None."""
    out: Tensor = _Grouped.apply(q_BMHK, k_BMGK, v_BMGK, attn_bias, scale)
    return out


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, attn_bias: Any, scale: float) -> Tensor:
        inputs = fmha.Inputs(q, k, v, attn_bias, 0.0, scale)
        out, context = _Forward.apply(inputs, needs_gradient=True)
        ctx.save_for_backward(q, k, v, out, context.lse)
        ctx.attn_bias, ctx.scale = attn_bias, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        inputs = fmha.Inputs(q, k, v, ctx.attn_bias, 0.0, ctx.scale)
        grads = _Backward.apply(fmha.Context(lse=lse, out=out), inputs, grad)
        return grads.dq, grads.dk, grads.dv, None, None
