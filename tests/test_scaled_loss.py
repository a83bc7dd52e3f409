"""The factor of `loss=fused`, 1 over a number of labels, reaches its gradients in float32."""

from __future__ import annotations

import pytest
import torch

from xftrain.losses.fused import Fused


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_factor_is_not_rounded_to_16_bits(dtype):
    # 1 / labels was rounded to bfloat16: all gradients were up to 0.4 % too large or too small
    torch.manual_seed(0)
    x = torch.randn(120, 16).to(dtype).requires_grad_()
    weight = torch.randn(40, 16).to(dtype).requires_grad_()
    labels = torch.randint(40, (120,))
    factor = torch.tensor(1 + torch.finfo(dtype).eps * 0.45)  # which would be rounded to 1
    assert factor.to(dtype) == 1
    grads = []
    for times in (torch.tensor(1.0), factor):
        sums = Fused(chunk_tokens=50)(x, weight, labels, with_accuracy=False)
        grads.append(torch.autograd.grad(sums.loss * times, [x, weight]))
    for one, scaled in zip(*grads, strict=True):
        assert torch.equal(scaled, (one.float() * factor).to(dtype))
        assert not torch.equal(scaled, one)
