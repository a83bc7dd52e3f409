"""A run in 16-mixed takes the loss scale from its checkpoint, and none of its settings."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from tests.train.runs import last, run
from tests.train.test_step_sums import with_half
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import ConfigError

FACTORS = {"growth_factor": 1.0, "backoff_factor": 1.0, "growth_interval": 2**60}
STEPS = ("loss=full", "logger=none", "data.stop_at_accuracy=null")


def plugin(monkeypatch) -> MixedPrecision:
    half = MixedPrecision("16-mixed", "cpu")  # Lightning's own is for GPUs alone
    with_half(monkeypatch, half)
    return half


@pytest.mark.parametrize("place", ["MixedPrecision", "native_amp_scaling_state"])
def test_the_scale_is_taken_and_its_settings_are_this_runs(tmp_path, monkeypatch, place):
    plugin(monkeypatch)
    run(tmp_path, *STEPS, "max_steps=2")
    held = read_checkpoint(last(tmp_path))
    assert held["MixedPrecision"]["_growth_tracker"] == 2
    held[place] = {**held.pop("MixedPrecision"), **FACTORS, "scale": 1024.0}
    torch.save(held, last(tmp_path))
    half = plugin(monkeypatch)
    own = half.scaler.state_dict()
    run(tmp_path, *STEPS, "max_steps=3", "ckpt=auto")
    assert half.scaler.state_dict() == {**own, "scale": 1024.0, "_growth_tracker": 3}


@pytest.mark.parametrize(
    "wrong", [{"scale": math.inf}, {"scale": 0.0}, {"scale": "1"}, {"_growth_tracker": 2**40}]
)
def test_a_scale_that_no_run_has_is_refused(tmp_path, monkeypatch, wrong):
    plugin(monkeypatch)
    run(tmp_path, *STEPS, "max_steps=1")
    held = read_checkpoint(last(tmp_path))
    held["MixedPrecision"] |= wrong
    torch.save(held, last(tmp_path))
    plugin(monkeypatch)
    with pytest.raises(ConfigError, match="cannot be resumed"):
        run(tmp_path, *STEPS, "max_steps=2", "ckpt=auto")


def test_a_run_without_a_scale_takes_none(tmp_path, monkeypatch):
    with monkeypatch.context() as here:
        plugin(here)
        run(tmp_path, *STEPS, "max_steps=1")
    run(tmp_path, *STEPS, "max_steps=2", "ckpt=auto")
    assert "MixedPrecision" not in read_checkpoint(last(tmp_path))
