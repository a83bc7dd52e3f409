"""A run that a callback has stopped trains nothing when it is resumed, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.train.runs import last, rows_of, run, same_weights
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands import early_stop
from xftrain.commands.early_stop import StoppableTrainer
from xftrain.errors import ConfigError

STOP = (
    "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, "
    "patience: %d, min_delta: 100}"
)
BASE = ("max_steps=40", "trainer.val_check_interval=2", "callbacks.checkpoint.every_n_steps=2")
BASE += ("data.stop_at_accuracy=null",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("whole")
    result = run(run_dir, *BASE, STOP % 1)
    assert result["steps"] == 4
    return run_dir, result


def test_a_stopped_run_trains_nothing_and_says_why(whole, caplog) -> None:
    # it went on to the next validation, each time that it was resumed
    run_dir, first = whole
    before = last(run_dir).read_bytes()
    for _ in range(2):
        caplog.clear()
        again = run(run_dir, *BASE, STOP % 1, "ckpt=auto")
        assert (again["steps"], again["stop_reason"]) == (4, first["stop_reason"])
        assert again["metrics"].keys() == first["metrics"].keys()
        assert "ckpt is at step 4, where the run was stopped by EarlyStopping: Monitored" in (
            caplog.text
        )
        assert "other settings of callbacks.stop train on" in caplog.text
    assert last(run_dir).read_bytes() == before
    assert list(rows_of(run_dir, "val/loss")) == [2, 4]


def test_the_stop_is_kept_in_another_folder(whole, tmp_path) -> None:
    run(tmp_path, *BASE, STOP % 1, f"ckpt={last(whole[0])}")
    assert run(tmp_path, *BASE, STOP % 1, "ckpt=auto")["steps"] == 4
    assert same_weights(last(tmp_path), last(whole[0]))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        (("max_steps=6", STOP % 1), 6),  # its next validation decides again, at the last step
        ((STOP % 2,), 6),
        ((STOP % 1, "callbacks.checkpoint.every_n_steps=3"), 4),
        (("ckpt_allow=[callbacks]", "max_steps=6"), 6),
    ],
)
def test_other_settings_of_the_callback_or_other_steps_train_on(
    whole, tmp_path, changes, steps
) -> None:
    result = run(tmp_path, *BASE, f"ckpt={last(whole[0])}", *changes)
    assert result["steps"] == steps


class OnceAtTwo(Callback):
    """Ends a run after its second step, before the validation that then follows."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            trainer.should_stop = True


def test_a_run_that_is_stopped_between_validations_is_saved_after_the_added_one(tmp_path) -> None:
    # a run that was killed during that validation would have been resumed without it
    stop = f"+callbacks.stop={{_target_: {__name__}.OnceAtTwo}}"
    kill = f"+callbacks.kill={{_target_: {__name__}.PowerCut}}"
    base = (*BASE, "trainer.val_check_interval=100", stop)
    with pytest.raises(GeneratorExit):
        run(tmp_path / "cut", *base, kill)
    assert not last(tmp_path / "cut").exists()
    first = run(tmp_path / "run", *base)
    again = run(tmp_path / "run", *base, "ckpt=auto")
    assert first["stop_reason"] == again["stop_reason"] == "stopped by OnceAtTwo"
    assert list(rows_of(tmp_path / "run", "val/loss")) == [2]
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


class PowerCut(Callback):
    """Ends the run in the first validation without a save, as a kill does."""

    def on_validation_batch_end(self, *_: Any) -> None:
        raise GeneratorExit


@pytest.mark.parametrize("held", [{"by": 1, "reason": "x", "key": None}, {"by": "x"}, "text", 3])
def test_a_stop_of_another_form_is_refused(held) -> None:
    with pytest.raises((TypeError, LookupError)):
        early_stop._checked_stop(held)


def test_control_characters_in_a_checkpoint_are_escaped() -> None:
    stop = early_stop._checked_stop({"by": "a\x1b[2J", "reason": "b\n" * 9999, "key": "c\n"})
    assert stop is not None and (stop.by, stop.key) == ("a\\x1b[2J", "c\\n")
    assert len(stop.reason) < 2000 and "\n" not in stop.reason


def test_a_callback_that_decides_again_leaves_no_stop() -> None:
    class Limit(Callback):
        decides_again = True

        def stop(self, trainer: Any) -> None:
            trainer.should_stop = True

    trainer = StoppableTrainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    Limit().stop(trainer)
    assert trainer.stop_reason() == "stopped by Limit"
    assert trainer.final_stop(lambda callback: "limit") is None


def test_a_damaged_stop_ends_in_a_sentence(whole, tmp_path) -> None:
    content = read_checkpoint(last(whole[0]))
    content["callbacks"]["StopReason"] = {"stop": {"by": 1}}
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match="cannot be resumed"):
        run(tmp_path / "run", *BASE, STOP % 1, f"ckpt={tmp_path / 'x.ckpt'}")
