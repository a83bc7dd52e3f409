"""Calls that are too large for a kernel of a GPU are refused; nothing is run, so without a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.model.attn.cells import backend_named
from xftrain.interfaces import AttnBias, AttnCall, AttnShape
from xftrain.model.attn._folding import fold, num_features
from xftrain.model.attn._limits import MAX_ELEMENTS

CUDA, CPU, HALF = torch.device("cuda"), torch.device("cpu"), torch.bfloat16
SLOPES = AttnBias(slopes=(0.5,) * 64)


@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_more_rows_than_a_grid_has_blocks_are_refused(name: str) -> None:
    # cuDNN said "mha_graph.execute is not good" in the first step (pytorch#142228)
    backend, many = backend_named(name), AttnShape(65536, 16, 4, 4, 64)
    assert "take 65535 rows" in backend.unsupported(AttnBias(), many, HALF, CUDA)[0]
    assert not backend_named("sdpa").unsupported(AttnBias(), many, HALF, CPU)


def test_documents_are_rows_where_one_call_takes_them_all() -> None:
    packed, row = AttnBias(seqlens=(1,) * 65536), AttnShape(1, 65536, 4, 4, 64)
    assert "got 65536" in backend_named("xformers").unsupported(packed, row, HALF, CUDA)[0]
    assert not backend_named("sdpa").unsupported(packed, row, HALF, CUDA)


@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_more_numbers_than_32_bits_count_are_refused(name: str) -> None:
    # of 520 rows cuDNN's dq and dk were wrong, and FlashAttention read outside
    backend = backend_named(name)
    for bias, shape in [
        (AttnBias(), AttnShape(520, 1024, 64, 64, 64)),
        (AttnBias(), AttnShape(520, 1024, 64, 8, 64)),
        (SLOPES, AttnShape(412, 1024, 64, 64, 64)),  # 80 wide with the features of ALiBi
    ]:
        assert "in 32 bits" in backend.unsupported(bias, shape, HALF, CUDA)[0]


def test_the_largest_number_of_numbers_is_taken() -> None:
    sdpa, fits = backend_named("sdpa"), AttnShape(511, 1024, 64, 64, 64)
    assert 512 * 1024 * 64 * 64 == MAX_ELEMENTS + 1
    assert not sdpa.unsupported(AttnBias(), fits, HALF, CUDA)
    assert sdpa.unsupported(AttnBias(), AttnShape(512, 1024, 64, 64, 64), HALF, CUDA)
    assert not sdpa.unsupported(SLOPES, AttnShape(400, 1024, 64, 64, 64), HALF, CUDA)
    assert not sdpa.unsupported(AttnBias(), AttnShape(520, 1024, 64, 64, 64), HALF, CPU)


def test_documents_that_are_one_call_each_are_counted_one_by_one() -> None:
    row = AttnShape(1, 532480, 64, 64, 64)
    packed = AttnBias(seqlens=(266240, 266240))
    assert not backend_named("sdpa").unsupported(packed, row, HALF, CUDA)
    assert "in 32 bits" in backend_named("sdpa").unsupported(AttnBias(), row, HALF, CUDA)[0]
    assert "in 32 bits" in backend_named("xformers").unsupported(packed, row, HALF, CUDA)[0]


@pytest.mark.parametrize("dtype", [HALF, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 7, 300, 3000, 70000])
@pytest.mark.parametrize("head_dim", [12, 64])
def test_the_number_of_features_is_told_before_they_are_made(dtype, length, head_dim) -> None:
    shape, bias = AttnShape(1, length, 2, 2, head_dim), AttnBias(slopes=(1e-3, 1e-4))
    call = AttnCall(bias, shape, dtype, CPU)
    made = fold(call)
    count = num_features(call)
    assert made.q_1MHF.shape[-1] == made.k_1M1F.shape[-1] == count
    assert num_features(call._replace(bias=AttnBias())) == 0
