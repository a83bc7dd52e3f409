import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xftrain.data.tokens import bigram
from xftrain.data.tokens.bigram import Bigram, BigramCounts
from xftrain.data.tokens.tokenizer import Bpe, Bytes

SEPARATOR = 256
documents = st.lists(st.text(max_size=20), min_size=1, max_size=6)


def symbols_of(texts):
    """Separator, document, separator, document, ..., separator, as plain numbers."""
    symbols = [SEPARATOR]
    for text in texts:
        symbols += [*text.encode(), SEPARATOR]
    return symbols


def pieces_of(texts, cut):
    """The same as pieces, documents cut after `cut` characters."""
    yield b""
    for text in texts:
        yield from (text[i : i + cut].encode() for i in range(0, len(text), cut))
        yield b""


def count(texts, cut=7):
    counts = BigramCounts()
    assert list(counts.count_pieces(pieces_of(texts, cut))) == list(pieces_of(texts, cut))
    return counts.counts


def plain_bits(training, symbols):
    """Add-one smoothed bits of each symbol after the one before it, from the definition."""
    pairs = Counter(pairwise(symbols_of(training)))
    totals = Counter(symbols_of(training)[:-1])
    return [-math.log2((pairs[a, b] + 1) / (totals[a] + 257)) for a, b in pairwise(symbols)]


@given(documents, st.integers(1, 5), st.integers(1, 10))
def test_counts_do_not_depend_on_how_the_text_is_cut(texts, cut, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigram, "_BLOCK_SYMBOLS", at_once)
        counts = count(texts, cut)
    expected = Counter(pairwise(symbols_of(texts)))
    assert {tuple(map(int, pair)): counts[tuple(pair)] for pair in np.argwhere(counts)} == expected


@given(documents, documents)
def test_bits_of_bytes_are_those_of_the_definition(training, scored):
    symbols = np.array(symbols_of(scored))
    model = Bigram(count(training), Bytes().spellings)
    expected = sum(plain_bits(training, symbols.tolist()))
    assert model.bits(symbols[:-1], symbols[1:]) == pytest.approx(expected)


@given(documents, documents)
def test_bpe_tokens_cost_what_their_bytes_cost(training, scored):
    bpe = Bpe.train([text.encode() for text in training * 3], vocab_size=300)
    tokens = np.concatenate(list(bpe.encode_pieces(pieces_of(scored, 20)))).astype(np.int64)
    model = Bigram(count(training), bpe.spellings)
    expected = sum(plain_bits(training, symbols_of(scored)))
    assert model.bits(tokens[:-1], tokens[1:]) == pytest.approx(expected)


def test_every_row_is_a_distribution():
    model = Bigram(count(["abracadabra", ""]), Bytes().spellings)
    before, after = np.meshgrid(np.arange(257), np.arange(257), indexing="ij")
    for row in range(257):
        shares = [2 ** -model.bits(before[row, [i]], after[row, [i]]) for i in range(0, 257)]
        assert sum(shares) == pytest.approx(1)
