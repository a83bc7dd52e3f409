"""Signals that end a run: it ends after the step under way, with a checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, tensor

from xftrain.errors import Stopped
from xftrain.processes import END_SIGNALS, is_heeded
from xftrain.training.callbacks.checkpoint import Checkpoint, validation_follows, within_step
from xftrain.training.module import training_module

log = logging.getLogger(__name__)

_SIGNALS = (*END_SIGNALS, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopSignals(Callback):
    """While it is entered, the signals end the run where it can go on from.

    While the run is built, and while a batch is waited for, that is at once; in a step it is the
    end of the step. Ctrl-C a second time does not wait. Lightning's own handlers are replaced: they
    save nothing, end with code 0, and of several ranks wait for rank 0.
    """

    modifies_weights = False

    def __init__(self) -> None:
        self.received: int | None = None
        self._trainer: Trainer | None = None  # while it trains
        self._savers: list[Checkpoint] = []
        self._before: dict[int, Any] = {}
        self._agreed: tuple[Tensor, Any] | None = None  # what the ranks are telling each other
        self._group: Any = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.getsignal(n) for n in _SIGNALS if is_heeded(n)}
            self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _install(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        trainer, again = self._trainer, self.received is not None
        self.received = self.received or number
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if again or any(callback.is_saving for callback in self._savers):
            return  # what is being saved is what the signal is to leave
        if trainer is None:
            raise Stopped(number)
        waits = training_module(trainer.lightning_module).stream.is_waiting
        if waits and trainer.world_size == 1 and not within_step(trainer):
            raise Stopped(number)
        said = f"{signal.Signals(number).name}: the run ends after this step"
        # in a thread: the signal may have come in the midst of a line of the log
        threading.Thread(target=log.info, args=(said,), daemon=True).start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on signals wait for the end of a step."""
        self._install()  # Lightning has put its own there
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # host memory: no wait for the device
        self._trainer = trainer
        self._savers = [c for c in trainer.callbacks if isinstance(c, Checkpoint)]  # type: ignore[attr-defined]
        self.end_if_received()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the run where a signal came in this step; if it is validated, after that."""
        if not within_step(trainer) and not validation_follows(trainer):
            self._end_if_all_know(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that is resumed from a checkpoint before the validation would be without it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not within_step(trainer):
            self._end_if_all_know(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation is not cut: a run that goes on would be without it."""
        self._install()  # Lightning has put its own there again, for a validation of its own

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What follows can be cut anywhere."""
        self._trainer = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Nothing is left that could end after a step."""
        self._trainer = None

    def end_if_received(self) -> None:
        """Ends the run where a signal was noted: at a step's end, or when the last save is made."""
        if self.received is not None:
            raise Stopped(self.received)

    def _end_if_all_know(self, trainer: Trainer) -> None:
        """One rank alone cannot stop: the others would wait for it for ever."""
        if trainer.world_size == 1:
            self.end_if_received()
            return
        if self._agreed is not None:  # of the step before, long since there
            number, work = self._agreed
            work.wait()
            if int(number):
                raise Stopped(int(number))
        number = tensor(self.received or 0)
        self._agreed = (
            number,
            dist.all_reduce(number, dist.ReduceOp.MAX, group=self._group, async_op=True),
        )
