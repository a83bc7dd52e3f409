"""What the backend needs of xFormers: its attention, its masks, and the operators that would run.

A mask and an operator are objects of xFormers, which the caller only passes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xftrain.model.attn.xformers_ops.loading import xformers_ops

Operators = tuple[Any, Any]  # of the forward and the backward pass


def attention_function() -> Callable[..., Tensor]:
    """xFormers' attention of q, k, v with `attn_bias`, `scale` and `op`, all of them [B, M, H, K].

    Compiled code must not look it up.
    """
    found: Callable[..., Tensor] = xformers_ops().memory_efficient_attention
    return found


def cpu_operators() -> Operators:
    """This project's operators for the CPU, for which xFormers has none; the argument `op`."""
    from xftrain.model.attn.xformers_ops.cpu import CPUBackward, CPUForward

    return CPUForward, CPUBackward


def mask_for(
    device: torch.device, *, causal: bool, window: int | None, seqlens: Sequence[int] | None
) -> Any:
    """xFormers' mask with the meaning of these facts of a bias; None if everything is visible."""
    masks = xformers_ops().fmha.attn_bias
    if seqlens is not None:
        kind = masks.BlockDiagonalCausalMask if causal else masks.BlockDiagonalMask
        mask = kind.from_seqlens(list(seqlens), device=device)
        return mask if window is None else mask.make_local_attention(window)
    if not causal:
        return None
    if window is None:
        return masks.LowerTriangularMask()
    return masks.LowerTriangularFromBottomRightMask().make_local_attention(window)


def operators_for(
    shape_BMHK: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    mask: Any,
    scale: float,
    is_packed: bool,
    needs_grad: bool,
) -> Operators:
    """The operators that would run for q, k and v of this shape.

    Raises:
        NotImplementedError: none runs; the message lists xFormers' reasons in one line.
    """
    fmha = xformers_ops().fmha
    q, k, v = (torch.empty(*shape_BMHK, dtype=dtype, device=device) for _ in range(3))
    inputs = fmha.Inputs(q, k, v, mask, scale=scale)
    if device.type == "cpu":
        for op in cpu_operators():
            if reasons := op.not_supported_reasons(inputs):
                raise NotImplementedError("; ".join(reasons))
        return cpu_operators()
    try:
        forward = fmha._dispatch_fw(inputs, needs_gradient=needs_grad)
        packed_lse = forward.VARLEN_LSE_PACKED if is_packed else None
        return forward, fmha._dispatch_bw(inputs, varlen_lse_packed=packed_lse)
    except NotImplementedError as error:
        raise NotImplementedError(_one_line(error)) from error


def operators_name(operators: Operators) -> str:
    """The name of a pair of operators, with both names if they are of different families."""
    forward, backward = operators
    name = str(forward.NAME)
    if backward.NAME.replace("B", "F", 1) != name and not name.startswith("cpu"):
        name += f"+{backward.NAME}"
    return name


def _one_line(error: Exception) -> str:
    """xFormers' list of operators and reasons as one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith(("query", "key ")))
