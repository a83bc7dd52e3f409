"""FlexAttention's block masks, which need no GPU to be right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from xftrain.benchmark.tolerances import check_parity
from xftrain.interfaces import AttnBias, AttnCall, AttnShape
from xftrain.model.attn.flex import Flex, block_mask

CPU = torch.device("cpu")


@given(
    seqlens=st.lists(st.integers(1, 400), min_size=1, max_size=4).map(tuple),
    packed=st.booleans(),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 500),
)
def test_block_mask_is_the_one_torch_would_make(seqlens, packed, causal, window):
    bias = AttnBias(causal, window if causal else None, seqlens if packed else None)
    size, device = sum(seqlens), torch.device("cpu")
    ours = block_mask(bias, size, device)
    if ours is None:
        assert not causal and not packed
        return
    visible = bias.visible_MM(size)
    theirs = create_block_mask(lambda b, h, i, j: visible[i, j], None, None, size, size, "cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    # a block counted as full must hide nothing; torch counts edge blocks in full differently
    full = torch.zeros_like(ours.to_dense()[0, 0], dtype=torch.bool)
    for row, count in enumerate(ours.full_kv_num_blocks[0, 0].tolist()):
        full[row, ours.full_kv_indices[0, 0, row, :count].long()] = True
    for q_block, k_block in full.nonzero().tolist():
        rows = slice(q_block * 128, q_block * 128 + 128)
        columns = slice(k_block * 128, k_block * 128 + 128)
        assert visible[rows, columns].all()
    i = torch.arange(size)
    assert torch.equal(ours.mask_mod(None, None, i[:, None], i[None, :]), visible)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("num_positions", [256, 300])
@pytest.mark.parametrize(
    "facts",
    [
        {"window": 50, "seqlens": True, "slopes": (0.5, 0.25)},
        {"slopes": (-0.5, 2.0), "dense": True},
        {"causal": False, "additive_HMM": True},
        {"causal": False, "additive_HMM": True, "seqlens": True},
        {"window": 50},
    ],
    ids=lambda facts: "-".join(facts),
)
def test_forward_on_the_cpu_is_right(facts, num_positions):
    # no gradients there, but the same masks and score functions
    torch.manual_seed(0)
    if "seqlens" in facts:
        facts = {**facts, "seqlens": (100, num_positions - 100)}
    if "additive_HMM" in facts:
        facts = {**facts, "additive_HMM": torch.randn(2, num_positions, num_positions)}
    bias, shape = AttnBias(**facts), AttnShape(1, num_positions, 2, 1, 16)
    q = torch.randn(1, num_positions, 2, 16, dtype=torch.float64)
    k, v = (torch.randn(1, num_positions, 1, 16, dtype=torch.float64) for _ in range(2))
    handle = Flex().prepare(bias, shape, torch.float64, torch.device("cpu"))
    out = Flex()(q, k, v, replace(handle, attend=flex_attention))
    scores = torch.einsum("bihk,bjgk->bhij", q, k) / 4 + bias.materialize(num_positions)
    want = scores.softmax(-1) @ v.transpose(1, 2)
    assert torch.allclose(out, want.transpose(1, 2), atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_score_functions_are_called_for_whole_blocks() -> None:
    # past the row's end a steep one gave infinity, times 0 (pytorch#153799)
    sizes: list[tuple[int, ...]] = []

    def noted(q: torch.Tensor, *qkv: torch.Tensor, **how: Any) -> torch.Tensor:
        sizes.append(tuple(q.shape))
        return flex_attention(q, *qkv, **how)

    qkv = [torch.randn(2, 300, 2, 16) for _ in range(3)]
    for bias in (AttnBias(slopes=(0.5, 0.25)), AttnBias(dense=True), AttnBias(window=9)):
        handle = Flex().prepare(bias, AttnShape(2, 300, 2, 2, 16), torch.float32, CPU)
        assert Flex()(*qkv, replace(handle, attend=noted)).shape == (2, 300, 2, 16)
    assert [size[2] for size in sizes] == [384, 384, 300]


@pytest.mark.cuda
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (8, 1)], ids=["mha", "gqa", "mqa"])
def test_rows_shorter_than_a_block(heads: tuple[int, int]) -> None:
    # torch's kernel for decoding takes these over and refuses the grouped ones
    shape, device = AttnShape(4, 64, *heads, 16), torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    verdict = check_parity(Flex(), AttnCall(AttnBias(), shape, torch.bfloat16, device), generator)
    assert not verdict.faults
