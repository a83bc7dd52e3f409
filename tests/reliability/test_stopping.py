"""How a run ends from outside: signals, a hang, memory that runs out."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.forked import ended
from tests.train.runs import last, result_of, run, same_weights
from xftrain.callbacks.checkpoint import Checkpoint
from xftrain.checkpoint.file import read_checkpoint
from xftrain.data.counting import Counting
from xftrain.errors import RunError, Stopped
from xftrain.model.attn.naive import Naive

STEPS = ("max_steps=6", "model.dropout=0.1")


@pytest.fixture
def signalled(monkeypatch):
    """Sends this process a signal in training batch `index`: while it is made, or computed."""

    def send(number: int, index: int, *, computing: bool) -> None:
        at: list[int] = []
        batch, call = Counting.batch, Naive.__call__

        def note(self, split, step, rank=0):
            at[:] = [step] if split == "train" else []
            if at == [index] and not computing:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            return batch(self, split, step, rank)

        def attention(self, q, k, v, handle):
            if at == [index] and computing:
                at.clear()
                os.kill(os.getpid(), number)
            return call(self, q, k, v, handle)

        monkeypatch.setattr(Counting, "batch", note)
        monkeypatch.setattr(Naive, "__call__", attention)

    return send


@pytest.mark.fault("SIGTERM, SIGUSR1, Ctrl-C")
@pytest.mark.parametrize(
    ("number", "code", "computing", "accumulate", "index", "saved"),
    [
        (signal.SIGTERM, 143, True, 1, 3, 4),  # the step under way is finished
        (signal.SIGTERM, 143, False, 1, 3, 3),  # a batch that does not come is not waited for
        (signal.SIGTERM, 143, True, 2, 6, 4),  # a step is whole or was not begun
        (signal.SIGUSR1, 75, False, 2, 7, 4),
        (signal.SIGUSR2, 75, True, 1, 3, 4),
        (signal.SIGINT, 130, True, 1, 3, 4),
    ],
)
def test_a_signal_saves_at_the_end_of_the_step_and_the_run_can_go_on(
    tmp_path, signalled, monkeypatch, number, code, computing, accumulate, index, saved
):
    steps = (*STEPS, f"trainer.accumulate_grad_batches={accumulate}")
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with monkeypatch.context():
        signalled(number, index, computing=computing)
        with pytest.raises(Stopped) as stopped:
            run(tmp_path / "cut", *steps)
    monkeypatch.undo()
    assert stopped.value.code == code
    result = result_of(tmp_path / "cut")
    name = signal.Signals(number).name
    assert (result["status"], result["error"]) == ("stopped", f"stopped by {name}")
    assert read_checkpoint(last(tmp_path / "cut"))["global_step"] == saved
    assert handlers == [
        signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    ]
    run(tmp_path / "cut", *steps, "ckpt=auto")
    run(tmp_path / "whole", *steps)
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))


@pytest.mark.fault("signal while the run is built")
def test_a_signal_while_the_run_is_built_ends_it_at_once(tmp_path, monkeypatch):
    def built(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        raise AssertionError("it went on")

    monkeypatch.setattr("xftrain.commands.prepare.check_runnable", built)
    with pytest.raises(Stopped):
        run(tmp_path)
    assert result_of(tmp_path)["status"] == "stopped"


@pytest.mark.fault("Ctrl-C twice")
def test_ctrl_c_twice_does_not_wait(tmp_path, monkeypatch):
    call = Naive.__call__

    def attention(self, q, k, v, handle):
        if torch.is_grad_enabled():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        return call(self, q, k, v, handle)

    monkeypatch.setattr(Naive, "__call__", attention)
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert not last(tmp_path).exists()
    assert (result_of(tmp_path)["status"], result_of(tmp_path)["error"]) == (
        "stopped",
        "interrupted",
    )


# ---- hangs


def _hang(place: str) -> None:
    """Of a process: a run that hangs in this place."""
    batch, save = Counting.batch, Checkpoint._save
    asked = set()

    def hangs(self, split, step, *rank):
        asked.add((split, step))
        # one of validation is looked at before training; one without a rank is saved as a prompt
        is_last = split == "val" and rank and ("train", 4) in asked
        while {"a batch": (split, step) == ("train", 3), "the last validation": is_last}.get(place):
            time.sleep(0.05)
        return batch(self, split, step, *rank)

    def save_hangs(self, trainer, name, **how):
        while place == "the last save" and trainer.global_step == 3:
            time.sleep(0.05)
        return save(self, trainer, name, **how)

    Counting.batch, Checkpoint._save = hangs, save_hangs
    words = ["max_steps=5", "trainer.val_check_interval=9", "callbacks.watchdog.timeout_s=0.5"]
    run(Path("run"), *words, *["max_steps=3"] * (place == "the last save"))


@pytest.mark.fault("hang")
@pytest.mark.parametrize(
    ("place", "steps"), [("a batch", 3), ("the last save", 3), ("the last validation", 5)]
)
def test_a_run_that_hangs_ends_with_its_stacks(tmp_path, place, steps):
    process = ended(_hang, place, cwd=tmp_path)
    assert process.returncode == 1
    said = process.stderr.strip().splitlines()[-1]
    assert said.startswith("xftrain: no progress for 0.5 s: ") and "(run/stacks.txt shows" in said
    result = result_of(tmp_path / "run")
    assert result["status"] == "failed" and "no progress for" in result["error"]
    assert result["steps"] == steps and "train/loss" in result["metrics"]
    assert "hangs" in (tmp_path / "run" / "stacks.txt").read_text()


def test_what_follows_the_last_validation_may_take_long(tmp_path, monkeypatch):
    def slow(self):
        time.sleep(1.5)
        return {}

    monkeypatch.setattr(Counting, "baseline", slow)
    left_alone = ("callbacks.watchdog.timeout_s=0.5", "trainer.val_check_interval=9")
    assert run(tmp_path, *left_alone)["status"] == "completed"


def test_a_run_that_moves_is_left_alone(tmp_path):
    assert run(tmp_path, "callbacks.watchdog.timeout_s=30")["status"] == "completed"
    assert not (tmp_path / "stacks.txt").exists()


# ---- memory


@pytest.mark.fault("out of memory")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_running_out_of_memory_says_what_would_save_some(tmp_path, monkeypatch, error):
    def none_left(self, *_: object) -> None:
        if torch.is_grad_enabled():
            raise error

    monkeypatch.setattr(Naive, "__call__", none_left)
    with pytest.raises(RunError) as failed:
        run(tmp_path, "seq=512", "batch_tokens=4096", "loss=full")
    said = str(failed.value)
    assert said.startswith("out of memory on cpu at 8 x 512 tokens with a peak of ")
    assert said.count("(about ") == 3 and "\n" not in said
    assert "model.attn=auto" in said  # 2 layers' scores of 512 x 512 are the most
    assert result_of(tmp_path)["error"] == said


@pytest.mark.parametrize(
    ("overrides", "half"),
    [
        (["seq=256", "batch_tokens=256"], "seq=128 batch_tokens=128 ("),
        (["data=counting_packed", "seq=64", "batch_tokens=256"], "batch_tokens=128 ("),
    ],
)
def test_what_is_said_to_save_some_does(tmp_path, monkeypatch, overrides, half):
    def none_left(self, *_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Naive, "__call__", none_left)
    with pytest.raises(RunError) as failed:
        run(tmp_path, *overrides, "loss=chunked", "model.activation_checkpointing=true")
    assert half in str(failed.value)


# ---- secrets


@pytest.mark.fault("SIGTERM, SIGUSR1, Ctrl-C")
def test_a_second_signal_does_not_spoil_the_save(tmp_path, signalled, monkeypatch):
    # as Slurm sends SIGUSR1 and then SIGTERM
    save = torch.save

    def saved(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        save(*args)

    monkeypatch.setattr(torch, "save", saved)
    signalled(signal.SIGUSR1, 2, computing=True)
    with pytest.raises(Stopped) as stopped:
        run(tmp_path, *STEPS)
    assert stopped.value.code == 75
    assert read_checkpoint(last(tmp_path))["global_step"] == 3


class OneAtATime(logging.Handler):
    """Sends SIGTERM while it writes a line, as one may come, and notes what comes in between."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.was_interrupted = False

    def emit(self, record: logging.LogRecord) -> None:
        self.was_interrupted |= self.under_way
        self.under_way = True
        if record.getMessage().startswith("step 2/"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        self.under_way = False


@pytest.mark.fault("SIGTERM, SIGUSR1, Ctrl-C")
def test_a_signal_while_a_line_is_logged_does_not_log_inside_it(tmp_path, caplog):
    # Python's streams refuse that: a traceback stood on the console
    handler = OneAtATime()
    logger = logging.getLogger("xftrain")
    logger.addHandler(handler)
    try:
        with caplog.at_level("INFO"), pytest.raises(Stopped):
            run(tmp_path, *STEPS, "callbacks.progress.every_n_steps=2")
    finally:
        logger.removeHandler(handler)
    assert not handler.was_interrupted
    assert "SIGTERM: the run ends after this step" in caplog.text
