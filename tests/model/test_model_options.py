"""Soft cap of scores, partial rotary positions, norm of the embedding: alone and together."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.commands.test_preflight import refusal
from tests.model.plain_gpt import config_of, made, plain_logits
from tests.models import VOCAB, options, random_tokens, sampled_without_cache
from xftrain.commands.builder import assemble
from xftrain.config.layer_pattern import checked_layers
from xftrain.errors import ConfigError
from xftrain.generation import fused_block
from xftrain.generation.generate import generate
from xftrain.hugging_face.facts import describe
from xftrain.hugging_face.family import families, family_for
from xftrain.interfaces import AttnBias
from xftrain.model.pos.rope import RoPE
from xftrain.model.softcap import SoftCapped

HALF = {"pos": "rope", "fraction": 0.5}
ALONE: dict[str, dict[str, Any]] = {
    "score_softcap": {"score_softcap": 0.8, "attn": "naive"},
    "fraction": HALF,
    "norm_embedding": {"norm_embedding": True},
    "all": {
        **{"score_softcap": 0.8, "attn": "naive", "norm_embedding": True, "qk_norm": True},
        **{"heads": "gqa", **HALF},
    },
}


@pytest.mark.parametrize("chosen", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("bias", ["causal", "window", "alibi"])
@pytest.mark.parametrize("seqlens", [None, (4, 1, 6)], ids=["row", "packed"])
@torch.no_grad()
def test_the_logits_are_those_of_the_formula(chosen, bias, seqlens):
    model, config = made(**chosen, bias=bias)
    kept = ("heads", "attn", "pos")
    plain, _ = made(**{key: chosen[key] for key in chosen if key in kept}, bias=bias)
    tokens_M = random_tokens(11)
    want = plain_logits(config, model, tokens_M, seqlens)
    found = model(tokens_M[None], seqlens)[0]
    assert torch.allclose(found.double(), want, atol=2e-5)
    # the option changes what the same weights compute
    plain.load_state_dict(model.state_dict(), strict=False)
    assert not torch.allclose(plain(tokens_M[None], seqlens)[0], found, atol=1e-2)


@pytest.mark.parametrize("bias", ["causal", "window", "alibi"])
def test_generation_gives_the_text_of_the_whole_model(bias):
    model, _ = made(**ALONE["all"], bias=bias)
    prompt_BM = random_tokens(2, 5)
    want_BM = sampled_without_cache(model, prompt_BM, 8)
    assert torch.equal(generate(model, prompt_BM, 8, vocab_size=VOCAB, temperature=0.0), want_BM)


def test_generation_with_fused_layers_gives_that_text_too(monkeypatch):
    model, _ = made(**ALONE["all"])
    prompt_BM = random_tokens(2, 5)
    want_BM = sampled_without_cache(model, prompt_BM, 8)
    fused = []
    of_model = fused_block.fused_blocks
    monkeypatch.setattr(fused_block, "supports", lambda *_: True)
    monkeypatch.setattr(
        "xftrain.generation.step.fused_blocks",
        lambda *args: fused.append(of_model(*args)) or fused[0],
    )
    assert torch.equal(generate(model, prompt_BM, 8, vocab_size=VOCAB, temperature=0.0), want_BM)
    assert fused[0] is not None and len(fused[0]) == 2


@pytest.mark.parametrize("attn", ["sdpa", "xformers"])
def test_a_backend_that_cannot_cap_scores_is_refused(attn):
    said = refusal(options(attn=attn, score_softcap=30.0))
    assert "it cannot cap scores, and the bias sets softcap=30" in said
    assert said.endswith("Nearest choice that works: model.attn=naive.")


class OwnCap:
    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        return AttnBias(seqlens=seqlens, softcap=5.0)


class OwnNothing:
    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> None:
        return None


def test_a_bias_with_a_cap_of_its_own_and_one_that_is_no_bias_are_refused():
    with pytest.raises(
        ConfigError, match=r"score_softcap=9 and model.bias, OwnCap, .* at 5 itself"
    ):
        SoftCapped(OwnCap(), 9.0).build(4, None)
    with pytest.raises(ConfigError, match=r"model.bias: OwnNothing.build must return an"):
        SoftCapped(OwnNothing(), 9.0).build(4, None)


def test_layers_with_equal_biases_stay_of_one_kind():
    model = assemble(options(score_softcap=9.0, num_layers=3).model, VOCAB)
    assert [layers for _, layers in model.distinct_blocks()] == [(0, 1, 2)]
    assert len({id(spec.bias) for spec in model.specs}) == 1


@pytest.mark.parametrize(("fraction", "rotary_dim"), [(0.0, 0), (0.1, 1), (0.45, 7)])
def test_a_fraction_that_gives_no_pairs_is_refused(fraction, rotary_dim):
    with pytest.raises(
        ConfigError, match=rf"{fraction} of 16, which is {rotary_dim}: set one that"
    ):
        RoPE(64, 16, fraction=fraction)


def test_the_fraction_may_differ_by_layer():
    config = config_of(pos="rope", dim=64)
    parts = {part: getattr(config, part) for part in ("bias", "pos", "heads", "ffn")}
    node = {"pattern": ["whole", "part"], "whole": {}, "part": {"pos": {"fraction": 0.25}}}
    layers = checked_layers(node, parts, 2)
    model = assemble(replace(config, layers=layers), VOCAB)
    whole, part = (model.position_encoding(layer) for layer in (0, 1))
    assert (whole.rotary_dim, part.rotary_dim) == (16, 4)
    q, k = torch.randn(2, 1, 3, 4, 16).unbind()
    turned_q, turned_k = part.apply_to(q, k, part.prepare(torch.arange(3)[None]))
    for before, after in ((q, turned_q), (k, turned_k)):
        assert torch.equal(before[..., 4:], after[..., 4:]) and torch.equal(
            before[:, 0], after[:, 0]
        )
        assert not torch.isclose(before[:, 1:, :, :4], after[:, 1:, :, :4]).any()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"qk_norm": True}, "has no norm of queries and keys (model.qk_norm=false)"),
        ({"norm_embedding": True}, "has no norm of the embedding (model.norm_embedding=false)"),
        (HALF, "rotates all features of a head (model.pos.fraction=1)"),
        ({"score_softcap": 9.0}, "has no scale or soft cap of scores of its own"),
    ],
)
def test_a_class_that_does_not_compute_an_option_says_so(chosen, said):
    of_llama = {"pos": "rope", "ffn": "swiglu"}
    facts, plain = (
        describe(assemble(config_of(**{**of_llama, **more}), VOCAB)) for more in (chosen, {})
    )
    assert family_for(plain).ARCHITECTURE == "LlamaForCausalLM"
    expressed_by = {"qk_norm": "Qwen3ForCausalLM", "pos": "StableLmForCausalLM"}
    for family in families():
        more = [reason for reason in family.reasons(facts) if reason not in family.reasons(plain)]
        if expressed_by.get(next(iter(chosen))) == family.ARCHITECTURE:
            assert said not in family.reasons(facts)
        elif "score_softcap" not in chosen or "Llama" in family.ARCHITECTURE:
            assert more == [said]
    if "qk_norm" not in chosen:
        with pytest.raises(ConfigError, match=f"LlamaForCausalLM, which {re.escape(said)}"):
            family_for(facts)


def test_the_norm_of_the_embedding_is_compiled_as_the_blocks_are():
    model = assemble(config_of(norm_embedding=True), VOCAB)
    model.compile_blocks(packed=False)
    parts = [model.norm_embed, *model.blocks, model.norm]
    assert all(part._compiled_call_impl is not None for part in parts)
    with model.uncompiled():
        assert all(part._compiled_call_impl is None for part in parts)
    assert all(part._compiled_call_impl is not None for part in parts)
