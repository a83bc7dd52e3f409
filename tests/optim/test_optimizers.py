"""Which parameters are decayed, and what an optimizer option makes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models import gpt
from tests.train.runs import last, rows_of, run, same_weights
from xftrain.errors import ConfigError
from xftrain.optim.adafactor import Adafactor
from xftrain.optim.adamw import AdamW
from xftrain.schedule.constant import Constant
from xftrain.schedule.cosine import Cosine
from xftrain.train.parameter_groups import decay_groups


def names(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [by_id[id(parameter)] for parameter in parameters]
    assert len(found) == len(set(found)), "a parameter twice"
    return set(found)


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_are_decayed_and_nothing_else(tied):
    model = gpt(num_layers=1, linear_bias=True, tie_embeddings=tied)
    decayed, free = (names(model, group) for group in decay_groups(model))
    matrices = {f"blocks.0.{m}.weight" for m in ("heads.qkv", "out", "ffn.up", "ffn.down")}
    assert decayed == matrices | (set() if tied else {"head.weight"})
    assert free == dict(model.named_parameters()).keys() - decayed
    assert {"embed.weight", "pos.table.weight", "norm.weight", "norm.bias"} <= free


def test_frozen_parameters_are_left_out():
    model = gpt(num_layers=1)
    model.embed.weight.requires_grad_(False)
    decayed, free = decay_groups(model)
    assert "embed.weight" not in names(model, decayed) | names(model, free)


def test_decay_shrinks_matrices_by_the_rate_and_leaves_the_rest():
    model = gpt(num_layers=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optim = AdamW(lr=0.1, weight_decay=0.5)
    optimizer, schedule = optim.build(model, Constant(warmup_steps=0), 10)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    schedule.step()
    decayed = names(model, decay_groups(model)[0])
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name in decayed else 1.0
        assert torch.allclose(parameter, before[name] * factor), name


def test_options_reach_the_optimizer():
    optim = AdamW(lr=0.1, betas=[0.8, 0.85], eps=1e-3, weight_decay=0.2)
    optimizer, _ = optim.build(gpt(num_layers=1), Cosine(), 10)
    assert optimizer.defaults["betas"] == (0.8, 0.85) and optimizer.defaults["eps"] == 1e-3
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]


def test_options_reach_adafactor():
    optim = Adafactor(lr=0.1, beta2_decay=-0.5, clip_threshold=2.0, weight_decay=0.2)
    optimizer, _ = optim.build(gpt(num_layers=1), Cosine(), 10)
    assert optimizer.defaults["d"] == 2.0 and optimizer.defaults["beta2_decay"] == -0.5
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]


@pytest.mark.parametrize("optim", [AdamW(), Adafactor()], ids=lambda optim: type(optim).__name__)
def test_what_an_optimizer_keeps_is_what_it_says(optim):
    model = gpt(num_layers=2, linear_bias=True)
    optimizer, _ = optim.build(model, Constant(warmup_steps=0), 10)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for parameter, state in optimizer.state.items():
        kept = [value for name, value in state.items() if name != "step"]
        assert sum(value.nbytes for value in kept) == optim.state_bytes(parameter)


def test_adafactor_learns_and_goes_on_where_it_was(tmp_path):
    words = ("optim=adafactor", "schedule=constant", "data.stop_at_accuracy=null")
    result = run(tmp_path / "whole", *words, "max_steps=120", "model.dropout=0.1")
    assert result["metrics"]["val/loss"] < 3.0  # of log 64 = 4.16 at the start
    run(tmp_path / "cut", *words, "max_steps=50", "model.dropout=0.1")
    run(tmp_path / "cut", *words, "max_steps=120", "model.dropout=0.1", "ckpt=auto")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    run(tmp_path, "max_steps=2")
    with pytest.raises(ConfigError, match="optim=adamw, which optim=adafactor cannot resume"):
        run(tmp_path, "optim=adafactor", "ckpt=auto")


def test_a_model_of_vectors_alone_has_one_group():
    optimizer, _ = AdamW().build(nn.LayerNorm(4), Cosine(), 10)
    assert len(optimizer.param_groups) == 1


def test_a_run_logs_the_rate_of_each_step(tmp_path):
    # it logged that of the step to come
    chosen = ("optim.lr=0.01", "schedule.warmup_steps=3", "schedule.min_lr_ratio=0")
    run(
        tmp_path,
        *chosen,
        "max_steps=5",
        "trainer.log_every_n_steps=1",
        "trainer.accumulate_grad_batches=2",
    )
    shares = [1 / 4, 2 / 4, 3 / 4, 1.0, 0.5]
    assert list(rows_of(tmp_path, "optim/lr").values()) == pytest.approx(
        [0.01 * share for share in shares]
    )
