"""FLOPs that options declare: the active experts of a feed-forward, the scores of a backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xftrain
from tests.models import VOCAB, gpt, options, random_tokens
from tests.train.experts import Experts
from tests.train.runs import SMALL
from xftrain.commands.builder import assemble, build_data, build_model
from xftrain.commands.preflight import check_runnable
from xftrain.config.compose import compose
from xftrain.errors import ConfigError
from xftrain.interfaces import AttnCall, Batch, positions_of
from xftrain.loss.full import Full
from xftrain.model.attn.auto import Auto
from xftrain.model.attn.naive import Naive
from xftrain.model.flops import FlopCounter, flops_per_token

CPU = torch.device("cpu")


class Wrong(Experts):
    """Declares what is no number of parameters."""

    def active_parameters(self) -> Any:
        return torch.tensor(3)


class Linear(Naive):
    """A backend whose FLOPs do not depend on the number of keys."""

    def flops_per_token(self, call: AttnCall) -> Any:
        return 1000.0 * call.shape.H


class Negative(Naive):
    """A backend that declares no number of FLOPs."""

    def flops_per_token(self, call: AttnCall) -> Any:
        return -1.0


def batch(seqlens: tuple[int, ...] | None = None) -> Batch:
    tokens_BM = random_tokens(1, 100)
    return Batch(tokens_BM, tokens_BM, positions_of(100, seqlens), seqlens)


def own(kind: type, **fields: Any) -> dict[str, Any]:
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **fields}


@pytest.mark.parametrize("num_experts", [1, 2, 8])
def test_only_the_active_expert_of_a_mixture_counts(num_experts):
    model = gpt(ffn=own(Experts, num_experts=num_experts))
    one = gpt(ffn=own(Experts, num_experts=1))
    routers = 6 * 2 * 64 * (num_experts - 1)  # 2 layers, width 64
    assert flops_per_token(model, batch()) == flops_per_token(one, batch()) + routers
    plain = 6 * sum(p.numel() for name, p in one.named_parameters() if "embed" not in name)
    plain -= 6 * one.pos.table.weight.numel()
    assert flops_per_token(one, batch()) == plain + 12 * 2 * 64 * 100


def test_a_feed_forward_that_layers_share_counts_once():
    model = gpt(ffn=own(Experts))
    shared = model.blocks[0].ffn
    each = 6 * shared.active_parameters()
    before = flops_per_token(model, batch())
    model.blocks[1].ffn = shared
    assert flops_per_token(model, batch()) == before - each


@pytest.mark.parametrize("seqlens", [None, (30, 70)])
@pytest.mark.parametrize("chooses", [False, True])
def test_a_backend_declares_the_operations_of_attention(seqlens, chooses):
    model = gpt()
    weights = flops_per_token(model, batch()) - 12 * 2 * 64 * 100
    model.backend = Auto() if chooses else Linear()
    if chooses:
        model.backend.chosen = Linear()
    assert FlopCounter(model).per_token(batch(seqlens)) == weights + 2 * 1000 * 4


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"ffn": own(Wrong)}, "Wrong.active_parameters must return an integer >= 0, got an int64"),
        ({"attn": own(Negative)}, "Negative.flops_per_token must return a finite number >= 0, got"),
    ],
    ids=["ffn", "attn"],
)
def test_a_wrong_figure_is_refused_before_training(chosen, said):
    cfg = options(**chosen)
    first = build_data(cfg).batch("train", 0)
    with pytest.raises(ConfigError, match=said):
        check_runnable(cfg, Full(), VOCAB, first, CPU, torch.float32)
    with torch.device("meta"):
        assemble(cfg.model, VOCAB)  # it is no fault of the model


@pytest.mark.parametrize(
    ("part", "kind", "fewer"),
    [
        ("ffn", Experts, lambda D: 6 * 2 * (D * D + D)),  # two of three experts with their biases
        ("attn", Linear, lambda D: 12 * D * 16 - 1000 * 2),  # 16 tokens, 2 heads
    ],
)
def test_info_reads_what_options_declare(tmp_path, part, kind, fewer):
    words = (*SMALL, f"~model.{part}", f"+model.{part}={{_target_: {own(kind)['_target_']}}}")
    said = xftrain.run(compose(*words, config_name="info"), tmp_path)["metrics"]
    model = build_model(compose(*words))
    D, num_layers = model.embed.embedding_dim, len(model.blocks)
    all_parameters = said["parameters"] - said["embedding_parameters"]
    formula = 6 * all_parameters + 12 * num_layers * D * 16
    assert said["flops_per_token"] == formula - num_layers * fewer(D)
