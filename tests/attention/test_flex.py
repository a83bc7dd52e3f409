"""FlexAttention's block masks, which need no GPU to be right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from xftrain.attention.backends.flex import Flex, block_mask
from xftrain.benchmark.rule import judge
from xftrain.interfaces import AttnBias, AttnShape


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
def test_forward_on_the_cpu_is_right():
    # no gradients there, but the same masks and score functions
    torch.manual_seed(0)
    bias = AttnBias(window=50, seqlens=(100, 200), slopes=(0.5, 0.25))
    shape = AttnShape(1, 300, 2, 2, 16)
    q, k, v = (torch.randn(1, 300, 2, 16, dtype=torch.float64) for _ in range(3))
    handle = Flex().prepare(bias, shape, torch.float64, torch.device("cpu"))
    out = flex_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        score_mod=handle.score_mod,
        block_mask=handle.block_mask,
        scale=handle.scale,
    )
    scores = torch.einsum("bihk,bjhk->bhij", q, k) / 4 + bias.materialize(300)
    want = scores.softmax(-1) @ v.transpose(1, 2)
    assert torch.allclose(out, want, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (8, 1)], ids=["mha", "gqa", "mqa"])
def test_rows_shorter_than_a_block(heads: tuple[int, int]) -> None:
    # torch's kernel for decoding takes these over and refuses the grouped ones
    shape, device = AttnShape(4, 64, *heads, 16), torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    verdict = judge(Flex(), AttnBias(), shape, torch.bfloat16, device, generator)
    assert not verdict.faults
