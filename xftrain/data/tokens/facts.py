"""The facts of a token cache: its documents, and how long they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xftrain.data.tokens.cache import TokenCache
from xftrain.interfaces import SourceFacts, Split, SplitContent

_BLOCK = 1 << 20  # boundaries that are read at a time


def source_facts(cache: TokenCache, name: str = "") -> SourceFacts:
    """The facts of a corpus.

    Args:
        cache: its token files.
        name: name of the source, if there are several.
    """
    return SourceFacts(
        name, _split_facts(cache, "train"), _split_facts(cache, "val"), cache.num_duplicates
    )


def _split_facts(cache: TokenCache, split: Split) -> SplitContent:
    stream = cache.streams[split]
    edges, counts = length_histogram(stream.boundaries)
    return SplitContent(
        num_documents=cache.documents[split],
        num_tokens=stream.tokens.size,
        num_bytes=cache.num_bytes[split],
        length_edges=edges,
        length_counts=counts,
    )


def length_histogram(
    boundaries: npt.NDArray[np.int64],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Counts documents by their number of tokens, in steps of about half a power of two.

    Args:
        boundaries: positions of the separators before, between and after the documents.

    Returns:
        The edges of the bins, of which the first begins at 0 tokens, and their counts.
    """
    longest = 0
    counts = np.zeros(128, dtype=np.int64)
    edges = np.unique(np.array([0, *(2.0 ** (np.arange(126) / 2)).astype(np.int64)]))
    for start in range(0, boundaries.size - 1, _BLOCK):
        lengths = np.diff(boundaries[start : start + _BLOCK + 1]) - 1  # without the separator
        longest = max(longest, int(lengths.max()))
        counts += np.bincount(np.searchsorted(edges, lengths, side="right") - 1, minlength=128)
    num_bins = int(np.searchsorted(edges, longest, side="right"))
    return tuple(edges[: num_bins + 1].tolist()), tuple(counts[:num_bins].tolist())
