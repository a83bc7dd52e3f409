"""Compiled code under an activation budget draws the same random numbers in both passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from functorch.compile import min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn import functional as F

from tests.models import gpt, random_tokens
from xftrain.utils.compilation import configure_compilation, reset_compilation

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    reset_compilation()
    torch._dynamo.reset()


def error_of_gradient(module: nn.Module, loss: Callable[[], Tensor]) -> float:
    """The gradient along a direction against the difference of two losses, relative to it.

    Args:
        module: in float64.
        loss: draws the same random numbers in every call.
    """
    loss().backward()
    parameters = [p for p in module.parameters() if p.grad is not None]
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]
    steps = [step.to(p.device) for step, p in zip(steps, parameters, strict=True)]
    pairs = list(zip(parameters, steps, strict=True))
    along = sum(float((p.grad * step).sum()) for p, step in pairs if p.grad is not None)
    size, losses = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, step in pairs:
                p += sign * size * step
            losses.append(float(loss()))
    want = (losses[0] - losses[1]) / (2 * size)
    return abs(along - want) / abs(want)


class Noisy(nn.Module):
    """Random numbers of three kinds, between products that a budget recomputes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(F.gelu(self.up(x)), 0.3)
        h = h * (1 + torch.randn_like(h).tanh())
        return x + F.dropout(self.down(h * torch.bernoulli(torch.full_like(h, 0.5))), 0.3)


@pytest.mark.parametrize("budget", [0.0, 0.5])
def test_random_numbers_are_drawn_once(budget: float) -> None:
    # torch drew them anew in the backward pass: gradients were 50 to 80 % off (pytorch#190758)
    torch.manual_seed(0)
    layers = nn.Sequential(Noisy(), Noisy()).double()
    x = torch.randn(16, 8, dtype=torch.float64)
    configure_compilation(budget)
    compiled = torch.compile(layers, backend="aot_eager_decomp_partition")

    def loss() -> Tensor:
        torch.manual_seed(7)
        return compiled(x).square().sum()

    assert error_of_gradient(layers, loss) < 1e-6


def test_random_numbers_that_cannot_be_kept_are_refused() -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.native_dropout(x.sin(), 0.5, True)[0].cos()

    configure_compilation(0.5)
    x = torch.randn(4, requires_grad=True)
    backend = aot_autograd(
        fw_compiler=lambda graph, _: graph, partition_fn=min_cut_rematerialization_partition
    )
    with pytest.raises(BackendCompilerFailed, match="activation_budget must be 1 for layers"):
        torch.compile(Several(), backend=backend)(x)


@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.cuda)],
)
def test_a_compiled_block_with_dropout_and_a_budget(device: str) -> None:
    model = gpt(
        dropout=0.3, ffn="gelu", num_layers=1, activation_budget=0.3, scale=4.0, attn="sdpa"
    )
    model = model.double().train().to(device)
    tokens = random_tokens(2, 16).to(device)
    model.compile_blocks(packed=False)

    def loss() -> Tensor:
        torch.manual_seed(7)
        return model(tokens).sin().sum()

    assert error_of_gradient(model, loss) < 1e-5
