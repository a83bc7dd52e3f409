"""Attention over whole prompts, for any causal bias, in memory that is linear in their length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.interfaces import AttnBias
from xftrain.model.attn._dense import (
    dense_bias,
    masked_attention,
    masked_kernels,
    unfused_attention,
)

_QUERIES = 512  # queries at a time, where the bias is a tensor


def attend_prompt(q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, bias: AttnBias) -> Tensor:
    """Attention of all positions, [B, M, H, K].

    Args:
        q_BMHK: queries.
        k_BMGK: keys.
        v_BMGK: values.
        bias: a causal bias without documents.
    """
    num_positions, K = q_BMHK.shape[1], q_BMHK.shape[-1]
    scale = K**-0.5 if bias.scale is None else bias.scale
    if bias.window is None and bias.slopes is None and bias.softcap is None:
        q, k, v = (x.transpose(1, 2) for x in (q_BMHK, k_BMGK, v_BMGK))
        grouped = k.shape[1] != q.shape[1]
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )
        return out.transpose(1, 2)
    parts = []
    for begin in range(0, num_positions, _QUERIES):
        end = min(begin + _QUERIES, num_positions)
        q, k, v = q_BMHK[:, begin:end], k_BMGK[:, :end], v_BMGK[:, :end]
        mask, query_mask = dense_bias(bias, end, q.dtype, q.device, first_query=begin)
        if bias.softcap is not None:  # torch's attention has no soft cap
            out = unfused_attention(q, k, v, mask, query_mask, scale=scale, softcap=bias.softcap)
        else:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            with masked_kernels(q.device):
                out = masked_attention(q, k, v, mask, scale=scale).transpose(1, 2)
        parts.append(out)
    return torch.cat(parts, dim=1)
