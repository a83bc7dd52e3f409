"""The rows of a prepared corpus in both splits, and the batches made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from xftrain.config.fields import Packing
from xftrain.data._fitted_rows import FittedRows
from xftrain.data._packing import Ints, positions_in_stream
from xftrain.data._rows import PADDING, Pieces, Rows, packed_rows, pieces_of, plain_rows
from xftrain.data._seeding import Shuffle
from xftrain.data.tokens.cache import TokenCache
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.errors import ConfigError, RunError
from xftrain.interfaces import IGNORED_LABEL, Batch, Split, positions_of


class PreparedRows:
    """The rows of both splits: an endless sequence to train on, and a fixed one for validation.

    Args:
        train: the rows to train on.
        val: the rows held out.
        seq: tokens of a row.
        batch_tokens: tokens of a batch.

    Attributes:
        train: the rows to train on.
        val: the rows held out.
        num_val_batches: number of validation batches.
    """

    def __init__(self, train: Rows, val: Rows, seq: int, batch_tokens: int) -> None:
        self.train, self.val = train, val
        self._seq, self._batch_tokens = seq, batch_tokens
        self.num_val_batches = -(-val.num_tokens // batch_tokens)

    def summary(self) -> str:
        """What share of the training text is padding, and of the short documents cut."""
        return summary_of(self.train, self._seq)

    def train_pieces(self, begin: int, end: int) -> Pieces:
        """The pieces of the tokens `[begin, end)` of all epochs."""
        return pieces_of(self.train, begin, end)

    def val_pieces(self, step: int) -> Pieces:
        """The pieces of a validation batch, of which the last may have fewer tokens."""
        begin = step * self._batch_tokens
        return self.val.between(0, begin, min(begin + self._batch_tokens, self.val.num_tokens))


class TokenRows(PreparedRows):
    """The rows of a corpus of text.

    Args:
        cache: the prepared corpus.
        seq: tokens of a row.
        batch_size: rows of a batch.
        packing: how documents become rows, see `Text`.
        shuffle: the random orders of the epochs.
        share: share of the rows of a training batch that are of this corpus.
    """

    def __init__(
        self,
        cache: TokenCache,
        seq: int,
        batch_size: int,
        packing: Packing,
        shuffle: Shuffle,
        share: float = 1.0,
    ) -> None:
        self.cache = cache
        batch_tokens = batch_size * seq
        train_tokens = max(1, round(batch_size * share)) * seq

        def rows(split: Split, num_tokens: int, order: Shuffle | None) -> Rows:
            return rows_of(cache.streams[split].boundaries, seq, num_tokens, packing, order)

        train, val = rows("train", train_tokens, shuffle), rows("val", batch_tokens, None)
        super().__init__(train, val, seq, batch_tokens)

    def tokens_and_labels(self, split: Split, pieces: Pieces) -> tuple[Ints, Ints]:
        """The tokens of pieces and their next tokens; padding is separators without labels.

        Raises:
            RunError: a token is outside the vocabulary.
        """
        return tokens_and_labels(self.cache, split, pieces)


def rows_of(
    boundaries: Ints, seq: int, batch_tokens: int, packing: Packing, shuffle: Shuffle | None
) -> Rows:
    """The rows of documents, from their boundaries; see `TokenRows` for the rest."""
    if packing == "best_fit":
        return FittedRows(boundaries, seq, shuffle)
    if packing:
        return packed_rows(boundaries, seq, batch_tokens, shuffle)
    return plain_rows(boundaries, seq, shuffle)


class Tokens(Protocol):
    """Token streams: a prepared corpus, or the beginning of one."""

    @property
    def streams(self) -> Mapping[Split, Stream]: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def damaged_error(self) -> RunError: ...


class Stream(Protocol):
    """The tokens of a split, and where its documents begin."""

    @property
    def tokens(self) -> npt.NDArray[Any]: ...

    @property
    def boundaries(self) -> Ints: ...


def tokens_and_labels(cache: Tokens, split: Split, pieces: Pieces) -> tuple[Ints, Ints]:
    """The tokens of pieces and their next tokens; padding is separators without labels.

    Raises:
        RunError: a token is outside the vocabulary.
    """
    stream = cache.streams[split].tokens
    is_padding = pieces.starts == PADDING
    positions = positions_in_stream(np.where(is_padding, 0, pieces.starts), pieces.lengths)
    if is_padding.any():
        padding = np.repeat(is_padding, pieces.lengths)
        positions[padding] = 0
    tokens, labels = stream[positions].astype(np.int64), stream[positions + 1].astype(np.int64)
    # an embedding would read out of bounds
    if max(tokens.max(), labels.max()) >= cache.tokenizer.vocab_size:
        raise cache.damaged_error()
    if is_padding.any():
        labels[padding] = IGNORED_LABEL
    return tokens, labels


def summary_of(rows: Rows, seq: int) -> str:
    """What share of rows is padding, and of the short documents cut."""
    return (
        f"{rows.share_padding:.2%} of the tokens are padding, and {rows.share_cut:.2%} of the "
        f"documents of at most {seq} tokens are cut"
    )


def packing_name(packing: Packing) -> str:
    """The value of the option as it is typed."""
    return packing if isinstance(packing, str) else str(packing).lower()


def batch_of(tokens: Ints, labels: Ints, pieces: Pieces, seq: int, packing: Packing) -> Batch:
    """A batch of rows of `seq` tokens; with packing, of one row."""
    seqlens = tuple(pieces.lengths.tolist()) if packing else None
    shape_BM = (1, tokens.size) if packing else (tokens.size // seq, seq)
    return Batch(
        tokens_BM=torch.from_numpy(tokens).view(shape_BM),
        labels_BM=torch.from_numpy(labels).view(shape_BM),
        positions_1M=positions_of(shape_BM[1], seqlens),
        seqlens=seqlens,
        num_padding=int(pieces.lengths[pieces.starts == PADDING].sum()),
    )


def check_sizes(cache: Tokens, seq: int, key: str, path: str | list[str]) -> None:
    """Refuses a corpus that has less than a row to train on, or less than a row held out.

    Args:
        cache: the prepared corpus.
        seq: tokens of a row.
        key: the dotted key of its path.
        path: the path.
    """
    needed = max(seq + 1, 3)  # two separators are not text yet
    purposes: dict[Split, str] = {"train": "to train on", "val": "held out for validation"}
    for split, purpose in purposes.items():
        num_tokens = cache.streams[split].tokens.size
        if num_tokens < needed:
            raise ConfigError(
                f"{key} must give at least {needed} tokens {purpose} with seq={seq}, got "
                f"{num_tokens} from {path!r}; give more text, a smaller seq or another "
                "data.val_fraction."
            )
