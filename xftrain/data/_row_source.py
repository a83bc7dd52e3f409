"""The base class of text sources whose batches are rows cut from token files."""

from __future__ import annotations

import logging
from typing import Protocol

from xftrain.config.fields import Packing
from xftrain.data._packing import Ints
from xftrain.data._rows import Pieces, Rows
from xftrain.data._text_source import TextSource
from xftrain.data._token_rows import batch_of, packing_name
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.interfaces import Batch, Split

log = logging.getLogger(__name__)


class SplitRows(Protocol):
    """The rows of both splits.

    Attributes:
        num_val_batches: number of validation batches.
    """

    num_val_batches: int

    @property
    def train(self) -> Rows:
        """The rows to train on."""
        ...

    def summary(self) -> str:
        """What share of the training rows is padding, and of documents cut."""
        ...

    def train_pieces(self, begin: int, end: int) -> Pieces:
        """The pieces of the tokens `[begin, end)` of all epochs."""
        ...

    def val_pieces(self, step: int) -> Pieces:
        """The pieces of a validation batch."""
        ...

    def tokens_and_labels(self, split: Split, pieces: Pieces) -> tuple[Ints, Ints]:
        """The tokens of pieces, and their labels."""
        ...


class RowSource(TextSource):
    """A text source whose batch is a function of the split, the micro-step and the rank.

    Attributes:
        share_padding: share of padding in the tokens of an epoch.
        share_cut: share of the documents of at most `seq` tokens that are cut.
        num_val_batches: number of validation batches.
    """

    def set_rows(
        self,
        rows: SplitRows,
        tokenizer: Tokenizer,
        *,
        seq: int,
        batch_size: int,
        world_size: int,
        packing: Packing | None,
        num_val_batches: int,
    ) -> None:
        """Sets the rows and their vocabulary, and logs what packing makes of them."""
        self._rows, self._seq, self._batch_tokens = rows, seq, batch_size * seq
        self._world_size, self._packing = world_size, packing or False
        self.share_padding, self.share_cut = rows.train.share_padding, rows.train.share_cut
        self.num_val_batches = min(num_val_batches, rows.num_val_batches)
        self.set_vocabulary(tokenizer)
        log.info("data.packing=%s: %s", packing_name(self._packing), rows.summary())

    def batch(self, split: Split, step: int, rank: int = 0) -> Batch:
        """The batch of a micro-step; the last validation batch may have fewer rows or tokens."""
        assert step >= 0 and 0 <= rank < self._world_size
        if split == "train":
            begin = (step * self._world_size + rank) * self._batch_tokens
            pieces = self._rows.train_pieces(begin, begin + self._batch_tokens)
        else:
            assert step < self.num_val_batches
            pieces = self._rows.val_pieces(step)
        tokens, labels = self._rows.tokens_and_labels(split, pieces)
        return batch_of(tokens, labels, pieces, self._seq, self._packing)
