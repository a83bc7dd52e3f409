"""Compiled runs learn what runs that are not compiled learn."""

from __future__ import annotations

import pytest

from tests.training.runs import run
from xftrain.errors import ConfigError

GPU = ("trainer=gpu", "model.attn=sdpa", "trainer.precision=bf16-mixed", "model.num_layers=2")


@pytest.mark.cuda
@pytest.mark.parametrize(
    "how",
    [
        ["compile=true"],
        ["compile=cudagraphs"],
        ["compile=cudagraphs", "loss=full"],
        ["compile=true", "model.activation_budget=0.3"],
        ["compile=true", "model.activation_checkpointing=true"],
    ],
    ids=" ".join,
)
def test_a_compiled_run_learns_the_same(tmp_path, how):
    # validation in the midst of it is another graph, and the last batch is not the last of a graph
    longer = ("max_steps=30", "trainer.val_check_interval=10", "optim.lr=0.01")
    plain = run(tmp_path / "plain", *GPU, *longer)["metrics"]
    compiled = run(tmp_path / "compiled", *GPU, *longer, *how)["metrics"]
    assert compiled["val/loss"] == pytest.approx(plain["val/loss"], rel=0.03)
    assert compiled["train/grad_norm"] == pytest.approx(plain["train/grad_norm"], rel=0.2)
    assert plain["val/loss"] < 3.0  # of log 64 = 4.16 at the start


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["trainer.accumulate_grad_batches=2"], "accumulate_grad_batches must be 1 with"),
        (["trainer.devices=2"], "devices must be 1 with"),
        ([], "needs a CUDA GPU, got cpu"),
    ],
)
def test_graphs_are_refused_where_they_cannot_be(tmp_path, words, why):
    with pytest.raises(ConfigError, match=why):
        run(tmp_path, "compile=cudagraphs", *words)


def test_a_budget_is_refused_where_nothing_keeps_it(tmp_path):
    with pytest.raises(ConfigError, match="activation_budget is kept by compiled blocks alone"):
        run(tmp_path, "model.activation_budget=0.5")
