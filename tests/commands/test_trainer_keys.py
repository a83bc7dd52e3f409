"""Lightning's own keys of the Trainer: each works, or is refused with what to use instead."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import lightning.pytorch as pl
import pytest

from tests.train.runs import rows_of, run
from xftrain.config.compose import compose, validate
from xftrain.config.lightning_keys import USE_INSTEAD
from xftrain.config.run_config import TrainerConfig
from xftrain.config.schema import schema_of
from xftrain.errors import ConfigError


def refusal(override: str) -> str:
    with pytest.raises(ConfigError) as refused:
        validate(compose(override))
    return str(refused.value)


def test_every_key_of_lightnings_trainer_works_or_names_another() -> None:
    keys = set(inspect.signature(pl.Trainer).parameters) - {"model_registry"}
    assert keys - set(schema_of(TrainerConfig)) == set(USE_INSTEAD) & keys
    assert not set(USE_INSTEAD) & set(schema_of(TrainerConfig))


@pytest.mark.parametrize("key", ["max_epochs", "num_nodes", "fast_dev_run", "strategy"])
def test_a_missing_key_is_refused_by_the_same_sentence_however_it_is_set(key: str) -> None:
    said = refusal(f"trainer.{key}=1")
    assert said == refusal(f"+trainer.{key}=1")  # which Hydra lets pass
    assert said == (
        f"trainer.{key} is a key of Lightning's Trainer that xftrain does not have: "
        f"{USE_INSTEAD[key]}."
    )


def test_another_key_is_refused_as_before() -> None:
    assert refusal("trainer.precison=32-true") == (
        "trainer.precison is not a key of trainer; did you mean trainer.precision?"
    )


@pytest.mark.parametrize("value", ["12", "'00:12:00'", "'00:-1:00:00'"])
def test_a_time_of_another_form_is_refused(value: str) -> None:
    assert refusal(f"trainer.max_time={value}").startswith("trainer.max_time must be ")


def test_a_run_without_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    off = ("trainer.limit_val_batches=0", "trainer.val_check_interval=2")
    saving = "callbacks.checkpoint.every_n_steps=2"
    result = run(tmp_path, *off, saving, "callbacks.sample={name: sample}")
    assert (result["status"], result["steps"]) == ("completed", 6)
    assert "train/loss" in result["metrics"] and "val/loss" not in result["metrics"]
    assert rows_of(tmp_path, "val/loss") == {}
    # it waited for a validation before each save, and made none but the last
    saved = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert saved == {"last.ckpt", "previous.ckpt", "weights.safetensors"}
    assert "validation: none, as trainer.limit_val_batches=0" in caplog.text
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "completed"
    resumed = run(tmp_path, *off, "max_steps=8", "ckpt=auto", saving)
    assert resumed["steps"] == 8


def test_a_check_before_training_that_would_check_nothing_is_refused() -> None:
    cfg = compose("trainer.limit_val_batches=0", "trainer.num_sanity_val_steps=1")
    with pytest.raises(ConfigError, match="^trainer.num_sanity_val_steps must be 0 with "):
        validate(cfg)
