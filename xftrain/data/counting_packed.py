"""Counting documents of random lengths, packed into one row without padding."""

from __future__ import annotations

import numpy as np
import torch

from xftrain.data._seeding import generator
from xftrain.data.counting import Counting
from xftrain.interfaces import Batch, Split, positions_of


class CountingPacked(Counting):
    """Makes one row of B x M tokens, packed from documents of 1 to M tokens.

    Each document counts up from a random start; the last is cut to fill the row. No label crosses
    a document boundary: the label of the last token is the number that would follow it.
    """

    def batch(self, split: Split, step: int, rank: int = 0) -> Batch:
        """A row of documents; `seqlens` holds their lengths."""
        draw = generator(self.seed, split, step, rank)
        num_tokens = self.batch_size * self.seq
        # enough lengths to fill the row even if all were 1
        lengths = draw.integers(1, self.seq + 1, size=num_tokens)
        ends = np.cumsum(lengths)
        num_documents = int(np.searchsorted(ends, num_tokens)) + 1
        lengths = lengths[:num_documents]
        lengths[-1] -= ends[num_documents - 1] - num_tokens
        seqlens = tuple(int(n) for n in lengths)

        positions_1M = positions_of(num_tokens, seqlens)
        starts = torch.from_numpy(draw.integers(self.vocab_size, size=num_documents))
        starts_BM = torch.repeat_interleave(starts, torch.tensor(seqlens))[None]
        tokens_BM = (starts_BM + positions_1M) % self.vocab_size
        return Batch(tokens_BM, (tokens_BM + 1) % self.vocab_size, positions_1M, seqlens)
