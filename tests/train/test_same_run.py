"""Which differences between two configurations make another run; nothing is trained."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from xftrain.errors import ConfigError
from xftrain.train.same_run import (
    allows,
    differences,
    flat,
    refuse_other_model,
    refuse_other_optimizer,
    refuse_other_run,
    with_digests,
)

BASE: dict[str, Any] = {
    "seed": 0,
    "seq": 8,
    "data": {"name": "text", "path": "a", "cache_dir": "x"},
    "model": {"dim": 4, "bias": {"name": "window", "impl": "p"}, "attn": {"name": "sdpa"}},
    "trainer": {"devices": 1, "max_time": None},
    "optim": {"name": "adamw", "lr": 0.003, "betas": (0.9, 0.95)},
    "callbacks": {"x": {"_target_": "own.Callback", "size": 1}},
    "ckpt": None,
    "ckpt_allow": [],
}


def _with(**changes: Any) -> dict[str, Any]:
    """The configuration with other values; `__` stands for a dot."""
    config = deepcopy(BASE)
    for key, value in changes.items():
        *groups, name = key.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[name] = value
    return config


def test_a_model_is_compared_by_names_shapes_and_kinds() -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.zeros(2)}
    refuse_other_model(weights, {"a": torch.zeros(2, 3).bfloat16(), "b": torch.zeros(2).double()})
    for other, said in [
        ({"a": torch.zeros(3, 2), "b": torch.zeros(2)}, r"1 .*first a, \[2, 3\] .*\[3, 2\] here"),
        ({"a": torch.zeros(2, 3)}, r"1 .*first b, \[2\] there and absent here"),
        (weights | {"c": torch.zeros(1)}, r"1 .*first c, absent there and \[1\] here"),
        ({"a": torch.zeros(1), "b": torch.zeros(1)}, r"holds another model: 2 of its tensors"),
        (weights | {"b": torch.zeros(2).long()}, r"\[2\] there and \[2\] of torch.int64 here"),
    ]:
        with pytest.raises(ConfigError, match=said):
            refuse_other_model(weights, other)


def test_an_optimizer_is_compared_by_its_name_where_both_have_one() -> None:
    refuse_other_optimizer(BASE, _with(optim__lr=1.0))
    refuse_other_optimizer(BASE, _with(optim={"_target_": "own.Optimizer"}))
    refuse_other_optimizer(_with(optim={"_target_": "own.Optimizer"}), BASE)
    with pytest.raises(ConfigError, match="of optim=adamw, which optim=adafactor cannot"):
        refuse_other_optimizer(BASE, _with(optim__name="adafactor"))


def test_differences_are_told_in_order_and_a_long_value_in_part() -> None:
    assert (
        differences(BASE, _with(optim__betas=[0.9, 0.95], ckpt="auto", ckpt_allow=["seed"])) == {}
    )
    more = _with(seed=1, optim__lr=1e-5, data__new="n", optim__betas=[0.9, 0.9])
    assert differences(BASE, more) == {
        "data.new": "data.new None -> 'n'",
        "optim.betas": "optim.betas [0.9, 0.95] -> [0.9, 0.9]",
        "optim.lr": "optim.lr 0.003 -> 1e-05",
        "seed": "seed 0 -> 1",
    }
    longest, longer = "x" * 198, "x" * 199  # and two quotes
    assert differences(BASE, _with(seed=longest))["seed"] == f"seed 0 -> '{longest}'"
    assert differences(BASE, _with(seed=longer))["seed"] == f"seed 0 -> '{longer}..."


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"seq": 9},
        {"data__path": "b"},
        {"model__dim": 5},
        {"model__bias__name": "causal"},
        {"trainer__devices": 2},
        {"callbacks__x___target_": "own.Other"},
    ],
)
def test_what_decides_is_refused_and_allowed_by_its_name_or_its_group(
    change: dict[str, Any],
) -> None:
    (key,) = differences(BASE, _with(**change))
    with pytest.raises(ConfigError, match=rf"ckpt_allow=\[{key}\]") as refused:
        refuse_other_run(BASE, _with(**change))
    assert f"another configuration: {key} " in str(refused.value)
    for name in (key, key.partition(".")[0]):
        refuse_other_run(BASE, _with(**change, ckpt_allow=[name]))
        assert allows(key, [name]) and not allows(key, [f"{name}x", name[:-1]])
    with pytest.raises(ConfigError, match="ckpt_allow names 'sead', which is a key neither"):
        refuse_other_run(BASE, _with(ckpt_allow=[key, "sead"]))


@pytest.mark.parametrize(
    "change",
    [
        {"optim__lr": 1.0},
        {"trainer__max_time": 3},
        {"data__cache_dir": "y"},
        {"model__bias__impl": "q"},
        {"model__attn__name": "naive"},
        {"callbacks__x__size": 2},
        {"model__new": 1},  # a key that an older version did not have
    ],
)
def test_what_does_not_decide_is_not_refused(change: dict[str, Any]) -> None:
    refuse_other_run(BASE, _with(**change))
    refuse_other_run(_with(**change), BASE)


def test_data_may_lie_elsewhere_where_it_is_the_same() -> None:
    refuse_other_run(BASE, _with(data__path="b"), moved=True)
    for more in ({"seed": 1}, {"data__name": "other"}):
        with pytest.raises(ConfigError, match="another configuration"):
            refuse_other_run(BASE, _with(data__path="b", **more), moved=True)


def test_a_key_that_a_class_of_somebodys_own_lacks_decides() -> None:
    # its defaults may be anything, where those of a built-in option are known
    own = {"data": {"_target_": "own.Data", "part": {"a": 1}}}
    more = {"data": {"_target_": "own.Data", "part": {"a": 1, "b": 2}}}
    for before, after in ((own, more), (more, own)):
        with pytest.raises(ConfigError, match=r"data\.part\.b"):
            refuse_other_run(BASE | before, BASE | after)


def test_values_of_the_environment_are_compared_by_their_digests() -> None:
    config = {"a": "${oc.env:X}", "b": {"c": ["${oc.env:Y}/${oc.env:X}", 3]}, "d": ("x",)}
    assert with_digests(config, {"X": "abc"}) == {
        "a": "${oc.env:X} (abc)",
        "b": {"c": ["${oc.env:Y}/${oc.env:X} (abc)", 3]},
        "d": ["x"],
    }
    assert flat(config) == {"a": "${oc.env:X}", "b.c": ["${oc.env:Y}/${oc.env:X}", 3], "d": ["x"]}


def test_a_class_that_is_gone_may_be_allowed_to_be_gone():
    # the message said to name it in ckpt_allow, which was refused as no key
    gone = _with(callbacks={}, ckpt_allow=["callbacks.x._target_"])
    refuse_other_run(BASE, gone)
    with pytest.raises(ConfigError, match=r"callbacks\.x\._target_ 'own\.Callback' -> None"):
        refuse_other_run(BASE, _with(callbacks={}))
    with pytest.raises(ConfigError, match="'callbacks.y', .* neither of this configuration nor of"):
        refuse_other_run(BASE, _with(ckpt_allow=["callbacks.y"]))
