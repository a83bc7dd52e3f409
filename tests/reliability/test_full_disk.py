"""A disk that is full ends a write in a sentence, wherever in the file it happens.

The system's limit on the size of files stands for the disk: torch answers both in the same ways.
"""

from __future__ import annotations

import errno
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.train.runs import last, result_of, run
from xftrain.benchmark.rows import RowStore
from xftrain.checkpoint.file import AtomicCheckpointIO, read_checkpoint
from xftrain.checkpoint.safetensors_file import export_weights
from xftrain.errors import RunError


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.fault("full disk")
@pytest.mark.parametrize("limit", [0, 1, 63, 4096, 8192, 40960, 81920, 122880, 163840, 196000])
def test_a_checkpoint_for_which_there_is_no_room_leaves_the_one_before(tmp_path, limit):
    # torch has several words of its own for it, as "unexpected pos 128 vs 22"
    path, weights = tmp_path / "last.ckpt", {f"w{i}": torch.randn(40, 40) for i in range(30)}
    path.write_bytes(b"the one before")
    with pytest.raises(RunError) as failed, files_of_at_most(limit):
        AtomicCheckpointIO().save_checkpoint({"state_dict": weights}, path)
    said = str(failed.value)
    assert f"{path} could not be written (OSError: [Errno {errno.EFBIG}] File too large): " in said
    assert "free space" in said and "\n" not in said
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"the one before"]


@pytest.mark.fault("full disk")
@pytest.mark.parametrize("limit", [0, 9, 4096, 15000])
def test_weights_for_which_there_is_no_room_are_not_there(tmp_path, limit):
    with pytest.raises(RunError, match="could not be written.*free space"):
        with files_of_at_most(limit):
            export_weights({"w": torch.randn(64, 64)}, tmp_path / "weights.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("full disk")
def test_a_run_goes_on_where_a_save_finds_no_room(tmp_path, monkeypatch, caplog):
    save = AtomicCheckpointIO.save_checkpoint

    def once(self, checkpoint, path, storage_options=None):
        with files_of_at_most(100_000 if checkpoint["global_step"] == 2 else 2**30):
            save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", once)
    every = ("callbacks.checkpoint.every_n_steps=2", "trainer.val_check_interval=9", "max_steps=4")
    assert run(tmp_path, *every)["status"] == "completed"
    assert "the next save tries again" in caplog.text
    assert read_checkpoint(last(tmp_path))["global_step"] == 4


@pytest.mark.fault("full disk")
@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS"])
def test_whatever_file_it_is_the_sentence_has_the_systems_reason(tmp_path, monkeypatch, number):
    reason = OSError(getattr(errno, number), f"reason {number}", "metrics.csv")

    def fail(*_: object, **__: object) -> None:
        raise reason

    monkeypatch.setattr("xftrain.logger.csv.CSV.log_metrics", fail)
    with pytest.raises(RunError, match=f"reason {number}: 'metrics.csv'.*free space") as failed:
        run(tmp_path, "max_steps=1")
    assert result_of(tmp_path)["error"] == str(failed.value)


@pytest.mark.fault("full disk")
def test_a_row_for_which_there_is_no_room_is_said(tmp_path):
    store = RowStore(tmp_path, {})
    store.add({"sweep": "s", "cell": "a", "status": "ok"})
    before = (tmp_path / "rows.jsonl").read_bytes()
    for cell in ("a", "b"):  # in the place of another one, and a new one
        with pytest.raises(RunError, match=r"rows\.jsonl could not be written"):
            with files_of_at_most(len(before)):
                store.add({"sweep": "s", "cell": cell, "status": "ok", "more": "x"})
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.fault("full disk")
def test_the_thread_that_writes_events_says_nothing_beside_the_sentence(tmp_path, monkeypatch):
    # its traceback stood before the sentence
    said: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    from tensorboard.summary.writer.record_writer import RecordWriter

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", fail)
    with pytest.raises(RunError, match="No space left on device.*free space"):
        run(tmp_path, "max_steps=1")
    assert said == []
