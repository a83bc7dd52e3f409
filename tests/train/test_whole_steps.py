"""A resumed run makes whole optimizer steps, also of other numbers of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.runs import last, rows_of, run, same_weights
from xftrain.checkpoint.file import read_checkpoint
from xftrain.data.counting import Counting
from xftrain.train.module import TrainingModule
from xftrain.train.whole_steps import renumber_batches

STEPS = (
    "trainer.log_every_n_steps=1",
    "trainer.gradient_clip_val=null",
    "data.stop_at_accuracy=null",
    "schedule=constant",
)
ALLOW = "ckpt_allow=[trainer.accumulate_grad_batches]"


def accumulated(number: int) -> str:
    return f"trainer.accumulate_grad_batches={number}"


def next_batch(ckpt: Path) -> int:
    loop = read_checkpoint(ckpt)["loops"]["fit_loop"]["state_dict"]
    return int(loop["combined_loader"][0]["next_step"])


@pytest.fixture(scope="module")
def of_threes(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("threes")
    run(run_dir, *STEPS, "max_steps=3", accumulated(3), "trainer.val_check_interval=100")
    return last(run_dir)


@pytest.mark.parametrize("number", [1, 2, 4, 5])
def test_each_step_after_a_change_has_all_its_batches(tmp_path, of_threes, monkeypatch, number):
    # with 2 the first step was batch 10 alone, its gradient halved
    steps: list[list[int]] = [[]]
    batch, clip = Counting.batch, TrainingModule.clip

    def note_batch(self: Any, split: Any, step: int, rank: int = 0) -> Any:
        if split == "train" and step:  # sizes are read off the first batch
            steps[-1].append(step)
        return batch(self, split, step, rank)

    def note_step(self: Any, *arguments: Any) -> Any:
        steps.append([])
        return clip(self, *arguments)

    monkeypatch.setattr(Counting, "batch", note_batch)
    monkeypatch.setattr(TrainingModule, "clip", note_step)
    more = ("max_steps=6", accumulated(number), "trainer.val_check_interval=100")
    run(tmp_path, *STEPS, *more, f"ckpt={of_threes}", ALLOW)
    made = [step for step in steps if step]
    assert made == [[9 + number * step + i for i in range(number)] for step in range(3)]


def test_a_change_and_a_second_resume_is_the_run_without_it(tmp_path, of_threes):
    more = (*STEPS, accumulated(2), "trainer.val_check_interval=100", ALLOW)
    run(tmp_path / "whole", *more, "max_steps=7", f"ckpt={of_threes}")
    run(tmp_path / "cut", *more, "max_steps=5", f"ckpt={of_threes}")
    assert next_batch(last(tmp_path / "cut")) == 9 + 2 * 2
    run(tmp_path / "cut", *more, "max_steps=7", "ckpt=auto")
    assert next_batch(last(tmp_path / "cut")) == 9 + 4 * 2
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))
    whole = rows_of(tmp_path / "whole", "train/grad_norm")
    assert rows_of(tmp_path / "cut", "train/grad_norm") == whole and list(whole) == [4, 5, 6, 7]


def test_validations_after_a_change_are_between_steps(tmp_path, of_threes):
    # 9 batches were behind it: with 2 a step each validation was in the midst of one, where
    # neither the best checkpoint is saved nor a task is solved
    more = ("max_steps=7", accumulated(2), "trainer.val_check_interval=4")
    run(tmp_path, *STEPS, *more, f"ckpt={of_threes}", ALLOW)
    assert list(rows_of(tmp_path, "val/loss")) == [4, 6, 7]
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["global_step"] in (4, 6)


def test_dropout_goes_by_the_batch_of_the_data(tmp_path, of_threes, monkeypatch):
    # by Lightning's number, that of the first batches would be repeated
    seeds: list[int] = []
    monkeypatch.setattr(
        "xftrain.train.module.dropout_seed", lambda seed, step, rank: seeds.append(step) or step
    )
    run(tmp_path / "a", *STEPS, "max_steps=2", accumulated(2))
    assert seeds == [0, 1, 2, 3]
    seeds.clear()
    run(tmp_path / "b", *STEPS, "max_steps=5", accumulated(1), f"ckpt={of_threes}", ALLOW)
    assert seeds == [9, 10]


def test_where_a_bad_step_began_is_looked_for_in_its_own_batches(
    tmp_path, of_threes, monkeypatch, poison_data
):
    poison_data(10)
    with pytest.raises(RuntimeError, match=r"of step 5 is not finite \(first in what reaches"):
        run(tmp_path, *STEPS, "max_steps=6", accumulated(1), f"ckpt={of_threes}", ALLOW)


@pytest.fixture
def poison_data(monkeypatch):
    """Makes the naive attention return NaN in the training batch with this index."""
    from xftrain.model.attn.naive import Naive

    def put(index: int) -> None:
        at: list[int] = []
        batch, call = Counting.batch, Naive.__call__

        def note(self: Any, split: Any, step: int, rank: int = 0) -> Any:
            at[:] = [step] if split == "train" else []
            return batch(self, split, step, rank)

        def attention(self: Any, *arguments: Any) -> Any:
            return call(self, *arguments) * (float("nan") if at == [index] else 1.0)

        monkeypatch.setattr(Counting, "batch", note)
        monkeypatch.setattr(Naive, "__call__", attention)

    return put


def test_a_checkpoint_between_the_batches_of_a_step_is_resumed_with_a_whole_one():
    counts = {"ready": 10, "started": 10, "processed": 10, "completed": 9}
    loop = {
        "epoch_loop.batch_progress": {"total": dict(counts), "current": dict(counts)},
        "state_dict": {"combined_loader": [{"next_step": 10}]},
    }
    held = {"global_step": 3, "loops": {"fit_loop": loop}}
    assert renumber_batches(held, 3) == 1
    assert loop["epoch_loop.batch_progress"]["current"] == {
        **dict.fromkeys(("ready", "started", "processed"), 9),
        "completed": 8,
    }
