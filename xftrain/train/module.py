"""The LightningModule: one training step, one validation pass, the optimizer."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from xftrain.checkpoint.plain_values import MAX_TIME_NS
from xftrain.interfaces import Batch, DataSource, Loss, LossSums, Optimizer, Schedule, loss_sums
from xftrain.model.gpt import GPT
from xftrain.train.bf16_weights import BF16Weights, may_copy_weights
from xftrain.train.clipping import clip_gradients
from xftrain.train.dropout_seed import dropout_seed
from xftrain.train.loader import TrainStream, ValBatches
from xftrain.train.nonfinite import NonFiniteGuard, skips_if_found_inf
from xftrain.train.parameter_groups import build_optimizer, learning_rates
from xftrain.train.restored import (
    checked_states,
    keep_own_settings,
    refuse_other_groups,
    restore_loss_scale,
)
from xftrain.train.resume_checks import check_resumable
from xftrain.train.same_data import DataIdentity
from xftrain.train.step_sums import StepSums
from xftrain.train.val_sums import ValSums
from xftrain.train.whole_steps import renumber_batches

log = logging.getLogger(__name__)


class TrainingModule(LightningModule):
    """Trains a GPT to predict next tokens.

    Metrics stay on the device; the `metrics` callback copies them every `log_every_n_steps`, while
    the device runs the next step, so that the device never waits for the host.

    Args:
        model: the GPT.
        loss: computes cross-entropy from hidden states.
        data: the source of batches.
        optim: builds the optimizer.
        schedule: the learning rate schedule, a factor of the base learning rate of `optim`.
        seed: seed of dropout.
        saved: plain values to store in every checkpoint, such as the configuration.
        guard: handles steps whose loss or gradient is not finite.
        overfit_batches: number of batches used for both training and validation; 0 is no limit.
    """

    def __init__(
        self,
        model: GPT,
        loss: Loss,
        data: DataSource,
        optim: Optimizer,
        schedule: Schedule,
        seed: int,
        saved: dict[str, Any],
        guard: NonFiniteGuard,
        overfit_batches: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.data = model, loss, data
        self.optim, self.schedule = optim, schedule
        self.guard, self.overfit_batches = guard, overfit_batches
        self.seed, self.saved = seed, saved
        self.data_identity = DataIdentity(data)
        self.step_sums = StepSums(self)
        self.last_sums: LossSums | None = None  # of the last step, over its micro-batches and ranks
        self.label_bytes: int | None = None  # of this rank's micro-batches in a recorded step
        self.grad_norm: Tensor | None = None  # of the last step, before clipping
        # of the last step, by TensorBoard tag; the optimizer already has those of the next step
        self.learning_rates: dict[str, float] = {}
        self.latest_metrics: dict[str, float] = {}  # on the host, by TensorBoard tag
        self.recorded_at = -1  # optimizer step of the last recorded training metrics; -1 for none
        self.validated_at = -1  # optimizer step of the last validation
        self.always_computes_accuracy = False  # also in steps that are not recorded
        self.saved_at = 0  # time of the last save in nanoseconds
        self.data_offset = 0  # added to Lightning's batch index to get the micro-step of the data
        self.has_begun = False  # whether training has begun, after a checkpoint was restored
        self._bf16_weights: BF16Weights | None = None
        self._saved_states: tuple[dict[str, Any], dict[str, Any]] | None = None  # to restore
        self._val_sums = ValSums(getattr(data, "val_sources", ()))

    def on_train_start(self) -> None:
        """Marks the end of restoring a checkpoint."""
        self.has_begun = True
        if self._bf16_weights is not None:
            self._bf16_weights.refresh()

    def train_dataloader(self) -> TrainStream:
        """The infinite stream of training batches of this rank."""
        self.stream = TrainStream(self.data, self.global_rank, self.overfit_batches)
        return self.stream

    def val_dataloader(self) -> ValBatches:
        """The validation batches of this rank."""
        world_size, limit = self.trainer.world_size, self.trainer.limit_val_batches
        return ValBatches(
            *(self.data, self.global_rank, world_size, self.overfit_batches),
            limit=limit if isinstance(limit, int) else None,  # Lightning uses 1.0 for no limit
        )

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Copies the batch to the device without waiting for the copy."""
        if self.trainer.training:
            self.count_label_bytes(batch)
        batch = batch.pinned() if device.type == "cuda" else batch
        return batch.to(device, non_blocking=True)

    def count_label_bytes(self, batch: Batch) -> None:
        """Adds the label bytes of a training batch on the host, if its step is recorded."""
        if self.logs_this_step():
            num_bytes = self.data.num_label_bytes(batch.labels_BM)
            if num_bytes is not None:
                self.label_bytes = (self.label_bytes or 0) + num_bytes

    def forward_loss(self, batch: Batch, *, with_accuracy: bool) -> LossSums:
        """Computes the loss sums of a batch."""
        handle = self.model.prepare(*batch.shape_BM, batch.seqlens)
        x_BMD, aux = self.model.hidden_and_aux(batch.tokens_BM, batch.positions_1M, handle)
        inputs = (x_BMD.flatten(0, 1), self.model.head.weight, batch.labels_BM.flatten())
        sums = loss_sums(self.loss, *inputs, self.model.logit_softcap, with_accuracy=with_accuracy)
        return sums.with_aux(aux)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout from the batch index, so that no random state needs to be saved."""
        # only the generator in use: torch.manual_seed takes 0.1 ms to seed all generators
        generator = torch.default_generator
        if self.device.type == "cuda":
            generator = torch.cuda.default_generators[self.device.index]
        index = batch_idx + self.data_offset
        generator.manual_seed(dropout_seed(self.seed, index, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a micro-batch for its backward pass, in nats; see `StepSums`."""
        counts = self.always_computes_accuracy or self.logs_this_step()
        sums = self.forward_loss(batch, with_accuracy=counts)
        return self.step_sums.add(sums, batch_idx)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Runs the backward pass, and after the last one of a step rescales the gradients."""
        super().backward(loss, *args, **kwargs)
        self.step_sums.rescale(self.trainer.optimizers[0])

    def logs_this_step(self) -> bool:
        """Whether the metrics of the current step are recorded."""
        return self.logs(self.trainer.global_step + 1)

    def logs(self, step: int) -> bool:
        """Whether the metrics of a given step are recorded."""
        is_last = step >= self.trainer.max_steps
        return is_last or step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the sums of this validation pass."""
        sums = self.forward_loss(batch, with_accuracy=True)
        self._val_sums.add(sums, self.data.num_label_bytes(batch.labels_BM), batch.source)

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss`, `val/accuracy`, and perplexity or bits per byte.

        Raises:
            RunError: no validation batch has a label.
        """
        metrics = self._val_sums.metrics(self.device)
        self.latest_metrics.update(metrics)
        self.validated_at = self.trainer.global_step
        # read by callbacks that monitor a metric; `self.log` would use float32 and the previous
        # step
        self.log_dict(metrics, batch_size=1, logger=False)
        if not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, step=self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        """The optimizer and its learning rate scheduler, stepped once per optimizer step."""
        built = build_optimizer(self.optim, self.model, self.schedule, self.trainer.max_steps)
        optimizer, lr_scheduler = built
        if may_copy_weights(self.trainer, self.optim, optimizer):
            self._bf16_weights = BF16Weights(self.model, torch.bfloat16)
            self._bf16_weights.update_by(optimizer)
        if self._saved_states is not None:
            ckpt = self.trainer.ckpt_path
            refuse_other_groups(optimizer, self._saved_states[0], ckpt)
            self.optim.update_saved(*self._saved_states, *built)
            keep_own_settings(optimizer, lr_scheduler, self._saved_states, ckpt)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips gradients by norm, records the norm, and skips a step that is not finite.

        It waits for the device only in the step after a recorded one, and only until the recorded
        step is finished.
        """
        sums = self.step_sums.total
        assert sums is not None
        self.finish_step(sums, self.clip(optimizer, sums))

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The GradScaler of float16 training, or None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def clip(self, optimizer: torch.optim.Optimizer, sums: LossSums) -> Tensor:
        """Clips gradients and returns their norm; the optimizer will skip a non-finite step.

        Args:
            optimizer: the optimizer, whose parameters have their gradients.
            sums: loss sums of the step, over all its micro-batches and ranks.
        """
        # The fused optimizer would divide by GradScaler's scale itself, but after clipping.
        if self.scaler is not None:
            self.guard.check_step(optimizer, sums, None)
            if skips_if_found_inf(optimizer):
                self.scaler.unscale_(optimizer)  # for other optimizers Lightning has done it
        norm = clip_gradients(optimizer, self.trainer.gradient_clip_val)
        if self.scaler is None:
            self.guard.check_step(optimizer, sums, norm)
        return norm

    def finish_step(self, sums: LossSums, grad_norm: Tensor) -> None:
        """Stores the results of a step for the logs; a non-finite earlier step may raise RunError.

        Args:
            sums: loss sums of the step, over all its micro-batches and ranks.
            grad_norm: the result of `clip`.
        """
        self.last_sums, self.grad_norm = sums, grad_norm
        self.learning_rates = learning_rates(self.trainer.optimizers[0])
        self.guard.finish_readback(self)
        self.guard.record(self.trainer.global_step + 1)
        if self.logs_this_step() or self.guard.is_full():
            self.guard.start_readback(self)

    def on_train_end(self) -> None:
        """Checks the last steps for non-finite values, if no final checkpoint has done so."""
        self.guard.end(self)

    def plain_weights(self) -> AbstractContextManager[None]:
        """Within this context, gradients go to the weights instead of their copies."""
        return nullcontext() if self._bf16_weights is None else self._bf16_weights.set_aside()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks the checkpoint, logs differences, and keeps the settings of this run.

        Raises:
            ConfigError: the checkpoint holds the weights of another model, or is of a run with
                other data or another seed.
        """
        check_resumable(checkpoint, self.trainer, self.saved, self.data_identity, self.state_dict())
        saved = checkpoint["xftrain"]
        self.data_offset = renumber_batches(checkpoint, self.trainer.accumulate_grad_batches)
        self.guard.num_skipped = saved.get("num_skipped", 0)
        self.saved_at = max(self.saved_at, saved.get("saved_at", 0))
        restore_loss_scale(checkpoint, self.scaler)
        self._saved_states = checked_states(checkpoint)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration and the identity of the data, as plain values."""
        if self.trainer.is_global_zero:
            self.data_identity.keep_vocabulary(Path(self.trainer.default_root_dir))
        # increase even if the clock was set back; a resumed checkpoint may hold any time
        self.saved_at = max(time.time_ns(), min(self.saved_at + 1, MAX_TIME_NS))
        more = {"num_skipped": self.guard.num_skipped, "saved_at": self.saved_at}
        checkpoint["xftrain"] = {**self.saved, **more, **self.data_identity.saved}


def training_module(pl_module: LightningModule) -> TrainingModule:
    """Narrows the type of the module, which callbacks receive as Lightning's base class."""
    assert isinstance(pl_module, TrainingModule)
    return pl_module
