"""Stand-ins for attention kernels, which save the same tensors for the backward pass.

Memory is predicted by running a block on fake tensors, which have sizes and no memory. Kernels do
not run on fake tensors, so a backend replaces its kernel by a stand-in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.model.attn._folding import Fold


def fused_kernel(q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: Any = None) -> Tensor:
    """Saves q, k, v, the output and one log-sum-exp per query, as FlashAttention does.

    Dao et al., 2022, arXiv:2205.14135. The output, [B, M, H, width of v], is not initialized.
    """
    out_BMHK: Tensor = _SavesItsInputs.apply(q_BMHK, k_BMGK, v_BMGK)
    return out_BMHK


def materialized_scores(
    q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, lengths: list[int], num_saved: int = 1
) -> Tensor:
    """Saves q, k and v in float32 (or float64), and the softmax of each document's scores.

    Args:
        q_BMHK: queries.
        k_BMGK: keys.
        v_BMGK: values.
        lengths: lengths of the documents in a row.
        num_saved: number of saved tensors of the size of the scores, the softmax included.
    """
    out_BMHK: Tensor = _SavesScores.apply(q_BMHK, k_BMGK, v_BMGK, lengths * num_saved)
    return out_BMHK


def folded(
    q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, fold: Fold | None, *, pads_v: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as passed to the kernel: with ALiBi features, and v padded if needed."""
    if fold is None:
        return q_BMHK, k_BMGK, v_BMGK
    q_BMHK, k_BMGK = fold(q_BMHK, k_BMGK)
    if pads_v:
        v_BMGK = F.pad(v_BMGK, (0, q_BMHK.shape[-1] - v_BMGK.shape[-1]))
    return q_BMHK, k_BMGK, v_BMGK


class _SavesItsInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, M, H, _ = q.shape
        out = q.new_empty(B, M, H, v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(B, H, M, dtype=torch.float32))
        return out


class _SavesScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        B, _, H, _ = q.shape
        wide = torch.promote_types(q.dtype, torch.float32)
        probs = [q.new_empty(B, H, length, length, dtype=wide) for length in lengths]
        ctx.save_for_backward(*(x.to(wide, copy=True) for x in (q, k, v)), *probs)
        return q.new_empty(*q.shape[:3], v.shape[-1])
