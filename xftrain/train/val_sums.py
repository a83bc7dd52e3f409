"""Accumulates the metrics of a validation pass."""

from __future__ import annotations

import math
from collections.abc import Iterable

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
    """Adds up the sums of this rank's batches; `metrics` covers all batches of all ranks.

    Args:
        sources: the sources of the validation batches by name, the same on all ranks; a name may
            occur several times.
    """

    def __init__(self, sources: Iterable[str] = ()) -> None:
        self._sources = tuple(dict.fromkeys(sources))
        self._sums: list[tuple[int, Tensor, int]] = []  # source, LossSums.stacked(), bytes

    def add(self, sums: LossSums, num_bytes: int | None, source: str | None = None) -> None:
        """Adds a batch.

        Args:
            sums: loss sums of the batch.
            num_bytes: bytes of text that its labels spell; None if the data is not text.
            source: the source of the batch, if there are several.
        """
        index = 0 if source is None else 1 + self._sources.index(source)
        self._sums.append((index, sums.stacked(), num_bytes or 0))

    def metrics(self, device: torch.device) -> dict[str, float]:
        """Returns `val/loss`, `val/accuracy`, and bits per byte or perplexity, and resets the sums.

        The loss and the bits per byte of each source that has labels are added.

        Args:
            device: device of the batches.

        Raises:
            RunError: no batch of any rank has a label.
        """
        # a row for each source: loss, labels, correct predictions, bytes
        total = torch.zeros(1 + len(self._sources), 4, dtype=torch.float64, device=device)
        for index, sums, num_bytes in self._sums:
            total[index, :3] += sums
            total[index, 3] += num_bytes
        self._sums = []
        by_source = all_reduce_sum(total).cpu()
        loss_sum, num_labels, num_correct, num_bytes = by_source.sum(dim=0).tolist()
        if not num_labels:
            raise RunError(NO_LABEL)
        loss = loss_sum / num_labels
        metrics = {"val/loss": loss, "val/accuracy": num_correct / num_labels}
        if num_bytes:
            metrics["val/bits_per_byte"] = loss_sum / math.log(2) / num_bytes
        else:
            metrics["val/perplexity"] = math.exp(min(loss, 700.0))
        for name, row in zip(self._sources, by_source[1:].tolist(), strict=True):
            loss_sum, num_labels, _, num_bytes = row
            if num_labels:
                metrics[f"val/{name}/loss"] = loss_sum / num_labels
            if num_bytes:
                metrics[f"val/{name}/bits_per_byte"] = loss_sum / math.log(2) / num_bytes
        return metrics
