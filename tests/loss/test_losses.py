"""The losses give the same sums and gradients, however the logits are cut up."""

from __future__ import annotations

import importlib.util
import logging
import sys
from types import ModuleType
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from xftrain.benchmark.reference import relative_error
from xftrain.interfaces import IGNORED_LABEL, Loss, LossSums
from xftrain.loss import auto
from xftrain.loss.auto import Auto
from xftrain.loss.chunked import Chunked
from xftrain.loss.full import Full
from xftrain.loss.fused import Fused, _accumulate_matmul_
from xftrain.loss.liger import Liger
from xftrain.utils.device_memory import total_memory_bytes


def inputs(num_tokens: int, vocab: int, dim: int, ignored: float, seed: int) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(num_tokens, dim, generator=draw)
    weight_VD = torch.randn(vocab, dim, generator=draw)
    labels_N = torch.randint(vocab, (num_tokens,), generator=draw)
    labels_N[torch.rand(num_tokens, generator=draw) < ignored] = IGNORED_LABEL
    return x_ND, weight_VD, labels_N


def sums_and_grads(
    loss: Loss, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, factor: float = 1.0
) -> tuple[LossSums, list[Tensor]]:
    leaves = [x.detach().requires_grad_() for x in (x_ND, weight_VD)]
    sums = loss(*leaves, labels_N, with_accuracy=True)
    return sums, list(torch.autograd.grad(sums.loss * factor, leaves))


@given(
    num_tokens=st.integers(1, 20),
    chunk_tokens=st.integers(1, 25),
    vocab=st.integers(2, 30),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_in_chunks_it_is_the_same_as_in_full(num_tokens, chunk_tokens, vocab, ignored, seed):
    x, weight, labels = inputs(num_tokens, vocab, 6, ignored, seed)
    full, full_grads = sums_and_grads(Full(), x, weight, labels)
    for kind in (Chunked, Fused):
        sums, grads = sums_and_grads(kind(chunk_tokens=chunk_tokens), x, weight, labels)
        assert torch.allclose(sums.loss, full.loss, rtol=1e-5, atol=1e-5)
        assert sums.num_labels == full.num_labels
        assert sums.num_correct == full.num_correct
        for mine, right in zip(grads, full_grads, strict=True):
            assert torch.allclose(mine, right, rtol=1e-4, atol=1e-5)


@given(num_tokens=st.integers(1, 20), vocab=st.integers(2, 30), seed=st.integers(0, 99))
def test_full_is_what_loops_say(num_tokens, vocab, seed):
    x, weight, labels = inputs(num_tokens, vocab, 6, 0.3, seed)
    total, correct, counted = 0.0, 0, 0
    for x_D, label in zip(x.double(), labels.tolist(), strict=True):
        if label == IGNORED_LABEL:
            continue
        logits = [float(row @ x_D) for row in weight.double()]
        total += torch.tensor(logits).double().logsumexp(0).item() - logits[label]
        correct += logits.index(max(logits)) == label
        counted += 1
    sums = Full()(x, weight, labels, with_accuracy=True)
    assert float(sums.loss) == pytest.approx(total, rel=1e-4, abs=1e-4)
    assert (int(sums.num_labels), int(sums.num_correct)) == (counted, correct)


@pytest.mark.parametrize("loss", [Full(), Chunked(chunk_tokens=3), Fused(chunk_tokens=3), Auto()])
def test_accuracy_is_counted_where_it_is_asked_for(loss):
    x, weight, labels = inputs(10, 5, 6, 0.3, 0)
    assert loss(x, weight, labels, with_accuracy=False).num_correct is None
    with torch.no_grad():  # as in validation
        assert loss(x, weight, labels, with_accuracy=True).num_correct is not None


def test_no_logits_are_kept():
    # what autograd keeps for the backward pass must not hold N x V numbers
    x, weight, labels = inputs(64, 500, 6, 0.0, 0)
    kept = {}
    losses = (("full", Full()), ("chunked", Chunked(chunk_tokens=8)), ("fused", Fused()))
    for name, loss in losses:
        sizes: dict[int, int] = {}  # by place, as the weight is kept for every chunk
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            sums = loss(x, weight, labels, with_accuracy=False)
        kept[name] = sum(sizes.values())
        del sums
    assert kept["full"] > 64 * 500
    assert kept["chunked"] < 64 * 500 // 8
    assert kept["fused"] < 64 * 500 // 8


def test_under_autocast_all_compute_in_the_same_dtype():
    x, weight, labels = inputs(32, 20, 16, 0.2, 0)
    results = []
    for loss in (Full(), Chunked(chunk_tokens=5), Fused(chunk_tokens=5)):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(sums_and_grads(loss, x, weight, labels))
    (full, full_grads), *others = results
    for sums, grads in others:
        assert full.loss.dtype == sums.loss.dtype == torch.float32
        assert torch.allclose(sums.loss, full.loss, rtol=1e-5)
        for mine, right in zip(grads, full_grads, strict=True):
            assert mine.dtype == right.dtype
            assert relative_error(mine, right.double()) < 1e-2


def test_fused_makes_no_gradient_that_is_not_asked_for():
    x, weight, labels = inputs(8, 5, 6, 0.0, 0)
    (want,) = torch.autograd.grad(
        Full()(x.requires_grad_(), weight, labels, with_accuracy=False).loss, x
    )
    (got,) = torch.autograd.grad(Fused()(x, weight, labels, with_accuracy=False).loss, x)
    assert torch.allclose(got, want, atol=1e-5)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        Fused()(x, weight, labels, with_accuracy=False)
    assert [tensor.shape for tensor in kept] == [x.shape]


def test_no_tokens_at_all_lose_nothing():
    x, weight, labels = (t[:0] if n != 1 else t for n, t in enumerate(inputs(8, 5, 6, 0.0, 0)))
    sums, grads = sums_and_grads(Fused(), x, weight, labels)
    assert float(sums.loss.detach()) == 0.0 and not any(grad.any() for grad in grads)


def test_in_float16_a_gradient_over_many_tokens_does_not_overflow():
    # GradScaler's scale comes after the sum and could not prevent it: runs ended for no fault
    tokens, dim = 8192, 4
    x, weight = torch.full((tokens, dim), 16.0), torch.zeros(8, dim)
    labels = torch.zeros(tokens, dtype=torch.int64)
    with torch.autocast("cpu", torch.float16):
        _, (_, grad) = sums_and_grads(Fused(), x, weight, labels, 1 / tokens)
    assert torch.allclose(grad[0], torch.full((dim,), -16.0 * 7 / 8), rtol=1e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_of_a_gradient_are_summed_in_the_product(dtype):
    torch.manual_seed(0)
    parts = [
        (torch.randn(96, 512, device="cuda", dtype=dtype), torch.randn(512, 64).to("cuda", dtype))
        for _ in range(3)
    ]
    total = torch.full((96, 64), torch.nan, device="cuda")  # what it holds does not count
    for number, (a, b) in enumerate(parts):
        _accumulate_matmul_(total, a, b, is_first=number == 0)
    expected = sum(a.double() @ b.double() for a, b in parts)
    assert (total.double() - expected).norm() < 1e-5 * expected.norm()


def test_a_second_backward_pass_of_fused_is_refused():
    # it would scale the gradients, which it has at hand, a second time
    x, weight, labels = inputs(8, 5, 6, 0.0, 0)
    sums = Fused()(x, weight.requires_grad_(), labels, with_accuracy=False)
    sums.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        sums.loss.backward()


@pytest.mark.parametrize("loss", [Full(), Chunked(chunk_tokens=5), Fused(chunk_tokens=5)])
def test_the_softmax_is_taken_in_float32(loss):
    # as with trainer.precision=bf16-true, where nothing else widens the logits
    x, weight, labels = inputs(32, 20, 16, 0.2, 0)
    x, weight = x.bfloat16(), weight.bfloat16()
    logits = torch.nn.functional.linear(x, weight).float()
    want = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    got = loss(x, weight, labels, with_accuracy=False).loss
    assert got.dtype == torch.float32
    assert torch.allclose(got, want, rtol=1e-6)


def test_auto_takes_chunks_where_the_logits_would_be_large(monkeypatch, caplog):
    x, weight, labels = inputs(64, 50, 6, 0.1, 0)
    logits_bytes = 64 * 50 * 4
    want = Full()(x, weight, labels, with_accuracy=False)
    for memory, kind in ((8 * logits_bytes, Full), (8 * logits_bytes - 8, Chunked)):
        monkeypatch.setattr(auto, "total_memory_bytes", lambda device, memory=memory: memory)
        loss = Auto()
        with caplog.at_level(logging.INFO):
            got = loss(x, weight, labels, with_accuracy=False)
        assert isinstance(loss.choice(64, 50, x.device), kind)
        assert loss.choice(64, 50, x.device) is loss.choice(64, 50, x.device)  # chosen once
        assert torch.allclose(got.loss, want.loss, rtol=1e-5)
        # another size is another choice
        loss(x[:1], weight, labels[:1], with_accuracy=False)
        assert isinstance(loss.choice(1, 50, x.device), Full)
    assert "loss: auto takes chunked" in caplog.text


def test_auto_is_fused_on_a_gpu_with_logits_of_a_bounded_size(monkeypatch):
    monkeypatch.setattr(auto, "has_kernel", lambda device: True)
    gpu = torch.device("cuda")  # which is not touched
    for vocab, tokens in ((64, 16384), (50304, 16384), (128256, 8371), (10**7, 1024)):
        loss = Auto().choice(2**20, vocab, gpu)
        assert isinstance(loss, Fused) and loss.chunk_tokens == tokens


def test_memory_of_this_machine_is_plausible():
    assert total_memory_bytes(torch.device("cpu")) > 2**28


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1000, 50304])
@pytest.mark.parametrize("loss", [Liger(), Fused(chunk_tokens=128)], ids=["liger", "fused"])
def test_a_kernel_equals_full_on_cuda(loss, dtype, vocab):
    if isinstance(loss, Liger):
        pytest.importorskip("liger_kernel")
    assert loss.unsupported(torch.device("cuda")) == []
    x, weight, labels = (t.cuda() for t in inputs(300, vocab, 64, 0.2, 0))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            full, full_grads = sums_and_grads(Full(), x, weight, labels, 0.01)
            sums, grads = sums_and_grads(loss, x, weight, labels, 0.01)
    finally:
        torch.set_float32_matmul_precision(before)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert torch.allclose(sums.loss, full.loss, rtol=tolerance)
    assert sums.num_labels == full.num_labels
    if dtype == torch.float32 or isinstance(loss, Fused):
        assert sums.num_correct == full.num_correct
    for mine, right in zip(grads, full_grads, strict=True):
        assert relative_error(mine, right.double()) < tolerance


def test_on_a_gpu_parts_of_16_bits_are_summed_by_the_product_alone(monkeypatch):
    # without a GPU: nothing is computed, but the calls are those of one
    calls: list[tuple[torch.dtype, float]] = []
    monkeypatch.setattr(
        torch, "addmm", lambda total, a, b, *, out_dtype, beta, out: calls.append((a.dtype, beta))
    )
    with FakeTensorMode():
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            a, b = (torch.empty(4, 4, dtype=dtype, device="cuda") for _ in range(2))
            total = Mock()
            for is_first in (True, False, False):
                _accumulate_matmul_(total, a, b, is_first=is_first)
            is_wide = dtype == torch.float32
            assert (total.copy_.call_count, total.add_.call_count) == (is_wide, 2 * is_wide)
    assert calls == [(d, b) for d in (torch.float16, torch.bfloat16) for b in (0.0, 1.0, 1.0)]


def test_what_runs_everywhere_says_so_and_liger_says_what_it_needs(monkeypatch):
    for loss in (Full(), Chunked(), Fused(), Auto()):
        assert loss.unsupported(torch.device("cpu")) == []
    assert "needs a CUDA GPU, got cpu" in Liger().unsupported(torch.device("cpu"))[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs the package" in Liger().unsupported(torch.device("cuda"))[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert Liger().unsupported(torch.device("cuda")) == []


def test_liger_has_its_kernel_sum_in_the_dtype_of_autocast_and_counts_itself(monkeypatch):
    # a stand-in for the kernel, which needs a GPU
    calls: list[tuple[object, ...]] = []

    class Function:
        @staticmethod
        def apply(x_ND, weight_VD, labels_N, *options):
            calls.append((x_ND.dtype, weight_VD.dtype, *options))
            return Full()(x_ND, weight_VD, labels_N, with_accuracy=False).loss, None

    module = ModuleType("liger_kernel.ops.fused_linear_cross_entropy")
    vars(module)["LigerFusedLinearCrossEntropyFunction"] = Function
    for name in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    x, weight, labels = inputs(5000, 7, 6, 0.3, 0)  # guesses are made in chunks of 4,096
    want = Full()(x, weight, labels, with_accuracy=True)
    got = Liger()(x, weight, labels, with_accuracy=True)
    assert torch.equal(got.stacked(), want.stacked())
    assert Liger()(x, weight, labels, with_accuracy=False).num_correct is None
    with torch.autocast("cpu", torch.bfloat16):
        Liger()(x, weight, labels, with_accuracy=False)
    options = (None, None, IGNORED_LABEL, 0.0, 0.0, "sum", None)
    dtypes = (torch.float32, torch.float32, torch.bfloat16)
    assert calls == [(dtype, dtype, *options) for dtype in dtypes]
