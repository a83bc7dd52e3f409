"""The soft cap of logits and of scores (Gemma 2, Riviere et al., 2024, arXiv:2408.00118)."""

import torch
from torch import Tensor


def softcapped(logits: Tensor, cap: float) -> Tensor:
    """`cap * tanh(logits / cap)`, in float32 or wider, so that capped logits are not rounded."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (wide / cap).tanh() * cap
