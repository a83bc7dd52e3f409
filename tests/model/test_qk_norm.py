"""QK-norm: what it computes in a model, with every grouping of heads, and while generating."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.model.plain_gpt import made, plain_logits
from tests.models import VOCAB, options, random_tokens, sampled_without_cache
from xftrain.commands.builder import assemble
from xftrain.config import registry
from xftrain.generation import fused_block
from xftrain.generation.generate import generate
from xftrain.model.norm.rmsnorm import RMSNorm

PLACES = [("rope", "causal"), ("learned", "window"), ("none", "alibi")]


@pytest.mark.parametrize("heads", registry.option_names("model/heads"))
@pytest.mark.parametrize(("pos", "bias"), PLACES)
@pytest.mark.parametrize("seqlens", [None, (4, 1, 6)], ids=["row", "packed"])
@torch.no_grad()
def test_the_logits_are_those_of_the_formula(heads, pos, bias, seqlens):
    model, config = made(qk_norm=True, heads=heads, pos=pos, bias=bias)
    tokens_M = random_tokens(11)
    want = plain_logits(config, model, tokens_M, seqlens)
    assert torch.allclose(model(tokens_M[None], seqlens)[0].double(), want, atol=1e-5)
    model.blocks[1].norm_q = model.blocks[1].norm_k = None
    assert not torch.allclose(model(tokens_M[None], seqlens)[0].double(), want, atol=1e-2)


@pytest.mark.parametrize("attn", ["naive", "xformers"])
@torch.no_grad()
def test_every_backend_gets_the_normalized_heads(attn):
    model, config = made(qk_norm=True, heads="gqa", pos="rope", attn=attn)
    tokens_M = random_tokens(11)
    want = plain_logits(config, model, tokens_M)
    assert torch.allclose(model(tokens_M[None])[0].double(), want, atol=1e-5)


@pytest.mark.parametrize(("pos", "bias"), PLACES)
def test_generation_gives_the_text_of_the_whole_model(pos, bias):
    model, _ = made(qk_norm=True, heads="gqa", pos=pos, bias=bias)
    prompt_BM = random_tokens(2, 5)
    want_BM = sampled_without_cache(model, prompt_BM, 8)
    assert torch.equal(generate(model, prompt_BM, 8, vocab_size=VOCAB, temperature=0.0), want_BM)


@torch.no_grad()
def test_fused_layers_normalize_queries_and_keys_or_are_not_fused(monkeypatch):
    model, _ = made(qk_norm=True, heads="gqa", pos="rope")
    monkeypatch.setattr(fused_block, "supports", lambda *_: True)
    layers = fused_block.fused_blocks(model, 3)
    assert layers is not None
    x_1BD, positions = torch.randn(1, 3, 32), model.prepared_positions(torch.tensor([[4, 0, 9]]))

    def attention(q, k, v, handle):
        return q * 2 + k.repeat_interleave(2, dim=2) + v.repeat_interleave(2, dim=2)

    for fused, block, prepared in zip(layers, model.blocks, positions, strict=True):
        plain = block(x_1BD, attention, None, prepared)
        assert torch.allclose(fused(x_1BD, attention, None, prepared), plain, atol=1e-5)
    model.blocks[0].norm_k.register_forward_hook(lambda *_: None)
    assert fused_block.fused_blocks(model, 3) is None


def test_the_scales_start_at_one_with_the_eps_of_the_norm():
    model = assemble(options(norm={"name": "rmsnorm", "eps": 0.25}, qk_norm=True).model, VOCAB)
    assert model.uninitialized == []
    for block in model.blocks:
        for norm in (block.norm_q, block.norm_k):
            assert type(norm) is RMSNorm and norm.eps == 0.25
            assert torch.equal(norm.weight, torch.ones(16))  # K of 64 / 4, shared by all heads


def test_without_it_a_model_has_the_weights_that_it_always_had():
    before = {name for name in made()[0].state_dict()}
    names = {name for name in made(qk_norm=True)[0].state_dict()}
    own = {f"blocks.{n}.norm_{which}.weight" for n in (0, 1) for which in "qk"}
    assert before == names - own and own <= names


def test_large_activations_do_not_make_scores_large():
    # the bound is that of Cauchy and Schwarz: K x K**-0.5, for scales of 1
    block = assemble(options(qk_norm=True, pos="rope").model, VOCAB).blocks[0]
    seen = {}

    def attention(q, k, v, handle):
        seen["scores"] = torch.einsum("bihk,bjhk->bhij", q, k) * 16**-0.5
        return v

    with torch.no_grad():
        block.heads.qkv.weight.mul_(1e4)
        positions = block_positions(6)
        block(torch.randn(1, 6, 64), attention, None, positions)
    assert 1 < float(seen["scores"].abs().max()) <= 4.001


def block_positions(num: int) -> Any:
    return assemble(options(pos="rope").model, VOCAB).pos.prepare(torch.arange(num)[None])
