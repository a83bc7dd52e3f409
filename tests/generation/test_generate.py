"""Generation: the cache changes nothing, and nothing is drawn that should not be."""

from __future__ import annotations

import math

import pytest
import torch

from tests.model.attn.cells import BIASES
from tests.models import gpt, random_tokens, sampled_without_cache
from xftrain.config import registry
from xftrain.errors import ConfigError
from xftrain.generation.generate import generate

CAUSAL = [name for name in BIASES if name != "full"]


@pytest.mark.parametrize("heads", registry.option_names("model/heads"))
@pytest.mark.parametrize("pos", registry.option_names("model/pos"))
@pytest.mark.parametrize("bias", CAUSAL)
def test_with_the_cache_the_text_is_the_same_as_recomputed(bias, pos, heads):
    # 30 positions are more than the window of 20 keys
    model = gpt(attn="sdpa", bias=bias, pos=pos, heads=heads, scale=6.0)
    prompt = random_tokens(2, 12)
    want = sampled_without_cache(model, prompt, 18)
    assert torch.equal(generate(model, prompt, 18, vocab_size=64, temperature=0), want)
    # the same tokens over and over would say little
    assert want[:, 12:].unique().numel() > 4


@pytest.mark.parametrize("attn", ["xformers", "naive"])
def test_what_was_trained_with_a_backend_generates_with_the_cache(attn):
    model = gpt(attn=attn, bias="alibi", pos="rope", heads="gqa", scale=6.0)
    prompt = random_tokens(1, 8)
    want = sampled_without_cache(model, prompt, 10)
    assert torch.equal(generate(model, prompt, 10, vocab_size=64, temperature=0), want)


def test_the_padding_of_the_vocabulary_is_never_drawn():
    model, prompt = gpt(), random_tokens(4, 3)
    with torch.no_grad():
        model.head.weight[50:] = 100 * model.head.weight[0]  # the padding would be likeliest
    for temperature, top_k in ((0, None), (1.0, None), (1.0, 5), (5.0, 64)):
        drawn = generate(
            model, prompt, 30, vocab_size=50, temperature=temperature, top_k=top_k, seed=1
        )
        assert drawn[:, 3:].max() < 50


def test_top_k_draws_among_that_many():
    model, prompt = gpt(scale=3.0), random_tokens(1, 4)
    with torch.no_grad():
        likeliest = model(prompt)[0, -1].topk(3).indices.tolist()
    firsts = {
        top_k: {
            int(
                generate(model, prompt, 1, vocab_size=64, top_k=top_k, temperature=9.0, seed=s)[
                    0, -1
                ]
            )
            for s in range(200)
        }
        for top_k in (1, 3, None)
    }
    assert firsts[1] == {likeliest[0]}
    assert firsts[3] == set(likeliest)
    assert len(firsts[None]) > 20


def test_temperature_divides_the_logits():
    # a token's frequency among many draws, against softmax(logits / temperature)
    model, prompt = gpt(scale=3.0), random_tokens(1, 4).expand(4000, -1)
    with torch.no_grad():
        want = (model(prompt[:1])[0, -1] / 2.0).softmax(-1)
    drawn = generate(model, prompt, 1, vocab_size=64, temperature=2.0)[:, -1]
    share = drawn.bincount(minlength=64) / 4000
    assert (share - want).abs().max() < 5 * math.sqrt(float(want.max()) / 4000)


def test_the_seed_decides_and_torchs_own_state_is_left_alone():
    model, prompt = gpt(scale=2.0), random_tokens(1, 4)
    before = torch.get_rng_state()
    one, same, other = (generate(model, prompt, 20, vocab_size=64, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(one[:, :4], prompt)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_restored(training):
    model, prompt = gpt(scale=4.0, dropout=0.5).train(training), random_tokens(1, 4)
    texts = [generate(model, prompt, 10, vocab_size=64, temperature=0) for _ in range(2)]
    assert model.training is training
    assert torch.equal(*texts)
    assert torch.equal(texts[0], sampled_without_cache(model.eval(), prompt, 10))


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="the prompt is empty"):
        generate(gpt(), random_tokens(1, 0), 3, vocab_size=64)


def test_no_more_tokens_than_the_model_has_positions():
    model, prompt = gpt(), random_tokens(1, 128)  # of 130
    # the last token need not be read
    assert generate(model, prompt, 3, vocab_size=64).shape == (1, 131)
    with pytest.raises(ConfigError, match=r"model\.pos\.max_positions is 130"):
        generate(model, prompt, 4, vocab_size=64)
    assert generate(gpt(pos="none"), prompt, 4, vocab_size=64).shape == (1, 132)


@pytest.mark.cuda
def test_generation_on_cuda():
    model = gpt(bias="window", pos="rope", heads="gqa", scale=6.0).cuda()
    prompt = random_tokens(1, 8).cuda()
    want = sampled_without_cache(model, prompt, 20)
    assert torch.equal(generate(model, prompt, 20, vocab_size=64, temperature=0), want)
    with torch.autocast("cuda", torch.bfloat16):
        assert generate(model, prompt, 20, vocab_size=64).shape == (1, 28)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_not_finite_are_a_sentence(value, temperature):
    # torch said that a probability tensor contains inf, nan or element < 0
    model = gpt()
    with torch.no_grad():
        model.norm.weight[0] = value
    with pytest.raises(ConfigError, match="^the logits are not finite") as refused:
        generate(model, random_tokens(1, 4), 2, vocab_size=64, temperature=temperature)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("temperature", [1e-20, 1e-38, 1e-300])
def test_a_low_temperature_takes_the_likeliest(temperature):
    # the logits divided by it were infinite
    model, prompt = gpt(scale=6.0), random_tokens(1, 8)
    want = generate(model, prompt, 10, vocab_size=64, temperature=0)
    drawn = generate(model, prompt, 10, vocab_size=64, temperature=temperature)
    assert torch.equal(drawn, want)
