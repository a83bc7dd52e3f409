"""A stand-in for the Triton kernel of AdamW on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xftrain.kernels import fused_adamw
from xftrain.kernels.adamw import AdamWSettings, AdamWTensors
from xftrain.optim.adamw import AdamW


def plainly(held: AdamWTensors, settings: AdamWSettings) -> None:
    """Computes the kernel's step in torch, without a change of the weight's version counter."""
    if settings.skip is not None and settings.skip:
        return
    grad = held.grad.float() * (1.0 if settings.clip is None else settings.clip)
    weight, (beta1, beta2) = held.weight.data, settings.betas
    held.exp_avg.lerp_(grad, 1 - beta1)
    held.exp_avg_sq.lerp_(grad * grad, 1 - beta2)
    rate, step = settings.lr, held.step
    weight.mul_(1 - rate * settings.weight_decay)
    denominator = (held.exp_avg_sq / (1 - beta2**step)).sqrt() + settings.eps
    weight.sub_(rate / (1 - beta1**step) * held.exp_avg / denominator)
    if held.copy is not None:
        held.copy.data.copy_(weight)


@pytest.fixture
def adamw_on_cpu(monkeypatch):
    monkeypatch.setattr(fused_adamw, "adamw_", plainly)
    monkeypatch.setattr(fused_adamw, "_LARGE", 32 * 32)
    monkeypatch.setattr(AdamW, "uses_fused_adamw", lambda self, device: self.impl == "auto")


def weights(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    sizes = [(64, 32), (32, 64), (32,), (2, 3)]
    return [nn.Parameter(torch.randn(size)) for size in sizes]
