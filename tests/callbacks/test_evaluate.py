"""The loss by position during training: its steps, its figures, and nothing else changed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.train.runs import last, rows_of, run, weights_of

EVERY = ("+callbacks.evaluate.name=evaluate", "+callbacks.evaluate.every_n_steps=2")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "loss_by_position.csv").open() as file:
        return list(csv.DictReader(file))


def test_it_evaluates_every_n_steps_and_changes_no_step(tmp_path: Path) -> None:
    words = ("max_steps=5", "model.dropout=0.1", "trainer.val_check_interval=5")
    plain = run(tmp_path / "plain", *words)
    found = run(tmp_path / "run", *words, *EVERY, "+callbacks.evaluate.num_batches=100")
    assert found["metrics"]["val/loss"] == plain["metrics"]["val/loss"]
    weights = weights_of(last(tmp_path / "plain"))
    for name, weight in weights_of(last(tmp_path / "run")).items():
        assert (weight == weights[name]).all(), name
    table = rows(tmp_path / "run")
    assert {row["step"] for row in table} == {"2", "4", "5"}
    at_end = [row for row in table if row["step"] == "5"]
    labels = sum(int(row["labels"]) for row in at_end)
    loss = sum(int(row["labels"]) * float(row["loss"]) for row in at_end) / labels
    assert loss == pytest.approx(found["metrics"]["val/loss"], abs=1e-6)
    assert rows_of(tmp_path / "run", "train/loss")


def test_a_resumed_run_has_all_rows(tmp_path: Path) -> None:
    run(tmp_path / "run", *EVERY, "max_steps=2")
    run(tmp_path / "run", *EVERY, "max_steps=4", "ckpt=auto")
    assert {row["step"] for row in rows(tmp_path / "run")} == {"2", "4"}
