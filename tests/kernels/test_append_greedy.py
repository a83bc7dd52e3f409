"""The most likely token of each row is appended, and logits that are not finite are noticed."""

from __future__ import annotations

import pytest
import torch

from xftrain.kernels import append_greedy as module
from xftrain.kernels.append_greedy import append_greedy_

PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def state(device: str, num_rows: int) -> list[torch.Tensor]:
    """Tokens drawn so far, columns, tokens and positions."""
    torch.manual_seed(1)
    drawn = torch.randint(100, (num_rows, 5), device=device)
    columns = torch.randint(4, (num_rows,), device=device)
    return [drawn, columns, torch.zeros_like(columns), columns + 7]


def result(logits_BV, vocab_size):
    made = state(logits_BV.device.type, len(logits_BV))
    is_finite = torch.ones((), dtype=torch.bool, device=logits_BV.device)
    append_greedy_(logits_BV, vocab_size, *made, is_finite)
    return made, bool(is_finite)


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("padded", "vocab_size"), [(64, 50), (50304, 50257), (8192, 8192)])
def test_each_row_gets_its_first_most_likely_token(device, dtype, padded, vocab_size):
    torch.manual_seed(0)
    logits_BV = torch.randn(3, padded, device=device).to(dtype)  # bfloat16 has equal highest ones
    logits_BV[:, vocab_size:] = 100.0
    logits_BV[0, 10:] = logits_BV[0].max()
    (drawn, columns, tokens, positions), is_finite = result(logits_BV, vocab_size)
    want = torch.tensor(
        [int((row == row.max()).nonzero()[0]) for row in logits_BV[:, :vocab_size]], device=device
    )
    before = state(device, 3)
    before[0][torch.arange(3), before[1]] = want
    assert torch.equal(tokens, want) and torch.equal(drawn, before[0])
    assert torch.equal(columns, before[1] + 1) and torch.equal(positions, before[3] + 1)
    assert is_finite


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_without_a_finite_highest_logit_is_noticed(device, bad):
    logits_BV = torch.zeros(2, 20, device=device)
    logits_BV[1, 19] = bad  # in the padding of the vocabulary
    assert result(logits_BV, 19)[1]
    logits_BV[1] = bad
    (_, _, tokens, _), is_finite = result(logits_BV, 19)
    assert not is_finite and bool((tokens < 19).all())


@pytest.mark.parametrize("device", PLACES)
def test_one_logit_that_is_nan_is_noticed(device):
    logits_BV = torch.zeros(2, 20000, device=device)
    logits_BV[0, 3] = torch.nan
    assert not result(logits_BV, 20000)[1]


@pytest.mark.cuda
def test_a_gpu_has_the_kernel():
    assert module.has_kernel(torch.device("cuda"), torch.bfloat16)
