"""A synthetic task: the next token is the current one plus one, modulo the vocabulary size."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from xftrain.config.fields import Fraction, PositiveInt, VocabSize
from xftrain.data._seeding import generator
from xftrain.data.tokens.vocabulary import Integers
from xftrain.interfaces import Batch, SourceFacts, Split, positions_of


class Counting:
    """Makes rows that count up from a random start.

    Args:
        seq: M, tokens per row.
        batch_size: B, rows per batch.
        seed: seed of the run.
        world_size: number of ranks; each draws its own rows.
        vocab_size: V; counting is modulo V.
        num_val_batches: validation batches, the same ones every time.
        stop_at_accuracy: validation accuracy that ends the run; None never does.
    """

    def __init__(
        self,
        seq: int,
        batch_size: int,
        seed: int,
        world_size: int = 1,
        *,
        vocab_size: VocabSize = 64,
        num_val_batches: PositiveInt = 2,
        stop_at_accuracy: Fraction | None = 0.999,
    ) -> None:
        self.seq, self.batch_size, self.seed = seq, batch_size, seed
        self.vocab_size, self.num_val_batches = vocab_size, num_val_batches
        self.vocabulary = Integers(vocab_size)
        self.stop_at_accuracy = stop_at_accuracy

    def batch(self, split: Split, step: int, rank: int = 0) -> Batch:
        """The batch, from B rows of M + 1 numbers; labels are tokens shifted by one."""
        draw = generator(self.seed, split, step, rank)
        starts_B1 = draw.integers(self.vocab_size, size=(self.batch_size, 1))
        rows = torch.from_numpy((starts_B1 + np.arange(self.seq + 1)) % self.vocab_size)
        return Batch(
            tokens_BM=rows[:, :-1].contiguous(),
            labels_BM=rows[:, 1:].contiguous(),
            positions_1M=positions_of(self.seq, None),
        )

    def decode(self, tokens: list[int]) -> str:
        """The numbers, separated by blanks."""
        return self.vocabulary.decode(tokens)

    def digest(self) -> str:
        """SHA-256 of the name of the task, since the data has no other content."""
        rule = f"{type(self).__name__} below {self.vocab_size}"
        return hashlib.sha256(rule.encode()).hexdigest()

    def facts(self) -> list[SourceFacts]:
        """Returns none, as there are no documents: each batch is made when it is needed."""
        return []

    def num_label_bytes(self, labels_BM: Tensor) -> int | None:
        """Returns None, as numbers are not text."""
        return None

    def baseline(self) -> dict[str, float]:
        """Returns no metrics, as there is no baseline."""
        return {}
