"""The script that tries public reports: what it compares with, and what it says without a GPU."""

from __future__ import annotations

import pytest
import torch

from scripts import check_kernels
from xftrain.benchmark.reference import exact, output_and_grads
from xftrain.interfaces import AttnBias, AttnShape
from xftrain.loss.full import Full

BIASES = [
    AttnBias(),
    AttnBias(causal=False),
    AttnBias(window=9, seqlens=(30, 10)),
    AttnBias(slopes=(0.5, -0.25), dense=True),
]


@pytest.mark.parametrize("bias", BIASES)
def test_the_reference_in_parts_is_the_exact_one(monkeypatch, bias: AttnBias) -> None:
    monkeypatch.setattr(check_kernels, "ROWS", 17)
    q, grad = (torch.randn(1, 40, 2, 8, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(1, 40, 1, 8, dtype=torch.float64) for _ in range(2))
    right = output_and_grads(lambda *qkv: exact(*qkv, bias), (q, k, v), grad)
    for mine, truth in zip(check_kernels.reference(bias, q, k, v, grad), right, strict=True):
        assert torch.allclose(mine, truth, atol=1e-10)


def test_a_case_is_right_or_wrong(monkeypatch) -> None:
    monkeypatch.setattr(check_kernels, "CUDA", torch.device("cpu"))
    shape, window = AttnShape(2, 40, 2, 1, 64), AttnBias(window=9)
    how = {"far_below_zero": True, "last_row": True}
    kernel, said = check_kernels.attention("sdpa", window, shape, **how)
    assert "mask tensor" in kernel and said.startswith("right")
    monkeypatch.setattr(check_kernels, "LIMIT", {torch.bfloat16: 0.0})
    assert check_kernels.attention("sdpa", window, shape)[1].startswith("WRONG: error of out")
    assert check_kernels.attention("flex", window, shape)[0] == "refused"
    monkeypatch.undo()
    nan = [torch.full((2,), torch.nan)]
    assert check_kernels.compare(torch.bfloat16, nan, nan) == "WRONG: out is not finite"


def test_a_loss_is_compared_by_chunks(monkeypatch) -> None:
    monkeypatch.setattr(check_kernels, "CUDA", torch.device("cpu"))
    monkeypatch.setattr(check_kernels, "ROWS", 17)
    assert check_kernels.loss_of_many_logits(Full(), 40, 50)[1].startswith("right")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run all cases")
def test_without_a_gpu_every_case_is_named_and_skipped(capsys) -> None:
    assert check_kernels.main() == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len({line.split("|")[1].strip() for line in lines}) >= 10
    assert all("skipped: needs an NVIDIA GPU" in line for line in lines)
