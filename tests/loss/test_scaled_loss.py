"""The factor of `loss=fused`, 1 over a number of labels, reaches its gradients in float32."""

from __future__ import annotations

import pytest
import torch

from xftrain.loss.fused import Fused


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_factor_is_not_rounded_to_16_bits(dtype, device):
    # 1 / labels would be rounded to bfloat16, and all gradients be up to 0.4 % off; torch's own
    # product in place does so on a GPU, and on a CPU only where it is told to
    torch.manual_seed(0)
    x = torch.randn(120, 16).to(device, dtype).requires_grad_()
    weight = torch.randn(40, 16).to(device, dtype).requires_grad_()
    labels = torch.randint(40, (120,)).to(device)
    factor = torch.tensor(1 + torch.finfo(dtype).eps * 0.45, device=device)
    assert factor.to(dtype) == 1
    grads = []
    for times in (torch.ones((), device=device), factor):
        sums = Fused(chunk_tokens=50)(x, weight, labels, with_accuracy=False)
        grads.append(torch.autograd.grad(sums.loss * times, [x, weight]))
    for one, scaled in zip(*grads, strict=True):
        assert torch.equal(scaled, (one.float() * factor).to(dtype))
        assert not torch.equal(scaled, one)
