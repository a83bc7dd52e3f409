"""Ends a run that makes no progress, and writes where it hangs."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.callbacks._interpreter_watch import interpreter_watched
from xftrain.config.fields import PositiveFloat
from xftrain.utils.console import say
from xftrain.utils.files import open_plain
from xftrain.utils.heartbeat import num_beats

log = logging.getLogger(__name__)

_GRACE_S = 30.0  # time to write the message, before the process is killed


class Watchdog(Callback):
    """Ends a run that hangs: in a step, in a save, or while it waits for another rank.

    Time in which the process is stopped, as by SIGSTOP or a suspended machine, does not count.

    The watchdog is active from the first step to the last save, and in a validation after that. It
    is not active in other callbacks after `fit`, where benchmarks may take any time. A run that
    ends by an error is watched until `end` is called.

    Args:
        timeout_s: maximum time in seconds without progress, which is the start or end of the run or
            of a batch of training or validation, or text that is prepared meanwhile. After that,
            the stacks of all threads are written to `stacks.txt` and the process ends with code 1,
            or by SIGABRT if a thread blocks the interpreter.
    """

    modifies_weights = False

    def __init__(self, *, timeout_s: PositiveFloat = 1800.0) -> None:
        self.timeout_s = timeout_s
        self.on_hang: Callable[[str], None] = lambda message: None  # called with the message
        self._progress_count = 0
        self._stacks_path = Path("stacks.txt")
        self._is_ended = threading.Event()
        self._thread: threading.Thread | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the watchdog."""
        self._start(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the watchdog for a validation outside `fit` too."""
        if trainer.state.fn == "validate":
            self._start(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the watchdog after a validation outside `fit`."""
        if trainer.state.fn == "validate":
            self.end()

    def _start(self, trainer: Trainer) -> None:
        self._progress_count += 1
        if self._thread is not None:
            return
        self._is_ended.clear()
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.default_root_dir) / f"stacks{rank}.txt"
        self._thread = threading.Thread(
            target=self._watch, args=(path,), daemon=True, name="watchdog"
        )
        self._thread.start()

    def on_train_batch_start(self, *_: Any) -> None:
        """Records progress."""
        self._progress_count += 1

    def on_train_batch_end(self, *_: Any) -> None:
        """Records progress."""
        self._progress_count += 1

    def on_validation_batch_end(self, *_: Any) -> None:
        """Records progress."""
        self._progress_count += 1

    def on_train_end(self, *_: Any) -> None:
        """Records progress; the last save follows."""
        self._progress_count += 1

    def on_exception(self, *_: Any) -> None:
        """Records progress; after a signal, a save follows."""
        self._progress_count += 1

    def on_fit_end(self, *_: Any) -> None:
        """Stops the watchdog, as other callbacks may take any time after `fit`."""
        self.end()

    def end(self) -> None:
        """Stops the watchdog."""
        self._is_ended.set()
        if self._thread is not None:
            self._thread.join(_GRACE_S)
            self._thread = None

    def _num_signs(self) -> int:
        return self._progress_count + num_beats()

    def _watch(self, path: Path) -> None:
        self._stacks_path = path
        interval_s = min(self.timeout_s / 4, 10.0)
        idle_s, progress_count, now_s = 0.0, self._num_signs(), time.monotonic()
        limit_s = self.timeout_s + _GRACE_S
        message = (
            f"no progress for {limit_s:g} s: a thread blocks the interpreter ({path} shows "
            "where); callbacks.watchdog.timeout_s allows more."
        )
        with (
            _stacks(path) as stacks,
            interpreter_watched(limit_s, interval_s, stacks, message) as alive,
        ):
            while not self._is_ended.wait(interval_s):
                alive()
                before_s, now_s = now_s, time.monotonic()
                # at most the interval, since the process may have been stopped meanwhile
                idle_s += min(now_s - before_s, interval_s)
                if self._num_signs() != progress_count:
                    idle_s, progress_count = 0.0, self._num_signs()
                if idle_s > self.timeout_s:
                    self._give_up(stacks)
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def _give_up(self, stacks: Any) -> None:
        faulthandler.dump_traceback_later(_GRACE_S, exit=True, file=stacks)
        faulthandler.dump_traceback(stacks, all_threads=True)
        stacks.flush()
        message = (
            f"no progress for {self.timeout_s:g} s: a step, a batch, a save or another rank "
            f"hangs ({self._stacks_path} shows where); callbacks.watchdog.timeout_s allows more."
        )
        log.error(message)
        self.on_hang(message)
        say(message)
        os._exit(1)  # the thread that hangs cannot be interrupted


@contextmanager
def _stacks(path: Path) -> Iterator[Any]:
    """Opens a new file for the stacks; standard error if the file cannot be written."""
    try:
        path.unlink(missing_ok=True)
        file = open_plain(path, "ab")
    except OSError as error:
        log.warning("%s cannot be written (%s): stacks would go to standard error", path, error)
        yield sys.__stderr__
        return
    with file:
        yield file
