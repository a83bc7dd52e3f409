"""Data as a user brings it: batches whose numbers of labels differ, as in instruction tuning."""

from __future__ import annotations

from typing import Any

import torch

from xftrain.data.counting import Counting
from xftrain.interfaces import IGNORED_LABEL, Batch, Split


class FewLabels(Counting):
    """Counting, with all labels of a batch, or with the first of its last row alone."""

    def __init__(self, *positional: Any, vocab_size: int) -> None:
        super().__init__(*positional, vocab_size=vocab_size, stop_at_accuracy=None)

    def batch(self, split: Split, step: int, rank: int = 0) -> Batch:
        batch = super().batch(split, step, rank)
        if (step + rank) % 2:
            label = batch.labels_BM[-1, 0].item()
            batch.labels_BM = torch.full_like(batch.labels_BM, IGNORED_LABEL)
            batch.labels_BM[-1, 0] = label
        return batch
