"""Records why a run ended before its last step: which callback stopped it, and its reason."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback, LightningModule

from xftrain.callbacks.checkpoint import within_step
from xftrain.train import distributed

log = logging.getLogger(__name__)

_DEPTH = 8  # maximum stack depth from a callback's hook to the line that stops the run


class StoppableTrainer(pl.Trainer):
    """A Trainer that records which callback sets `should_stop`.

    A callback gives its reason in the attribute `stopping_reason_message`, like `EarlyStopping`.
    """

    stopped_by: str | None = None  # class name of the callback
    _should_stop = False
    _stopping: Callback | None = None

    @property
    def should_stop(self) -> bool:
        """Whether the run ends after the current batch."""
        return self._should_stop

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if not value:
            self.stopped_by, self._stopping = None, None
        elif not self._should_stop:  # the first callback counts
            self._stopping = _calling_callback(sys._getframe(1))
            self.stopped_by = type(self._stopping).__name__ if self._stopping else "a callback"
        self._should_stop = value

    def stop_reason(self) -> str | None:
        """`stopped by <callback>: <reason>`; None if no callback has stopped the run."""
        return self.stopped_by and f"stopped by {self._described()}"

    def _described(self) -> str:
        said = getattr(self._stopping, "stopping_reason_message", None)
        reason = str(said or "").removesuffix("Signaling Trainer to stop.").strip().rstrip(".")
        return f"{self.stopped_by}: {reason}" if reason else f"{self.stopped_by}"


def _calling_callback(frame: FrameType | None) -> Callback | None:
    """The callback whose method is on the call stack, or None."""
    for _ in range(_DEPTH):
        if frame is None:
            return None
        if isinstance(caller := frame.f_locals.get("self"), Callback):
            return caller
        frame = frame.f_back
    return None


class StopReason(Callback):
    """Logs at the end of training why a callback stopped it; comes first of all callbacks."""

    modifies_weights = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        """Logs the reason, before the output of other callbacks."""
        said = trainer.stop_reason() if isinstance(trainer, StoppableTrainer) else None
        if said is not None:
            log.info("step %d of %d: %s", trainer.global_step, trainer.max_steps, said)


class TimeLimit(Callback):
    """Ends a run after `trainer.max_time`, counted from its first step.

    A resumed run has the full time again: Lightning's own timer would include the time before the
    checkpoint and end the run at once.

    Args:
        max_time: the time as `days:hours:minutes:seconds`, see `seconds_of`.
    """

    modifies_weights = False

    def __init__(self, max_time: str) -> None:
        self.max_time = max_time
        self.stopping_reason_message: str | None = None
        self._end_s = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._end_s = time.monotonic() + seconds_of(self.max_time)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ends the run if the time is over; several ranks compare clocks only at logged steps."""
        is_rare = trainer.world_size == 1 or not trainer.global_step % trainer.log_every_n_steps  # type: ignore[attr-defined]
        if within_step(trainer) or not is_rare:
            return
        if distributed.from_rank_0(time.monotonic() >= self._end_s):
            self.stopping_reason_message = f"trainer.max_time={self.max_time} is over"
            trainer.should_stop = True


def seconds_of(max_time: str) -> float:
    """Converts `days:hours:minutes:seconds`, checked by `config_checks`, to seconds."""
    days, hours, minutes, seconds = map(int, max_time.split(":"))
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
