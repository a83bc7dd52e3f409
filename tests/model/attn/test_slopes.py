"""Slopes of a bias of one's own: steep, negative, too many; right, or refused with the reason."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model.attn.cells import backend_named
from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias, AttnCall, AttnShape
from xftrain.model.attn._dense import dense_bias
from xftrain.model.attn._folding import fold, folding_reasons

CPU = torch.device("cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@given(
    size=st.floats(1e-3, 1e5),
    length=st.integers(1, 5000),
    head_dim=st.sampled_from([16, 64, 256]),
    dtype=st.sampled_from(DTYPES),
)
def test_features_are_finite_or_refused_and_the_sign_does_not_matter(
    size: float, length: int, head_dim: int, dtype: torch.dtype
) -> None:
    # in float16 those of steep slopes were infinite, and negative ones were never found too long
    plus, minus = (AttnBias(slopes=(1e-3, slope)) for slope in (size, -size))
    reasons = [folding_reasons(bias, length, dtype, head_dim) for bias in (plus, minus)]
    assert reasons[0] == reasons[1]
    shape = AttnShape(1, length, 2, 2, head_dim)
    for bias in (plus, minus):
        if reasons[0]:
            with pytest.raises(ConfigError, match="ALiBi folded over"):
                fold(AttnCall(bias, shape, dtype, CPU))
            continue
        folded = fold(AttnCall(bias, shape, dtype, CPU))
        assert folded.q_1MHF.isfinite().all() and folded.k_1M1F.isfinite().all()


def test_a_steep_slope_is_out_of_the_range_of_float16_alone() -> None:
    bias = AttnBias(slopes=(8.0,))
    assert "largest number in torch.float16" in folding_reasons(bias, 2100, torch.float16, 64)[0]
    assert not folding_reasons(bias, 2100, torch.bfloat16, 64)


@pytest.mark.parametrize("name", ["naive", "sdpa", "xformers"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("slope", [-8.0, -0.5, 8.0])
@pytest.mark.parametrize("dense", [False, True])
def test_attention_is_right_where_it_is_not_refused(
    name: str, dtype: torch.dtype, slope: float, dense: bool
) -> None:
    # a dense tensor of a negative slope was rounded most where attention is
    bias, shape = AttnBias(slopes=(slope,), dense=dense), AttnShape(1, 600, 1, 1, 16)
    backend = backend_named(name)
    assert not backend.unsupported(bias, shape, dtype, CPU)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 600, 1, 16, generator=generator).to(dtype) for _ in range(3))
    out = backend(q, k, v, backend.prepare(bias, shape, dtype, CPU))[0, :, 0]
    wide = [x[0, :, 0].double() for x in (q, k, v)]
    scores = wide[0] @ wide[1].T * shape.scale + bias.materialize(600)[0]
    right = scores.softmax(-1) @ wide[2]
    assert (out - right).norm() < 2e-2 * right.norm()


@pytest.mark.parametrize("slopes", [(math.nan,), (0.5, math.inf), (-math.inf,)])
def test_slopes_that_are_no_numbers_are_refused(slopes: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="slopes must be a tuple of finite numbers"):
        AttnBias(slopes=slopes)


@pytest.mark.parametrize("slope", [-2.0, 0.25, 3.0])
def test_a_dense_row_is_shifted_to_0_which_softmax_does_not_see(slope: float) -> None:
    bias = AttnBias(slopes=(slope,), window=7)
    whole, alive = dense_bias(bias, 30, torch.float64, CPU)
    assert alive is None and (whole.amax(-1) == 0).all()
    assert torch.allclose(whole.softmax(-1)[0], bias.materialize(30).softmax(-1))
    later, _ = dense_bias(bias, 30, torch.float64, CPU, first_query=20)
    assert torch.equal(later, whole[:, :, 20:])
