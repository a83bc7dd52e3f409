"""Records why a run ended before its last step: which callback stopped it, and its reason.

The record is part of every checkpoint, so that a resumed run that was stopped trains no further.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import FrameType
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch import Callback, LightningModule

from xftrain.callbacks.checkpoint import within_step
from xftrain.config.moved_keys import in_new_keys
from xftrain.config.run_config import RunConfig
from xftrain.train import distributed
from xftrain.train.module import training_module
from xftrain.train.same_run import differences, with_digests
from xftrain.utils.printable import one_line, shortened
from xftrain.utils.redaction import hidden

log = logging.getLogger(__name__)

_MAX_REASON = 1000  # characters of a reason in a checkpoint

_DEPTH = 8  # maximum stack depth from a callback's hook to the line that stops the run


class Stop(NamedTuple):
    """Why a callback stopped a run, as plain values for a checkpoint.

    Attributes:
        by: class name of the callback.
        reason: `stopped by <callback>: <reason>`, with secrets hidden.
        key: key of the callback under `callbacks`; None if it has none.
    """

    by: str
    reason: str
    key: str | None


class StoppableTrainer(pl.Trainer):
    """A Trainer that records which callback sets `should_stop`.

    A callback gives its reason in the attribute `stopping_reason_message`, like `EarlyStopping`.
    """

    run_config: RunConfig | None = None  # of this run, for callbacks that measure variants of it
    stopped_by: str | None = None  # class name of the callback
    _should_stop = False
    _stopping: Callback | None = None
    _repeated: Stop | None = None  # the stop of the resumed run, which this one repeats

    @property
    def should_stop(self) -> bool:
        """Whether the run ends after the current batch."""
        return self._should_stop

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if not value:
            self.stopped_by, self._stopping, self._repeated = None, None, None
        elif not self._should_stop:  # the first callback counts
            self._stopping = _calling_callback(sys._getframe(1))
            self.stopped_by = type(self._stopping).__name__ if self._stopping else "a callback"
        self._should_stop = value

    def stop_reason(self) -> str | None:
        """`stopped by <callback>: <reason>`; None if no callback has stopped the run."""
        if self._repeated is not None:
            return self._repeated.reason
        return self.stopped_by and f"stopped by {self._described()}"

    def repeat_stop(self, stop: Stop) -> None:
        """Ends this run for the same reason as the resumed one."""
        self._should_stop, self._repeated, self.stopped_by = True, stop, stop.by

    def final_stop(self, key_of: Callable[[Callback], str | None]) -> Stop | None:
        """The stop to save in a checkpoint; None if a resumed run trains further.

        The stop of a callback with the attribute `decides_again = True` is not saved: the callback
        decides by itself whether a resumed run ends.
        """
        if self._repeated is not None or self.stopped_by is None:
            return self._repeated
        if self._stopping is not None and getattr(self._stopping, "decides_again", False):
            return None
        reason = shortened(one_line(hidden(self.stop_reason() or "")), _MAX_REASON)
        key = None if self._stopping is None else key_of(self._stopping)
        return Stop(self.stopped_by, reason, key)

    def _described(self) -> str:
        message = getattr(self._stopping, "stopping_reason_message", None)
        reason = str(message or "").removesuffix("Signaling Trainer to stop.").strip().rstrip(".")
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
    """Logs why a callback stopped the run, and repeats the stop when the run is resumed.

    Without the record, a resumed run would train until the callback decides again. The record is
    valid while `max_steps` and the configuration of that callback are unchanged. This callback is
    the first of all.

    Args:
        key_of: returns the key of a callback under `callbacks`, or None.
    """

    modifies_weights = False

    def __init__(self, key_of: Callable[[Callback], str | None]) -> None:
        self.key_of = key_of
        self._trainer: pl.Trainer | None = None
        self._restored: Stop | None = None

    def setup(self, trainer: pl.Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps the trainer, whose stop `state_dict` returns."""
        self._trainer = trainer

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the stop, unless the settings that decide it have changed.

        Raises:
            TypeError: the checkpoint holds other types, which fails the restore.
        """
        saved = checkpoint["callbacks"].get(self.state_key)
        stop = _checked_stop(saved["stop"]) if saved else None
        if stop is not None and not _has_other_settings(
            stop, checkpoint, training_module(pl_module).saved
        ):
            self._restored = stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        """Ends a resumed run that was stopped, before its first step."""
        if self._restored is None or not isinstance(trainer, StoppableTrainer):
            return
        stop = self._restored
        key = "callbacks" if stop.key is None else f"callbacks.{stop.key}"
        log.warning(
            "ckpt is at step %d, where the run was %s; nothing is left to train (another max_steps "
            "or other settings of %s train on)",
            *(trainer.global_step, stop.reason, key),
        )
        trainer.repeat_stop(stop)

    def on_train_end(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        """Logs the reason, before the output of other callbacks."""
        message = trainer.stop_reason() if isinstance(trainer, StoppableTrainer) else None
        if message is not None:
            log.info("step %d of %d: %s", trainer.global_step, trainer.max_steps, message)

    def state_dict(self) -> dict[str, Any]:
        """The stop of the run, or None."""
        trainer = self._trainer
        stop = trainer.final_stop(self.key_of) if isinstance(trainer, StoppableTrainer) else None
        return {"stop": stop and stop._asdict()}


def _checked_stop(saved: Any) -> Stop | None:
    """Reads the stop of a checkpoint, and checks its types.

    Raises:
        TypeError: the value is not one that `state_dict` returns.
    """
    if saved is None:
        return None
    by, reason, key = saved["by"], saved["reason"], saved["key"]
    if not (isinstance(by, str) and isinstance(reason, str) and isinstance(key, str | None)):
        raise TypeError("the reason why its run was stopped is not a string")
    by, reason = (shortened(one_line(text), _MAX_REASON) for text in (by, reason))
    return Stop(by, reason, None if key is None else shortened(one_line(key), _MAX_REASON))


def _has_other_settings(stop: Stop, checkpoint: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether `max_steps` or the configuration of the callback differ from the checkpoint's."""
    saved = checkpoint["xftrain"]
    decisive = []
    for values in ({**saved, "config": in_new_keys(saved["config"])}, own):
        config = with_digests(values["config"], values.get("environment", {}))
        callbacks = config.get("callbacks") or {}
        settings = callbacks if stop.key is None else callbacks.get(stop.key)
        decisive.append({"max_steps": config.get("max_steps"), "callbacks": settings})
    return bool(differences(*decisive))


class TimeLimit(Callback):
    """Ends a run after `trainer.max_time`, counted from its first step.

    A resumed run has the full time again: Lightning's own timer would include the time before the
    checkpoint and end the run at once.

    Args:
        max_time: the time as `days:hours:minutes:seconds`, see `seconds_of`.
    """

    modifies_weights = False
    decides_again = True

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
        """Ends the run if the time is over; several ranks check this only at logged steps."""
        is_checked = trainer.world_size == 1 or not trainer.global_step % trainer.log_every_n_steps  # type: ignore[attr-defined]
        if within_step(trainer) or not is_checked:
            return
        if distributed.broadcast_from_rank_0(time.monotonic() >= self._end_s):
            self.stopping_reason_message = f"trainer.max_time={self.max_time} is over"
            trainer.should_stop = True


def seconds_of(max_time: str) -> float:
    """Converts `days:hours:minutes:seconds`, checked by `config.checks`, to seconds."""
    days, hours, minutes, seconds = map(int, max_time.split(":"))
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
