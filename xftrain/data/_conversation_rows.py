"""The rows of conversations in both splits, none of which crosses the end of a row."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from xftrain.data._fitted_rows import FittedRows
from xftrain.data._packing import Ints, positions_in_stream
from xftrain.data._rows import PADDING, Pieces, Rows, random_order, remember
from xftrain.data._seeding import Shuffle
from xftrain.data._token_rows import PreparedRows
from xftrain.data.tokens.cache import TokenCache
from xftrain.data.tokens.turns import Turns
from xftrain.errors import ConfigError
from xftrain.interfaces import IGNORED_LABEL, Split

log = logging.getLogger(__name__)

_BLOCK = 1 << 20  # tokens that are searched for labels at a time


class ConversationRows(PreparedRows):
    """Conversations in rows of `seq` tokens, with padding that has no labels.

    Of a conversation of more than `seq` tokens, the first `seq` are kept. A conversation without a
    label among the kept tokens is left out, so that every row has a label.

    Args:
        cache: the prepared conversations.
        seq: tokens of a row.
        batch_size: rows of a batch.
        packed: whether a row has as many conversations as fit, or one.
        completion_only: whether only tokens that the model is to generate are labels.
        shuffle: the random orders of the epochs.

    Raises:
        ConfigError: every conversation of a split is left out.
    """

    def __init__(
        self,
        cache: TokenCache,
        seq: int,
        batch_size: int,
        packed: bool,
        completion_only: bool,
        shuffle: Shuffle,
    ) -> None:
        self._cache, self._completion_only = cache, completion_only
        self._turns = Turns(cache.tokenizer.vocab_size, cache.tokenizer.separator)
        rows = _PackedRows if packed else _PaddedRows
        train: Rows = rows(*self._kept("train", seq), seq, shuffle)
        val: Rows = rows(*self._kept("val", seq), seq, None)
        super().__init__(train, val, seq, batch_size * seq)

    def tokens_and_labels(self, split: Split, pieces: Pieces) -> tuple[Ints, Ints]:
        """The tokens of pieces, and their next tokens where these are labels.

        Raises:
            RunError: a token is outside the vocabulary.
        """
        stream = self._cache.streams[split].tokens
        padding = np.repeat(pieces.starts == PADDING, pieces.lengths)
        positions = positions_in_stream(pieces.starts, pieces.lengths)
        positions[padding] = 0
        stored, following = stream[positions], stream[positions + 1]
        # an embedding would read out of bounds
        if max(stored.max(), following.max()) >= self._turns.num_stored:
            raise self._cache.damaged_error()
        labels = self._turns.tokens(following)
        if self._completion_only:
            labels[~self._turns.is_generated(stored, following)] = IGNORED_LABEL
        labels[padding] = IGNORED_LABEL
        return self._turns.tokens(stored), labels

    def _kept(self, split: Split, seq: int) -> tuple[Ints, Ints]:
        """Where the kept conversations begin, and how many tokens of each are kept."""
        boundaries = self._cache.streams[split].boundaries
        starts, lengths = boundaries[:-1].astype(np.int64), np.diff(boundaries)
        has_label = np.ones(starts.size, dtype=np.bool_)
        if self._completion_only:
            has_label = self._has_label(split, starts, seq)
        num_cut = int(((lengths > seq) & has_label).sum())
        num_left_out = int((~has_label).sum())
        purpose = "to train on" if split == "train" else "held out"
        if num_left_out == starts.size:
            remedy = "" if split == "train" else ", or other files as data.val_path"
            raise ConfigError(
                f"seq must be large enough for a prompt and the beginning of its answer, got "
                f"{seq}, and no answer of the conversations {purpose} ({starts.size:,}) "
                f"begins within so many tokens; give a larger seq{remedy}."
            )
        if num_cut or num_left_out:
            log.warning(
                "seq=%d: of the %s conversations %s, %s are cut to this number of tokens, and %s "
                "are left out because their answers begin later",
                seq,
                f"{starts.size:,}",
                purpose,
                f"{num_cut:,}",
                f"{num_left_out:,}",
            )
        return starts[has_label], np.minimum(lengths, seq)[has_label]

    def _has_label(self, split: Split, starts: Ints, seq: int) -> npt.NDArray[np.bool_]:
        """Whether each conversation has a label among its first `seq` tokens."""
        stream = self._cache.streams[split].tokens
        found = np.zeros(starts.size, dtype=np.bool_)
        for begin in range(0, stream.size - 1, _BLOCK):
            block = stream[begin : begin + _BLOCK + 1]
            places = begin + np.flatnonzero(self._turns.is_generated(block[:-1], block[1:]))
            of_place = np.searchsorted(starts, places, side="right") - 1
            found[of_place[places - starts[of_place] < seq]] = True
        return found


class _PackedRows:
    """Whole conversations in rows by best fit; see `FittedRows`."""

    share_cut = 0.0

    def __init__(self, starts: Ints, lengths: Ints, seq: int, shuffle: Shuffle | None) -> None:
        # best fit is of documents without gaps between them
        self._starts, self._boundaries = starts, np.concatenate([[0], np.cumsum(lengths)])
        self._rows = FittedRows(self._boundaries, seq, shuffle)
        self.num_tokens, self.share_padding = self._rows.num_tokens, self._rows.share_padding

    def between(self, epoch: int, begin: int, end: int) -> Pieces:
        """The pieces of the tokens `[begin, end)` of an epoch, which are whole rows."""
        found = self._rows.between(epoch, begin, end)
        starts = found.starts.copy()
        is_text = starts != PADDING
        starts[is_text] = self._starts[np.searchsorted(self._boundaries, starts[is_text])]
        return Pieces(starts, found.lengths)


class _PaddedRows:
    """One conversation in each row, and padding up to its end."""

    share_cut = 0.0

    def __init__(self, starts: Ints, lengths: Ints, seq: int, shuffle: Shuffle | None) -> None:
        self._starts, self._lengths, self._seq, self._shuffle = starts, lengths, seq, shuffle
        self._orders: dict[int, Ints] = {}
        self.num_tokens = starts.size * seq
        self.share_padding = 1 - int(lengths.sum()) / self.num_tokens

    def between(self, epoch: int, begin: int, end: int) -> Pieces:
        """The pieces of the tokens `[begin, end)` of an epoch, which are whole rows."""
        assert begin % self._seq == end % self._seq == 0
        if epoch not in self._orders:
            order = random_order(self._starts.size, self._shuffle, epoch)
            remember(self._orders, epoch, order)
        chosen = self._orders[epoch][begin // self._seq : end // self._seq]
        starts, lengths = self._starts[chosen], self._lengths[chosen]
        both = np.stack([starts, np.full_like(starts, PADDING)], axis=1).ravel()
        sizes = np.stack([lengths, self._seq - lengths], axis=1).ravel()
        return Pieces(both[sizes > 0], sizes[sizes > 0])
