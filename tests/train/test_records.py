"""metrics.csv and TensorBoard hold each recorded step once, in runs that were resumed too."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from tests.checkpoint.test_checkpoint import power_cut
from tests.train.runs import last, result_of, rows_of, run
from xftrain.logger.csv import CSV
from xftrain.logger.tensorboard import TensorBoard
from xftrain.train import module as module_file

STEPS = (
    "max_steps=12",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=4",
    "callbacks.checkpoint.every_n_steps=3",
    "callbacks.attention_pattern=null",
    "data.stop_at_accuracy=null",
)
UNTIMED = ("train/loss", "train/accuracy", "optim/lr", "train/grad_norm", "val/loss")


def table(run_dir: Path) -> list[dict[str, str | None]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: row.get(k) for k in ("step", *UNTIMED)} for row in csv.DictReader(file)]


def points(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads the points of each TensorBoard tag, without those that a restart purges."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    every = {"size_guidance": {"scalars": 0}, "purge_orphaned_data": False}
    found = EventAccumulator(str(run_dir), **every).Reload()
    # in one second of one process, the names of event files need not sort by their age
    return {tag: sorted((p.step, p.value) for p in found.Scalars(tag)) for tag in UNTIMED}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    run(run_dir, *STEPS)
    return run_dir


# the batch after a save, between two saves, at a validation, before the first save
@pytest.mark.parametrize("at_batch", [2, 3, 5, 8, 11])
def test_the_records_of_a_resumed_run_are_those_of_one_that_was_not_cut(tmp_path, whole, at_batch):
    # rows since Lightning's last flush were lost, and steps after the checkpoint were there twice
    with power_cut(at_batch):
        run(tmp_path, *STEPS)
    assert [int(row["step"]) for row in table(tmp_path) if row["train/loss"]][-1] >= at_batch - 1
    again = run(tmp_path, *STEPS, "ckpt=auto")
    assert table(tmp_path) == table(whole)
    assert points(tmp_path) == points(whole)
    timed = ("speed/", "memory/")
    for name, value in result_of(whole)["metrics"].items():
        assert name.startswith(timed) or again["metrics"][name] == value, name


@pytest.mark.parametrize("last_step", [10, 12])  # without a validation, and with one
def test_a_run_that_is_killed_after_its_last_save_is_finished_once(
    tmp_path, monkeypatch, last_step
):
    # its train/loss was missing from result.json, and it was validated a second time
    steps = (*STEPS, f"max_steps={last_step}")
    expected = run(tmp_path / "whole", *steps)["metrics"]

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("xftrain.commands.train._finish", kill)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(tmp_path / "cut", *steps)
    with monkeypatch.context() as patch:  # and once more, with all rows written
        patch.setattr(TensorBoard, "end_hparams", kill)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(tmp_path / "cut", *steps, "ckpt=auto")
    metrics = run(tmp_path / "cut", *steps, "ckpt=auto")["metrics"]
    assert metrics.keys() == expected.keys()
    assert metrics["train/loss"] == expected["train/loss"]
    assert metrics["val/loss"] == expected["val/loss"]
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    assert points(tmp_path / "cut") == points(tmp_path / "whole")


def test_a_refused_resume_leaves_the_records(tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    files = [*tmp_path.glob("events*"), *(tmp_path / n for n in ("metrics.csv", "result.json"))]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(ValueError, match="seed 0 -> 1"):
        run(tmp_path, *STEPS, "seed=1", f"ckpt={last(tmp_path).with_name('previous.ckpt')}")
    assert {path: path.read_bytes() for path in files} == before
    assert sorted(tmp_path.glob("events*")) == sorted(files[:-2])


def test_rows_of_other_columns_and_of_the_users_own_are_cut_back_too(tmp_path, monkeypatch):
    class Own(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            for logger in trainer.loggers:
                logger.log_metrics({f"own/{trainer.global_step % 3}": 1.0}, trainer.global_step)

    build = module_file.TrainingModule.configure_callbacks
    monkeypatch.setattr(
        module_file.TrainingModule, "configure_callbacks", lambda self: [*build(self), Own()]
    )
    with power_cut(8):
        run(tmp_path, *STEPS)
    run(tmp_path, *STEPS, "ckpt=auto")
    own = [rows_of(tmp_path, f"own/{number}") for number in range(3)]
    assert sorted(step for rows in own for step in rows) == list(range(1, 13))


def test_an_earlier_checkpoint_leaves_what_was_later_in_a_folder_of_its_own(tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    steps = Counter(int(row["step"]) for row in table(tmp_path))
    run(tmp_path, *STEPS, "optim.lr=1e-4", f"ckpt={tmp_path}/checkpoints/previous.ckpt")
    former = tmp_path / "former-1"
    assert (former / "checkpoints" / "last.ckpt").is_file()
    assert Counter(int(row["step"]) for row in table(former)) == steps
    assert Counter(int(row["step"]) for row in table(tmp_path)) == steps
    assert rows_of(former, "train/loss")[9] == rows_of(tmp_path, "train/loss")[9]
    assert rows_of(former, "train/loss")[12] != rows_of(tmp_path, "train/loss")[12]


# ---- the file itself


def text_of(folder: Path) -> str:
    return (folder / "metrics.csv").read_text()


def test_a_row_is_in_the_file_at_once(tmp_path):
    logger = CSV(tmp_path)
    logger.log_metrics({"b": 1.5}, 10)
    assert text_of(tmp_path) == "b,step\n1.5,10\n"
    logger.log_metrics({"a": 2.0}, 10)  # of other columns
    logger.log_metrics({"b": 2.5}, 20)
    assert text_of(tmp_path) == "a,b,step\n,1.5,10\n2.0,,10\n,2.5,20\n"
    assert logger.position() == 3


def test_a_kill_while_columns_are_added_loses_no_row(tmp_path, monkeypatch):
    logger = CSV(tmp_path)
    logger.log_metrics({"b": 1.0}, 1)
    before = text_of(tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({"a": 1.0}, 1)
    assert text_of(tmp_path) == before


@pytest.mark.parametrize("num_rows", [None, 2])
@pytest.mark.parametrize("end", ["7.0,1", "7.0,10", "7.0,1\0", ""])
def test_a_line_that_a_kill_left_unfinished_is_dropped(tmp_path, end, num_rows):
    (tmp_path / "metrics.csv").write_text("b,step\n5.0,1\n6.0,2\n" + end, newline="")
    logger = CSV(tmp_path)
    logger.cut_back(2, num_rows)
    logger.log_metrics({"b": 8.0}, 3)
    assert text_of(tmp_path) == "b,step\n5.0,1\n6.0,2\n8.0,3\n"


def test_rows_after_the_checkpoint_are_dropped_by_their_number_or_their_step(tmp_path):
    rows = "b,step\n5.0,1\n6.0,2\n7.0,2\n8.0,3\n"
    for num_rows, left in ((2, "b,step\n5.0,1\n6.0,2\n"), (None, "b,step\n5.0,1\n6.0,2\n7.0,2\n")):
        (tmp_path / "metrics.csv").write_text(rows)
        CSV(tmp_path).cut_back(2, num_rows)
        assert text_of(tmp_path) == left


def test_a_row_that_a_full_disk_cut_is_written_later(tmp_path, monkeypatch, caplog):
    logger = CSV(tmp_path)
    logger.log_metrics({"b": 1.0}, 1)
    before, write = text_of(tmp_path), os.write

    def half(number: int, content: bytes) -> int:
        if len(content) < 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, content[:4])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        logger.log_metrics({"b": 2.25}, 2)
        logger.log_metrics({"b": 3.25}, 3)
        assert text_of(tmp_path) == before
        with pytest.raises(OSError, match="No space left"):
            logger.save()
    assert caplog.text.count("could not be written") == 1
    assert logger.position() == 3  # in the order of the file to come
    logger.log_metrics({"b": 4.25}, 4)
    assert text_of(tmp_path) == "b,step\n1.0,1\n2.25,2\n3.25,3\n4.25,4\n"


def test_an_event_file_behind_a_link_is_not_cut(tmp_path):
    run_dir, target = tmp_path / "r", tmp_path / "target"
    run_dir.mkdir()
    target.write_text("of somebody else")
    (run_dir / "events.out.tfevents.1").symlink_to(target)
    TensorBoard(run_dir).cut_back(1, {"events.out.tfevents.1": 2})
    assert target.read_text() == "of somebody else"
