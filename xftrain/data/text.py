"""Any file or folder of text, in bytes or tokens, in plain or packed rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xftrain.config.fields import NonNegativeInt, PositiveInt, Probability, VocabSize
from xftrain.data._packing import (
    Ints,
    Layout,
    cut_pieces,
    epoch_spans,
    positions_in_stream,
    spread_order,
)
from xftrain.data._seeding import generator
from xftrain.data.tokens.bigram import Bigram
from xftrain.data.tokens.cache import TokenCache, prepare
from xftrain.data.tokens.facts import source_facts
from xftrain.errors import ConfigError
from xftrain.interfaces import IGNORED_LABEL, Batch, SourceFacts, Split, positions_of


class Text:
    """Next-token prediction on the text of a file or folder.

    The token stream is cut into pieces. Without packing, a row is one piece of `seq` consecutive
    tokens, which may cross documents. With packing, a piece is at most `seq` tokens of one
    document, and pieces are concatenated to one row of `batch_size * seq` tokens; the last piece is
    cut at the end of the row, and the next row begins with the rest as a separate piece.

    Training visits all pieces once an epoch, in an order given by (seed, epoch), and a batch
    may span two epochs. Validation uses a fixed, evenly spread subset of the held-out pieces, each
    once, the same for every seed and rank.

    Args:
        seq: tokens per row.
        batch_size: rows per micro-batch and rank; with packing, their tokens form one row.
        seed: seed of the training order.
        world_size: number of ranks.
        path: files, folders and globs of text and of records.
        val_path: those that are held out; null holds out a part of `path`.
        text_key: the key of the text in a record; dots lead into nested records.
        tokenizer: bytes; bpe (byte-level, trained once on the training files); or the path of a
            tokenizer.json, or of a Hugging Face folder that holds one.
        vocab_size: null is 257 for bytes, 8192 for bpe, and that of a tokenizer.json, the document
            separator included.
        packing: whether rows are packed.
        val_fraction: fraction of the documents held out, or of the bytes of a single text file.
        follow_links: whether links that lead out of the folder are followed.
        num_val_batches: maximum number of validation batches, limited by the held-out text.
        cache_dir: the user's folder of token files and vocabularies; null is ~/.cache/xftrain.
        num_workers: processes that tokenize, 0 being this one alone; null is one for each CPU.

    Raises:
        ConfigError: there is no text or too little, or the options contradict each other.
        RunError: a file changed or the disk was full during preparation, or token files are
            damaged.
    """

    stop_at_accuracy: float | None = None

    def __init__(
        self,
        seq: int,
        batch_size: int,
        seed: int,
        world_size: int,
        *,
        path: str | list[str],
        val_path: str | list[str] | None = None,
        text_key: str = "text",
        tokenizer: str = "bytes",
        vocab_size: VocabSize | None = None,
        packing: bool = False,
        val_fraction: Probability = 0.1,
        follow_links: bool = False,
        num_val_batches: PositiveInt = 8,
        cache_dir: str | None = None,
        num_workers: NonNegativeInt | None = None,
    ) -> None:
        cache = prepare(
            path,
            val_path=val_path,
            text_key=text_key,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            val_fraction=val_fraction,
            follow_links=follow_links,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        _check_sizes(cache, seq, path)
        self._cache = cache
        self._seq = seq
        self._seed = seed
        self._world_size = world_size
        self._packing = packing
        self._batch_tokens = batch_size * seq
        self._starts, self._lengths = self._pieces("train")
        self._epoch_tokens = int(self._lengths.sum())
        self._epochs: dict[int, Layout] = {}
        starts, lengths = self._pieces("val")
        order = spread_order(starts.size)
        self._val_layout = Layout.from_lengths(starts[order], lengths[order])
        num_available = -(-self._val_layout.num_tokens // self._batch_tokens)
        self.num_val_batches = min(num_val_batches, num_available)
        self.vocabulary = cache.tokenizer
        self.vocab_size = self.vocabulary.vocab_size
        self._bytes_of_token = torch.tensor([len(s) for s in cache.tokenizer.spellings])

    def batch(self, split: Split, step: int, rank: int = 0) -> Batch:
        """The batch of a micro-step; the last validation batch may have fewer rows or tokens."""
        assert step >= 0 and 0 <= rank < self._world_size
        if split == "train":
            begin = (step * self._world_size + rank) * self._batch_tokens
            parts = [
                self._layout(epoch).between(first, last)
                for epoch, first, last in epoch_spans(
                    begin, begin + self._batch_tokens, self._epoch_tokens
                )
            ]
            starts, lengths = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        else:
            assert step < self.num_val_batches
            begin = step * self._batch_tokens
            end = min(begin + self._batch_tokens, self._val_layout.num_tokens)
            starts, lengths = self._val_layout.between(begin, end)

        seqlens = tuple(lengths.tolist()) if self._packing else None
        positions = positions_in_stream(starts, lengths)
        stream = self._cache.streams[split].tokens
        shape_BM = (1, positions.size) if self._packing else (starts.size, self._seq)
        tokens, labels = stream[positions].astype(np.int64), stream[positions + 1].astype(np.int64)
        # an embedding would read out of bounds
        if max(tokens.max(), labels.max()) >= self.vocab_size:
            raise self._cache.damaged_error()
        return Batch(
            tokens_BM=torch.from_numpy(tokens).view(shape_BM),
            labels_BM=torch.from_numpy(labels).view(shape_BM),
            positions_1M=positions_of(shape_BM[1], seqlens),
            seqlens=seqlens,
        )

    def decode(self, tokens: list[int]) -> str:
        """Readable text; the separator shows as `<|end|>`, bytes that are no text as U+FFFD."""
        return self.vocabulary.decode(tokens)

    def digest(self) -> str:
        """SHA-256 of the tokens of both splits and of the vocabulary."""
        return self._cache.digest

    def facts(self) -> list[SourceFacts]:
        """The documents of both splits, and how many are copies."""
        return [source_facts(self._cache)]

    def num_label_bytes(self, labels_BM: Tensor) -> int:
        """Number of bytes that the labels spell; separators and ignored labels spell none."""
        labels = labels_BM[labels_BM != IGNORED_LABEL].cpu()
        return int(self._bytes_of_token[labels].sum())

    def baseline(self) -> dict[str, float]:
        """Bits per byte of a byte-bigram model of the training text, on the validation batches.

        It is the bits of all labels, separators included, divided by the bytes that they spell, so
        that it compares with the bits per byte of a language model with any vocabulary.
        """
        bigram = Bigram(self._cache.bigram_counts, self._cache.tokenizer.spellings)
        bits, num_bytes = 0.0, 0
        for step in range(self.num_val_batches):
            batch = self.batch("val", step)
            bits += bigram.bits(batch.tokens_BM.numpy(), batch.labels_BM.numpy())
            num_bytes += self.num_label_bytes(batch.labels_BM)
        return {"val/bits_per_byte_bigram": bits / num_bytes} if num_bytes else {}

    def _pieces(self, split: Split) -> tuple[Ints, Ints]:
        """The start and the length of each piece of a split."""
        stream = self._cache.streams[split]
        if self._packing:
            return cut_pieces(stream.boundaries, self._seq)
        num_rows = (stream.tokens.size - 1) // self._seq  # the last token is only ever a label
        return np.arange(num_rows) * self._seq, np.full(num_rows, self._seq)

    def _layout(self, epoch: int) -> Layout:
        """The pieces in the order of an epoch; two are cached, as a batch may span two."""
        if epoch not in self._epochs:
            if len(self._epochs) == 2:
                del self._epochs[next(iter(self._epochs))]
            order = generator(self._seed, "train", epoch, rank=0).permutation(self._starts.size)
            self._epochs[epoch] = Layout.from_lengths(self._starts[order], self._lengths[order])
        return self._epochs[epoch]


def _check_sizes(cache: TokenCache, seq: int, path: str | list[str]) -> None:
    needed = max(seq + 1, 3)  # two separators are not text yet
    purposes: dict[Split, str] = {"train": "to train on", "val": "held out for validation"}
    for split, purpose in purposes.items():
        num_tokens = cache.streams[split].tokens.size
        if num_tokens < needed:
            raise ConfigError(
                f"data.path must give at least {needed} tokens {purpose} with seq={seq}, got "
                f"{num_tokens} from {path!r}; give more text, a smaller seq or another "
                "data.val_fraction."
            )
