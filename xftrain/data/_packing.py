"""Documents packed into full rows: pieces of at most `seq` tokens, concatenated without padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def cut_pieces(begins: Ints, sizes: Ints, max_tokens: int) -> tuple[Ints, Ints]:
    """Cuts documents into pieces of `max_tokens` and a remainder.

    Args:
        begins: start of each document.
        sizes: length of each document.
        max_tokens: maximum length of a piece.

    Returns:
        The start and the length of each piece; together they cover every token once.
    """
    num_pieces = -(-sizes // max_tokens)
    document = np.repeat(np.arange(sizes.size), num_pieces)
    first_piece = np.cumsum(num_pieces) - num_pieces
    offset = (np.arange(document.size) - first_piece[document]) * max_tokens
    return begins[document] + offset, np.minimum(max_tokens, sizes[document] - offset)


@dataclass(frozen=True)
class Layout:
    """Concatenated pieces in a given order, with random access to any range.

    Attributes:
        starts: start of each piece in the token stream.
        ends: end of each piece in the layout (cumulative lengths).
    """

    starts: Ints
    ends: Ints

    @classmethod
    def from_lengths(cls, starts: Ints, lengths: Ints) -> Layout:
        """Makes the layout of pieces from their starts and lengths."""
        return cls(starts, np.cumsum(lengths))

    @property
    def num_tokens(self) -> int:
        """The total number of tokens of all pieces."""
        return int(self.ends[-1])

    def between(self, begin: int, end: int) -> tuple[Ints, Ints]:
        """Starts and lengths of the pieces in `[begin, end)`, the outer two cut to fit."""
        assert 0 <= begin < end <= self.num_tokens
        first = int(np.searchsorted(self.ends, begin, side="right"))
        last = int(np.searchsorted(self.ends, end, side="left"))
        ends = np.minimum(self.ends[first : last + 1], end)
        lengths = np.diff(ends, prepend=begin)
        starts = self.starts[first : last + 1].copy()
        starts[0] += begin - (self.ends[first - 1] if first else 0)
        return starts, lengths


def positions_in_stream(starts: Ints, lengths: Ints) -> Ints:
    """The positions of all tokens of the pieces, in order."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def epoch_spans(begin: int, end: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cuts `[begin, end)` of an endless sequence of epochs of `size` into (epoch, from, to)."""
    while begin < end:
        epoch, offset = divmod(begin, size)
        stop = min(size, offset + end - begin)
        yield epoch, offset, stop
        begin += stop - offset


def spread_order(num: int) -> Ints:
    """A fixed permutation of `0..num-1` whose every prefix is spread evenly over the range.

    Its step is the golden ratio of the range, changed to the nearest number coprime to `num`, so
    that no number repeats.
    """
    step = max(1, round(num * 0.6180339887498949))
    while np.gcd(step, num) != 1:
        step += 1
    return np.arange(num) * step % num
