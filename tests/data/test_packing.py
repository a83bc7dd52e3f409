import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xftrain.data._packing import Layout, cut_pieces, epoch_spans, positions_in_stream, spread_order

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(sizes, st.integers(1, 12))
def test_pieces_cover_every_token_once_and_stay_inside_their_document(sizes, max_tokens):
    boundaries = np.cumsum([0, *sizes])
    starts, lengths = cut_pieces(boundaries[:-1], np.array(sizes), max_tokens)
    assert positions_in_stream(starts, lengths).tolist() == list(range(sum(sizes)))
    assert lengths.min() >= 1 and lengths.max() <= max_tokens
    first, last = (np.searchsorted(boundaries, p, "right") for p in (starts, starts + lengths - 1))
    assert (first == last).all()
    # as few as can be: only the last piece of a document is short
    assert starts.size == sum(math.ceil(size / max_tokens) for size in sizes)


@given(sizes, st.data())
def test_between_is_the_slice_of_the_whole_layout(sizes, data):
    order = np.array(data.draw(st.permutations(range(len(sizes)))))
    lengths, starts = np.array(sizes)[order], (np.cumsum(sizes) - sizes)[order]
    layout = Layout.from_lengths(starts, lengths)
    begin = data.draw(st.integers(0, sum(sizes) - 1))
    end = data.draw(st.integers(begin + 1, sum(sizes)))
    kept_starts, kept_lengths = layout.between(begin, end)
    whole = positions_in_stream(starts, lengths)
    assert positions_in_stream(kept_starts, kept_lengths).tolist() == whole[begin:end].tolist()
    assert kept_lengths.min() >= 1
    assert layout.starts is starts and starts.tolist() == (np.cumsum(sizes) - sizes)[order].tolist()


@given(st.integers(0, 60), st.integers(1, 60), st.integers(1, 9))
def test_epoch_spans_walk_through_epochs_without_a_gap(begin, count, size):
    walked = [
        (epoch, i) for epoch, a, b in epoch_spans(begin, begin + count, size) for i in range(a, b)
    ]
    assert walked == [divmod(i, size) for i in range(begin, begin + count)]


@given(st.integers(1, 500))
def test_spread_order_is_a_permutation(num):
    assert sorted(spread_order(num).tolist()) == list(range(num))


@pytest.mark.parametrize("num", [100, 610, 1000, 12345])
@pytest.mark.parametrize("num_first", [8, 40])
def test_the_beginning_of_the_spread_order_leaves_no_large_gap(num, num_first):
    chosen = np.sort(spread_order(num)[:num_first])
    gaps = np.diff(chosen, append=chosen[0] + num)
    assert gaps.max() <= 2.7 * num / num_first + 1  # golden ratio: 1 + 0.618 + 1 of the mean
