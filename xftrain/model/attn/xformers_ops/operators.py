"""Runs each of xFormers' operators by itself, to find out which of them run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from xftrain.model.attn.xformers_ops.loading import xformers_ops


def causal_kernels() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Causal attention of q, k and v, all [B, M, H, K], by the name of the forward operator.

    An operator without a backward pass gives a result without a gradient. Inputs that an operator
    does not support raise NotImplementedError.

    Raises:
        ImportError: xFormers cannot be imported.
    """
    fmha = xformers_ops().fmha
    backwards = {op.__module__: op for op in fmha.ALL_BW_OPS}  # one module per family
    pairs = {op.NAME: (op, backwards.get(op.__module__)) for op in fmha.ALL_FW_OPS}
    return {name: partial(_causal, pair) for name, pair in pairs.items()}


def _causal(pair: tuple[Any, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ops = xformers_ops()
    mask = ops.fmha.attn_bias.LowerTriangularMask()
    if pair[1] is None:  # an operator for inference
        q, k, v = q.detach(), k.detach(), v.detach()
    try:
        out: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=mask, op=pair)
    except ValueError as error:  # raised for inputs that the operator does not support
        raise NotImplementedError(str(error)) from error
    return out
