"""Batches without any label, which the interface allows: never 0 / 0, and never in silence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.models import random_tokens
from tests.train.runs import last, result_of, rows_of, run, same_weights, weights_of
from xftrain.checkpoint.file import read_checkpoint
from xftrain.data.counting import Counting
from xftrain.errors import ConfigError, RunError
from xftrain.interfaces import IGNORED_LABEL, Batch, LossSums
from xftrain.loss.chunked import Chunked
from xftrain.loss.full import Full
from xftrain.loss.fused import Fused
from xftrain.train import val_sums
from xftrain.train.nonfinite import NonFiniteGuard
from xftrain.train.val_sums import ValSums

CPU = torch.device("cpu")


@pytest.fixture
def without_labels(monkeypatch):
    """Masks all labels of the batches with these indices, or of all batches."""

    def take(split: str, numbers: tuple[int, ...] | None = None) -> None:
        batch = Counting.batch

        def emptied(self, of, step, rank=0) -> Batch:
            made = batch(self, of, step, rank)
            if of != split or (numbers is not None and step not in numbers):
                return made
            return replace(made, labels_BM=torch.full_like(made.labels_BM, IGNORED_LABEL))

        monkeypatch.setattr(Counting, "batch", emptied)

    return take


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [Full(), Chunked(chunk_tokens=3), Fused(chunk_tokens=3)])
def test_a_loss_of_no_labels_is_0_and_so_are_its_gradients(loss, dtype):
    x = torch.randn(8, 4, dtype=dtype, requires_grad=True)
    weight = torch.randn(6, 4, dtype=dtype, requires_grad=True)
    labels = torch.full_like(random_tokens(8), IGNORED_LABEL)
    sums = loss(x, weight, labels, with_accuracy=True)
    assert (float(sums.loss.detach()), int(sums.num_labels), int(sums.num_correct)) == (0.0, 0, 0)
    sums.loss.backward()
    assert not x.grad.any() and not weight.grad.any()


WORDS = ("schedule=constant", "schedule.warmup_steps=0", "trainer.log_every_n_steps=1")


@pytest.mark.parametrize(
    "words",
    [(), ("optim=adafactor",), ("loss=fused", "trainer.accumulate_grad_batches=2")],
    ids=" ".join,
)
def test_a_step_without_labels_is_left_out_and_said(tmp_path, caplog, without_labels, words):
    # it was 0 / 0 or moved the weights by decay and moments, and its record was an error
    num_batches = 2 if len(words) == 2 else 1
    run(tmp_path / "two", *WORDS, *words, "max_steps=2")
    without_labels("train", tuple(range(2 * num_batches, 3 * num_batches)))
    result = run(tmp_path / "three", *WORDS, *words, "max_steps=3")
    assert result["status"] == "completed"
    assert same_weights(last(tmp_path / "two"), last(tmp_path / "three"))
    states = [
        read_checkpoint(last(tmp_path / name))["optimizer_states"][0]["state"]
        for name in ("two", "three")
    ]
    for number, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(value, states[1][number][key]), key
    assert "no label of their batches counts (all are IGNORED_LABEL, -100): step 3" in caplog.text
    assert list(rows_of(tmp_path / "three", "train/loss")) == [1, 2]
    assert rows_of(tmp_path / "three", "train/grad_norm")[3] == 0.0
    assert list(rows_of(tmp_path / "three", "optim/lr")) == [1, 2, 3]


def test_steps_after_one_without_labels_are_made(tmp_path, without_labels):
    without_labels("train", (2,))
    run(tmp_path / "three", *WORDS, "max_steps=3")
    run(tmp_path / "four", *WORDS, "max_steps=4")
    assert not same_weights(last(tmp_path / "three"), last(tmp_path / "four"))
    assert all(
        torch.isfinite(weight).all() for weight in weights_of(last(tmp_path / "four")).values()
    )


def test_a_batch_without_labels_adds_nothing_to_its_step(tmp_path, without_labels):
    # NaN, for which the run was told to lower its learning rate
    words = ("trainer.log_every_n_steps=1", "max_steps=1")
    without_labels("train", (1,))
    run(tmp_path / "one", *words)
    run(tmp_path / "two", *words, "trainer.accumulate_grad_batches=2")
    for name in ("train/loss", "train/accuracy", "train/grad_norm"):
        one, two = (rows_of(tmp_path / folder, name) for folder in ("one", "two"))
        assert one == pytest.approx(two, rel=1e-5)


def test_a_run_without_any_label_trains_nothing_and_says_so(tmp_path, without_labels):
    without_labels("train")
    with pytest.raises(RunError, match="nothing was trained: none of the 6 steps has a label"):
        run(tmp_path)
    assert result_of(tmp_path)["status"] == "failed"


def test_a_validation_without_labels_is_refused_before_training(tmp_path, without_labels):
    # ZeroDivisionError after the steps before the first validation
    without_labels("val")
    with pytest.raises(ConfigError, match="no validation batch has a label that counts"):
        run(tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_validation_batches_that_are_left_out_are_no_help(tmp_path, without_labels):
    words = ("data.num_val_batches=3", "max_steps=1")
    without_labels("val", (0, 1))
    with pytest.raises(ConfigError, match="or raise trainer.limit_val_batches"):
        run(tmp_path / "first", *words, "trainer.limit_val_batches=2")
    assert run(tmp_path / "all", *words)["metrics"]["val/loss"] > 0


def test_a_validation_is_weighted_by_labels_and_may_have_none_on_a_rank(monkeypatch):
    def of(loss: float, num_labels: int, num_correct: int) -> LossSums:
        return LossSums(*map(torch.tensor, (loss, num_labels, num_correct)))

    sums = ValSums()
    for loss, num_labels, num_correct in ((8.0, 4, 1), (0.0, 0, 0), (1.0, 2, 2)):
        sums.add(of(loss, num_labels, num_correct), None)
    metrics = sums.metrics(CPU)
    assert (metrics["val/loss"], metrics["val/accuracy"]) == (9.0 / 6, 3 / 6)
    sums.add(of(0.0, 0, 0), None)
    with pytest.raises(RunError, match="no validation batch has a label"):
        sums.metrics(CPU)
    sums.add(of(0.0, 0, 0), None)
    other = torch.tensor([3.0, 2.0, 1.0, 8.0])
    monkeypatch.setattr(val_sums, "all_reduce_sum", lambda own: own + other)
    assert sums.metrics(CPU)["val/loss"] == 1.5


def test_steps_without_labels_are_no_fault_of_the_numbers():
    # they would use up max_skipped_steps, or with on_nonfinite=stop end all later steps
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    guard = NonFiniteGuard(on_nonfinite="stop")
    flags = []
    for num_labels in (3, 0, 3):
        sums = LossSums(torch.zeros(()), torch.tensor(num_labels), None)
        guard.check_step(optimizer, sums, torch.zeros(()))
        flags.append((float(optimizer.found_inf), float(guard.is_bad)))
    assert flags == [(0.0, 0.0), (1.0, 0.0), (0.0, 0.0)]
    sums = LossSums(torch.tensor(torch.nan), torch.tensor(0), None)
    guard.check_step(optimizer, sums, torch.zeros(()))
    assert float(guard.is_bad) == 1.0
