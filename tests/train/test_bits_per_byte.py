"""Bits per byte of a step are of all its batches and ranks, as its loss is."""

from __future__ import annotations

import math

import pytest
import torch

from tests.train.runs import loss_of, model_and_data, rows_of, run
from xftrain.callbacks import metrics
from xftrain.interfaces import IGNORED_LABEL


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog.\n\n" * 60)
    return ("data=text", f"data.path={path}", "trainer.log_every_n_steps=1", "max_steps=2")


def test_they_are_of_all_batches_of_a_step(tmp_path, text):
    # bytes of the last batch were set against the loss of that batch alone
    words = (*text, "data.packing=true", "trainer.accumulate_grad_batches=3", "max_steps=1")
    run(tmp_path / "run", *words)
    model, data = model_and_data(*words)
    nats, num_bytes = 0.0, 0
    with torch.no_grad():
        for batch in (data.batch("train", step) for step in range(3)):
            nats += float(loss_of(model, batch)) * int((batch.labels_BM != IGNORED_LABEL).sum())
            num_bytes += data.num_label_bytes(batch.labels_BM)
    expected = nats / math.log(2) / num_bytes
    assert rows_of(tmp_path / "run", "train/bits_per_byte") == pytest.approx({1: expected})


def test_they_are_of_all_ranks(tmp_path, text, monkeypatch):
    run(tmp_path / "one", *text)
    monkeypatch.setattr(metrics, "all_reduce_sum", lambda own: 4 * own)  # a rank of more text
    run(tmp_path / "more", *text)
    one, more = (rows_of(tmp_path / name, "train/bits_per_byte") for name in ("one", "more"))
    assert more == pytest.approx({step: value / 4 for step, value in one.items()})


def test_they_are_the_same_where_steps_are_replayed(tmp_path, text, graphs_on_cpu):  # noqa: F811
    run(tmp_path / "plain", *text, "max_steps=5")
    run(tmp_path / "graphed", *text, "max_steps=5", "compile=cudagraphs")
    plain, graphed = (
        rows_of(tmp_path / name, "train/bits_per_byte") for name in ("plain", "graphed")
    )
    assert graphed == pytest.approx(plain, rel=1e-5)
