"""A step's figures come to the host as they were, and nothing waits for what comes after."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.train.runs import infinite_loss, result_of, rows_of, run
from xftrain.callbacks.checkpoint import Checkpoint
from xftrain.callbacks.metrics import Metrics
from xftrain.checkpoint.file import AtomicCheckpointIO
from xftrain.data.counting import Counting
from xftrain.errors import RunError, Stopped
from xftrain.model.gpt import GPT
from xftrain.train.host_copies import AsyncHostCopy, DeviceTimestamp
from xftrain.train.module import TrainingModule

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_written_afterwards_is_not_seen(device):
    # a recorded step leaves its figures where the next one does
    tensor = torch.arange(4.0, device=device)
    fetched = AsyncHostCopy(tensor)
    tensor.zero_()
    assert fetched.wait().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("device", DEVICES)
def test_a_moment_is_the_end_of_what_was_begun(device):
    start = DeviceTimestamp(torch.device(device))
    if device == "cuda":
        torch.cuda._sleep(100_000_000)  # cycles: at least 0.04 s
    else:
        time.sleep(0.05)
    assert 0.04 < DeviceTimestamp(torch.device(device)).seconds_since(start) < 5


@pytest.fixture
def trace(monkeypatch):
    """Lists the steps that were run, recorded, validated and saved, in order."""
    seen: list[str] = []

    def note(owner, name, said):
        function = getattr(owner, name)

        def noted(*args, **kwargs):
            seen.append(said(*args))
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    note(TrainingModule, "training_step", lambda self, *_: f"step {self.trainer.global_step + 1}")
    note(TrainingModule, "validation_step", lambda *_: "validation")
    note(Metrics, "_write", lambda self, module, left: f"record {left.step}")
    note(
        AtomicCheckpointIO,
        "save_checkpoint",
        lambda self, content, path, *_: f"{Path(path).name} {content['global_step']}",
    )
    return seen


def test_a_record_is_made_while_the_next_step_is_under_way(tmp_path, trace):
    run(tmp_path, "max_steps=5", "trainer.val_check_interval=100", "data.num_val_batches=1")
    made = ["step 1", "step 2", "step 3", "record 2", "step 4", "step 5", "record 4", "record 5"]
    assert trace == [*made, "last.ckpt 5", "validation"]


def test_what_waits_for_the_device_anyway_comes_after_the_record(tmp_path, trace):
    # a run that is killed after its save of a step would go on without the step's record
    run(tmp_path, "callbacks.checkpoint.every_n_steps=2", "data.num_val_batches=1", "max_steps=4")
    assert trace == [
        *("step 1", "step 2", "record 2", "last.ckpt 2"),
        *("step 3", "step 4", "record 4", "validation", "best.ckpt 4", "last.ckpt 4"),
    ]


@pytest.fixture
def at_batch(monkeypatch):
    """Sets a function to call when the training batch with an index, from 0, is loaded."""
    batch = Counting.batch

    def set_up(number, happens):
        def asked(self, split, step, rank=0):
            if (split, step) == ("train", number):
                happens()
            return batch(self, split, step, rank)

        monkeypatch.setattr(Counting, "batch", asked)

    return set_up


@pytest.mark.parametrize("error", [OSError, RunError])
def test_an_error_in_the_next_step_leaves_the_record_of_the_one_before(tmp_path, at_batch, error):
    def fail():
        raise error("the disk is gone")

    at_batch(4, fail)
    with pytest.raises(error, match="the disk is gone"):
        run(tmp_path, "trainer.val_check_interval=100")
    assert list(rows_of(tmp_path, "train/loss")) == [2, 4]
    assert result_of(tmp_path)["metrics"]["train/loss"] == rows_of(tmp_path, "train/loss")[4]


def test_a_signal_leaves_each_record_once(tmp_path, at_batch):
    at_batch(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        run(tmp_path, "trainer.val_check_interval=100")
    assert list(rows_of(tmp_path, "train/loss")) == [2, 4]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_signal_after_a_bad_step_leaves_the_records(tmp_path, at_batch, monkeypatch, policy):
    # the last save, which is refused, kept the loggers from being saved
    infinite_loss(monkeypatch, lambda trainer: trainer.global_step == 3)
    at_batch(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    never = "trainer.val_check_interval=100"
    with pytest.raises(RunError if policy == "stop" else Stopped):
        run(tmp_path, f"on_nonfinite={policy}", never)
    if policy == "stop":
        assert list(rows_of(tmp_path, "train/loss")) == [2]
    else:
        assert rows_of(tmp_path, "train/skipped_steps") == {2: 0, 4: 1}


def test_the_steps_under_way_are_no_cost_of_a_save(tmp_path, monkeypatch):
    seen, pause, save = [], Metrics.pause, Checkpoint._save

    def slow(self, module):
        time.sleep(0.2)
        pause(self, module)

    def noted(self, *args, **more):
        done = save(self, *args, **more)
        seen.append(self._last_s)
        return done

    monkeypatch.setattr(Metrics, "pause", slow)
    monkeypatch.setattr(Checkpoint, "_save", noted)
    run(tmp_path, "callbacks.checkpoint.every_n_steps=2")
    assert len(seen) >= 3 and min(seen) < 0.15


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_the_device_has_work_while_a_record_is_made(tmp_path, monkeypatch, precision):
    # it waited 9 ms at each record
    hidden, write, is_busy = GPT.hidden_and_aux, Metrics._write, []

    def slow(self, *arguments):
        torch.cuda._sleep(100_000_000)
        return hidden(self, *arguments)

    def written(self, module, left):
        write(self, module, left)
        all_queued = torch.cuda.Event()
        all_queued.record()
        is_busy.append(not all_queued.query())

    monkeypatch.setattr(GPT, "hidden_and_aux", slow)
    monkeypatch.setattr(Metrics, "_write", written)
    every = ("trainer.log_every_n_steps=1", "trainer.val_check_interval=100")
    here = ("trainer=gpu", f"trainer.precision={precision}", "max_steps=8")
    run(tmp_path, *here, *every, "callbacks.sample=null", "model.attn=sdpa")
    assert is_busy[2:] == [True] * 5 + [False]
    step_ms = rows_of(tmp_path, "speed/step_ms")
    assert list(step_ms) == list(range(1, 9)) and min(step_ms.values()) > 40
