"""Groups of parameters by patterns of their names: what is in them, steps them and is logged."""

from __future__ import annotations

import pytest
import torch

from tests.models import gpt
from tests.train.runs import last, rows_of, run, same_weights
from xftrain.config.compose import compose, validate
from xftrain.errors import ConfigError
from xftrain.optim.adafactor import Adafactor
from xftrain.optim.adamw import AdamW
from xftrain.schedule.constant import Constant
from xftrain.train.parameter_groups import split_parameters

FFN = "{match:'blocks.*.ffn.*',lr:0.01,optimizer:adafactor}"
EMBED = "{match:'embed.*',lr:0.001,weight_decay:0.2}"
BOTH = f"optim.param_groups=[{FFN},{EMBED}]"
RATES = ("optim/lr", "optim/lr/0", "optim/lr/1")
STEPS = ("schedule=constant", "schedule.warmup_steps=1", "trainer.log_every_n_steps=1")


def named_groups(model, patterns):
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        (group.entry, group.decays, {by_id[id(p)] for p in group.parameters})
        for group in split_parameters(model, patterns)
    ]


def test_the_first_pattern_that_matches_counts():
    model = gpt(num_layers=2, linear_bias=True)
    rest, vectors, up, up_bias, ffn, ffn_bias = named_groups(
        model, ["blocks.1.ffn.up.*", "blocks.*.ffn.*"]
    )
    assert up == (0, True, {"blocks.1.ffn.up.weight"})
    assert up_bias == (0, False, {"blocks.1.ffn.up.bias"})
    assert ffn[:2] == (1, True) and ffn_bias[:2] == (1, False)
    assert ffn[2] == {f"blocks.{name}.weight" for name in ("0.ffn.up", "0.ffn.down", "1.ffn.down")}
    assert rest[:2] == (None, True) and vectors[:2] == (None, False)
    names = [name for *_, group in (rest, vectors, up, up_bias, ffn, ffn_bias) for name in group]
    assert sorted(names) == sorted(dict(model.named_parameters()))


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["blocks.*.fnn.*"], r"\[0\].match='blocks.\*.fnn.\*' matches none of .*blocks.0.ffn.up"),
        (["blocks.*", "blocks.0.*"], r"\[1\].match='blocks.0.\*' matches only parameters that an"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(patterns, said):
    with pytest.raises(ConfigError, match=said):
        split_parameters(gpt(num_layers=1), patterns)


def test_fields_that_are_left_out_are_those_of_the_option_that_steps_the_group():
    entries = [
        {"match": "blocks.0.*", "weight_decay": 0.3},
        {"match": "blocks.1.*", "lr": 0.5},
        {"match": "head.*", "optimizer": {"name": "adafactor", "lr": 0.25, "weight_decay": 0.0}},
    ]
    optim = AdamW(lr=0.1, weight_decay=0.2, param_groups=entries)
    optimizer, _ = optim.build(gpt(num_layers=2), Constant(warmup_steps=0), 9)
    found = [(g.get("name"), g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [
        *[(None, 0.1, 0.0)],  # embeddings and the last norm; every other matrix is matched
        *[("0", 0.1, 0.3), ("0", 0.1, 0.3), ("1", 0.5, 0.2), ("1", 0.5, 0.0)],
        *[("2", 0.25, 0.0)],
    ]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{lr:1e-3}", "optim.param_groups[0].match has no value; set it to a string."),
        ("{match:x,lr:0}", "optim.param_groups[0].lr must be a number > 0 or null, got 0."),
        (
            "{match:x,lrs:1}",
            "optim.param_groups[0].lrs is not a key of optim.param_groups[0]; did ",
        ),
        ("{match:x,optimizer:adam}", "optim.param_groups[0].optimizer.name must be one of "),
        ("{match:x,optimizer:{lr:1}}", "optim.param_groups[0].optimizer.name must be one of "),
        (
            "{match:x,optimizer:{name:adamw,eps:0}}",
            "optim.param_groups[0].optimizer.eps must be a number > 0, got 0.",
        ),
        (
            "{match:x,optimizer:{name:adamw,param_groups:[]}}",
            "optim.param_groups[0].optimizer must have no param_groups: add an entry instead.",
        ),
    ],
)
def test_an_entry_is_checked_before_anything_is_built(entry, said):
    with pytest.raises(ConfigError) as refused:
        validate(compose(f"optim.param_groups=[{entry}]"))
    assert str(refused.value).startswith(said)


def test_another_optimizer_for_a_group_is_refused_with_cuda_graphs():
    typed = ("compile=cudagraphs", "optim.param_groups=[{match:'embed.*',optimizer:adamw}]")
    with pytest.raises(ConfigError, match=r"^optim.param_groups\[0\].optimizer cannot be set with"):
        validate(compose(*typed))
    validate(compose(typed[0], "optim.param_groups=[{match:'embed.*',lr:1}]"))


def test_a_pattern_is_checked_before_data_is_trained_on(tmp_path):
    with pytest.raises(ConfigError, match="matches none of the 10 trained parameters"):
        run(tmp_path, "optim.param_groups=[{match:'block.*'}]")


def test_what_each_option_says_that_it_keeps_is_what_is_kept():
    model = gpt(num_layers=2, linear_bias=True)
    optim = AdamW(param_groups=[{"match": "*.ffn.*", "optimizer": "adafactor"}])
    optimizer, _ = optim.build(model, Constant(), 10)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    options = optim.option_by_parameter(model)
    assert {type(option) for option in options.values()} == {AdamW, Adafactor}
    for parameter, state in optimizer.state.items():
        kept = sum(value.nbytes for name, value in state.items() if name != "step")
        assert kept == options[parameter].state_bytes(parameter)


def test_a_run_of_several_groups_logs_their_rates_and_resumes_bitwise(tmp_path):
    words = (*STEPS, BOTH, "model.dropout=0.1")
    run(tmp_path / "whole", *words, "max_steps=5")
    rates = [rows_of(tmp_path / "whole", name) for name in RATES]
    for found, lr in zip(rates, (3e-3, 0.01, 0.001), strict=True):
        assert list(found.values()) == pytest.approx([lr / 2, *[lr] * 4])
    run(tmp_path / "cut", *words, "max_steps=2")
    run(tmp_path / "cut", *words, "max_steps=5", "ckpt=auto")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))


def test_a_resumed_run_has_the_rates_of_today_in_each_group(tmp_path):
    run(tmp_path, *STEPS, BOTH, "max_steps=2")
    changed = BOTH.replace("lr:0.01", "lr:0.05").replace("weight_decay:0.2", "weight_decay:0.1")
    run(tmp_path, *STEPS, changed, "max_steps=3", "ckpt=auto")
    assert [rows_of(tmp_path, name)[3] for name in RATES] == pytest.approx([3e-3, 0.05, 0.001])


@pytest.mark.parametrize(
    "changed", [BOTH.replace("embed", "pos"), BOTH.replace("adafactor", "adamw"), "seed=0"]
)
def test_a_state_of_other_groups_is_refused(tmp_path, changed):
    # of as many parameters: the state of one was given to another
    run(tmp_path, BOTH, "max_steps=1")
    with pytest.raises(ConfigError, match="^ckpt holds the state of an optimizer with optim.param"):
        run(tmp_path, changed, "max_steps=2", "ckpt=auto")
