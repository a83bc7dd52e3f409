"""Ranks validate on the same batches together as one rank does alone, also with a limit."""

from __future__ import annotations

import pytest
import torch

from xftrain.data.counting import Counting
from xftrain.interfaces import IGNORED_LABEL
from xftrain.train.loader import ValBatches


def counted(rank: int, world_size: int, *, limit: int | None, num_batches: int = 4) -> list[bytes]:
    data = Counting(16, 2, 0, world_size=world_size, num_val_batches=num_batches)
    batches = ValBatches(data, rank, world_size, limit=limit)
    held = list(batches)
    assert len(held) == len(batches)
    return [
        batch.tokens_BM.numpy().tobytes()
        for batch in held
        if (batch.labels_BM != IGNORED_LABEL).any()
    ]


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_a_limit_is_of_all_ranks_together(limit: int | None, world_size: int) -> None:
    # each rank used as many, so that val/loss depended on the number of devices
    of_ranks = [counted(rank, world_size, limit=limit) for rank in range(world_size)]
    together = sorted(batch for rank in of_ranks for batch in rank)
    assert together == sorted(counted(0, 1, limit=limit))
    assert len(together) == min(limit or 4, 4)


def test_each_rank_takes_part_though_the_limit_leaves_it_no_batch() -> None:
    data = Counting(16, 2, 0, world_size=2)
    (batch,) = ValBatches(data, rank=1, world_size=2, limit=1)
    assert batch.tokens_BM.shape == data.batch("val", 0).tokens_BM.shape
    assert (batch.labels_BM == IGNORED_LABEL).all()
    assert (data.batch("val", 0).labels_BM != IGNORED_LABEL).any()  # which is unchanged
    assert len(ValBatches(data, rank=1, world_size=2, limit=0)) == 0


def test_each_rank_validates_on_the_training_batches_that_it_overfits() -> None:
    data = Counting(16, 2, 0, world_size=2)
    held = list(ValBatches(data, rank=1, world_size=2, overfit_batches=3, limit=2))
    expected = [data.batch("train", step, rank=1).tokens_BM for step in range(2)]
    assert all(torch.equal(b.tokens_BM, e) for b, e in zip(held, expected, strict=True))
