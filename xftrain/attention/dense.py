"""Biases as one tensor, for kernels that take nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from xftrain.interfaces import AttnBias


def dense_bias(
    bias: AttnBias, num_positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The additive tensor [1, H or 1, M, M], and which queries see anything at all.

    Softmax over a row of -inf is NaN, and its gradient too. Such a row can only come from
    `additive_HMM`; it is set to 0 here, and the second result, [1, M, H or 1, 1] in {0, 1}, is to
    be multiplied into the output, so that a query that sees nothing gets 0. None means that every
    query sees itself.
    """
    wide = torch.promote_types(dtype, torch.float32)
    bias_1HMM = bias.materialize(num_positions, device, wide)[None]
    alive = None
    if bias.additive_HMM is not None:
        empty_1HM1 = torch.isneginf(bias_1HMM).all(dim=-1, keepdim=True)
        bias_1HMM = bias_1HMM.masked_fill(empty_1HM1, 0.0)
        alive = (~empty_1HM1).transpose(1, 2).to(dtype)
    return bias_1HMM.to(dtype), alive
