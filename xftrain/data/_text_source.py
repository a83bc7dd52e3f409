"""The base class of data sources that are text: their vocabulary, and metrics for each byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from xftrain.data.tokens.bigram import Bigram
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.interfaces import IGNORED_LABEL, Batch


class Score(NamedTuple):
    """How well a model predicts labels: the bits that it needs, and the bytes that they spell."""

    bits: float
    num_bytes: int


class TextSource:
    """A data source with tokens of text."""

    stop_at_accuracy: float | None = None

    def set_vocabulary(self, tokenizer: Tokenizer) -> None:
        """Sets the vocabulary of the tokens."""
        self.vocabulary = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self._bytes_of_token = torch.tensor([len(s) for s in tokenizer.spellings])

    def decode(self, tokens: list[int]) -> str:
        """Readable text; the separator shows as `<|end|>`, bytes that are no text as U+FFFD."""
        return self.vocabulary.decode(tokens)

    def num_label_bytes(self, labels_BM: Tensor) -> int:
        """Number of bytes that the labels spell; separators and ignored labels spell none."""
        labels = labels_BM[labels_BM != IGNORED_LABEL].cpu()
        return int(self._bytes_of_token[labels].sum())

    def bigram_score(self, bigram: Bigram, batch: Batch) -> Score:
        """The score of a bigram model on the labels of a batch."""
        is_scored = batch.labels_BM != IGNORED_LABEL
        tokens, labels = (x[is_scored].numpy() for x in (batch.tokens_BM, batch.labels_BM))
        return Score(bigram.bits(tokens, labels), self.num_label_bytes(batch.labels_BM))


def sum_scores(scores: Iterable[Score]) -> Score:
    """The score of all labels together."""
    found = list(scores)
    return Score(sum(score.bits for score in found), sum(score.num_bytes for score in found))


def bits_per_byte(scores: Mapping[str, Score]) -> dict[str, float]:
    """The metrics of scores by the name of their source, which is empty for all sources."""
    return {
        f"val/{name}/bits_per_byte_bigram" if name else "val/bits_per_byte_bigram": bits / num_bytes
        for name, (bits, num_bytes) in scores.items()
        if num_bytes
    }
