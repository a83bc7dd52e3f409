"""What the guard and the sums of a step need of the LightningModule that they belong to."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from xftrain.data.loader import TrainStream
from xftrain.interfaces import Batch, LossSums
from xftrain.model import GPT


class TrainedModule(Protocol):
    """A GPT in training, see `training.module.TrainingModule`.

    Attributes:
        model: the GPT.
        stream: this rank's training batches.
        data_offset: from Lightning's number of a batch to the data's.
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
        """Where the model is."""
        ...

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What scales the loss in float16."""
        ...

    def forward_loss(self, batch: Batch, *, with_accuracy: bool) -> LossSums:
        """Sums of the loss over a batch."""
        ...

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout for a batch."""
        ...

    def plain_weights(self) -> AbstractContextManager[None]:
        """Gradients go to the float32 weights themselves in it."""
        ...
