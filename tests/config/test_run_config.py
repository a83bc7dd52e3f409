"""The checked configuration: frozen, typed, checked once, and saved as it always was."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from tests.train.runs import small
from xftrain.commands.builder import build_model
from xftrain.config import compose as composing
from xftrain.config import root_schema
from xftrain.config.command_configs import DoctorConfig, EvaluateConfig, InfoConfig, SampleConfig
from xftrain.config.compose import compose, validate, validate_as
from xftrain.config.option_config import OptionConfig
from xftrain.config.run_config import LayersConfig, ModelConfig, RunConfig, TrainerConfig
from xftrain.errors import ConfigError

ROOT = Path(__file__).parents[2]
KINDS = {
    "train": RunConfig,
    "info": InfoConfig,
    "doctor": DoctorConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
}


@pytest.mark.parametrize("name", KINDS)
def test_each_command_has_a_configuration_of_its_own_type(name: str) -> None:
    assert type(validate(compose(config_name=name))) is KINDS[name]


def test_the_configuration_of_another_command_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^cfg must be a RunConfig, got a SampleConfig\.$"):
        build_model(compose(config_name="sample"))


def test_nothing_of_it_can_be_changed() -> None:
    cfg = validate_as(RunConfig, compose("tags=[a]", "layers=local_global"))
    parts: list[tuple[Any, str]] = [
        *((cfg, "seq"), (cfg.trainer, "devices"), (cfg.model, "dim"), (cfg.model, "attn")),
        *((cfg.optim, "node"), (cfg.model.layers, "pattern")),
    ]
    for part, name in parts:
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, None)
    for mapping in (cfg.optim.node, cfg.callbacks, cfg.logger, cfg.model.layers.overrides):
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["x"] = None  # type: ignore[index]
    cfg.optim.options["lr"] = 7.0  # a copy
    assert cfg.optim.options["lr"] == 3e-3 and cfg.tags == ("a",)


def test_an_option_is_read_by_attributes_and_is_read_only_at_any_depth() -> None:
    groups = "optim.param_groups=[{match: norm, weight_decay: 0.0}]"
    cfg = validate_as(RunConfig, compose("data=counting", groups))
    assert (cfg.data.batch_size, cfg.optim.lr) == (None, 3e-3)
    with pytest.raises(AttributeError, match="no attribute or field batchsize"):
        cfg.data.batchsize  # noqa: B018
    entry = cfg.optim.param_groups[0]
    with pytest.raises(TypeError, match="does not support item assignment"):
        entry["lr"] = 7.0
    cfg.optim.to_dict()["param_groups"][0]["lr"] = 7.0  # a copy
    assert cfg.optim.to_dict()["param_groups"][0]["lr"] is None
    assert copy.copy(cfg.model.bias) == cfg.model.bias


def test_an_option_is_saved_with_the_lists_and_tuples_that_it_was_given() -> None:
    # keys of rows on disk depend on it
    node = {"_target_": "x", "a": [1, {"b": (2, [3])}], "c": ()}
    option = OptionConfig("optim", "optim", node)
    assert repr(option.to_dict()) == repr(node)
    assert repr(option.with_options(d=1).to_dict()) == repr({**node, "d": 1})
    assert option.a == (1, {"b": (2, (3,))})


def test_no_module_reads_a_checked_configuration_by_the_names_of_keys() -> None:
    # cfg.trainer.precision is checked by mypy, and options["trainer"]["precision"] by nobody
    read = re.compile(r"options\[[\"']|\.node(\[|\.get\()")
    files = (ROOT / "xftrain").rglob("*.py")
    found = [path.name for path in files if read.search(path.read_text("utf-8"))]
    assert found == ["option_config.py"]  # which gives access by attributes


def test_parts_are_typed() -> None:
    cfg = validate_as(RunConfig, compose())
    kinds = (type(cfg.trainer), type(cfg.model), type(cfg.model.layers))
    assert kinds == (TrainerConfig, ModelConfig, LayersConfig)
    assert (cfg.model.attn.key, cfg.model.attn.group) == ("model.attn", "model/attn")
    assert cfg.callbacks["metrics"].key == "callbacks.metrics"
    own = {option.key for option in cfg.option_configs()}
    assert own >= {"model.norm", "loss", "data", "optim", "schedule", "logger.csv"}


def test_equal_options_are_equal_wherever_they_are() -> None:
    words = ("model.bias=window", "model.layers.pattern=[a]", "+model.layers.a.bias=window")
    model = validate_as(RunConfig, compose(*words)).model
    assert model.layers.overrides["a"]["bias"] == model.bias
    assert model.layers.overrides["a"]["bias"].key == "model.layers.a.bias"


def test_what_is_saved_has_the_order_in_which_a_class_of_ones_own_was_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "model" / "bias").mkdir(parents=True)
    target = "xftrain.model.bias.window.Window"
    (tmp_path / "model" / "bias" / "mine.yaml").write_text(f"window: 3\n_target_: {target}\n")
    bias = validate_as(RunConfig, compose("model.bias=mine", config_dir=tmp_path)).model.bias
    assert list(bias.to_dict().items()) == [("window", 3), ("_target_", target)]
    assert (bias.name, bias.target, bias.options) == (None, target, {"window": 3})


def test_what_is_saved_is_plain() -> None:
    plain = validate(compose("layers=local_global", "tags=[a]", "ckpt_allow=[seed]")).to_dict()
    kinds = set()

    def note(value: Any) -> None:
        kinds.add(type(value))
        for child in value.values() if isinstance(value, dict) else ():
            note(child)

    note(plain)
    assert kinds <= {dict, list, tuple, str, int, float, bool, type(None)}
    assert (plain["tags"], plain["ckpt_allow"]) == (["a"], ["seed"])
    assert list(plain) == [item.name for item in fields(RunConfig)]
    assert pickle.loads(pickle.dumps(plain)) == plain


def test_a_run_does_not_check_again_what_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xftrain.commands.train import run

    composing.default_options.cache_clear()
    cfg = small("max_steps=1", "callbacks=none", "logger=none")
    checked = validate_as(RunConfig, cfg)
    monkeypatch.setattr(composing, "_validated", lambda cfg: pytest.fail("it is checked again"))
    assert run(cfg, tmp_path, checked)["steps"] == 1


@pytest.mark.parametrize("name", ["Root", "InfoRoot", "DoctorRoot", "SampleRoot"])
def test_a_schema_can_be_sent_to_another_process(name: str) -> None:
    schema = getattr(root_schema, name)  # as a launcher pickles a composed configuration
    assert pickle.loads(pickle.dumps(schema)) is schema
