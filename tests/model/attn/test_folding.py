"""The features that ALiBi is folded into: exact in their dtype, few, and refused where they cannot.

What is checked: bits of a feature, pieces of a slope, the longest document, the range.
"""

from __future__ import annotations

import math

import pytest
import torch

from xftrain.interfaces import AttnBias, AttnCall, AttnShape
from xftrain.model.attn._folding import (
    fold,
    folding_reasons,
    is_folded,
    num_features,
    without_folded_slopes,
)

CPU = torch.device("cpu")
# Bits that a factor may have (in float32 those of TF32, in float64 half of them), and pieces.
EXACT = {
    torch.bfloat16: (8, 3),
    torch.float16: (11, 2),
    torch.float32: (11, 3),
    torch.float64: (26, 2),
}
LONGEST = {  # of a slope of 1, with an error of 2^-8, 2^-8, 2^-11 and 2^-30
    torch.bfloat16: 2**16,
    torch.float16: 2**16,
    torch.float32: 2**13,
    torch.float64: 2**23,
}


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("length", [200, 2000, 5000])
def test_features_are_exact_to_the_last_piece(dtype: torch.dtype, length: int) -> None:
    bits, pieces = EXACT[dtype]
    slopes, shape = (1 / 3, -math.pi / 70, 2.0**-8), AttnShape(1, length, 3, 3, 64)
    made = fold(AttnCall(AttnBias(slopes=slopes), shape, dtype, CPU))
    k_NF = made.k_1M1F[0, :, 0].double()
    assert k_NF.max() < 2**bits and k_NF.frac().abs().max() == 0
    slopes_H1 = torch.tensor(slopes, dtype=torch.float64)[:, None]
    for query in (0, length - 1):
        q_HF = made.q_1MHF[0, min(query, made.q_1MHF.shape[1] - 1)].double()
        own = query if made.q_1MHF.shape[1] > 1 else 0  # what softmax does not see is left in
        got = q_HF @ k_NF.T * shape.scale
        error = (got - slopes_H1 * (torch.arange(length) - own)).abs()
        # sums in float64 round too
        assert (error <= slopes_H1.abs() * length * max(2.0 ** -(bits * pieces), 2.0**-50)).all()


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_longest_document_is_taken_and_one_more_position_is_not(
    dtype: torch.dtype, sign: float
) -> None:
    bias, longest = AttnBias(slopes=(0.5, sign)), LONGEST[dtype]
    assert folding_reasons(bias, longest, dtype) == []
    (reason,) = folding_reasons(bias, longest + 1, dtype)
    assert f"folded over {longest + 1} positions would round scores" in reason
    short = AttnBias(slopes=(sign,), seqlens=(2, longest, 1))
    assert folding_reasons(short, longest + 3, dtype) == []
    assert folding_reasons(AttnBias(), longest + 1, dtype) == []


def test_features_are_as_few_as_digits_and_pieces_say() -> None:
    # 74 and so on: with what there is, a multiple of 16, so that nothing is added
    for dtype, length, count in [
        (torch.bfloat16, 256, 3),
        (torch.bfloat16, 257, 6),
        (torch.float16, 2048, 2),
        (torch.float16, 2049, 4),
        (torch.float32, 2048, 8 + 16 + 16),
        (torch.float32, 2049, 8 + 16 + 16 + 16),
        (torch.float64, 2048, 8 + 16 + 16),
    ]:
        shape = AttnShape(1, length, 1, 1, 96 - count)
        assert num_features(AttnCall(AttnBias(slopes=(1e-3,)), shape, dtype, CPU)) == count


def test_a_feature_is_as_large_as_the_range_of_float16_and_no_larger() -> None:
    # over 2,048 positions there is one digit, over more a second one, which is worth 2^11
    largest = torch.finfo(torch.float16).max / 8  # K of 64
    for length, digit in ((2, 1), (2049, 2**11)):
        fits, too_large = (AttnBias(slopes=(largest / digit * part,)) for part in (1, 1.001))
        assert folding_reasons(fits, length, torch.float16, 64) == []
        assert "largest number" in folding_reasons(too_large, length, torch.float16, 64)[0]
        assert folding_reasons(too_large, length, torch.float16) == []  # fold tells it


@pytest.mark.parametrize("dense", [False, True])
def test_only_slopes_that_are_folded_leave_the_mask(dense: bool) -> None:
    # else ALiBi is added twice, or not at all
    bias = AttnBias(window=3, seqlens=(2, 3), slopes=(0.5,), dense=dense)
    rest = without_folded_slopes(bias)
    assert is_folded(bias) == (not dense) and not is_folded(AttnBias(dense=dense))
    assert rest.slopes == ((0.5,) if dense else None)
    assert (rest.window, rest.seqlens, rest.dense) == (3, (2, 3), dense)
