"""Checkpoints of earlier versions, which lack newer keys of `model`."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from tests.models import options
from xftrain.commands.initial_sizes import differing_keys
from xftrain.config.compose import model_of
from xftrain.config.former_model import completed_model
from xftrain.config.run_config import RunConfig
from xftrain.errors import ConfigError
from xftrain.train.same_run import refuse_other_run

NEW = ("qk_norm", "score_softcap", "norm_embedding", "init_residual", "init_head")
LAYERS = {"pattern": ["a"], "a": {"pos": {"name": "rope", "base": 10000.0}}}


def saved(cfg: RunConfig, layers: Any = None) -> dict[str, Any]:
    """The values in a checkpoint of a version without the new keys."""
    values = deepcopy(cfg.to_dict())
    model = {key: value for key, value in values["model"].items() if key not in NEW}
    model["pos"].pop("fraction", None)
    return {**values, "model": model if layers is None else {**model, "layers": layers}}


def current(cfg: RunConfig, **changes: Any) -> dict[str, Any]:
    values = cfg.to_dict()
    return {**values, "model": {**values["model"], **changes}}


def test_an_earlier_checkpoint_is_of_the_model_with_defaults():
    cfg = options(pos="rope")
    before = saved(cfg)
    assert not set(NEW) & before["model"].keys() and "fraction" not in before["model"]["pos"]
    assert model_of(before) == cfg.model
    assert completed_model(before["model"])["pos"]["fraction"] == 1.0
    refuse_other_run(before, current(cfg))
    assert differing_keys(completed_model(before["model"]), current(cfg)["model"]) == {}


def test_a_pattern_of_layers_of_an_earlier_version_is_resumed():
    cfg = options(pos="rope")
    before = saved(cfg, LAYERS)
    now = {"pattern": ["a"], "a": {"pos": {**LAYERS["a"]["pos"], "fraction": 1.0}}}
    refuse_other_run(before, current(cfg, layers=now))
    now["a"]["pos"]["fraction"] = 0.5
    with pytest.raises(ConfigError, match=r"model.layers.a.pos.fraction 1.0 -> 0.5"):
        refuse_other_run(before, current(cfg, layers=now))


@pytest.mark.parametrize(
    ("key", "change", "shown"),
    [
        ("score_softcap", 5.0, "null"),
        ("qk_norm", True, "false"),
        ("norm_embedding", True, "false"),
        ("pos", {"name": "rope", "base": 10000.0, "fraction": 0.5}, "1.0"),
    ],
)
def test_it_is_not_resumed_with_another_value_of_a_key_that_it_lacks(key, change, shown):
    # a soft cap changes no shape: a run was resumed with another function, and said nothing
    cfg = options(pos="rope")
    before, now = saved(cfg), current(cfg, **{key: change})
    with pytest.raises(ConfigError, match=rf"model.{key}(.fraction)? .* -> "):
        refuse_other_run(before, now)
    (text,) = differing_keys(completed_model(before["model"]), now["model"]).values()
    assert f"={shown} (here " in text


@pytest.mark.parametrize("node", [{}, {"pos": 3, "layers": 4}, {"pos": {"name": ["x"]}}])
def test_a_damaged_node_is_completed_without_an_error(node):
    assert completed_model(node).items() >= {"qk_norm": False}.items()
