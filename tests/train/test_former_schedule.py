"""A checkpoint of the version in which the schedule was a part of the optimizer resumes."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from tests.train.runs import last, run, same_weights
from xftrain.checkpoint.file import read_checkpoint
from xftrain.config.compose import compose, validate
from xftrain.config.moved_keys import in_new_keys
from xftrain.errors import SweepRefused
from xftrain.multirun.job_config import job_description, refuse_other_config, write_job_config

STEPS = ("model.dropout=0.1", "schedule.warmup_steps=2", "max_steps=6")


def as_before(content: dict[str, Any]) -> dict[str, Any]:
    """Converts a checkpoint to the form that the earlier version wrote."""
    config = content["xftrain"]["config"]
    schedule = config.pop("schedule")
    schedule = {"schedule": schedule.pop("name"), "min_lr_ratio": 0.1, **schedule}
    del config["optim"]["param_groups"]
    config["optim"] |= schedule
    for group, decays in zip(
        content["optimizer_states"][0]["param_groups"], (True, False), strict=True
    ):
        group["decays"] = decays
    return content


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_a_checkpoint_of_the_former_version_resumes_bitwise(tmp_path, name, caplog):
    words = (*STEPS, f"schedule={name}")
    run(tmp_path / "whole", *words, "callbacks.checkpoint.every_n_steps=3")
    former = as_before(read_checkpoint(tmp_path / "whole" / "checkpoints" / "previous.ckpt"))
    assert former["global_step"] == 3
    assert former["xftrain"]["config"]["optim"]["schedule"] == name
    torch.save(former, tmp_path / "former.ckpt")
    with caplog.at_level(logging.INFO):
        run(tmp_path / "resumed", *words, f"ckpt={tmp_path / 'former.ckpt'}")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "resumed"))
    assert "optim." not in caplog.text and "schedule" not in caplog.text.replace("schedule:", "")


def test_a_value_that_differs_from_a_former_checkpoint_is_told_by_its_new_name(tmp_path, caplog):
    run(tmp_path / "one", *STEPS, "max_steps=2")
    torch.save(as_before(read_checkpoint(last(tmp_path / "one"))), tmp_path / "former.ckpt")
    with caplog.at_level(logging.INFO):
        run(tmp_path / "two", "model.dropout=0.1", f"ckpt={tmp_path / 'former.ckpt'}")
    assert "schedule.warmup_steps 2 -> 10" in caplog.text and "optim." not in caplog.text


@pytest.mark.parametrize(
    "optim",
    [3, [], {}, {"name": "adamw"}, {"_target_": "mine.Optim", "schedule": "x"}, {"name": []}],
)
def test_any_other_configuration_is_left_as_it_is(optim):
    assert in_new_keys({"optim": optim, "seed": 1}) == {"optim": optim, "seed": 1}


def test_a_job_of_the_former_version_is_the_job_of_today(tmp_path):
    cfg = compose("schedule.warmup_steps=3")
    today = job_description(cfg, validate(cfg))
    former = {key: value for key, value in today["config"].items() if "schedule" not in key}
    del former["optim.param_groups"]
    former |= {"optim.schedule": "cosine", "optim.warmup_steps": 3, "optim.min_lr_ratio": 0.1}
    write_job_config({**today, "config": former}, tmp_path)
    refuse_other_config(today, tmp_path)
    former["optim.warmup_steps"] = 4
    write_job_config({**today, "config": former}, tmp_path)
    with pytest.raises(SweepRefused, match="schedule.warmup_steps 4 -> 3; "):
        refuse_other_config(today, tmp_path)
