"""A run on a mixture: the loss of each source, on one rank and on two, and what a resume keeps."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs import last, rows_of, run, same_weights
from xftrain.commands.builder import build_data
from xftrain.config.compose import compose, validate
from xftrain.errors import ConfigError
from xftrain.interfaces import LossSums
from xftrain.train import val_sums
from xftrain.train.loader import ValBatches
from xftrain.train.same_data import check_data
from xftrain.train.val_sums import ValSums

CPU = torch.device("cpu")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A mixture of one text that repeats and one that does not."""
    found = ["data=mixture", "schedule=constant", "trainer.val_check_interval=2"]
    for name, text in (("easy", "ab"), ("hard", "the quick brown fox jumps over a lazy dog ")):
        (tmp_path / name).mkdir()
        for number in range(12):
            (tmp_path / name / f"{number}.txt").write_text(f"{number}" + text * 20)
        path = f"data.sources.{name}.path={tmp_path / name}"
        found += [path, f"data.sources.{name}.weight={len(text)}"]
    return found


@pytest.mark.parametrize("packing", ["false", "true", "best_fit"])
def test_a_resumed_run_is_the_same_and_has_the_loss_of_each_source(
    tmp_path: Path, words: list[str], packing: str
) -> None:
    words = [*words, f"data.packing={packing}"]
    result = run(tmp_path / "whole", *words, "max_steps=4")
    run(tmp_path / "cut", *words, "max_steps=2")
    again = run(tmp_path / "cut", *words, "max_steps=4", "ckpt=auto")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))
    metrics = result["metrics"]
    losses = {name: metrics[f"val/{name}/loss"] for name in ("easy", "hard")}
    assert losses == {name: again["metrics"][f"val/{name}/loss"] for name in losses}
    assert min(losses.values()) < metrics["val/loss"] < max(losses.values())
    for name in ("easy", "hard"):
        assert 0 < metrics[f"val/{name}/bits_per_byte"]
        assert 0 < metrics[f"val/{name}/bits_per_byte_bigram"]
        assert rows_of(tmp_path / "whole", f"val/{name}/loss").keys() == {2, 4}


def test_padding_counts_in_no_speed(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(99):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number:02}" + "ab" * 3)
    text = ("data=text", f"data.path={tmp_path / 'text'}", "max_steps=2")
    run(tmp_path / "run", *text, "data.packing=best_fit", "seq=16", "batch_tokens=128")
    speed, ms = (
        rows_of(tmp_path / "run", f"speed/{name}")[2] for name in ("tokens_per_s", "step_ms")
    )
    # each row of 16 holds one document of 9
    assert speed * ms / 1e3 == pytest.approx(8 * 9, rel=0.01)


def sums_of(loss: float, num_labels: int, num_correct: int = 0) -> LossSums:
    return LossSums(*map(torch.tensor, (loss, num_labels, num_correct)))


def test_losses_of_sources_are_means_over_the_labels_of_all_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums, other = ValSums(("a", "b", "a", "c")), ValSums(("a", "b", "a", "c"))
    for loss, num_labels, source in ((8.0, 4, "a"), (1.0, 1, "a"), (9.0, 3, "b")):
        sums.add(sums_of(loss, num_labels), 2, source)
    other.add(sums_of(6.0, 5), 3, "a")  # of another rank
    reduced: list[Any] = []
    monkeypatch.setattr(val_sums, "all_reduce_sum", lambda own: reduced.append(own) or own)
    other.metrics(CPU)
    monkeypatch.setattr(val_sums, "all_reduce_sum", lambda own: own + reduced[0])
    metrics = sums.metrics(CPU)
    assert metrics["val/a/loss"] == 15 / 10 and metrics["val/b/loss"] == 3
    assert metrics["val/a/bits_per_byte"] == pytest.approx(15 / 7 / math.log(2))
    assert metrics["val/loss"] == 24 / 13
    assert not any("/c/" in name for name in metrics)  # no batch of it was validated on


def test_batches_of_all_ranks_have_their_source(words: list[str]) -> None:
    data = build_data(validate(compose(*words, "seq=16", "batch_tokens=32")), 2)  # type: ignore[arg-type]
    ranks = [list(ValBatches(data, rank, 2)) for rank in range(2)]
    named = [batch.source for pair in zip(*ranks, strict=False) for batch in pair]
    assert tuple(named) == data.val_sources[: len(named)]  # type: ignore[attr-defined]
    limited = list(ValBatches(data, 1, 2, limit=1))  # takes part with no label
    assert [batch.source for batch in limited] == [None]
    assert [batch.source for batch in ValBatches(data, 0, 2, overfit_batches=1)] == [None]


def test_val_sources_of_a_users_own_class_are_checked() -> None:
    data = build_data(validate(compose("data=counting")))  # type: ignore[arg-type]
    for wrong in (("a",), ["a", "b"], (1, 2)):
        data.val_sources = wrong  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match="val_sources of Counting must be a tuple"):
            check_data(data)
    data.val_sources = ("a", "b")  # type: ignore[attr-defined]
    check_data(data)


def test_a_resume_compares_weights_and_content_but_not_places(
    tmp_path: Path, words: list[str]
) -> None:
    run(tmp_path / "run", *words, "max_steps=1")
    resumed = (f"ckpt={last(tmp_path / 'run')}", "max_steps=2")
    with pytest.raises(ConfigError, match=r"data\.sources\.easy\.weight 2.0 -> 3.0"):
        run(tmp_path / "other", *words, "data.sources.easy.weight=3", *resumed)
    shutil.copytree(tmp_path / "hard", tmp_path / "moved")
    moved = f"data.sources.hard.path={tmp_path / 'moved'}"
    assert run(tmp_path / "new", *words, moved, *resumed)["steps"] == 2
    shutil.copytree(tmp_path / "hard", tmp_path / "more")
    more = (f"data.sources.more.path={tmp_path / 'more'}", "data.sources.more.weight=1")
    with pytest.raises(ConfigError, match="ckpt was trained on other data"):
        run(tmp_path / "third", *words, *more, *resumed)
