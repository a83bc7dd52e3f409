"""Records loss, accuracy, learning rate, gradient norm, speed and memory."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.errors import RunError
from xftrain.interfaces import Batch
from xftrain.model.flops import FlopCounter, describe_peak, peak_flops
from xftrain.train.distributed import all_reduce_sum
from xftrain.train.host_copies import AsyncHostCopy, DeviceTimestamp
from xftrain.train.log_text import log_text
from xftrain.train.module import TrainingModule, training_module
from xftrain.utils.device_memory import peak_memory_mib
from xftrain.utils.timing import synchronize
from xftrain.utils.transfer import on_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingRecord:
    """The metrics of one step, being copied to the host."""

    step: int
    # summed over ranks: loss, labels, correct predictions, bytes, tokens, FLOPs; then the flag of a
    # non-finite step, the gradient norm, and the sums that are added to the loss
    figures: AsyncHostCopy
    added: tuple[str, ...]  # names of the sums that are added to the loss
    is_text: bool
    ended: DeviceTimestamp
    since: DeviceTimestamp  # of the previous record, or of the start
    num_steps: int  # since the previous record
    paused_s: float
    learning_rates: dict[str, float]


class Metrics(Callback):
    """Writes a record every `trainer.log_every_n_steps`, while the device runs the next step.

    The record is written at once if there is no next step, or if the host waits for the device
    anyway, as before a validation or a checkpoint. Speeds are over the time between the ends of two
    recorded steps, minus the time of validation and checkpoints.
    """

    modifies_weights = False

    def __init__(self) -> None:
        self.tokens_per_s: list[float] = []  # one value per interval between records
        self._pending: PendingRecord | None = None
        self._tokens = 0
        self._steps_at_record = 0
        self._interval_start: DeviceTimestamp | None = None
        self._paused_at: float | None = None
        self._paused_s = 0.0
        self._flops = 0.0  # since the previous record, like the tokens
        self._counter: FlopCounter | None = None
        self._peak: float | None = None

    def typical_tokens_per_s(self) -> float | None:
        """Median over the intervals, without the first (warm-up) one if there are others."""
        if not self.tokens_per_s:
            return None  # the run ended before its first record
        return statistics.median(self.tokens_per_s[1:] or self.tokens_per_s)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the MFU formula and the peak, and starts the clock."""
        module = training_module(pl_module)
        with trainer.precision_plugin.forward_context():
            device, dtype = module.model.compute_device_dtype()
        self._peak = peak_flops(device, dtype)
        formula = describe_peak(device, dtype)
        log.info("%s", formula)
        log_text(trainer.loggers, "speed/mfu_formula", formula)
        module.recorded_at = self._steps_at_record = trainer.global_step
        self._interval_start, self._paused_s = DeviceTimestamp(pl_module.device), 0.0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Counts tokens, writes the pending record, and starts the copy for the next record."""
        module = training_module(pl_module)
        self._record(module)
        self._counter = self._counter or FlopCounter(module.model)
        num_tokens = batch.num_tokens - batch.num_padding
        self._tokens += num_tokens
        self._flops += num_tokens * self._counter.per_token(batch)
        step = trainer.global_step
        if module.logs(step) and step != self._steps_at_record:
            self._pending = self._start_copy(module)
        if step >= trainer.max_steps:  # the last step
            self._record(module)

    def _start_copy(self, module: TrainingModule) -> PendingRecord:
        """Starts copying the metrics to the host, without waiting, and starts a new interval."""
        sums, norm, since = module.last_sums, module.grad_norm, self._interval_start
        assert sums is not None and norm is not None and since is not None
        num_bytes, module.label_bytes = module.label_bytes, None
        own = on_device([num_bytes or 0, self._tokens, self._flops], module.device, torch.float64)
        step_checks = torch.stack([module.guard.is_bad.double(), norm.double()])
        sums_by_name = {"train/aux_loss": sums.aux, "train/regularization": sums.regularization}
        added = {name: one.double()[None] for name, one in sums_by_name.items() if one is not None}
        figures = torch.cat([sums.stacked(), all_reduce_sum(own), step_checks, *added.values()])
        step, ended = module.trainer.global_step, DeviceTimestamp(module.device)
        pending = PendingRecord(
            step=step,
            figures=AsyncHostCopy(figures),
            added=tuple(added),
            is_text=num_bytes is not None,
            ended=ended,
            since=since,
            num_steps=step - self._steps_at_record,
            paused_s=self._paused_s,
            learning_rates=module.learning_rates,
        )
        self._interval_start, self._steps_at_record = ended, step
        self._tokens, self._flops, self._paused_s = 0, 0.0, 0.0
        return pending

    def _record(self, module: TrainingModule) -> None:
        """Writes the pending record, if `_start_copy` has started one.

        Waits for the device to finish that step, but no later one.

        Raises:
            RunError: the step was not finite.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            module.guard.finish_readback(module, until=pending.step)
            self._write(module, pending)

    def _write(self, module: TrainingModule, pending: PendingRecord) -> None:
        figures = pending.figures.wait().tolist()
        loss_sum, num_labels, num_correct, num_bytes, num_tokens, flops, is_bad, norm = figures[:8]
        if is_bad and module.guard.stops:
            return  # the run ends because of this step, unless another error ends it first
        record = {}
        if num_labels:
            loss = loss_sum / num_labels
            if not math.isfinite(loss) and not is_bad:  # the gradient was finite
                raise RunError(
                    f"train/loss is {loss} at step {pending.step}: lower optim.lr or raise "
                    "schedule.warmup_steps; checkpoints saved before are in the run folder."
                )
            record = {"train/loss": loss, "train/accuracy": num_correct / num_labels}
            for name, added in zip(pending.added, figures[8:], strict=True):
                record[name] = added / num_labels
            if num_bytes:
                record["train/bits_per_byte"] = loss_sum / math.log(2) / num_bytes
            elif not pending.is_text:
                record["train/perplexity"] = math.exp(min(loss, 700.0))
        elapsed = pending.ended.seconds_since(pending.since) - pending.paused_s
        tokens_per_s = num_tokens / elapsed
        self.tokens_per_s.append(tokens_per_s)
        record |= {
            **pending.learning_rates,
            "speed/tokens_per_s": tokens_per_s,
            "speed/step_ms": elapsed / pending.num_steps * 1e3,
            "speed/tflops": flops / elapsed / 1e12,
            "memory/peak_mib": peak_memory_mib(module.device),
            "train/grad_norm": norm,
        }
        if not module.guard.stops:
            record["train/skipped_steps"] = module.guard.num_skipped
        if self._peak is not None:
            peak_tflops = self._peak * module.trainer.world_size / 1e12
            record["speed/mfu"] = record["speed/tflops"] / peak_tflops
        module.latest_metrics.update(record)
        # read by callbacks that monitor a metric
        monitored = {name: torch.tensor(value) for name, value in record.items()}
        module.trainer.callback_metrics.update(monitored)
        module.recorded_at = pending.step
        for logger in module.trainer.loggers:
            logger.log_metrics(record, step=pending.step)

    def pause(self, module: TrainingModule) -> None:
        """Writes the pending record and stops the clock, for work that is not training."""
        if self._paused_at is None:
            self._record(module)
            synchronize(module.device)
            self._paused_at = time.perf_counter()

    def resume(self) -> None:
        """Starts the clock again."""
        if self._paused_at is not None:
            self._paused_s += time.perf_counter() - self._paused_at
            self._paused_at = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock, as validation is not training."""
        self.pause(training_module(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again for the next step."""
        self.resume()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the pending record, if a callback stopped the run before its last step."""
        self._record(training_module(pl_module))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Writes the pending record, if the device still responds, and flushes the loggers."""
        module = training_module(pl_module)
        pending, self._pending = self._pending, None
        # a signal, which ends all ranks at the same step
        if isinstance(exception, SystemExit) and not module.guard.stops:
            with suppress(Exception):  # the first error is the one to report
                module.guard.finish_readback(module)
        with suppress(Exception):
            if pending is not None:
                self._write(module, pending)
            for logger in trainer.loggers:  # if the last save fails, nothing else flushes them
                logger.save()


@contextmanager
def not_training(trainer: Trainer) -> Iterator[None]:
    """Within this context, time does not count toward the speeds."""
    clocks = [c for c in trainer.callbacks if isinstance(c, Metrics)]  # type: ignore[attr-defined]
    for clock in clocks:
        clock.pause(training_module(trainer.lightning_module))
    try:
        yield
    finally:
        for clock in clocks:
            clock.resume()
