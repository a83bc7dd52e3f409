"""What a data source of one's own returns is checked before a step trains on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from xftrain.data.counting import Counting
from xftrain.data.counting_packed import CountingPacked
from xftrain.errors import ConfigError
from xftrain.interfaces import IGNORED_LABEL, Batch
from xftrain.model.prompts import default_prompt
from xftrain.train.loader import TrainStream, ValBatches

SEQ = 16


def _with(name: str, index: int, value: int) -> Any:
    def change(batch: Batch) -> Batch:
        changed = getattr(batch, name).clone()
        changed.view(-1)[index] = value
        return replace(batch, **{name: changed})

    return change


def _unchecked(name: str, change: Any) -> Any:
    """Changes a tensor of a finished batch, as a class of one's own may."""

    def change_batch(batch: Batch) -> Batch:
        setattr(batch, name, change(getattr(batch, name)))
        return batch

    return change_batch


def _longer_positions(batch: Batch) -> Batch:
    return replace(batch, positions_1M=torch.arange(batch.tokens_BM.shape[1])[None])


def _stops(batch: Batch) -> Batch:
    raise StopIteration


class Own(Counting):
    """Each batch of the counting data, changed."""

    def __init__(self, change: Any) -> None:
        super().__init__(SEQ, 2, 0, vocab_size=60, num_val_batches=1)
        self.change = change

    def batch(self, *args: Any) -> Batch:
        return self.change(super().batch(*args))


class OwnPacked(CountingPacked):
    """Documents whose positions do not restart at 0."""

    def batch(self, *args: Any) -> Batch:
        return _longer_positions(super().batch(*args))


WRONG = [
    (_with("tokens_BM", 3, 60), "tokens_BM must be from 0 to 59, got 60"),
    (_with("tokens_BM", 3, -1), "tokens_BM must be from 0 to 59, got -1"),
    (_with("labels_BM", 20, 60), "labels_BM must be from 0 to 59, or -100 where .*, got 60"),
    (_with("labels_BM", 20, -1), "labels_BM must be from 0 to 59, or -100 where .*, got -1"),
    (_with("positions_1M", 15, 10**5), "count up from 0 in each document, got 100000 in place of"),
    (_with("positions_1M", 0, -1), "got -1 in place of 0 at index 0"),
    (lambda batch: replace(batch, tokens_BM=batch.tokens_BM.float()), "got a float32 tensor of"),
    (lambda batch: replace(batch, labels_BM=batch.labels_BM.int()), "labels_BM as an int64 tensor"),
    (
        _unchecked("positions_1M", torch.Tensor.float),
        "positions_1M as an int64 tensor, got a float",
    ),
    (_unchecked("tokens_BM", torch.Tensor.numpy), "got a value of type ndarray"),
    (_unchecked("labels_BM", lambda _: None), "labels_BM as an int64 tensor, got None"),
    (_unchecked("labels_BM", lambda x: x[:, :5]), r"got \(2, 16\), \(2, 5\)"),
    (_unchecked("labels_BM", lambda x: x.to("meta")), "on one device, got cpu, meta, cpu"),
    (lambda batch: batch.to("meta"), "must return tensors on the CPU, got them on meta"),
    (lambda batch: None, r"Own.batch\('(train|val)', 0\) must return .*Batch, got None"),
    (lambda batch: (batch.tokens_BM,), r"got a tuple of \(an int64 tensor of \[2, 16\]\)"),
    (_stops, "raised StopIteration: a data source must have a batch for every step"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_a_wrong_batch_is_refused_wherever_it_is_read(change: Any, said: str) -> None:
    data = Own(change)
    reads = (
        lambda: next(iter(TrainStream(data, 0))),
        lambda: next(iter(ValBatches(data, 0, 1))),
        lambda: default_prompt(data),
    )
    for read in reads:
        with pytest.raises(ConfigError, match=said) as refused:
            read()
        assert str(refused.value).startswith("data: Own.batch('")
        assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


def test_labels_that_do_not_count_are_let_through() -> None:
    data = Own(_with("labels_BM", 20, IGNORED_LABEL))
    assert (next(iter(TrainStream(data, 0))).labels_BM == IGNORED_LABEL).sum() == 1


def test_positions_restart_in_each_document() -> None:
    right = CountingPacked(SEQ, 4, 0, vocab_size=60)
    assert next(iter(TrainStream(right, 0))).seqlens is not None
    with pytest.raises(ConfigError, match="positions_1M must count up from 0 in each document"):
        next(iter(TrainStream(OwnPacked(SEQ, 4, 0, vocab_size=60), 0)))


def test_document_lengths_are_a_tuple() -> None:
    batch = CountingPacked(SEQ, 4, 0, vocab_size=60).batch("train", 0)
    assert batch.seqlens is not None
    with pytest.raises(ConfigError, match="seqlens must be a tuple of integers or None, got list"):
        replace(batch, seqlens=list(batch.seqlens))
