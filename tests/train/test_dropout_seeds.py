"""Dropout draws other numbers in each batch, also within a step, and on each rank."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tests.train.runs import run
from xftrain.train.dropout_seed import dropout_seed
from xftrain.train.module import TrainingModule


def test_each_batch_of_a_step_has_a_seed_of_its_own(tmp_path, monkeypatch):
    # seeded by the optimizer's step, the batches of a step would drop the same numbers
    seeds, forward = [], TrainingModule.forward_loss

    def noted(module, batch, *, with_accuracy):
        if module.training:
            seeds.append(torch.initial_seed())
        return forward(module, batch, with_accuracy=with_accuracy)

    monkeypatch.setattr(TrainingModule, "forward_loss", noted)
    run(tmp_path, "trainer.accumulate_grad_batches=3", "max_steps=2", "seed=7")
    assert seeds == [dropout_seed(7, batch, 0) for batch in range(6)]
    assert len(set(seeds)) == 6


def test_each_rank_has_a_seed_of_its_own():
    seeds = []
    for rank in range(4):
        module = SimpleNamespace(
            device=torch.device("cpu"), seed=7, global_rank=rank, data_offset=0
        )
        TrainingModule.on_train_batch_start(module, None, 5)
        seeds.append(torch.initial_seed())
    assert seeds == [dropout_seed(7, 5, rank) for rank in range(4)]
    assert len(set(seeds)) == 4


def test_a_seed_depends_on_all_that_it_is_of():
    seeds = {
        dropout_seed(seed, batch, rank)
        for seed in range(3)
        for batch in range(12)
        for rank in range(12)
    }
    assert len(seeds) == 3 * 12 * 12
