"""What was trained is saved before anything else is done at the end, and whatever that raises."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.train.runs import last, result_of, rows_of, run, same_weights, weights_of
from xftrain.callbacks import sample as sample_file
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import RunError
from xftrain.train import module as module_file

# a validation with the last step
STEPS = ("max_steps=4", "trainer.val_check_interval=4", "data.stop_at_accuracy=null")


@pytest.fixture
def added(monkeypatch) -> Callable[[Callback], None]:
    """Adds a user's own callback."""

    def add(callback: Callback) -> None:
        monkeypatch.setattr(
            module_file.TrainingModule, "configure_callbacks", lambda self: [callback]
        )

    return add


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    run(run_dir, *STEPS)
    return last(run_dir)


HOOKS = (
    "on_train_end",
    "on_fit_end",
    "teardown",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
)


@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_of_a_callback_after_the_last_step_costs_no_checkpoint(
    tmp_path, whole, added, hook
):
    # Lightning calls checkpoint callbacks after all others
    def fail(trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step == 4:
            raise ValueError("of a plot")

    own = Callback()
    setattr(own, hook, fail)
    added(own)
    with pytest.raises(ValueError, match="of a plot"):
        run(tmp_path, *STEPS)
    assert same_weights(last(tmp_path), whole)
    assert (last(tmp_path).parent / "weights.safetensors").is_file()
    assert result_of(tmp_path)["status"] == "failed" and result_of(tmp_path)["steps"] == 4
    added(Callback())
    again = run(tmp_path, *STEPS, "ckpt=auto")  # and it can be finished
    assert (again["status"], again["steps"]) == ("completed", 4)
    assert "val/loss" in again["metrics"] and "train/loss" in again["metrics"]
    added(Callback())
    longer = run(tmp_path, *STEPS, "max_steps=6", "ckpt=auto")
    assert longer["steps"] == 6


def test_the_error_is_told_where_saving_after_it_fails_too(tmp_path, added, monkeypatch, caplog):
    own = Callback()

    def fail(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 4:
            raise ValueError("of a plot")

    def full(*_: Any, **__: Any) -> None:
        raise RunError("the disk is full.")

    own.on_validation_end = fail  # type: ignore[method-assign]
    added(own)
    monkeypatch.setattr("xftrain.checkpoint.file.AtomicCheckpointIO.save_checkpoint", full)
    with pytest.raises(ValueError, match="of a plot"):
        run(tmp_path, *STEPS)
    assert "saving after the error failed" in caplog.text


@pytest.mark.parametrize("error", [RunError("x"), torch.OutOfMemoryError("CUDA out of memory")])
def test_after_a_bad_step_or_without_memory_nothing_is_saved(tmp_path, added, error):
    def fail(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 4:
            raise error

    own = Callback()
    own.on_validation_end = fail  # type: ignore[method-assign]
    added(own)
    with pytest.raises(RuntimeError):
        run(tmp_path, *STEPS)
    assert not last(tmp_path).exists()


def test_an_error_before_the_last_step_leaves_the_last_save(tmp_path, added):
    def fail(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            raise ValueError("of a plot")

    own = Callback()
    own.on_train_batch_end = fail  # type: ignore[method-assign, assignment]
    added(own)
    with pytest.raises(ValueError, match="of a plot"):
        run(tmp_path, *STEPS, "callbacks.checkpoint.every_n_steps=2")
    assert len(weights_of(last(tmp_path))) > 0


def test_optional_steps_at_the_end_fail_with_a_warning(tmp_path, whole, monkeypatch, caplog):
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such thing")

    saved: list[bool] = []
    first = sample_file.default_prompt

    def prompt(data: Any) -> Any:
        saved.append(last(tmp_path).is_file())
        return first(data)

    monkeypatch.setattr(sample_file, "default_prompt", prompt)
    monkeypatch.setattr(sample_file, "generate", fail)
    monkeypatch.setattr("xftrain.data.counting.Counting.baseline", fail)
    monkeypatch.setattr("xftrain.logger.tensorboard.TensorBoard.end_hparams", fail)
    asked = "callbacks.sample={name: sample, num_tokens: 2}"
    result = run(tmp_path, *STEPS, asked)
    assert saved == [True] and same_weights(last(tmp_path), whole)
    assert result["status"] == "completed" and "val/loss" in result["metrics"]
    for step in ("callbacks.sample", "the data's baseline", "TensorBoard's record of the end"):
        assert f"{step} failed (ValueError: no such thing)" in caplog.text


# ---- what a resumed run takes up


def test_a_step_that_is_validated_is_saved_after_its_validation(tmp_path, added):
    # resumed from a save before it, a run would never make that validation
    def kill(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("a power cut")

    own = Callback()
    own.on_validation_start = kill  # type: ignore[method-assign]
    added(own)
    steps = (*STEPS, "max_steps=6", "callbacks.checkpoint.every_n_steps=2")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, *steps)
    assert read_checkpoint(last(tmp_path))["global_step"] == 2
    added(Callback())
    run(tmp_path, *steps, "ckpt=auto")
    assert list(rows_of(tmp_path, "val/loss")) == [4, 6]


def test_a_signal_at_a_validated_step_leaves_its_validation_and_the_best(tmp_path, added):
    whole = run(tmp_path / "whole", *STEPS, "max_steps=6", "trainer.val_check_interval=2")

    def stop(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    own = Callback()
    own.on_train_batch_start = stop  # type: ignore[method-assign, assignment]
    added(own)
    steps = (*STEPS, "max_steps=6", "trainer.val_check_interval=2")
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", *steps)
    assert list(rows_of(tmp_path / "cut", "val/loss")) == [2, 4]
    folder = tmp_path / "cut" / "checkpoints"
    for name in ("last.ckpt", "best.ckpt"):
        assert read_checkpoint(folder / name)["global_step"] == 4
    added(Callback())
    again = run(tmp_path / "cut", *steps, "ckpt=auto")
    assert again["metrics"]["val/loss"] == whole["metrics"]["val/loss"]
    texts = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "cut")]
    assert texts[0].count("\n") == texts[1].count("\n")
    best = [tmp_path / name / "checkpoints" / "best.ckpt" for name in ("whole", "cut")]
    assert same_weights(*best)


def test_a_resumed_run_takes_its_own_learning_rate(tmp_path):
    steps = ("trainer.log_every_n_steps=1", "schedule=constant", "schedule.warmup_steps=1")
    run(tmp_path, *steps, "max_steps=2", "optim.lr=1e-2")
    run(tmp_path, *steps, "max_steps=4", "optim.lr=1e-4", "ckpt=auto")
    rates = rows_of(tmp_path, "optim/lr")
    assert rates == pytest.approx({1: 5e-3, 2: 1e-2, 3: 1e-4, 4: 1e-4})  # the first warms up


def test_a_resumed_run_knows_the_loss_to_beat(tmp_path, monkeypatch):
    steps = ("max_steps=4", "trainer.val_check_interval=2", "data.stop_at_accuracy=null")
    run(tmp_path, *steps)
    best = tmp_path / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    # steps so long that each validation is worse than those before
    run(tmp_path, *steps, "max_steps=8", "optim.lr=50.0", "ckpt=auto")
    assert best.read_bytes() == before
