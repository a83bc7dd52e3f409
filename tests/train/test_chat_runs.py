"""Runs with `data=chat`: their steps, how they resume, and how their models are used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.commands.test_sample import sample
from tests.data.chats import completion_records, message_records, write_lines
from tests.evaluation.test_evaluate import evaluate
from tests.train.runs import last, model_and_data, rows_of, run, same_weights, weights_of
from xftrain.errors import ConfigError
from xftrain.interfaces import IGNORED_LABEL
from xftrain.model.prompts import sample_text

SEQ = 96
WORDS = (
    "data=chat",
    f"seq={SEQ}",
    "data.val_fraction=0.3",
    "model.dropout=0",
    "schedule=constant",
    "schedule.warmup_steps=0",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=2",
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("chats")
    path = write_lines(folder / "a.jsonl", message_records(40) + completion_records(10))
    return (*WORDS, f"data.path={path}", f"data.cache_dir={folder / 'cache'}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, words: tuple[str, ...]) -> Path:
    """The folder of a run of two steps of eight rows."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, *words, "max_steps=2", "data.batch_size=8", "data.packing=true")
    return folder


def test_packing_changes_no_loss(words: tuple[str, ...]) -> None:
    sums = []
    for packing in ("true", "false"):
        model, data = model_and_data(*words, f"data.packing={packing}", "data.batch_size=6")
        total = torch.zeros(2, dtype=torch.float64)
        for step in range(data.num_val_batches):  # all conversations that are held out
            batch = data.batch("val", step)
            with torch.no_grad():
                logits = model(batch.tokens_BM, batch.seqlens).flatten(0, 1)
            labels = batch.labels_BM.flatten()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            total += torch.tensor([loss.item(), int((labels != IGNORED_LABEL).sum())])
        sums.append(total)
    assert sums[0][1] == sums[1][1] > 100
    assert sums[0][0].item() == pytest.approx(sums[1][0].item(), rel=1e-6)


def test_a_step_is_the_same_in_one_batch_and_in_four(
    tmp_path: Path, words: tuple[str, ...], whole: Path
) -> None:
    parts = ("trainer.accumulate_grad_batches=4", "data.batch_size=2", "data.packing=true")
    run(tmp_path, *words, "max_steps=2", *parts, "trainer.val_check_interval=8")
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        assert rows_of(tmp_path, name) == pytest.approx(rows_of(whole, name), rel=1e-5), name
    expected = weights_of(last(whole))
    for name, weight in weights_of(last(tmp_path)).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-6)


def test_a_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, words: tuple[str, ...], whole: Path
) -> None:
    same = (*words, "data.batch_size=8", "data.packing=true")
    run(tmp_path / "first", *same, "max_steps=1")
    ckpt = last(tmp_path / "first")
    run(tmp_path / "second", *same, "max_steps=2", f"ckpt={ckpt}")
    assert same_weights(last(tmp_path / "second"), last(whole))
    with pytest.raises(ConfigError, match="data.completion_only"):
        run(tmp_path / "x", *same, "max_steps=2", f"ckpt={ckpt}", "data.completion_only=false")


def test_what_was_fine_tuned_is_evaluated_and_answers(
    tmp_path: Path, words: tuple[str, ...], whole: Path
) -> None:
    own = [word for word in words if word.startswith("data")]
    for packing in ("true", "false"):
        sizes = (f"data.packing={packing}", "data.batch_size=3", "data.num_val_batches=99")
        folder = tmp_path / packing
        metrics = evaluate(folder, last(whole), *own, *sizes)["metrics"]
        expected = rows_of(whole, "val/loss")[2]  # of all conversations that are held out
        assert metrics["val/loss"] == pytest.approx(expected, abs=1e-6)
        bits = rows_of(whole, "val/bits_per_byte")[2]
        assert metrics["val/bits_per_byte"] == pytest.approx(bits, abs=1e-6)
    few = ("num_tokens=2", "temperature=0")
    text = sample(tmp_path / "s", last(whole), "prompt='1, 2?'", "template=messages", *few)
    assert text.startswith(sample_text("<|end|>user\n1, 2?<|end|>assistant\n", ""))
    with pytest.raises(ConfigError, match="^template=messages is how a prompt is written"):
        sample(tmp_path / "t", last(whole), "template=messages")


def test_a_run_with_a_trained_vocabulary_is_fine_tuned_with_its_file(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    # a vocabulary that was read back from the file of a run counted as another one
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{number} is a number\n" for number in range(200)))
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    text = ("data=text", f"data.path={corpus}", cache, "data.tokenizer=bpe", "data.vocab_size=300")
    run(tmp_path / "text", "max_steps=1", f"seq={SEQ}", *text)
    ckpt = last(tmp_path / "text")
    file = f"data.tokenizer={ckpt.parent / 'tokenizer.json'}"
    tuned = (*words, f"init_from={ckpt}", "max_steps=1")
    assert run(tmp_path / "chat", *tuned, file)["status"] == "completed"
    found = evaluate(tmp_path / "e", ckpt, "data=text", f"data.path={corpus}", cache, file)
    trained = rows_of(tmp_path / "text", "val/loss")
    assert found["metrics"]["val/loss"] == pytest.approx(list(trained.values())[-1], abs=1e-6)
    with pytest.raises(ConfigError, match="was trained with another vocabulary"):
        run(tmp_path / "other", *tuned)
