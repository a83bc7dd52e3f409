"""The kernel of softmax and its gradient does what torch does, and torch takes its place."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from xftrain.interfaces import IGNORED_LABEL
from xftrain.kernels import probe, softmax_gradient
from xftrain.kernels.softmax_gradient import Regularization, has_kernel, softmax_gradient_


def test_what_a_row_without_a_label_holds_does_not_count():
    logits = torch.zeros(3, 4)
    logits[1, 2] = float("nan")
    labels = torch.tensor([1, IGNORED_LABEL, 3])
    losses, correct, _ = softmax_gradient_(logits, labels, needs_grad=True)
    assert losses.tolist() == pytest.approx([math.log(4), 0.0, math.log(4)])
    assert correct.tolist() == [False, False, False] and logits.isfinite().all()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [2, 7, 1000, 8192, 20000])
def test_the_kernel_does_what_torch_does(dtype, vocab):
    assert has_kernel(torch.device("cuda"))
    draw = torch.Generator().manual_seed(0)
    logits = (torch.randn(9, vocab, generator=draw) * 3).round().to(dtype)  # with several largest
    labels = torch.randint(vocab, (9,), generator=draw)
    labels[4] = IGNORED_LABEL
    mine, right = logits.cuda(), logits.clone()
    losses, correct, _ = softmax_gradient_(mine, labels.cuda(), needs_grad=True)
    want, want_correct, _ = softmax_gradient_(right, labels, needs_grad=True)
    assert torch.allclose(losses.cpu(), want, rtol=1e-3, atol=1e-3)
    assert torch.equal(correct.cpu(), want_correct)
    assert torch.allclose(mine.cpu().float(), right.float(), atol=1e-2)
    untouched = logits.cuda()
    softmax_gradient_(untouched, labels.cuda(), needs_grad=False)
    assert torch.equal(untouched.cpu(), logits)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [2, 1000, 20000])
@pytest.mark.parametrize("softcap", [None, 2.0, 30.0])
@pytest.mark.parametrize("terms", [(0.0, 0.0), (0.01, 0.0), (0.0, 0.1), (0.5, 0.2)])
def test_the_kernel_adds_and_caps_as_torch_does(dtype, vocab, softcap, terms):
    draw = torch.Generator().manual_seed(0)
    logits = (torch.randn(9, vocab, generator=draw) * 3).round().to(dtype)
    labels = torch.randint(vocab, (9,), generator=draw)
    labels[4] = IGNORED_LABEL
    how = {"needs_grad": True, "regularization": Regularization(*terms), "softcap": softcap}
    mine, right = logits.cuda(), logits.clone()
    rows = softmax_gradient_(mine, labels.cuda(), **how)
    want = softmax_gradient_(right, labels, **how)
    for one, other in zip(rows, want, strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mine.cpu().float(), right.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.cuda
def test_the_kernel_hides_nothing_that_is_not_finite():
    logits = torch.zeros(5, 100, device="cuda")
    logits[0, 5], logits[1, 7], logits[4, 9] = float("nan"), float("inf"), float("-inf")
    labels = torch.tensor([3, 3, 100, -1, 3], device="cuda")  # two that there are not
    losses, *_ = softmax_gradient_(logits, labels, needs_grad=True)
    assert losses.isfinite().tolist() == [False] * 4 + [True]
    assert [bool(row.isfinite().all()) for row in logits] == [False] * 4 + [True]


def test_without_a_compiler_torch_takes_the_place_of_triton(monkeypatch, caplog):
    def none(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    monkeypatch.setattr(softmax_gradient, "_with_triton", none)
    monkeypatch.setattr(probe.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    try:
        assert not has_kernel.__wrapped__(torch.device("cuda"))
    finally:
        monkeypatch.undo()
    assert "Triton does not run here" in caplog.text and "C compiler" in caplog.text


def test_a_kernel_is_tried_on_real_tensors(monkeypatch):
    # a prediction of memory, on fake ones, may be the first to ask
    monkeypatch.setattr(probe.importlib.util, "find_spec", lambda name: True)
    seen = []
    with FakeTensorMode():
        assert type(torch.ones(1)) is FakeTensor
        device = torch.device("cuda")
        assert probe.runs_triton(device, lambda: seen.append(type(torch.ones(1))), "loss")
    assert seen == [Tensor]
