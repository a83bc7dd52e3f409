"""A terminal that closes, a process that was stopped, a rank that alone sees NaN."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from tests.train.runs import last, result_of, run
from xftrain.callbacks import watchdog
from xftrain.callbacks.watchdog import Watchdog
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import Stopped
from xftrain.model.attn.naive import Naive
from xftrain.utils.processes import raising_stopped


@pytest.fixture
def signal_in_step(monkeypatch):
    """Sends this process a signal while a training step is computed, once."""

    def send(number: int) -> None:
        call, left = Naive.__call__, [number]

        def attention(self, q, k, v, handle):
            if left and torch.is_grad_enabled():
                os.kill(os.getpid(), left.pop())
            return call(self, q, k, v, handle)

        monkeypatch.setattr(Naive, "__call__", attention)

    return send


@pytest.mark.fault("SIGHUP, SIGXCPU")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGXCPU, 152)])
def test_a_terminal_that_closes_and_the_limit_on_cpu_time_save(
    tmp_path, signal_in_step, number, code
):
    signal_in_step(number)
    with pytest.raises(Stopped) as stopped:
        run(tmp_path)
    assert stopped.value.code == code
    result = result_of(tmp_path)
    said = f"stopped by {signal.Signals(number).name}"
    assert (result["status"], result["error"]) == ("stopped", said)
    assert read_checkpoint(last(tmp_path))["global_step"] == result["steps"] > 0


@pytest.mark.fault("SIGHUP, SIGXCPU")
def test_a_hangup_that_nohup_has_ignored_stays_ignored(tmp_path, signal_in_step):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_in_step(signal.SIGHUP)
        with raising_stopped():
            os.kill(os.getpid(), signal.SIGHUP)
            assert run(tmp_path)["status"] == "completed"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1])
def test_whatever_a_command_does_a_signal_is_raised_and_then_put_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, raising_stopped(signal.SIGUSR1):
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    assert str(stopped.value) == f"stopped by {number.name}"
    assert signal.getsignal(number) == before


class Clock:
    """Stands for `time` and for waiting: each wait takes as long as the test says."""

    def __init__(self, dog: Watchdog, waits: list[float], moves: frozenset[int]) -> None:
        self.now, self.waits, self.dog, self.moves, self.num = 1000.0, waits, dog, moves, 0

    def monotonic(self) -> float:
        return self.now

    def wait(self, interval_s: float) -> bool:
        if not self.waits:
            return True
        self.now += self.waits.pop(0) or interval_s
        if self.num in self.moves:
            self.dog.on_train_batch_end()
        self.num += 1
        return False

    def set(self) -> None:
        pass


class Hangs(Exception):
    """The watchdog gave up."""


def watched(monkeypatch, tmp_path, waits: list[float], moves: frozenset[int] = frozenset()) -> None:
    dog = Watchdog(timeout_s=8.0)  # looks every 2 s
    clock = Clock(dog, waits, moves)
    monkeypatch.setattr(watchdog, "time", clock)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda *_, **__: None)

    def gave_up(stacks) -> None:
        raise Hangs

    monkeypatch.setattr(dog, "_give_up", gave_up)
    monkeypatch.setattr(dog, "_is_ended", clock)
    dog._watch(tmp_path / "stacks.txt")


@pytest.mark.fault("stopped for long")
def test_time_in_which_the_process_was_stopped_is_no_hang(monkeypatch, tmp_path):
    # the wall clock went on while the laptop was closed, and the run was ended at once
    watched(monkeypatch, tmp_path, [0, 86400.0, 0, 3600.0])
    watched(monkeypatch, tmp_path, [0] * 40, moves=frozenset(range(0, 40, 3)))
    with pytest.raises(Hangs):
        watched(monkeypatch, tmp_path, [0] * 6)
    with pytest.raises(Hangs):
        watched(monkeypatch, tmp_path, [0, 86400.0, *[0] * 4])
