"""When the callback saves and exports, with a stand-in for Lightning's trainer; nothing runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xftrain.callbacks import checkpoint as callbacks
from xftrain.callbacks.checkpoint import Checkpoint, validation_follows, within_step
from xftrain.checkpoint import newest
from xftrain.errors import RunError
from xftrain.train import distributed

MODULE: Any = SimpleNamespace(
    model=torch.nn.Linear(2, 2), guard=SimpleNamespace(check=lambda module: None)
)


@pytest.fixture(autouse=True)
def _any_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "training_module", lambda module: module)


def _trainer(folder: Path, step: int, **facts: Any) -> Any:
    given = {"is_global_zero": True, "callbacks": [], "lightning_module": MODULE}
    given |= {"limit_val_batches": 1.0, "should_stop": False, **facts}
    return SimpleNamespace(default_root_dir=str(folder), global_step=step, **given)


@pytest.mark.parametrize(("given", "due"), [(None, [100, 200]), (3, [3, 6, 9, 99])])
def test_the_last_one_is_due_every_so_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int | None, due: list[int]
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(Checkpoint, "_is_affordable", lambda self: True)
    monkeypatch.setattr(
        Checkpoint, "_save_last", lambda self, trainer: saved.append(trainer.global_step)
    )
    checkpoint = Checkpoint(every_n_steps=given)
    for step in (1, 3, 4, 6, 9, 99, 100, 101, 200):
        checkpoint._saved_step = 1  # as of an earlier save
        checkpoint._save_if_due(_trainer(tmp_path, step))
    assert saved == due
    checkpoint._saved_step = due[0]
    checkpoint._save_if_due(_trainer(tmp_path, due[0]))
    assert saved == due  # it is on the disk already


@pytest.mark.parametrize("is_first", [True, False])
def test_weights_are_exported_once_by_one_rank_and_only_after_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    exported: list[Path] = []
    monkeypatch.setattr(callbacks, "export_weights", lambda weights, path: exported.append(path))
    checkpoint = Checkpoint()
    checkpoint._saved_step = 0
    checkpoint.on_train_end(_trainer(tmp_path, 0), MODULE)
    assert exported == []  # nothing was trained
    checkpoint._saved_step = 5
    for _ in range(2):  # the last save and Lightning both call it
        checkpoint.on_train_end(_trainer(tmp_path, 5, is_global_zero=is_first), MODULE)
    assert exported == [tmp_path / "checkpoints" / "weights.safetensors"] * is_first


@pytest.mark.parametrize("is_first", [True, False])
def test_each_rank_ends_with_the_sentence_of_the_one_that_could_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    def save(*_: Any, **__: Any) -> None:
        if is_first:
            raise RunError("disk full") from OSError(28, "No space left on device")

    monkeypatch.setattr(distributed, "broadcast_from_rank_0", lambda value: "disk full")
    strategy = SimpleNamespace(barrier=lambda: None)
    trainer = _trainer(tmp_path, 5, save_checkpoint=save, strategy=strategy)
    checkpoint = Checkpoint(max_failed_saves=2)
    assert [checkpoint._save(trainer, "last.ckpt") for _ in range(2)] == [False, False]
    with pytest.raises(RunError, match="disk full") as third:
        checkpoint._save(trainer, "last.ckpt")
    assert isinstance(third.value.__cause__, OSError) == is_first
    with pytest.raises(RunError, match="disk full"):
        Checkpoint()._save(trainer, "last.ckpt", may_fail=False)


@pytest.mark.parametrize(
    ("batch", "accumulate", "is_within"),
    [(0, 1, False), (7, 1, False), (0, 2, True), (1, 2, False), (3, 2, False), (4, 3, True)],
)
def test_a_step_is_whole_after_all_of_its_batches(
    tmp_path: Path, batch: int, accumulate: int, is_within: bool
) -> None:
    loop = SimpleNamespace(total_batch_idx=batch)
    facts = {"fit_loop": loop, "accumulate_grad_batches": accumulate, "val_check_interval": 4.0}
    assert within_step(_trainer(tmp_path, 1, **facts)) is is_within
    assert validation_follows(_trainer(tmp_path, 1, **facts)) == (batch in (3, 7))


@pytest.mark.parametrize(
    ("folder_id", "file_id", "is_of"),
    [("a", "a", True), ("a", None, True), (None, "b", True), (None, None, True), ("a", "b", False)],
)
def test_a_checkpoint_of_another_run_is_left_alone_with_a_word(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    folder_id: str | None,
    file_id: str | None,
    is_of: bool,
) -> None:
    monkeypatch.setattr(newest, "run_id_of", lambda folder: folder_id)
    monkeypatch.setattr(newest, "run_id", lambda path: file_id)
    assert newest._belongs_to_run(tmp_path, tmp_path / "last.ckpt") == is_of
    assert ("belongs to another run than" in caplog.text) == (not is_of)
