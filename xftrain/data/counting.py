"""The synthetic task: the next token is the last plus one, modulo the vocabulary."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from xftrain.data.seeding import generator
from xftrain.data.vocabulary import Integers
from xftrain.fields import Fraction, PositiveInt, VocabSize
from xftrain.interfaces import Batch, Split, positions_of


class Counting:
    """Rows that count up from a random start.

    Args:
        seq: M, tokens a row.
        batch_size: B, rows a batch.
        seed: of the run.
        world_size: number of ranks; each draws its own rows.
        vocab_size: V; also where counting wraps around.
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
        """B rows of M + 1 numbers: all but the last are tokens, all but the first labels."""
        draw = generator(self.seed, split, step, rank)
        starts_B1 = draw.integers(self.vocab_size, size=(self.batch_size, 1))
        rows = torch.from_numpy((starts_B1 + np.arange(self.seq + 1)) % self.vocab_size)
        return Batch(
            tokens_BM=rows[:, :-1].contiguous(),
            labels_BM=rows[:, 1:].contiguous(),
            positions_1M=positions_of(self.seq, None),
        )

    def decode(self, tokens: list[int]) -> str:
        """The numbers, with blanks between them."""
        return self.vocabulary.decode(tokens)

    def digest(self) -> str:
        """SHA-256 of the rule: there is no content but the numbers."""
        rule = f"{type(self).__name__} below {self.vocab_size}"
        return hashlib.sha256(rule.encode()).hexdigest()

    def num_label_bytes(self, labels_BM: Tensor) -> int | None:
        """None: numbers are no text."""
        return None

    def baseline(self) -> dict[str, float]:
        """Empty: there is nothing to beat but chance."""
        return {}
