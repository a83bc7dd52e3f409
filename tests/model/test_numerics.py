"""Numbers of layers and losses that a narrower dtype would change by little, but would change."""

from __future__ import annotations

import pytest
import torch

from xftrain.loss.fused import Fused
from xftrain.model.pos.rope import RoPE, rotate


@pytest.mark.parametrize(("base", "head_dim"), [(10000.0, 128), (500000.0, 64)])
def test_ropes_frequencies_are_powers_in_float64(base: float, head_dim: int) -> None:
    # those of float32 are off by up to its last bit, an angle of a hundredth at a position of 10^5
    cos, sin = RoPE(head_dim, head_dim, base=base).prepare(torch.tensor([[2**20]]))
    powers = [base ** (-2 * pair / head_dim) for pair in range(head_dim // 2)]
    angles = torch.tensor(powers) * 2**20  # exact
    assert torch.equal(cos.flatten(), angles.cos()) and torch.equal(sin.flatten(), angles.sin())


def test_rope_turns_float64_in_float64() -> None:
    rotation = RoPE(8, 8).prepare(torch.arange(5)[None])
    x = torch.randn(1, 5, 1, 8, dtype=torch.float64)
    turned = rotate(x, rotation)
    cos, sin = (part.double() for part in rotation)
    assert torch.equal(turned[..., :4], x[..., :4] * cos - x[..., 4:] * sin)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_gradients_are_scaled_in_float32(dtype: torch.dtype, device: str) -> None:
    # 1 / labels in 16 bits is off by up to 2^-9, the same in all gradients
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 16, generator=draw).to(device, dtype).requires_grad_()
    weight = torch.randn(32, 16, generator=draw).to(device, dtype).requires_grad_()
    labels = torch.randint(32, (64,), generator=draw).to(device)
    whole, scaled = (
        torch.autograd.grad(
            Fused(chunk_tokens=20)(x, weight, labels, with_accuracy=False).loss * factor,
            (x, weight),
        )
        for factor in (1.0, 1 / 300)
    )
    for grad, part in zip(whole, scaled, strict=True):
        assert torch.equal(part, (grad.float() * (torch.ones((), device=device) / 300)).to(dtype))
