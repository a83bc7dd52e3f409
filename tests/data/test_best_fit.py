"""Best-fit packing: what is in a row, in an epoch, and how much of it is padding."""

import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_text import build, contents, equal, shapes, stream
from xftrain.data._best_fit import best_fit, num_rows
from xftrain.data._fitted_rows import FittedRows
from xftrain.data._packing import positions_in_stream
from xftrain.data._rows import PADDING, packed_rows, pieces_of, plain_rows
from xftrain.data._seeding import Shuffle
from xftrain.interfaces import IGNORED_LABEL

documents = st.lists(st.integers(1, 40), min_size=1, max_size=40)
row_sizes = st.integers(1, 24)


def slow_best_fit(lengths, row_tokens):
    """The number of rows, one piece at a time."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else row_tokens) - length)
    return sorted(rooms)


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n)))))
def test_rows_are_those_of_placing_one_piece_at_a_time(case):
    row_tokens, lengths = case
    ordered = np.array(sorted(lengths, reverse=True), dtype=np.int64)
    rows = best_fit(ordered, row_tokens)
    rooms = np.full(rows.max(initial=-1) + 1, row_tokens)
    np.subtract.at(rooms, rows, ordered)
    assert sorted(rooms.tolist()) == slow_best_fit(lengths, row_tokens)
    assert num_rows(np.array(lengths, dtype=np.int64), row_tokens) == rooms.size


def rows_of(sizes, seq, seed=0, window_pieces=1 << 20):
    shuffle = None if seed is None else Shuffle(seed)
    return FittedRows(np.cumsum([0, *sizes]), seq, shuffle, window_pieces)


@given(documents, row_sizes, st.integers(1, 9), st.sampled_from([None, 0, 7]))
def test_an_epoch_holds_every_token_once_and_cuts_no_document_that_fits(
    sizes, seq, window_pieces, seed
):
    rows, boundaries = rows_of(sizes, seq, seed, window_pieces), np.cumsum([0, *sizes])
    for epoch in (0, 1):
        starts, lengths = rows.between(epoch, 0, rows.num_tokens)
        ends = np.cumsum(lengths)
        assert set(range(seq, rows.num_tokens + 1, seq)) <= set(ends.tolist())  # whole rows
        is_text = starts != PADDING
        positions = positions_in_stream(starts[is_text], lengths[is_text])
        assert sorted(positions.tolist()) == list(range(sum(sizes)))
        first = np.searchsorted(boundaries, starts[is_text], "right") - 1
        last = np.searchsorted(boundaries, starts[is_text] + lengths[is_text] - 1, "right") - 1
        assert (first == last).all()
        assert np.bincount(first).tolist() == [-(-size // seq) for size in sizes]
        assert rows.share_padding == pytest.approx(1 - lengths[is_text].sum() / rows.num_tokens)


@given(documents, row_sizes, st.integers(1, 9), st.data())
def test_any_range_of_rows_is_a_slice_of_the_epochs(sizes, seq, window_pieces, data):
    rows = rows_of(sizes, seq, window_pieces=window_pieces)
    count = rows.num_tokens // seq
    first = data.draw(st.integers(0, 3 * count))
    num = data.draw(st.integers(1, 2 * count))
    chosen = pieces_of(rows, first * seq, (first + num) * seq)
    again = rows_of(sizes, seq, window_pieces=window_pieces)
    single = [pieces_of(again, row * seq, (row + 1) * seq) for row in range(first, first + num)]
    for got, column in zip(chosen, zip(*single, strict=True), strict=True):
        assert got.tolist() == np.concatenate(column).tolist()


def test_each_epoch_has_an_order_of_its_own_and_exchanges_documents_of_equal_length():
    sizes = [*[5] * 40, *[3] * 40, *range(1, 9)]
    rows = rows_of(sizes, 8)
    first, second = (rows.between(epoch, 0, rows.num_tokens).starts for epoch in (0, 1))
    assert first.tolist() != second.tolist()

    def partners(starts):
        return {frozenset(pair) for pair in zip(starts[:-1], starts[1:], strict=True)}

    assert len(partners(first) & partners(second)) < len(partners(first)) // 2


@settings(max_examples=40)
@given(contents, shapes)
def test_batches_are_pure_and_have_one_shape_and_labels_for_all_but_padding(contents, shape):
    seq, batch_size, num_ranks = shape
    with tempfile.TemporaryDirectory() as folder:
        data, other = (build(folder, contents, shape, "best_fit") for _ in range(2))
        batches = [data.batch("train", s, r) for s in range(3) for r in range(num_ranks)]
        again = [other.batch("train", s, r) for s in (2, 1, 0) for r in range(num_ranks)]
        assert all(any(equal(one, two) for two in again) for one in batches)
    for batch in batches:
        assert batch.tokens_BM.shape == (1, seq * batch_size) and max(batch.seqlens) <= seq
        assert (batch.labels_BM == IGNORED_LABEL).sum() == batch.num_padding
        assert set(np.cumsum(batch.seqlens)) >= set(range(seq, seq * batch_size + 1, seq))
        pieces = batch.labels_BM[0].split(batch.seqlens)
        for part in pieces:  # a piece is padding or has all its labels
            assert len(set((part == IGNORED_LABEL).tolist())) == 1


def test_a_world_size_only_deals_the_rows_out(tmp_path):
    texts = ["ab" * n for n in range(3, 40)]
    alone = build(str(tmp_path), texts, (16, 2, 1), "best_fit")
    three = build(str(tmp_path), texts, (16, 2, 3), "best_fit")
    for step in range(9):
        assert equal(alone.batch("train", step), three.batch("train", step // 3, step % 3))


def test_validation_takes_every_held_out_token_once(tmp_path):
    texts = ["".join(map(chr, range(97, 97 + n % 26))) * 3 for n in range(1, 40)]
    data = build(str(tmp_path), texts, (16, 2, 1), "best_fit", num_val_batches=1000)
    batches = [data.batch("val", step) for step in range(data.num_val_batches)]
    labels = torch.cat([batch.labels_BM.flatten() for batch in batches])
    expected = sorted(stream(data, "val")[1:].tolist())
    assert sorted(labels[labels != IGNORED_LABEL].tolist()) == expected
    assert data.baseline()["val/bits_per_byte_bigram"] > 0


def test_padding_counts_in_no_metric_of_the_text(tmp_path):
    texts = [f"{n:02}" + "ab" * 9 for n in range(99)]  # each fills more than half a row
    data = build(str(tmp_path), texts, (32, 2, 1), "best_fit")
    assert data.share_padding > 0.2 and data.share_cut == 0
    batch = data.batch("train", 0)
    assert batch.num_padding == 2 * (32 - 21)
    assert data.num_label_bytes(batch.labels_BM) == 2 * 20


def test_shares_of_cut_documents_are_reported_for_every_packing(tmp_path, caplog):
    caplog.set_level("INFO")
    texts = ["ab" * n for n in range(1, 80)]
    shares = {
        packing: build(str(tmp_path), texts, (80, 2, 1), packing).share_cut
        for packing in (False, True, "best_fit")
    }
    assert shares["best_fit"] == 0 < shares[True] < shares[False] < 1
    assert "data.packing=best_fit: " in caplog.text and "0.00% of the documents" in caplog.text


def test_share_of_cut_documents_is_counted_by_hand():
    boundaries = np.array([0, 3, 6, 9, 12])  # rows of 4: the documents at 3, 6 cross an edge
    assert plain_rows(boundaries, 4, None).share_cut == 0.5
    rows = packed_rows(boundaries, 4, 4, Shuffle(0))  # the same in whatever order
    assert rows.share_cut == 0.5


@pytest.mark.parametrize("seq", [256, 1024, 2048])
def test_real_source_code_has_less_than_two_percent_of_padding(seq):
    sizes = np.array([path.stat().st_size + 1 for path in Path(np.__file__).parent.rglob("*.py")])
    for bytes_per_token in (1, 4):
        assert sizes.size > 100
        rows = rows_of(np.maximum(1, sizes // bytes_per_token), seq)
        assert rows.share_padding < 0.02 and rows.share_cut == 0


def test_a_million_documents_are_packed_in_seconds():
    sizes = np.random.default_rng(0).lognormal(6, 1.2, 1_000_000).astype(np.int64) + 1
    begin = time.perf_counter()
    rows = rows_of(sizes, 2048)
    rows.between(0, 0, 2048)
    assert time.perf_counter() - begin < 20  # about 1 s where nothing else runs
    assert rows.share_padding < 0.001
