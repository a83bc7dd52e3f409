"""The weights of a model: how they start, how many there are, and its state dict."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from tests.model.attn.cells import BACKENDS, PACKED_LENGTHS
from tests.models import gpt, random_tokens
from xftrain.commands.builder import assemble
from xftrain.config import registry
from xftrain.config.compose import compose, validate
from xftrain.errors import ConfigError
from xftrain.model.initialization import init_table

TOKENS = random_tokens(1, sum(PACKED_LENGTHS))


def shapes_of(preset: str, *overrides: str, vocab_size: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = assemble(validate(compose(f"model={preset}", *overrides)).model, vocab_size)
    assert model.uninitialized == []
    return dict(model.named_parameters())


@pytest.mark.parametrize("overrides", [[], ["model.linear_bias=true"]], ids=["plain", "biases"])
@pytest.mark.parametrize("preset", sorted(p.stem for p in registry.conf_dir().glob("model/*.yaml")))
def test_every_parameter_of_every_preset_has_a_rule(preset, overrides):
    names = shapes_of(preset, *overrides, vocab_size=64)
    table = init_table(0.02, 4)
    used = set()
    for name in names:
        rules = [rule for rule in table if re.fullmatch(rule.pattern, name)]
        assert len(rules) == 1, f"{name}: {rules}"  # the first is the only one
        used.add(rules[0].pattern)
    unused = {rule.pattern for rule in table} - used
    assert unused == (set() if overrides else {r".*\.bias"})


@pytest.mark.parametrize(("kind", "std"), [("up", 0.02), ("down", 0.02 / math.sqrt(8))])
def test_the_matrices_of_experts_start_as_those_of_a_feed_forward(kind, std):
    for name in (f"blocks.3.ffn.{kind}.weight", f"blocks.3.ffn.experts.12.{kind}.weight"):
        (rule,) = [r for r in init_table(0.02, 4) if re.fullmatch(r.pattern, name)]
        assert (rule.mean, rule.std) == (0.0, pytest.approx(std))


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_weights_start_as_the_table_says(norm):
    model = gpt(norm=norm, linear_bias=True, num_layers=3, init_std=0.05, ffn="gelu")
    expected = {"out": 0.05 / math.sqrt(6), "down": 0.05 / math.sqrt(6)}
    for name, parameter in model.named_parameters():
        module, kind = name.split(".")[-2:]
        if kind == "bias":
            assert (parameter == 0).all(), name
        elif module.startswith("norm"):
            assert (parameter == 1).all(), name
        else:
            # 5 standard errors of the smallest matrix, 64 x 64
            assert float(parameter.detach().std()) == pytest.approx(
                expected.get(module, 0.05), rel=0.055
            ), name
            assert abs(float(parameter.detach().mean())) < 0.05 * 0.08, name


@pytest.mark.parametrize(
    ("preset", "vocab_size", "seq", "millions"),
    # GPT-2 small is 124.4 M with its 1024 positions, as published; TinyLlama is 1.10 B
    [("gpt_124m", 50304, 1024, 124.37376), ("llama_1b", 32000, 2048, 1100.048384)],
)
def test_parameter_counts_are_those_of_the_published_models(preset, vocab_size, seq, millions):
    parameters = shapes_of(preset, f"seq={seq}", vocab_size=vocab_size)
    assert sum(p.numel() for p in parameters.values()) == round(millions * 1e6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(({"attn": "naive"}, {"attn": name}) for name in [*BACKENDS, "auto"] if name != "naive"),
        ({"bias": "alibi"}, {"bias": "alibi-dense"}),
        ({"bias": "alibi", "attn": "sdpa"}, {"bias": "alibi-dense", "attn": "xformers"}),
        ({"ffn": {"name": "swiglu", "impl": "torch"}}, {"ffn": {"name": "swiglu", "impl": "auto"}}),
        (
            {"ffn": {"name": "swiglu", "impl": "torch"}},
            {"ffn": {"name": "swiglu", "impl": "xformers"}},
        ),
        (
            {"ffn": {"name": "swiglu", "impl": "torch"}},
            {"ffn": {"name": "swiglu", "impl": "liger"}},
        ),
    ],
)
def test_the_state_dict_does_not_depend_on_how_things_are_computed(one, other):
    trained, second = gpt(seed=1, scale=5.0, **one), gpt(seed=2, **other)
    ours, theirs = trained.state_dict(), second.state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    second.load_state_dict(ours)
    if "flex" in other.values() or "liger" in str(other):
        return  # computed on a GPU only
    with torch.no_grad():
        assert torch.allclose(trained(TOKENS), second(TOKENS), atol=1e-4)


def test_equal_seeds_give_equal_weights_whatever_computes():
    first = gpt(attn="naive").state_dict()
    for other in (gpt(attn="xformers"), gpt(ffn={"name": "swiglu", "impl": "xformers"})):
        assert all(torch.equal(first[name], t) for name, t in other.state_dict().items())


def test_tied_embeddings_are_one_tensor():
    model = gpt(tie_embeddings=True)
    assert model.head.weight is model.embed.weight
    assert "head.weight" not in dict(model.named_parameters())
    moved = model.to(torch.bfloat16)
    assert moved.head.weight.data_ptr() == moved.embed.weight.data_ptr()
    assert gpt().head.weight is not gpt().embed.weight


@pytest.mark.parametrize("residual", ["scaled", "zero"])
@pytest.mark.parametrize("head", ["normal", "zero"])
def test_what_starts_at_zero_leaves_blocks_or_predictions_out(residual, head):
    kinds = {"init_residual": residual, "init_head": head}
    model = gpt(pos="rope", ffn="gelu", qk_norm=True, **kinds)
    assert model.uninitialized == []
    zeros = {name for name, weight in model.named_parameters() if not bool(weight.any())}
    into_residual = {f"blocks.{n}.{kind}.weight" for n in (0, 1) for kind in ("out", "ffn.down")}
    assert zeros == (into_residual if residual == "zero" else set()) | (
        {"head.weight"} if head == "zero" else set()
    )
    with torch.no_grad():
        logits = model(TOKENS)
        identity = torch.nn.functional.linear(model.norm(model.embed(TOKENS)), model.head.weight)
    assert torch.equal(logits, identity) == (residual == "zero" or head == "zero")


def test_a_model_that_starts_at_zero_learns_in_every_weight():
    model = gpt(pos="rope", init_residual="zero", init_head="zero")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        optimizer.zero_grad()
        logits = model(TOKENS[:, :-1]).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, TOKENS[0, 1:]).backward()
        optimizer.step()
    # head at the first step, output projections at the second, all others at the third
    assert all(float(weight.grad.abs().sum()) > 0 for weight in model.parameters())
    assert not any(torch.equal(before[name], w) for name, w in model.named_parameters())


def test_a_tied_head_cannot_start_at_zero():
    words = ("model.init_head=zero", "model.tie_embeddings=true")
    with pytest.raises(ConfigError, match=r"model.init_head=zero needs model.tie_embeddings=false"):
        validate(compose(*words))
