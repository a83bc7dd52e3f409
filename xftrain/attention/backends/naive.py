"""The standard attention: scores materialized, softmax in float32.

The baseline that people compare with, not a slow version of something else; memory grows with M^2.
Vaswani et al., 2017, arXiv:1706.03762.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xftrain.attention.dense import dense_bias
from xftrain.interfaces import AttnBias, AttnShape, Backend


@dataclass(frozen=True)
class _Handle:
    scale: float
    bias_1HMM: Tensor | None
    alive: Tensor | None


class Naive(Backend):
    """`softmax(q k^T * scale + bias) v` with M x M scores in float32 (float64 for float64)."""

    name = "naive"
    rank = 90

    def unsupported(
        self,
        bias: AttnBias,
        shape: AttnShape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        needs_grad: bool = True,
    ) -> list[str]:
        """Nothing is: this is plain torch."""
        return []

    def prepare(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> _Handle:
        """The bias as one float32 tensor; nothing where everything is visible."""
        if not bias.causal and bias.seqlens is None and bias.additive_HMM is None:
            return _Handle(shape.scale, None, None)
        wide = torch.promote_types(dtype, torch.float32)
        bias_1HMM, alive = dense_bias(bias, shape.M, wide, device)
        return _Handle(shape.scale, bias_1HMM, alive)

    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: _Handle) -> Tensor:
        """Attention; query heads of a group share their K/V head without a copy of it."""
        B, M, H, K = q_BMHK.shape
        G = k_BMGK.shape[2]
        wide = torch.promote_types(q_BMHK.dtype, torch.float32)
        # autocast would take the scores back to 16 bits
        with torch.autocast(q_BMHK.device.type, enabled=False):
            # Query heads [H] = [G, H/G]: those of a group become further rows of one product.
            q = q_BMHK.to(wide).transpose(1, 2).reshape(B, G, H // G * M, K)
            k = k_BMGK.to(wide).transpose(1, 2)
            v = v_BMGK.to(wide).transpose(1, 2)
            scores_BHMM = (q @ k.transpose(-2, -1) * handle.scale).view(B, H, M, -1)
            if handle.bias_1HMM is not None:
                scores_BHMM = scores_BHMM + handle.bias_1HMM
            probs = scores_BHMM.softmax(dim=-1).view(B, G, H // G * M, -1)
            out_BMHK = (probs @ v).view(B, H, M, K).transpose(1, 2)
            if handle.alive is not None:
                out_BMHK = out_BMHK * handle.alive
        return out_BMHK.to(q_BMHK.dtype)

    def kernel(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> str:
        """Always the same."""
        return "naive"
