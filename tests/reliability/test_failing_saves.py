"""A save that fails leaves no half a file, and is tried again."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.runs import last, result_of, run, weights_of
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import RunError


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("place", "fault"), [("os.fsync", no_space), ("torch.save", no_space)])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_ends_in_a_sentence_and_leaves_no_half_a_file(
    tmp_path, monkeypatch, place, fault, earlier
):
    folder = tmp_path / "checkpoints"
    if earlier:
        run(tmp_path, "max_steps=2")
    before = {path.name: path.read_bytes() for path in folder.glob("*")}
    module, name = place.split(".")
    monkeypatch.setattr({"os": os, "torch": torch}[module], name, fault)
    with pytest.raises(RunError) as failed:
        run(tmp_path, "max_steps=2", "callbacks.checkpoint.every_n_steps=1")
    said = str(failed.value)
    assert str(last(tmp_path)) in said and "free space" in said and "\n" not in said
    result = result_of(tmp_path)
    assert (result["status"], result["error"]) == ("failed", said)
    kept = tmp_path / "former-1" / "checkpoints" if earlier else folder
    assert {path.name: path.read_bytes() for path in kept.glob("*")} == before
    assert list(folder.glob(".*")) == []


def failing_saves(monkeypatch, *which: int) -> None:
    """The saves of these numbers, from 1, find the disk full."""
    fsync, count = os.fsync, itertools.count(1)

    def once(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode) and next(count) in which:
            no_space()
        fsync(handle)

    monkeypatch.setattr(os, "fsync", once)


def test_a_save_that_fails_is_tried_again_at_the_next(tmp_path, monkeypatch, caplog):
    failing_saves(monkeypatch, 2, 3)  # of steps 2 and 3; the first is of step 1
    every = ("max_steps=4", "callbacks.checkpoint.every_n_steps=1", "trainer.val_check_interval=9")
    assert run(tmp_path, *every)["status"] == "completed"
    assert read_checkpoint(last(tmp_path))["global_step"] == 4
    assert "failed in a row: 2 of at most 3" in caplog.text


def test_saves_may_not_fail_for_ever(tmp_path, monkeypatch):
    failing_saves(monkeypatch, *range(2, 99))
    every = ("callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.max_failed_saves=1")
    with pytest.raises(RunError, match="could not be written"):
        run(tmp_path, *every, "trainer.val_check_interval=9")
    assert result_of(tmp_path)["steps"] == 3
    assert read_checkpoint(last(tmp_path))["global_step"] == 1  # as it was


def test_what_a_killed_writer_left_is_removed(tmp_path):
    left = tmp_path / "checkpoints" / ".last.ckpt.1234.partial"
    left.parent.mkdir()
    left.write_bytes(b"half")
    run(tmp_path, "max_steps=1")
    assert not left.exists()


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_are_written_as_safetensors_too(tmp_path, tied):
    run(tmp_path, "max_steps=2", f"model.tie_embeddings={tied}")
    loaded = load_file(tmp_path / "checkpoints" / "weights.safetensors")
    weights = weights_of(last(tmp_path))
    assert ("head.weight" in loaded) != tied
    assert all(torch.equal(loaded[name], weights[name]) for name in loaded)
    assert weights.keys() - loaded.keys() == ({"head.weight"} if tied else set())


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"last\.ckpt could not be written \(FileExistsError"):
        run(tmp_path, "max_steps=1")
