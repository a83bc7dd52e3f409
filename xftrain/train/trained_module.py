"""The interface of the LightningModule that `NonFiniteGuard` and `StepSums` use."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from xftrain.interfaces import Batch, LossSums
from xftrain.model.gpt import GPT
from xftrain.train.loader import TrainStream


class TrainedModule(Protocol):
    """A GPT in training, see `train.module.TrainingModule`.

    Attributes:
        model: the GPT.
        stream: this rank's training batches.
        data_offset: added to Lightning's batch index to get the micro-step of the data.
    """

    model: GPT
    stream: TrainStream
    data_offset: int

    @property
    def trainer(self) -> Any:
        """Lightning's Trainer."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        ...

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The GradScaler of float16 training, or None."""
        ...

    def forward_loss(self, batch: Batch, *, with_accuracy: bool) -> LossSums:
        """Computes the loss sums of a batch."""
        ...

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout for a batch."""
        ...

    def plain_weights(self) -> AbstractContextManager[None]:
        """Within this context, gradients go to the float32 weights instead of their copies."""
        ...
