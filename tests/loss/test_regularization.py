"""z-loss, label smoothing and the cap of logits, against plain torch in float64."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from xftrain.benchmark.reference import relative_error
from xftrain.interfaces import IGNORED_LABEL, Loss, LossSums
from xftrain.loss.auto import Auto
from xftrain.loss.chunked import Chunked
from xftrain.loss.full import Full
from xftrain.loss.fused import Fused
from xftrain.loss.liger import Liger

KINDS = {
    "full": Full,
    "chunked": lambda **terms: Chunked(chunk_tokens=3, **terms),
    "fused": lambda **terms: Fused(chunk_tokens=3, **terms),
    "auto": Auto,
}


def inputs(num_tokens: int, vocab: int, ignored: float, seed: int) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    x_ND = 2 * torch.randn(num_tokens, 6, generator=draw)
    weight_VD = torch.randn(vocab, 6, generator=draw)
    labels_N = torch.randint(vocab, (num_tokens,), generator=draw)
    labels_N[torch.rand(num_tokens, generator=draw) < ignored] = IGNORED_LABEL
    return x_ND, weight_VD, labels_N


def sums_and_grads(
    loss: Loss, x: Tensor, weight: Tensor, labels: Tensor, softcap: float | None
) -> tuple[LossSums, list[Tensor]]:
    leaves = [one.detach().requires_grad_() for one in (x, weight)]
    capped = {} if softcap is None else {"softcap": softcap}
    sums = loss(*leaves, labels, with_accuracy=True, **capped)
    return sums.detached(), list(torch.autograd.grad(sums.minimized * 0.5, leaves))


def reference(
    x: Tensor, weight: Tensor, labels: Tensor, softcap: float | None, z: float, smoothing: float
) -> tuple[float, float, int, list[Tensor]]:
    """The cross-entropy, what is added to it, correct predictions and gradients, in float64."""
    leaves = [one.double().requires_grad_() for one in (x, weight)]
    logits = F.linear(*leaves)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    plain = F.cross_entropy(logits, labels, reduction="sum")
    smooth = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    log_z = torch.log(logits.exp().sum(-1))[labels != IGNORED_LABEL]
    minimized = smooth + z * (log_z**2).sum()
    correct = int((logits.argmax(-1) == labels).sum())
    added = float((minimized - plain).detach())
    return float(plain.detach()), added, correct, list(torch.autograd.grad(minimized * 0.5, leaves))


@given(
    num_tokens=st.integers(1, 9),
    vocab=st.integers(2, 12),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
    terms=st.sampled_from([(0.0, 0.0), (0.1, 0.0), (0.0, 0.3), (1e-4, 0.1), (2.0, 0.9)]),
    softcap=st.sampled_from([None, 1.5, 30.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
@example(num_tokens=7, vocab=11, ignored=0.4, terms=(0.1, 0.3), softcap=1.5, seed=0)
def test_sums_and_gradients_are_those_of_float64(
    num_tokens, vocab, ignored, terms, softcap, seed
) -> None:
    z_loss, smoothing = terms
    batch = inputs(num_tokens, vocab, ignored, seed)
    plain, added, correct, right = reference(*batch, softcap, z_loss, smoothing)
    for make in KINDS.values():
        loss = make(z_loss=z_loss, label_smoothing=smoothing)
        sums, grads = sums_and_grads(loss, *batch, softcap)
        assert float(sums.loss) == pytest.approx(plain, rel=1e-5, abs=1e-5)
        assert (sums.regularization is None) == (terms == (0.0, 0.0))
        assert float(sums.minimized - sums.loss) == pytest.approx(added, rel=1e-4, abs=1e-4)
        assert sums.num_labels == (batch[2] != IGNORED_LABEL).sum() and sums.num_correct == correct
        for grad, want in zip(grads, right, strict=True):
            torch.testing.assert_close(grad, want.float(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_logits_are_capped_in_float32(kind) -> None:
    x, weight, labels = inputs(40, 30, 0.2, 0)
    with torch.autocast("cpu", torch.bfloat16):
        sums, grads = sums_and_grads(
            KINDS[kind](z_loss=0.1, label_smoothing=0.1), x, weight, labels, 2.0
        )
    logits = (x.bfloat16() @ weight.bfloat16().T).float()
    capped = 2.0 * torch.tanh(logits / 2.0)
    assert sums.loss.dtype == torch.float32
    want = F.cross_entropy(capped, labels, reduction="sum")
    assert float(sums.loss) == pytest.approx(float(want), rel=1e-6)
    *_, right = reference(x, weight, labels, 2.0, 0.1, 0.1)
    for grad, one in zip(grads, right, strict=True):
        assert relative_error(grad, one) < 2e-2


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_added_where_nothing_is_asked_for(kind) -> None:
    # with 0 and null the result is that of before, bit for bit
    x, weight, labels = inputs(9, 12, 0.4, 0)
    made = KINDS[kind]()
    sums, grads = sums_and_grads(made, x, weight, labels, None)
    leaves = [one.clone().requires_grad_() for one in (x, weight)]
    plain = F.cross_entropy(F.linear(*leaves), labels, reduction="sum")
    assert sums.regularization is None and sums.minimized is sums.loss
    if kind in ("full", "auto"):
        assert torch.equal(sums.loss, plain)
        right = torch.autograd.grad(plain * 0.5, leaves)
        assert all(map(torch.equal, grads, right))


def test_equal_capped_logits_count_as_the_first() -> None:
    # both logits are above what float32 tells apart below the cap: the first is the prediction
    x, weight = torch.ones(1, 1), torch.tensor([[50.0], [60.0]])
    for make in KINDS.values():
        got = [
            make()(x, weight, torch.tensor([label]), with_accuracy=True, softcap=1.0).num_correct
            for label in (0, 1)
        ]
        assert got == [1, 0]


def test_a_row_without_a_label_adds_nothing_whatever_it_holds() -> None:
    x, weight, labels = inputs(3, 5, 0.0, 0)
    labels[1] = IGNORED_LABEL
    x[1] = torch.inf
    loss = Fused(z_loss=0.1, label_smoothing=0.1)
    sums, (grad_x, _) = sums_and_grads(loss, x, weight, labels, 2.0)
    assert sums.minimized.isfinite() and grad_x.isfinite().all()


def test_memory_grows_with_what_is_saved() -> None:
    # float32 tensors [N, V], as measured: the terms need two more, and a cap its tanh
    device, weight = torch.device("cpu"), torch.empty(500, 4)
    for make in (Full, Chunked):
        sizes = [
            make(**terms).peak_bytes(64, weight, torch.float32, device, softcap)
            for terms, softcap in (({}, None), ({}, 2.0), ({"z_loss": 0.1}, 2.0))
        ]
        assert [size / (4 * 64 * 500) for size in sizes] == [3, 4, 6]
    plain, capped = (
        Fused().peak_bytes(64, weight, torch.float32, device, softcap) for softcap in (None, 2.0)
    )
    assert capped - plain == 4 * 64 * 500  # where Triton does not run


def test_auto_passes_the_terms_to_what_it_chooses(monkeypatch) -> None:
    monkeypatch.setattr("xftrain.loss.auto.has_kernel", lambda device: True)
    loss = Auto(z_loss=0.1, label_smoothing=0.2).choice(8, 64, torch.device("cuda"))
    assert isinstance(loss, Fused) and loss.regularization == (0.1, 0.2)


def test_liger_gets_the_terms_and_the_cross_entropy_is_told_apart(monkeypatch) -> None:
    # a stand-in for the kernel, which needs a GPU: it returns one sum
    given: list[tuple[object, ...]] = []

    class Function:
        @staticmethod
        def apply(x_ND, weight_VD, labels_N, *options):
            given.append(options)
            z_loss, smoothing, softcap = options[3], options[4], options[6]
            full = Full(z_loss=z_loss, label_smoothing=smoothing)
            sums = full(x_ND, weight_VD, labels_N, with_accuracy=False, softcap=softcap)
            return sums.minimized, None

    name = "liger_kernel.ops.fused_linear_cross_entropy"
    for part in ("liger_kernel", "liger_kernel.ops", name):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    vars(sys.modules[name])["LigerFusedLinearCrossEntropyFunction"] = Function

    batch = inputs(9, 12, 0.4, 0)
    sums, grads = sums_and_grads(Liger(z_loss=0.1, label_smoothing=0.2), *batch, 2.0)
    want, right = sums_and_grads(Full(z_loss=0.1, label_smoothing=0.2), *batch, 2.0)
    for mine, theirs in zip(sums, want, strict=True):
        assert mine is theirs is None or torch.allclose(mine, theirs, rtol=1e-5)
    for grad, one in zip(grads, right, strict=True):
        torch.testing.assert_close(grad, one)
    assert given == [(None, None, IGNORED_LABEL, 0.1, 0.2, "sum", 2.0)]
    assert Liger()(*batch, with_accuracy=True, softcap=2.0).num_correct == want.num_correct
    assert Liger(z_loss=1.0).peak_bytes(64, batch[1], torch.float32, torch.device("cuda")) > (
        Liger().peak_bytes(64, batch[1], torch.float32, torch.device("cuda"))
    )
