"""Rows that hold whole documents, packed by best fit."""

from __future__ import annotations

import numpy as np

from xftrain.data._best_fit import best_fit, num_rows
from xftrain.data._packing import Ints, cut_pieces
from xftrain.data._rows import PADDING, Pieces, concatenated, random_order, remember
from xftrain.data._seeding import Shuffle

_WINDOW_PIECES = 1 << 20


class FittedRows:
    """Whole documents in rows of `seq` tokens, with padding where a row stays empty.

    A document of more than `seq` tokens is cut into pieces of `seq` and a remainder, which is
    fitted like a document.

    Documents are packed in windows, so that memory and time are limited however many there are. A
    window takes every n-th document, which spreads it evenly over the corpus. Its lengths alone
    determine its number of rows, so that the place of every row is known. Each epoch has another
    order of windows and of the rows in them, and documents of equal length change places.

    Args:
        boundaries: start of each document, then the end of the last one.
        seq: tokens of a row.
        shuffle: the random orders of the epochs; None is one fixed order, in which every beginning
            is spread evenly over the first window.
        window_pieces: about how many pieces are packed at a time.
    """

    share_cut = 0.0

    def __init__(
        self,
        boundaries: Ints,
        seq: int,
        shuffle: Shuffle | None,
        window_pieces: int = _WINDOW_PIECES,
    ) -> None:
        self._boundaries, self._seq, self._shuffle = boundaries, seq, shuffle
        num_documents, num_tokens = boundaries.size - 1, int(boundaries[-1] - boundaries[0])
        num_pieces = num_documents + num_tokens // seq  # or fewer
        self._num_windows = min(num_documents, -(-num_pieces // window_pieces))
        windows = range(self._num_windows)
        self._num_rows = np.array([num_rows(self._cut(w).lengths, seq) for w in windows])
        self._packed: dict[tuple[int, int], tuple[Pieces, Ints]] = {}
        self.num_tokens = int(self._num_rows.sum()) * seq
        self.share_padding = 1 - num_tokens / self.num_tokens

    def between(self, epoch: int, begin: int, end: int) -> Pieces:
        """The pieces of the tokens `[begin, end)` of an epoch, which are whole rows."""
        assert begin % self._seq == end % self._seq == 0
        first, last = begin // self._seq, end // self._seq
        windows = np.arange(self._num_windows)
        if self._shuffle is not None:
            windows = random_order(windows.size, self._shuffle, epoch)
        ends = np.cumsum(self._num_rows[windows])
        parts = []
        while first < last:
            place = int(np.searchsorted(ends, first, side="right"))
            pieces, row_begins = self._window(epoch, int(windows[place]))
            offset = int(ends[place]) - (row_begins.size - 1)
            stop = min(last, int(ends[place]))
            chosen = slice(int(row_begins[first - offset]), int(row_begins[stop - offset]))
            parts.append(Pieces(pieces.starts[chosen], pieces.lengths[chosen]))
            first = stop
        return concatenated(parts)

    def _cut(self, window: int) -> Pieces:
        """The pieces of the documents of a window."""
        documents = np.arange(window, self._boundaries.size - 1, self._num_windows)
        begins = self._boundaries[documents]
        sizes = self._boundaries[documents + 1] - begins
        return Pieces(*cut_pieces(begins, sizes, self._seq))

    def _window(self, epoch: int, window: int) -> tuple[Pieces, Ints]:
        """The pieces of a window, row after row, and where each row begins among them."""
        if (epoch, window) not in self._packed:
            remember(self._packed, (epoch, window), self._pack(epoch, window))
        return self._packed[epoch, window]

    def _pack(self, epoch: int, window: int) -> tuple[Pieces, Ints]:
        starts, lengths = self._cut(window)
        count = int(self._num_rows[window])
        place_of_row = np.argsort(random_order(count, self._shuffle, epoch, window))
        if self._shuffle is not None:
            generator = self._shuffle.generator(epoch, self._num_windows + window)
            order = generator.permutation(starts.size)
            starts, lengths = starts[order], lengths[order]
        longest_first = np.argsort(-lengths, kind="stable")
        starts, lengths = starts[longest_first], lengths[longest_first]
        rows = best_fit(lengths, self._seq)
        rooms = np.full(count, self._seq)
        np.subtract.at(rooms, rows, lengths)
        unfilled = np.flatnonzero(rooms)
        rows = place_of_row[np.concatenate([rows, unfilled])]
        starts = np.concatenate([starts, np.full(unfilled.size, PADDING)])
        lengths = np.concatenate([lengths, rooms[unfilled]])
        by_row = np.argsort(rows, kind="stable")
        row_begins = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
        return Pieces(starts[by_row], lengths[by_row]), row_begins
