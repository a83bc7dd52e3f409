"""`--config-name evaluate`: the loss of a run, and where it comes from."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

import xftrain
from tests.models import gpt
from tests.train.runs import last, run
from xftrain.errors import ConfigError
from xftrain.evaluation.by_position import LossByPosition
from xftrain.evaluation.scores import parts_of, score
from xftrain.interfaces import IGNORED_LABEL, Batch, positions_of

TEXT = ("data=text", "seq=32", "batch_tokens=128", "max_steps=3", "data.num_val_batches=3")


def evaluate(run_dir: Path, ckpt: Path, *words: str) -> dict[str, Any]:
    cfg = xftrain.compose(f"ckpt={ckpt}", "accelerator=cpu", *words, config_name="evaluate")
    result: dict[str, Any] = xftrain.run(cfg, run_dir)
    return result


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(60):
        text = f"Document {number}. " + "It says this, and that. " * (number % 7)
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.mark.parametrize("packing", ["false", "true", "best_fit"])
def test_the_loss_is_that_of_the_run_however_much_is_computed_at_once(
    tmp_path: Path, corpus: Path, packing: str
) -> None:
    data = (f"data.path={corpus}", f"data.packing={packing}")
    trained = run(tmp_path / "run", *TEXT, *data)
    for max_tokens in (1, 70, 100_000):
        words = ("data=text", *data, "data.num_val_batches=3", f"max_tokens={max_tokens}")
        found = evaluate(tmp_path / str(max_tokens), last(tmp_path / "run"), *words)
        for name in ("val/loss", "val/accuracy", "val/bits_per_byte"):
            assert found["metrics"][name] == pytest.approx(trained["metrics"][name], abs=1e-6)
    with (tmp_path / "1" / "loss_by_position.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = sum(int(row["labels"]) for row in rows)
    loss = sum(int(row["labels"]) * float(row["loss"]) for row in rows) / labels
    assert loss == pytest.approx(trained["metrics"]["val/loss"], abs=1e-6)
    assert (tmp_path / "1" / "loss_by_position.png").stat().st_size > 1000
    with (tmp_path / "70" / "loss_by_document.csv").open() as file:
        documents = list(csv.DictReader(file))
    assert sum(int(row["labels"]) for row in documents) == labels
    losses = [float(row["loss"]) for row in documents]
    assert losses == sorted(losses, reverse=True)


def test_numbers_are_evaluated_too_and_another_vocabulary_is_refused(
    tmp_path: Path, corpus: Path
) -> None:
    trained = run(tmp_path / "run", "max_steps=3")
    found = evaluate(tmp_path / "e", last(tmp_path / "run"))
    assert found["metrics"]["val/loss"] == pytest.approx(trained["metrics"]["val/loss"], abs=1e-6)
    assert found["steps"] == 0 and "val/perplexity" in found["metrics"]
    with pytest.raises(ConfigError, match="data must have the vocabulary of ckpt.* data=counting"):
        evaluate(tmp_path / "f", last(tmp_path / "run"), "data=text", f"data.path={corpus}")


def test_a_checkpoint_must_say_its_sizes(tmp_path: Path, monkeypatch: Any) -> None:
    from xftrain.checkpoint.file import read_checkpoint

    run(tmp_path / "run", "max_steps=1")
    held = read_checkpoint(last(tmp_path / "run"))
    held["xftrain"]["config"]["seq"] = "x"
    monkeypatch.setattr("xftrain.commands.trained_model.read_checkpoint", lambda path: held)
    with pytest.raises(ConfigError, match="ckpt does not say which seq its run had: give seq"):
        evaluate(tmp_path / "e", last(tmp_path / "run"))


def test_parts_of_a_packed_batch_hold_each_document_once() -> None:
    seqlens = (3, 5, 1, 9, 2)
    tokens_BM = torch.arange(20)[None]
    labels_BM = tokens_BM.clone()
    labels_BM[0, 4] = IGNORED_LABEL
    batch = Batch(tokens_BM, labels_BM, positions_of(20, seqlens), seqlens)
    parts = list(parts_of(batch, 8))
    assert [part.seqlens for part in parts] == [(3, 5), (1,), (9,), (2,)]
    assert torch.equal(torch.cat([part.tokens_BM for part in parts], dim=1), tokens_BM)
    model = gpt().eval()
    whole = score(model, batch)
    together = [score(model, part) for part in parts]
    assert len(whole.loss_N) == 19
    assert torch.allclose(torch.cat([s.loss_N for s in together]), whole.loss_N, atol=1e-5)
    assert torch.equal(torch.cat([s.positions_N for s in together]), whole.positions_N)


def test_buckets_double_and_count_every_label() -> None:
    model, by_position = gpt().eval(), LossByPosition()
    for size in (5, 20):
        tokens_BM = torch.randint(64, (2, size))
        batch = Batch(tokens_BM, tokens_BM, positions_of(size, None))
        by_position.add(score(model, batch))
    found = [(b.first, b.last, b.num_labels) for b in by_position.buckets()]
    assert found == [
        (0, 0, 4),
        (1, 1, 4),
        (2, 3, 8),
        (4, 7, 2 * 1 + 2 * 4),
        (8, 15, 16),
        (16, 19, 8),
    ]
