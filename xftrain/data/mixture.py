"""Several sources of text, mixed by weight."""

from __future__ import annotations

import hashlib
import logging

import numpy as np

from xftrain.config.fields import (
    NonNegativeInt,
    Packing,
    PositiveInt,
    Probability,
    Sources,
    VocabSize,
)
from xftrain.config.mixture_sources import checked_sources
from xftrain.data._joint_tokenizer import prepare_jointly
from xftrain.data._rows import concatenated
from xftrain.data._schedule import MixtureSchedule
from xftrain.data._seeding import Shuffle
from xftrain.data._text_source import TextSource, bits_per_byte, sum_scores
from xftrain.data._token_rows import TokenRows, batch_of, check_sizes, packing_name
from xftrain.data.tokens.bigram import Bigram
from xftrain.data.tokens.facts import source_facts
from xftrain.interfaces import Batch, SourceFacts, Split

log = logging.getLogger(__name__)


class Mixture(TextSource):
    """Next-token prediction on several sources of text.

    Training rows of `seq` tokens are dealt out to the sources so that the share of each source is
    its share of the weights, to within two rows however many rows there are. Each source has its
    own epochs, in orders given by (seed, epoch, name), so that another source changes none of its
    rows. Sources become rows as `Text` does.

    A validation batch is of one source; the sources take turns.

    Args:
        seq: tokens per row.
        batch_size: rows per micro-batch and rank; with packing, their tokens form one row.
        seed: seed of the training order.
        world_size: number of ranks.
        sources: for each name a `path`, a `weight`, and optionally `text_key` and `val_path`.
        tokenizer: as for `Text`; a BPE is trained on all sources, by weight.
        vocab_size: as for `Text`.
        packing: as for `Text`.
        val_fraction: as for `Text`, of each source.
        follow_links: whether links that lead out of a source's folder are followed.
        num_val_batches: maximum number of validation batches of each source.
        cache_dir: the user's folder of token files and vocabularies; null is ~/.cache/xftrain.
        num_workers: processes that tokenize, 0 being this one alone; null is one for each CPU.

    Attributes:
        val_sources: the name of the source of each validation batch.
        share_padding: share of padding in the tokens.
        share_cut: share of the documents of at most `seq` tokens that are cut, a mean by weight.

    Raises:
        ConfigError: a source is wrong, has no text or too little, or the options contradict each
            other.
        RunError: a file changed or the disk was full during preparation, or token files are
            damaged.
    """

    def __init__(
        self,
        seq: int,
        batch_size: int,
        seed: int,
        world_size: int,
        *,
        sources: Sources,
        tokenizer: str = "bytes",
        vocab_size: VocabSize | None = None,
        packing: Packing | None = None,
        val_fraction: Probability = 0.1,
        follow_links: bool = False,
        num_val_batches: PositiveInt = 8,
        cache_dir: str | None = None,
        num_workers: NonNegativeInt | None = None,
    ) -> None:
        checked = checked_sources(sources)
        shares = _shares([source["weight"] for source in checked.values()])
        caches = prepare_jointly(
            checked,
            tokenizer,
            vocab_size,
            val_fraction=val_fraction,
            follow_links=follow_links,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        self._seq, self._batch_size, self._world_size = seq, batch_size, world_size
        self._packing = packing or False
        self._schedule = MixtureSchedule([source["weight"] for source in checked.values()])
        self._rows: dict[str, TokenRows] = {}
        for (name, cache), share in zip(caches.items(), shares, strict=True):
            check_sizes(cache, seq, f"data.sources.{name}.path", checked[name]["path"])
            shuffle = Shuffle(seed, _number(name))
            rows = TokenRows(cache, seq, batch_size, self._packing, shuffle, share)
            self._rows[name] = rows
            log.info("data.sources.%s: %.4g of the tokens; %s", name, share, rows.summary())
        log.info("data.packing=%s", packing_name(self._packing))
        sources_of_rows = self._rows.values()
        self.share_padding = float(np.dot(shares, [r.train.share_padding for r in sources_of_rows]))
        self.share_cut = float(np.dot(shares, [r.train.share_cut for r in sources_of_rows]))
        counts = {n: min(num_val_batches, r.num_val_batches) for n, r in self._rows.items()}
        self._val_steps = [
            (name, step)
            for step in range(max(counts.values()))
            for name, count in counts.items()
            if step < count
        ]
        self.num_val_batches = len(self._val_steps)
        self.val_sources = tuple(name for name, _ in self._val_steps)
        self.set_vocabulary(next(iter(caches.values())).tokenizer)

    def batch(self, split: Split, step: int, rank: int = 0) -> Batch:
        """The batch of a micro-step; the last of a source in validation may have fewer tokens."""
        assert step >= 0 and 0 <= rank < self._world_size
        if split == "train":
            first = (step * self._world_size + rank) * self._batch_size
            begins = self._schedule.counts(first)
            ends = self._schedule.counts(first + self._batch_size)
            parts = [
                (rows, rows.train_pieces(begin * self._seq, end * self._seq))
                for rows, begin, end in zip(self._rows.values(), begins, ends, strict=True)
                if begin < end
            ]
        else:
            name, step = self._val_steps[step]
            parts = [(self._rows[name], self._rows[name].val_pieces(step))]
        columns = [rows.tokens_and_labels(split, pieces) for rows, pieces in parts]
        tokens, labels = (np.concatenate(column) for column in zip(*columns, strict=True))
        pieces = concatenated([pieces for _, pieces in parts])
        return batch_of(tokens, labels, pieces, self._seq, self._packing)

    def digest(self) -> str:
        """SHA-256 of the names of all sources, of their tokens and of the vocabulary."""
        digests = [(name, rows.cache.digest) for name, rows in self._rows.items()]
        return hashlib.sha256(repr(digests).encode()).hexdigest()

    def facts(self) -> list[SourceFacts]:
        """The documents of each source, and how many are copies within it."""
        return [source_facts(rows.cache, name) for name, rows in self._rows.items()]

    def baseline(self) -> dict[str, float]:
        """Bits per byte of a byte-bigram model of the training text of all sources.

        See `Text`; they are computed over all validation batches, and over those of each source.
        """
        counts = sum(rows.cache.bigram_counts for rows in self._rows.values())
        bigram = Bigram(np.asarray(counts), self.vocabulary.spellings)
        scores = [
            self.bigram_score(bigram, self.batch("val", step))
            for step in range(self.num_val_batches)
        ]
        by_source = {
            name: sum_scores(s for s, n in zip(scores, self.val_sources, strict=True) if n == name)
            for name in self._rows
        }
        return bits_per_byte({"": sum_scores(scores), **by_source})


def _shares(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _number(name: str) -> int:
    """A number of the source, which does not depend on the other sources."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
