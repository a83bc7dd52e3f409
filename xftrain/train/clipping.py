"""Clips the gradients of a step by their norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xftrain.kernels.fused_adamw import FusedAdamW, gradient_norm


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float | None) -> Tensor:
    """Clips gradients to the norm `limit`, if it is not None, and returns their norm.

    Args:
        optimizer: the optimizer, whose parameters have their gradients.
        limit: maximum norm.
    """
    if isinstance(optimizer, FusedAdamW):
        return optimizer.clip(limit)
    limit = math.inf if limit is None else limit
    # the optimizer's list, since traversing the modules would take longer than clipping
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in parameters if p.grad is not None]
    if len({grad.dtype for grad in grads}) <= 1:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    # torch would sum up the squares of bfloat16 gradients in bfloat16
    norm = gradient_norm(grads)
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)  # as in clip_grad_norm_
    for dtype in {grad.dtype for grad in grads}:
        torch._foreach_mul_([grad for grad in grads if grad.dtype == dtype], factor)
    return norm
