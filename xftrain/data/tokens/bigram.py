"""The baseline of a text run: a byte-bigram model with add-one smoothing.

It sees only the previous byte. A language model that is not better has learned almost nothing,
whatever its loss. With a BPE it is scored on the bytes that the label tokens spell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

NUM_SYMBOLS = 257  # the byte values, and 256 as document separator
_SEPARATOR = 256
_BLOCK_SYMBOLS = 1 << 20


class BigramCounts:
    """Counts how often a symbol follows another, over a stream of text pieces.

    Args:
        previous: the symbol before the first piece, if there is one.

    Attributes:
        counts: int64 [symbol, next symbol].
    """

    def __init__(self, previous: int | None = None) -> None:
        self.counts = np.zeros((NUM_SYMBOLS, NUM_SYMBOLS), dtype=np.int64)
        before = [] if previous is None else [np.array([previous], dtype=np.int32)]
        self._pending: list[npt.NDArray[np.int32]] = before
        self._num_pending = len(before)

    def count_pieces(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yields the pieces and counts their symbols; an empty piece separates documents."""
        separator = np.array([_SEPARATOR], dtype=np.int32)
        for piece in pieces:
            symbols = np.frombuffer(piece, np.uint8).astype(np.int32) if piece else separator
            self._pending.append(symbols)
            self._num_pending += symbols.size
            if self._num_pending >= _BLOCK_SYMBOLS:
                self._count()
            yield piece
        self._count()

    def _count(self) -> None:
        if not self._pending:
            return
        symbols = np.concatenate(self._pending)
        pairs = symbols[:-1] * NUM_SYMBOLS + symbols[1:]
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)
        self._pending = [symbols[-1:]]  # the left half of the next pair
        self._num_pending = 1


class Bigram:
    """Computes the bits that the bigram model needs for label tokens.

    Args:
        counts: [symbol, next symbol], as `BigramCounts` makes them.
        spellings: the bytes of each token; an empty spelling is the separator.
    """

    def __init__(self, counts: npt.NDArray[np.int64], spellings: list[bytes]) -> None:
        totals = counts.sum(axis=1, keepdims=True) + NUM_SYMBOLS
        self._bits = np.log2(totals) - np.log2(counts + 1)
        symbols = [spelling or (_SEPARATOR,) for spelling in spellings]
        self._first_symbols = np.array([spelled[0] for spelled in symbols])
        self._last_symbols = np.array([spelled[-1] for spelled in symbols])
        self._inner_bits = np.array(
            [sum(float(self._bits[pair]) for pair in pairwise(spelled)) for spelled in symbols]
        )

    def bits(self, tokens: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
        """Total bits of the labels, each after the token that precedes it."""
        into = self._bits[self._last_symbols[tokens], self._first_symbols[labels]]
        return float(into.sum() + self._inner_bits[labels].sum())
