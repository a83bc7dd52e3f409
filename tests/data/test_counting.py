"""The counting task, in rows and packed: a pure function of where a batch is."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xftrain.data.counting import Counting
from xftrain.data.counting_packed import CountingPacked
from xftrain.interfaces import Batch

KINDS = [Counting, CountingPacked]
sizes = {
    "seq": st.integers(1, 40),
    "batch_size": st.integers(1, 6),
    "vocab_size": st.integers(2, 300),
    "step": st.integers(0, 10**9),
    "rank": st.integers(0, 7),
}


def equal(one: Batch, two: Batch) -> bool:
    tensors = [torch.equal(a, b) for a, b in zip(astuple(one)[:3], astuple(two)[:3], strict=True)]
    return all(tensors) and one.seqlens == two.seqlens


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_depends_on_seed_split_step_and_rank_alone(kind):
    data = kind(16, 4, 3)
    first = data.batch("train", 7, 2)
    data.batch("train", 100)
    torch.manual_seed(5)
    assert equal(data.batch("train", 7, 2), first)  # whatever was asked before
    assert equal(kind(16, 4, 3, world_size=8).batch("train", 7, 2), first)
    others = [
        data.batch("train", 8, 2),
        data.batch("train", 7, 1),
        data.batch("train", 2, 7),
        data.batch("val", 7, 2),
        kind(16, 4, 4).batch("train", 7, 2),
    ]
    assert not any(equal(first, other) for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_the_same_whatever_the_seed(kind):
    assert equal(kind(16, 4, 0).batch("val", 1), kind(16, 4, 9).batch("val", 1))


@given(**sizes)
def test_rows_count_and_labels_are_the_next_number(seq, batch_size, vocab_size, step, rank):
    data = Counting(seq, batch_size, 0, vocab_size=vocab_size)
    batch = data.batch("train", step, rank)
    assert batch.shape_BM == (batch_size, seq) and batch.seqlens is None
    assert batch.num_tokens == batch_size * seq
    assert batch.tokens_BM.dtype == batch.labels_BM.dtype == torch.int64
    assert (batch.labels_BM == (batch.tokens_BM + 1) % vocab_size).all()
    assert torch.equal(batch.tokens_BM[:, 1:], batch.labels_BM[:, :-1])
    assert (batch.positions_1M == torch.arange(seq)).all()
    assert 0 <= batch.tokens_BM.min() and batch.tokens_BM.max() < vocab_size


@given(**sizes)
def test_packed_documents_fill_the_row_and_restart(seq, batch_size, vocab_size, step, rank):
    data = CountingPacked(seq, batch_size, 0, vocab_size=vocab_size)
    batch = data.batch("train", step, rank)
    assert batch.shape_BM == (1, seq * batch_size) and sum(batch.seqlens) == seq * batch_size
    assert all(1 <= n <= seq for n in batch.seqlens)
    parts = [x[0].split(batch.seqlens) for x in (batch.tokens_BM, batch.labels_BM)]
    positions = batch.positions_1M[0].split(batch.seqlens)
    for tokens, labels, position in zip(*parts, positions, strict=True):
        assert torch.equal(position, torch.arange(len(tokens)))
        assert torch.equal(labels, (tokens + 1) % vocab_size)
        assert torch.equal(tokens, (tokens[0] + position) % vocab_size)


def test_packed_documents_do_not_go_on_where_the_last_one_ended():
    # else the boundary would not show: the next token would follow from the document before
    batches = [CountingPacked(8, 64, 0).batch("train", step) for step in range(4)]
    follows = []
    for batch in batches:
        first = batch.positions_1M[0, 1:] == 0
        follows += (batch.tokens_BM[0, 1:][first] == batch.labels_BM[0, :-1][first]).tolist()
    assert len(follows) > 300
    assert sum(follows) / len(follows) < 0.1  # 1/64 by chance


def test_every_length_and_start_occurs():
    batches = [CountingPacked(8, 64, 0).batch("train", step) for step in range(20)]
    assert {n for batch in batches for n in batch.seqlens} == set(range(1, 9))
    rows = [Counting(2, 64, 0).batch("train", step).tokens_BM[:, 0] for step in range(20)]
    assert set(torch.cat(rows).tolist()) == set(range(64))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_framework_asks_of_a_source(kind):
    data = kind(16, 4, 0, vocab_size=10, num_val_batches=3, stop_at_accuracy=None)
    assert (data.vocab_size, data.num_val_batches, data.stop_at_accuracy) == (10, 3, None)
    assert data.decode([3, 4]) == "3 4"
    assert data.num_label_bytes(data.batch("val", 0).labels_BM) is None
    assert data.baseline() == {}
