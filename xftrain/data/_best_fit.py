"""Best-fit decreasing: pieces of documents into rows of a fixed number of tokens.

Each piece goes, from the longest to the shortest, into the row with the least room that still
holds it. Ding et al., 2024, arXiv:2404.10830. Pieces of equal length are placed together, as in
Krell et al., 2021, arXiv:2107.02027, so that the time depends on the lengths that occur rather
than on the number of pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class _Rooms:
    """Rows by the number of tokens that they still have room for.

    Rows with the same room are ranges of row numbers, and a bit mask holds which rooms there are.
    """

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        self._mask = 0

    def add(self, room: int, begin: int, end: int) -> None:
        """Adds the rows `[begin, end)`."""
        if room and begin < end:
            self._ranges.setdefault(room, []).append((begin, end))
            self._mask |= 1 << room

    def pop(self, length: int) -> tuple[int, int, int] | None:
        """Removes a range of the rows with the least room of at least `length`; None if none."""
        large = self._mask >> length
        if not large:
            return None
        room = length + (large & -large).bit_length() - 1
        ranges = self._ranges[room]
        begin, end = ranges.pop()
        if not ranges:
            self._mask ^= 1 << room
        return room, begin, end


def _placements(counts: Ints, row_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Yields (number of pieces, first row, pieces for each row), the longest pieces first.

    Args:
        counts: number of pieces of each length, from 0 to `row_tokens`.
        row_tokens: length of a row.
    """
    rooms, num_rows = _Rooms(), 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            if (found := rooms.pop(length)) is None:
                room, begin = row_tokens, num_rows
                end = num_rows = begin + -(-left // (row_tokens // length))
            else:
                room, begin, end = found
            # the row that has just got a piece has the least room for the next one
            each = room // length
            num_rows_filled = min(end - begin, left // each)
            if num_rows_filled:
                yield num_rows_filled * each, begin, each
                left -= num_rows_filled * each
                rooms.add(room - each * length, begin, begin + num_rows_filled)
                begin += num_rows_filled
            if begin < end and left:
                yield left, begin, left
                rooms.add(room - left * length, begin, begin + 1)
                left, begin = 0, begin + 1
            rooms.add(room, begin, end)


def num_rows(lengths: Ints, row_tokens: int) -> int:
    """The number of rows that `best_fit` fills, from lengths in any order."""
    counts = np.bincount(lengths, minlength=row_tokens + 1)
    ends = (row + -(-num // each) for num, row, each in _placements(counts, row_tokens))
    return max(ends, default=0)


def best_fit(lengths: Ints, row_tokens: int) -> Ints:
    """The row in which each piece lies.

    The number of pieces of each length alone determines how many rows there are and which lengths
    they hold.

    Args:
        lengths: length of each piece, from 1 to `row_tokens`, in descending order.
        row_tokens: length of a row.
    """
    counts = np.bincount(lengths, minlength=row_tokens + 1)
    rows = np.empty(lengths.size, dtype=np.int64)
    place = 0
    for num_pieces, first_row, each in _placements(counts, row_tokens):
        rows[place : place + num_pieces] = first_row + np.arange(num_pieces) // each
        place += num_pieces
    return rows
