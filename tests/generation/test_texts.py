"""Texts of several prompts at once: each is what it would be alone, and ends where it should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import gpt, random_tokens, sampled_without_cache
from xftrain.generation.cache import Cache
from xftrain.generation.continuation import Continuation, Stops
from xftrain.generation.generate import generate_texts
from xftrain.generation.prefill import prefill
from xftrain.generation.sampling import Sampling
from xftrain.generation.step import DecodeStep

GREEDY = Sampling(temperature=0)
LENGTHS = (1, 12, 5, 30)


def prompts_of(lengths=LENGTHS):
    return [random_tokens(1, length)[0].tolist() for length in lengths]


@pytest.mark.parametrize("bias", ["causal", "window", "alibi"])
@pytest.mark.parametrize("heads", ["mha", "gqa"])
def test_prompts_of_different_lengths_are_continued_as_each_alone(bias, heads):
    model = gpt(attn="sdpa", bias=bias, pos="rope", heads=heads, scale=6.0)
    together = generate_texts(model, prompts_of(), 20, vocab_size=64, sampling=GREEDY)
    for prompt, one in zip(prompts_of(), together.continuations, strict=True):
        alone = generate_texts(model, [prompt], 20, vocab_size=64, sampling=GREEDY)
        assert one.tokens == alone.continuations[0].tokens and one.reason == "length"
    assert len({tuple(one.tokens) for one in together.continuations}) == len(LENGTHS)


@pytest.mark.parametrize("heads", ["mha", "gqa"])
def test_a_prompt_longer_than_the_window_is_continued_as_recomputed(heads):
    model = gpt(attn="sdpa", bias="window", pos="rope", heads=heads, scale=6.0)
    prompts = prompts_of((45, 3, 21, 20, 45))  # a query sees 20 keys
    made = generate_texts(model, prompts, 9, vocab_size=64, sampling=GREEDY)
    for prompt, one in zip(prompts, made.continuations, strict=True):
        whole = sampled_without_cache(model, torch.tensor([prompt]), 9)[0].tolist()
        assert prompt + one.tokens == whole


def test_samples_of_one_prompt_differ_and_greedy_ones_do_not():
    model = gpt(scale=2.0)
    drawn = generate_texts(model, prompts_of((4, 9)), 10, vocab_size=64, num_samples=3)
    assert len({tuple(one.tokens) for one in drawn.continuations}) == 6
    same = generate_texts(
        model, prompts_of((4, 9)), 10, vocab_size=64, num_samples=3, sampling=GREEDY
    )
    texts = [one.tokens for one in same.continuations]
    assert texts[0] == texts[1] == texts[2] != texts[3] == texts[4]


def test_a_cache_is_as_large_as_its_kv_heads_and_reported():
    made = [
        generate_texts(gpt(heads=heads), prompts_of((3,)), 6, vocab_size=64)
        for heads in ("mha", "mqa")
    ]
    assert made[0].cache_bytes == 4 * made[1].cache_bytes == 2 * 2 * 8 * 64 * 4
    assert made[0].num_decoded == 5 and made[0].tokens_per_s > 0


LOGITS = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(top_p=0.6), {0}),
        (Sampling(top_p=0.7), {0, 1}),  # 0.64, 0.23, 0.09, 0.03, 0.01
        (Sampling(top_p=0.0), {0}),
        (Sampling(top_p=1.0), {0, 1, 2, 3, 4}),
        (Sampling(min_p=0.3), {0, 1}),
        (Sampling(min_p=1.0), {0}),
        (Sampling(top_k=3, min_p=0.001), {0, 1, 2}),
        (Sampling(temperature=9.0, top_k=2, top_p=0.9), {0, 1}),
        (Sampling(temperature=0), {0}),
    ],
)
def test_only_what_a_limit_leaves_is_drawn(sampling, left):
    # the likeliest token has the last id, since id 0 is also the result if nothing is left
    logits = LOGITS.flip(-1).expand(3000, -1)
    drawn = 4 - sampling.draw(logits, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == left


def spelled(tokens):
    return bytes(tokens).decode("utf-8", errors="replace")


@settings(max_examples=60)
@given(
    st.text(alphabet="abé🙂", max_size=30),
    st.lists(st.text(alphabet="abé🙂", min_size=1, max_size=3), max_size=2),
    st.integers(1, 7),
)
def test_a_text_ends_before_a_stop_string_however_its_tokens_come(text, stops, size):
    tokens = list(text.encode())
    one = Continuation(Stops(None, tuple(stops), spelled))
    shown = ""
    for begin in range(0, len(tokens), size):
        one.add(tokens[begin : begin + size], is_last=begin + size >= len(tokens))
        assert one.settled_text.startswith(shown)  # nothing that was shown is taken back
        shown = one.settled_text
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    want = text[: min(found)] if found else text
    assert not tokens or (one.text == want and shown == want)
    assert one.reason == ("string" if found else "length" if tokens else None)


def test_a_token_that_ends_texts_is_no_part_of_one():
    one = Continuation(Stops(token=7, decode=spelled))
    one.add([97, 98], is_last=False)
    one.add([99, 7, 100], is_last=False)
    one.add([101], is_last=True)
    assert (one.tokens, one.text, one.reason, one.num_read) == ([97, 98, 99], "abc", "token", 6)


@pytest.mark.cuda
@pytest.mark.parametrize("ffn", ["swiglu", "geglu", "gelu", "relu2"])
@pytest.mark.parametrize(("pos", "norm"), [("learned", "layernorm"), ("rope", "rmsnorm")])
@pytest.mark.parametrize("has_norms", [False, True])
def test_fused_layers_give_the_logits_of_the_blocks(ffn, pos, norm, has_norms, monkeypatch):
    norms = {"qk_norm": has_norms, "norm_embedding": has_norms}
    model = gpt(attn="sdpa", ffn=ffn, pos=pos, norm=norm, heads="gqa", scale=2.0, **norms).cuda()
    model = model.to(torch.bfloat16).eval()
    tokens_BM = random_tokens(3, 20).cuda()

    def logits():
        cache = Cache(model, 3, 21)
        last = prefill(model, tokens_BM[:, :-1].tolist(), cache)
        step = DecodeStep(model, cache)
        positions = torch.full((3,), 19, device="cuda")
        return last, step(tokens_BM[:, -1], positions).float(), step._fused

    with torch.no_grad():
        fused = logits()
        assert len(fused[2]) == 2
        monkeypatch.setattr("xftrain.generation.step.fused_blocks", lambda *_: None)
        plain = logits()
        assert plain[2] is None
        want = model.float()(tokens_BM)[:, -1]
    assert (plain[1] - want).abs().max() < 0.05 * want.abs().max()
    assert (fused[1] - want).abs().max() < 0.05 * want.abs().max()
