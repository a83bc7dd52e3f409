"""The rows of a corpus in windows of its token stream, which need only its beginning.

The rows are those of `TokenRows`, in another order: the first epoch visits the windows in the order
of the stream, and the others in a random one. A window is shuffled in itself. What is in a window
depends on the text alone, and not on how much of it is there when a batch is made.
"""

from __future__ import annotations

import numpy as np

from xftrain.config.fields import Packing
from xftrain.data._fitted_rows import FittedRows
from xftrain.data._packing import Ints, cut_pieces, epoch_spans
from xftrain.data._rows import Pieces, Rows, StreamRows, concatenated, random_order, remember
from xftrain.data._seeding import Shuffle, WindowShuffle
from xftrain.data._token_rows import rows_of, summary_of, tokens_and_labels
from xftrain.data.tokens.growing import GrowingTokens
from xftrain.interfaces import Split

WINDOW_TOKENS = 1 << 22


class StreamedRows:
    """The rows of a corpus: an endless sequence to train on, and a fixed one for validation.

    Validation has the first held-out documents that give `num_val_batches`.

    Args:
        tokens: the token streams, which may still grow.
        seq: tokens of a row.
        batch_size: rows of a batch.
        packing: how documents become rows, see `Text`.
        shuffle: the random orders of the epochs.
        num_val_batches: maximum number of validation batches.

    Attributes:
        train: the rows of the first window, for their shares of padding and cuts.
        val: the rows held out.
        num_val_batches: number of validation batches.
    """

    def __init__(
        self,
        tokens: GrowingTokens,
        seq: int,
        batch_size: int,
        packing: Packing,
        shuffle: Shuffle,
        num_val_batches: int,
    ) -> None:
        self._tokens, self._seq, self._packing, self._shuffle = tokens, seq, packing, shuffle
        self._batch_tokens = batch_size * seq
        # of plain rows, a window has whole ones
        self._window = max(1, WINDOW_TOKENS // seq) * seq
        needed = num_val_batches * self._batch_tokens
        tokens.wait_until(lambda: self._boundaries("val")[-1] >= needed, "the held-out text")
        tokens.wait_until(lambda: self._has_window(0), "the first text")
        boundaries = self._boundaries("val")
        last = int(np.searchsorted(boundaries, needed))
        self.val = rows_of(boundaries[: last + 1], seq, self._batch_tokens, packing, None)
        self.num_val_batches = min(num_val_batches, -(-self.val.num_tokens // self._batch_tokens))
        self.train = rows_of(
            self._documents(0), seq, self._batch_tokens, packing, WindowShuffle(shuffle.seed)
        )
        self._ends: list[int] = []  # of the windows in the first epoch
        self._windows: dict[tuple[int, int], Rows] = {}
        self._orders: dict[int, Ints] = {}

    def summary(self) -> str:
        """What share of the first window is padding, and of the short documents cut."""
        return f"at the beginning, {summary_of(self.train, self._seq)}"

    def train_pieces(self, begin: int, end: int) -> Pieces:
        """The pieces of the tokens `[begin, end)` of all epochs; waits until they are there."""
        while not self._ends or self._ends[-1] < end:
            if not self._add_window():
                break
        else:
            return concatenated(self._in_epoch(0, begin, end))
        parts = []
        for epoch, first, last in epoch_spans(begin, end, self._ends[-1]):
            parts += self._in_epoch(epoch, first, last)
        return concatenated(parts)

    def val_pieces(self, step: int) -> Pieces:
        """The pieces of a validation batch, of which the last may have fewer tokens."""
        begin = step * self._batch_tokens
        return self.val.between(0, begin, min(begin + self._batch_tokens, self.val.num_tokens))

    def tokens_and_labels(self, split: Split, pieces: Pieces) -> tuple[Ints, Ints]:
        """The tokens of pieces and their next tokens, see `TokenRows`."""
        return tokens_and_labels(self._tokens, split, pieces)

    def _boundaries(self, split: Split) -> Ints:
        return self._tokens.streams[split].boundaries

    def _has_window(self, window: int) -> bool:
        """Whether all documents that begin in a window, and the token after them, are there."""
        return int(self._boundaries("train")[-1]) >= (window + 1) * self._window

    def _add_window(self) -> bool:
        """Appends a window to the first epoch; false if there are no more."""
        window = len(self._ends)
        self._tokens.wait_until(lambda: self._has_window(window), "further text")
        if window * self._window >= int(self._boundaries("train")[-1]):
            return False
        before = self._ends[-1] if self._ends else 0
        self._ends.append(before + self._rows(0, window).num_tokens)
        return True

    def _in_epoch(self, epoch: int, begin: int, end: int) -> list[Pieces]:
        """The pieces of the tokens `[begin, end)` of an epoch, by window."""
        windows = np.arange(len(self._ends))
        ends = np.array(self._ends)
        if epoch > 0:  # all windows are known
            if epoch not in self._orders:
                remember(self._orders, epoch, random_order(windows.size, self._shuffle, epoch))
            windows = self._orders[epoch]
            ends = np.cumsum(np.diff(ends, prepend=0)[windows])
        parts = []
        place = int(np.searchsorted(ends, begin, side="right"))
        while begin < end:
            offset = int(ends[place - 1]) if place else 0
            stop = min(end, int(ends[place]))
            if begin < stop:
                rows = self._rows(epoch, int(windows[place]))
                parts.append(rows.between(epoch, begin - offset, stop - offset))
            begin, place = stop, place + 1
        return parts

    def _rows(self, epoch: int, window: int) -> Rows:
        if (epoch, window) not in self._windows:
            remember(self._windows, (epoch, window), self._new_rows(window))
        return self._windows[epoch, window]

    def _new_rows(self, window: int) -> Rows:
        shuffle = WindowShuffle(self._shuffle.seed, self._shuffle.stream, window)
        boundaries, begin = self._boundaries("train"), window * self._window
        end = begin + self._window
        if not self._packing:
            num_rows = int(boundaries[-1]) // self._seq  # of a stream that is whole, or more
            starts = np.arange(begin, min(end, num_rows * self._seq), self._seq)
            return StreamRows(starts, np.full(starts.size, self._seq), shuffle)
        documents = self._documents(window)
        if documents.size < 2:  # the window is within a document
            return StreamRows(documents[:0], documents[:0], shuffle)
        if self._packing == "best_fit":
            return FittedRows(documents, self._seq, shuffle)
        return StreamRows(*cut_pieces(documents[:-1], np.diff(documents), self._seq), shuffle)

    def _documents(self, window: int) -> Ints:
        """The boundaries of the documents that begin in a window."""
        boundaries, begin = self._boundaries("train"), window * self._window
        first, last = np.searchsorted(boundaries[:-1], (begin, begin + self._window))
        return boundaries[first : last + 1]
