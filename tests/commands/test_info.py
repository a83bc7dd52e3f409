"""`--config-name info` says of a run what the run itself shows, and trains nothing."""

from __future__ import annotations

import logging

import pytest

import xftrain
from tests.train.runs import SMALL, run
from xftrain.commands.builder import build_model
from xftrain.config.compose import compose
from xftrain.errors import ConfigError

WORDS = (*SMALL, "model.layers.pattern=[near,far]", "model.num_layers=2", "max_steps=2")
WORDS += ("+model.layers.near.bias={name:window,window:4}", "+model.layers.far={}")


def test_the_figures_are_those_of_the_run(tmp_path, caplog):
    asked = compose(*WORDS, config_name="info")
    with caplog.at_level(logging.INFO, "xftrain"):
        said = xftrain.run(asked, tmp_path / "info")
    made = run(tmp_path / "run", *WORDS)
    model = build_model(compose(*WORDS))
    assert said["metrics"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert said["metrics"]["embedding_parameters"] == (64 + 16) * 32
    assert said["metrics"]["tokens_per_step"] == 128
    assert (said["kernel"], said["predicted_peak_mib"]) == (
        made["kernel"],
        made["predicted_peak_mib"],
    )
    assert f"{said['metrics']['parameters']:,}" in caplog.text
    assert not list((tmp_path / "info").rglob("*.ckpt"))


def test_operations_of_layers_count_their_windows(tmp_path):
    windowed = xftrain.run(compose(*WORDS, config_name="info"), tmp_path / "windowed")
    whole = ("model.num_layers=2", *SMALL[:3], *SMALL[4:])
    other = xftrain.run(compose(*whole, config_name="info"), tmp_path / "whole")
    fewer = other["metrics"]["flops_per_token"] - windowed["metrics"]["flops_per_token"]
    assert fewer == 12 * 2 * 16 * (16 - 4)


@pytest.mark.parametrize(
    ("word", "said"),
    [("trainer.devices=2", "describes a run on one device"), ("model.attn=flex", "cannot run")],
)
def test_what_cannot_run_is_refused(tmp_path, word, said):
    with pytest.raises(ConfigError, match=said):
        xftrain.run(compose(*WORDS, word, config_name="info"), tmp_path)
