"""Accumulates the metrics of a validation pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xftrain.errors import RunError
from xftrain.interfaces import LossSums
from xftrain.train.distributed import all_reduce_sum

NO_LABEL = (
    "val/loss cannot be computed, as no validation batch has a label that counts (all are "
    "IGNORED_LABEL, -100): give data with labels in its validation batches, or raise "
    "trainer.limit_val_batches."
)


class ValSums:
    """Adds up the sums of this rank's batches; `metrics` covers all batches of all ranks."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []  # summed loss, labels, correct predictions
        self._num_bytes = 0

    def add(self, sums: LossSums, num_bytes: int | None) -> None:
        """Adds a batch.

        Args:
            sums: loss sums of the batch.
            num_bytes: bytes of text that its labels spell; None if the data is not text.
        """
        self._sums.append(sums.stacked())
        self._num_bytes += num_bytes or 0

    def metrics(self, device: torch.device) -> dict[str, float]:
        """Returns `val/loss`, `val/accuracy`, and bits per byte or perplexity, and resets the sums.

        Args:
            device: device of the batches.

        Raises:
            RunError: no batch of any rank has a label.
        """
        total = torch.zeros(4, dtype=torch.float64, device=device)
        for sums in self._sums:
            total[:3] += sums
        total[3] = self._num_bytes
        self._sums, self._num_bytes = [], 0
        loss_sum, num_labels, num_correct, num_bytes = all_reduce_sum(total).tolist()
        if not num_labels:
            raise RunError(NO_LABEL)
        loss = loss_sum / num_labels
        metrics = {"val/loss": loss, "val/accuracy": num_correct / num_labels}
        if num_bytes:
            return metrics | {"val/bits_per_byte": loss_sum / math.log(2) / num_bytes}
        return metrics | {"val/perplexity": math.exp(min(loss, 700.0))}
