"""Handles signals that end a run after the current step, with a checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, tensor

from xftrain.callbacks.checkpoint import validation_follows, within_step
from xftrain.errors import Stopped
from xftrain.train.module import training_module
from xftrain.utils.processes import END_SIGNALS, is_handled

log = logging.getLogger(__name__)

_SIGNALS = (*END_SIGNALS, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopSignals(Callback):
    """Within this context, signals end the run at a point from which it can be resumed.

    A signal ends the run at once while the run is built or waits for a batch, and otherwise at the
    end of the step. A second Ctrl-C ends it at once. Lightning's own handlers are replaced: they
    save nothing, exit with code 0, and make several ranks wait for rank 0.
    """

    modifies_weights = False

    def __init__(self) -> None:
        self.received: int | None = None
        self._trainer: Trainer | None = None  # set during training
        self._callbacks: list[Callback] = []
        self._previous_handlers: dict[int, Any] = {}
        self._pending_signal: tuple[Tensor, Any] | None = None  # pending all-reduce of the signal
        self._group: Any = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {n: signal.getsignal(n) for n in _SIGNALS if is_handled(n)}
            self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _install(self) -> None:
        for number in self._previous_handlers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        trainer, again = self._trainer, self.received is not None
        self.received = self.received or number
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if again or any(getattr(callback, "is_saving", False) for callback in self._callbacks):
            return  # a save is already running
        if trainer is None:
            raise Stopped(number)
        waits = training_module(trainer.lightning_module).stream.is_waiting
        if waits and trainer.world_size == 1 and not within_step(trainer):
            raise Stopped(number)
        message = f"{signal.Signals(number).name}: the run ends after this step"
        # in a thread, as the signal may have interrupted a write to the log
        threading.Thread(target=log.info, args=(message,), daemon=True).start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes signals wait for the end of a step from now on."""
        self._install()  # Lightning has installed its own handlers
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # does not wait for the device
        self._trainer = trainer
        self._callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]
        self.end_if_received()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the run if a signal arrived in this step, unless a validation follows."""
        if not within_step(trainer) and not validation_follows(trainer):
            self._end_if_ranks_agree(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the run after a validation, which a run resumed from before it would skip."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not within_step(trainer):
            self._end_if_ranks_agree(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes signals wait for the end of a validation, which a resumed run would skip."""
        self._install()  # Lightning installs its own handlers again for a validation outside fit

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes signals end the run at once again."""
        self._trainer = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Makes signals end the run at once again."""
        self._trainer = None

    def end_if_received(self) -> None:
        """Ends the run if a signal was received; called after a step or the final save."""
        if self.received is not None:
            raise Stopped(self.received)

    def _end_if_ranks_agree(self, trainer: Trainer) -> None:
        """Ends the run once all ranks know of a signal, since one alone would block the others."""
        if trainer.world_size == 1:
            self.end_if_received()
            return
        if self._pending_signal is not None:  # of the previous step, already finished
            number, work = self._pending_signal
            work.wait()
            if int(number):
                raise Stopped(int(number))
        number = tensor(self.received or 0)
        self._pending_signal = (
            number,
            dist.all_reduce(number, dist.ReduceOp.MAX, group=self._group, async_op=True),
        )
