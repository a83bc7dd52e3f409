"""Rows of `seq` tokens from the token stream of one split: plain, packed, or packed by best fit."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from xftrain.data._packing import Ints, Layout, cut_pieces, epoch_spans, spread_order
from xftrain.data._seeding import Shuffle

PADDING = -1  # the start of a piece that only fills a row

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class Pieces(NamedTuple):
    """Consecutive pieces of a token stream.

    Attributes:
        starts: where each piece starts in the stream; `PADDING` for padding.
        lengths: length of each piece.
    """

    starts: Ints
    lengths: Ints


class Rows(Protocol):
    """The rows of a split, concatenated in the order of each epoch.

    Attributes:
        num_tokens: number of tokens of an epoch, padding included.
        share_padding: share of padding in these.
        share_cut: share of the documents of at most `seq` tokens that are cut.
    """

    num_tokens: int
    share_padding: float
    share_cut: float

    def between(self, epoch: int, begin: int, end: int) -> Pieces:
        """The pieces of the tokens `[begin, end)` of an epoch."""
        ...


class StreamRows:
    """Pieces in random order, concatenated without padding.

    Args:
        starts: start of each piece.
        lengths: length of each piece.
        shuffle: the random orders of the epochs; None is one fixed order, every beginning of which
            is spread evenly over the stream.
    """

    share_padding = 0.0

    def __init__(self, starts: Ints, lengths: Ints, shuffle: Shuffle | None) -> None:
        self._starts, self._lengths, self._shuffle = starts, lengths, shuffle
        self._epochs: dict[int, Layout] = {}
        self.num_tokens = int(lengths.sum())
        self.share_cut = 0.0

    def between(self, epoch: int, begin: int, end: int) -> Pieces:
        """The pieces of the tokens `[begin, end)` of an epoch, the outer two cut to fit."""
        return Pieces(*self.layout(epoch).between(begin, end))

    def layout(self, epoch: int) -> Layout:
        """All pieces in the order of an epoch."""
        if epoch not in self._epochs:
            order = random_order(self._starts.size, self._shuffle, epoch)
            layout = Layout.from_lengths(self._starts[order], self._lengths[order])
            remember(self._epochs, epoch, layout)
        return self._epochs[epoch]


def plain_rows(boundaries: Ints, seq: int, shuffle: Shuffle | None) -> StreamRows:
    """Rows of `seq` consecutive tokens of the stream, which may cross documents.

    Args:
        boundaries: start of each document, then the position of the last token.
        seq: tokens of a row.
        shuffle: the random orders of the epochs, or None.
    """
    num_rows = int(boundaries[-1]) // seq  # the last token is only ever a label
    rows = StreamRows(np.arange(num_rows) * seq, np.full(num_rows, seq), shuffle)
    is_short = np.diff(boundaries) <= seq
    first, last = boundaries[:-1][is_short], boundaries[1:][is_short] - 1
    rows.share_cut = _share(int((first // seq != last // seq).sum()), first.size)
    return rows


def packed_rows(
    boundaries: Ints, seq: int, batch_tokens: int, shuffle: Shuffle | None
) -> StreamRows:
    """Pieces of at most `seq` tokens of one document; the end of a batch cuts the last one.

    Args:
        boundaries: start of each document, then the position of the last token.
        seq: maximum length of a piece.
        batch_tokens: number of tokens of a batch.
        shuffle: the random orders of the epochs, or None.
    """
    sizes = np.diff(boundaries)
    rows = StreamRows(*cut_pieces(boundaries[:-1], sizes, seq), shuffle)
    layout = rows.layout(0)
    batch_ends = np.arange(batch_tokens, layout.num_tokens, batch_tokens)
    at = np.searchsorted(layout.ends, batch_ends, side="left")
    cut = layout.starts[np.unique(at[layout.ends[at] > batch_ends])]
    document = np.searchsorted(boundaries, cut, side="right") - 1
    rows.share_cut = _share(int((sizes[document] <= seq).sum()), int((sizes <= seq).sum()))
    return rows


def pieces_of(rows: Rows, begin: int, end: int) -> Pieces:
    """The pieces of the tokens `[begin, end)` of an endless sequence of epochs."""
    spans = epoch_spans(begin, end, rows.num_tokens)
    return concatenated([rows.between(*span) for span in spans])


def concatenated(parts: list[Pieces]) -> Pieces:
    """The pieces of all parts, in order."""
    return Pieces(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def random_order(num: int, shuffle: Shuffle | None, epoch: int, window: int | None = None) -> Ints:
    """A permutation of `0..num-1`; without a `shuffle`, one that is spread evenly."""
    if shuffle is None:
        return spread_order(num)
    return shuffle.generator(epoch, window).permutation(num)


def remember(cache: dict[KeyT, ValueT], key: KeyT, value: ValueT) -> None:
    """Adds to a cache of two, as a batch may span two epochs or two windows."""
    if len(cache) == 2:
        del cache[next(iter(cache))]
    cache[key] = value


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
