"""What the facts of a bias mean, against plain loops, and ALiBi's slopes against the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias, AttnCall, AttnShape
from xftrain.model.attn._folding import fold, folding_reasons
from xftrain.model.bias.alibi import Alibi, slopes

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple)


@given(
    seqlens=lengths,
    packed=st.booleans(),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 12),
    num_heads=st.none() | st.integers(1, 5),
)
def test_materialize_is_what_loops_say(seqlens, packed, causal, window, num_heads):
    if not causal:
        window = num_heads = None
    head_slopes = None if num_heads is None else slopes(num_heads)
    size = sum(seqlens)
    bias = AttnBias(causal, window, seqlens if packed else None, head_slopes)
    document = [d for d, n in enumerate(seqlens) for _ in range(n)]
    got = bias.materialize(size)
    for h in range(num_heads or 1):
        for i in range(size):
            for j in range(size):
                seen = (not causal or j <= i) and (window is None or i - j < window)
                seen = seen and (not packed or document[i] == document[j])
                added = head_slopes[h] * (j - i) if head_slopes else 0.0
                assert got[h, i, j] == (added if seen else -math.inf)
    for first in (0, size // 2):
        assert torch.equal(bias.materialize(size, first_query=first), got[:, first:])


def test_simplified_keeps_the_meaning():
    for window in (1, 5, 6, 7):
        bias = AttnBias(window=window, seqlens=(6, 4))
        assert torch.equal(bias.simplified(10).materialize(10), bias.materialize(10))
    assert AttnBias(window=6, seqlens=(6, 4)).simplified(10).window is None
    assert AttnBias(window=5, seqlens=(6, 4)).simplified(10).window == 5


def test_slopes_of_the_paper():
    assert slopes(8) == tuple(2.0**-n for n in range(1, 9))
    assert slopes(16)[:2] == (2**-0.5, 2**-1.0)
    # 12 heads: the 8 of 8, then every second one of 16 (get_slopes of the paper's code)
    assert slopes(12) == slopes(8) + slopes(16)[0:8:2]
    assert slopes(1) == (2.0**-8,)


@given(st.integers(1, 130))
def test_slopes_are_distinct_and_between_0_and_1(num_heads):
    values = slopes(num_heads)
    assert len(set(values)) == num_heads and all(0 < s < 1 for s in values)


@given(
    seqlens=st.lists(st.integers(1, 3000), min_size=1, max_size=3).map(tuple),
    num_heads=st.integers(1, 12),
    head_dim=st.sampled_from([7, 16, 64, 128]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_folded_features_are_the_slope_times_the_position(seqlens, num_heads, head_dim, dtype):
    # their product must be slope * j plus something that depends on the query only
    bias = Alibi().build(num_heads, seqlens)
    size = sum(seqlens)
    assert not folding_reasons(bias, size, dtype)
    shape = AttnShape(1, size, num_heads, num_heads, head_dim)
    folded = fold(AttnCall(bias, shape, dtype, torch.device("cpu")))
    assert (folded.k_1M1F.shape[-1] + head_dim) % 8 == 0
    last = size - 1
    start = size - seqlens[-1]
    q_HF = folded.q_1MHF[0, last if folded.q_1MHF.shape[1] > 1 else 0].double()
    k_MF = folded.k_1M1F[0, start:, 0].double()
    got_HM = q_HF @ k_MF.T * folded.scale
    want_HM = torch.tensor(bias.slopes).double()[:, None] * torch.arange(seqlens[-1])
    error = (got_HM - got_HM[:, :1]) - want_HM
    # relative to the slope: 2^-20 positions
    assert error.abs().max() <= 2.0**-20 * max(seqlens)


def strided(num_sums: int) -> Callable[[int], list[int]]:
    """The sum that each feature goes to in a kernel that keeps several, each of every n-th."""
    return lambda width: [i % num_sums for i in range(width)]


def staged(width: int) -> list[int]:
    """The same in CUTLASS's kernels for float32: eight, then 32 each."""
    return [(i + 24) // 32 for i in range(width)]


def staged_after_a_half(width: int) -> list[int]:
    """The same where the tile that is not full comes first."""
    rest = width % 32 or 32
    return [(i + 32 - rest + 24) // 32 if i >= rest else int(i >= 8) for i in range(width)]


@pytest.mark.parametrize("head_dim", [16, 32, 128])
@pytest.mark.parametrize("num_positions", [100, 5000])
@pytest.mark.parametrize(
    "sums",
    [*(strided(n) for n in (1, 2, 4, 8)), staged, staged_after_a_half],
    ids=["1", "2", "4", "8", "staged", "staged_after_a_half"],
)
def test_what_cancels_in_float32_does_so_in_each_sum_that_a_kernel_may_keep(
    sums, num_positions, head_dim
):
    bias, shape = Alibi().build(6, None), AttnShape(1, num_positions, 6, 6, head_dim)
    folded = fold(AttnCall(bias, shape, torch.float32, torch.device("cpu")))
    # a query and the key at its own position, where the bias is 0
    products_MHF = folded.q_1MHF[0] * folded.k_1M1F[0]
    width = products_MHF.shape[-1]
    sums_MHS = torch.zeros(num_positions, 6, width + head_dim)
    for feature, index in enumerate(sums(width + head_dim)[:width]):
        sums_MHS[..., index] += products_MHF[..., feature]
    largest = products_MHF.abs().max()
    assert largest > 40 and sums_MHS.abs().max() <= 2.0**-32 * largest


def test_folding_says_where_it_would_lose_precision():
    bias = Alibi().build(8, None)
    assert not folding_reasons(bias, 65536, torch.bfloat16)
    assert "would round scores" in folding_reasons(bias, 1_048_576, torch.bfloat16)[0]
    assert not folding_reasons(Alibi().build(8, (65536,) * 16), 1_048_576, torch.bfloat16)


def test_equal_facts_have_equal_keys():
    assert Alibi().build(8, (3, 4)).key == Alibi().build(8, (3, 4)).key
    assert Alibi().build(8, (3, 4)).key != Alibi().build(8, (4, 3)).key
    assert AttnBias(additive_HMM=torch.zeros(1, 2, 2)).key is None


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"causal": False, "window": 3}, "need causal=True, got causal=False with window=3"),
        ({"causal": False, "slopes": (0.5,)}, "need causal=True"),
        ({"window": 0}, "at least 1, got 0"),
        ({"window": 2.5}, "at least 1, got 2.5"),
        ({"additive_HMM": torch.zeros(3, 3)}, r"got a float32 tensor of \[3, 3\]"),
        ({"additive_HMM": torch.ones(1, 3, 3, dtype=torch.bool)}, "got a bool tensor"),
    ],
)
def test_facts_that_contradict_each_other_are_refused(bad: dict[str, Any], said: str) -> None:
    # they were asserted, and python -O trained a bias that sees its answers
    with pytest.raises(ConfigError, match=said):
        AttnBias(**bad)
