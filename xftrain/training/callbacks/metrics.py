"""Records loss, accuracy, rate, gradient norm, speed and memory every `log_every_n_steps`."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.errors import RunError
from xftrain.interfaces import Batch
from xftrain.memory import peak_memory_mib
from xftrain.training.distributed import sum_over_ranks
from xftrain.training.flops import describe_peak, flops_per_token, peak_flops
from xftrain.training.module import TrainingModule, training_module
from xftrain.training.text import log_text

log = logging.getLogger(__name__)


class Metrics(Callback):
    """One record, and one wait for the device, every `trainer.log_every_n_steps`.

    Speeds count all the time between two records, less what validation and checkpoints took.
    """

    def __init__(self) -> None:
        self.tokens_per_s: list[float] = []  # of each interval
        self._tokens = 0
        self._steps_at_record = 0
        self._started = 0.0
        self._paused_at: float | None = None
        self._flops_per_token = 0.0
        self._peak: float | None = None

    def typical_tokens_per_s(self) -> float | None:
        """Median over the intervals, the first left out where there are others (it warms up)."""
        if not self.tokens_per_s:
            return None  # the run ended before its first record
        return statistics.median(self.tokens_per_s[1:] or self.tokens_per_s)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what the figures mean, once."""
        with trainer.precision_plugin.forward_context():
            device, dtype = training_module(pl_module).model.compute_device_dtype()
        self._peak = peak_flops(device, dtype)
        said = describe_peak(device, dtype)
        log.info("%s", said)
        log_text(trainer.loggers, "speed/mfu_formula", said)
        self._steps_at_record = trainer.global_step
        self._started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Counts tokens; at a record, fetches what is on the device."""
        module = training_module(pl_module)
        if not self._flops_per_token:
            self._flops_per_token = flops_per_token(module.model, batch)
        self._tokens += batch.num_tokens
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0 or step >= trainer.max_steps  # type: ignore[attr-defined]
        if not due or step == self._steps_at_record:
            return
        sums = module.last_sums
        assert sums is not None and sums.num_correct is not None
        total = sum_over_ranks(
            torch.stack([sums.loss.double(), sums.num_labels.double(), sums.num_correct.double()])
        )
        loss_sum, num_labels, num_correct = total.tolist()  # waits for the device
        loss = loss_sum / num_labels
        guard = module.guard
        if not math.isfinite(loss) and guard.last_skipped != step:  # its gradient was finite
            raise RunError(
                f"train/loss is {loss} at step {step}: lower optim.lr or raise optim.warmup_steps; "
                "checkpoints saved before are in the run folder."
            )
        now = time.perf_counter()
        elapsed, self._started = now - self._started, now  # what follows counts as training
        steps = step - self._steps_at_record
        tokens_per_s = self._tokens * trainer.world_size / elapsed
        self.tokens_per_s.append(tokens_per_s)
        record = {
            "train/loss": loss,
            "train/accuracy": num_correct / num_labels,
            **_unit(module, batch, float(sums.loss), loss),
            "optim/lr": module.lr,
            "speed/tokens_per_s": tokens_per_s,
            "speed/step_ms": elapsed / steps * 1e3,
            "speed/tflops": tokens_per_s * self._flops_per_token / 1e12,
            "memory/peak_mib": peak_memory_mib(pl_module.device),
        }
        if module.grad_norm is not None:
            record["train/grad_norm"] = float(module.grad_norm)
        if not guard.stops:
            record["train/skipped_steps"] = guard.num_skipped
        if self._peak is not None:
            peak_tflops = self._peak * trainer.world_size / 1e12
            record["speed/mfu"] = record["speed/tflops"] / peak_tflops
        module.latest.update(record)
        module.recorded_at = step
        for logger in trainer.loggers:
            logger.log_metrics(record, step=step)
        self._tokens, self._steps_at_record = 0, step

    def pause(self, device: torch.device) -> None:
        """Stops the clock for work that is not training."""
        if self._paused_at is None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self._paused_at = time.perf_counter()

    def resume(self) -> None:
        """Lets the clock go on."""
        if self._paused_at is not None:
            self._started += time.perf_counter() - self._paused_at
            self._paused_at = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is not training."""
        self.pause(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nor is what follows it, but the next step is."""
        self.resume()


@contextmanager
def not_training(trainer: Trainer, device: torch.device) -> Iterator[None]:
    """Work that the speeds are not to count."""
    clocks = [c for c in trainer.callbacks if isinstance(c, Metrics)]  # type: ignore[attr-defined]
    for clock in clocks:
        clock.pause(device)
    try:
        yield
    finally:
        for clock in clocks:
            clock.resume()


def _unit(module: TrainingModule, batch: Batch, loss_sum: float, loss: float) -> dict[str, float]:
    """The loss as people read it: bits per byte of text, else perplexity."""
    num_bytes = module.data.num_label_bytes(batch.labels_BM)
    if num_bytes:
        return {"train/bits_per_byte": loss_sum / math.log(2) / num_bytes}
    return {"train/perplexity": math.exp(min(loss, 700.0))}
