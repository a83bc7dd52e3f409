"""A backend that declares no memory is measured, and never predicted below one that does."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.memory.measured import CPU, Alive
from tests.models import VOCAB, changed, options, random_tokens
from xftrain.commands.builder import assemble
from xftrain.interfaces import AttnBias, AttnCall, AttnShape, Backend, Batch, positions_of
from xftrain.loss.full import Full
from xftrain.memory.plan import plan_memory
from xftrain.memory.transient import attention_transient
from xftrain.model.attn.naive import Naive
from xftrain.model.attn.sdpa import SDPA


class Silent(Naive):
    """A copy of `naive` without the methods for memory."""

    stand_in = Backend.stand_in  # type: ignore[assignment]
    transient_bytes = Backend.transient_bytes  # type: ignore[assignment]


class _WaitsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        return out.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * float(grad.sum().item() > 0)  # fake tensors have no numbers


class Opaque(Silent):
    """A backend whose backward pass cannot run on fake tensors."""

    def __call__(self, *inputs: Any) -> Tensor:
        out: Tensor = _WaitsInBackward.apply(super().__call__(*inputs))
        return out


class Kernel(SDPA):
    """A kernel that says which tensors it saves, and nothing of its temporary memory."""

    transient_bytes = Backend.transient_bytes  # type: ignore[assignment]

    def __call__(self, *inputs: Any) -> Tensor:
        return super().__call__(inputs[0] * float(inputs[0].sum().item() > 0), *inputs[1:])


def predicted(
    backend: Backend, seqlens: tuple[int, ...] | None = None, is_bf16: bool = False, **model: Any
) -> float:
    precision = "bf16-mixed" if is_bf16 else "32-true"
    settings = changed(options(num_layers=4, **model), {"trainer.precision": precision})
    gpt = assemble(settings.model, VOCAB)
    gpt.backend = gpt.attention = backend
    tokens_BM = random_tokens(1 if seqlens else 4, 256)
    batch = Batch(tokens_BM, tokens_BM, positions_of(256, seqlens), seqlens)
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    found = plan_memory(settings, gpt, Full(), batch, dtype, CPU)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"heads": "gqa", "pos": "rope"},
        {"heads": "mqa", "bias": "alibi"},
        {"seqlens": (100, 156)},
        {"is_bf16": True},
    ],
    ids=str,
)
def test_a_copy_of_naive_without_methods_is_predicted_as_naive(run, caplog):
    want = predicted(Naive(), **run)
    with caplog.at_level(logging.INFO, "xftrain.memory.plan"):
        got = predicted(Silent(), **run)
    assert want <= got <= 1.05 * want
    assert caplog.text.count("no transient_bytes, so it was measured on fake tensors") == 1


@pytest.mark.parametrize("kind", [Opaque, Kernel])
def test_what_cannot_be_measured_is_assumed_and_named(kind, caplog):
    declared = predicted(Naive() if kind is Opaque else SDPA())
    with caplog.at_level(logging.INFO, "xftrain.memory.plan"):
        assert predicted(kind()) >= declared + (0 if kind is Opaque else 1e-3)
    assert caplog.text.count("is assumed to hold its largest tensor once more") == 1


def test_the_measured_bytes_are_those_of_a_real_pass():
    call = AttnCall(AttnBias(), AttnShape(B=2, M=128, H=4, G=2, K=16), torch.float32, CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        transient = attention_transient(Silent(), call)
    backend, scores = Silent(), 2 * 4 * 128 * 128 * 4
    handle = backend.prepare(*call)
    q, k, v = (torch.randn(2, 128, heads, 16, requires_grad=True) for heads in (4, 2, 2))
    with Alive() as alive:
        out = backend(q, k, v, handle)
        alive.peak = 0
        grad = torch.ones_like(out)
        before = alive.peak
        torch.autograd.grad(out, (q, k, v), grad)
    # the softmax is saved; its gradient and that of the scores are alive at once
    assert transient.source == "measured" and transient.num_bytes >= scores
    assert transient.num_bytes == pytest.approx(alive.peak - before - scores, rel=0.02)
