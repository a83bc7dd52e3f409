"""When a checkpoint is saved, what it is newer than, and what outlasts a power cut."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file

from tests.train.runs import last, model_and_data, rows_of, run, weights_of
from xftrain.checkpoint.file import AtomicCheckpointIO, read_checkpoint
from xftrain.checkpoint.newest import checkpoint_to_load
from xftrain.checkpoint.plain_values import MAX_TIME_NS
from xftrain.errors import ConfigError, RunError
from xftrain.train.module import TrainingModule

EVERY = ("callbacks.checkpoint.every_n_steps=2", "max_steps=7")


def clock(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: seconds * 10**9)


def saved_at(path: Path) -> int:
    return read_checkpoint(path)["xftrain"]["saved_at"]


def test_the_last_save_is_the_newest_though_the_clock_goes_back(tmp_path, monkeypatch):
    # ckpt=auto went back to the run of before, and began again from there at every start
    clock(monkeypatch, 2_000_000_000)
    run(tmp_path, *EVERY, "max_steps=3")
    first = saved_at(last(tmp_path))
    clock(monkeypatch, 1_000_000_000)
    run(tmp_path, *EVERY, "ckpt=auto")
    assert saved_at(last(tmp_path)) > first
    assert checkpoint_to_load("auto", tmp_path) == last(tmp_path)
    run(tmp_path / "elsewhere", *EVERY, "max_steps=8", f"ckpt={last(tmp_path)}")
    assert saved_at(last(tmp_path / "elsewhere")) > saved_at(last(tmp_path))


def test_what_resumes_a_checkpoint_of_the_last_time_there_is_can_be_resumed(tmp_path):
    # its own were later than any time, so that none could be read
    run(tmp_path, *EVERY, "max_steps=3")
    held = read_checkpoint(last(tmp_path))
    held["xftrain"]["saved_at"] = MAX_TIME_NS
    torch.save(held, last(tmp_path))
    run(tmp_path, *EVERY, "max_steps=5", "ckpt=auto")
    assert saved_at(last(tmp_path)) == MAX_TIME_NS
    assert checkpoint_to_load("auto", tmp_path) == last(tmp_path)
    run(tmp_path, *EVERY, "ckpt=auto")
    assert read_checkpoint(last(tmp_path))["global_step"] == 7


def test_a_save_that_could_not_be_read_again_ends_the_run(tmp_path):
    run(tmp_path, *EVERY, "max_steps=3")
    held = read_checkpoint(last(tmp_path))
    held["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] = 2**53 - 1
    torch.save(held, last(tmp_path))
    with pytest.raises(RunError, match="could not be read again"):
        run(tmp_path, *EVERY, "ckpt=auto")
    assert read_checkpoint(last(tmp_path))["global_step"] == 3


def test_it_is_newer_than_what_lies_in_the_folder_of_a_run_that_was_given_up(tmp_path, monkeypatch):
    clock(monkeypatch, 1_000_000_000)
    run(tmp_path / "other", *EVERY, "max_steps=3")
    clock(monkeypatch, 2_000_000_000)
    run(tmp_path / "run", *EVERY)
    former = tmp_path / "run" / "checkpoints" / "former.ckpt"
    former.write_bytes(last(tmp_path / "run").read_bytes())
    clock(monkeypatch, 1_500_000_000)
    run(tmp_path / "run", *EVERY, "max_steps=5", f"ckpt={last(tmp_path / 'other')}")
    assert read_checkpoint(last(tmp_path / "run"))["global_step"] == 5
    assert checkpoint_to_load("auto", tmp_path / "run") == last(tmp_path / "run")


def test_of_two_of_one_time_the_later_step_is_the_newer(tmp_path):
    run(tmp_path, *EVERY, "max_steps=4")
    content = read_checkpoint(last(tmp_path))
    for name, step in {"a.ckpt": 2, "b.ckpt": 4, "c.ckpt": 3}.items():
        torch.save({**content, "global_step": step}, last(tmp_path).with_name(name))
    for path in (tmp_path / "checkpoints").glob("[lbp]*t.ckpt"):
        path.unlink()
    assert checkpoint_to_load("auto", tmp_path) == last(tmp_path).with_name("b.ckpt")


def test_the_save_of_a_step_with_a_validation_comes_after_it(tmp_path, monkeypatch):
    # a run that resumed from a save before it never made it
    class PowerCut(Exception):
        pass

    def cut(self: Any, *_: Any) -> None:
        raise PowerCut

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(TrainingModule, "validation_step", cut)
        run(tmp_path, *EVERY, "trainer.val_check_interval=4")
    assert read_checkpoint(last(tmp_path))["global_step"] == 2
    run(tmp_path, *EVERY, "trainer.val_check_interval=4", "ckpt=auto")
    assert list(rows_of(tmp_path, "val/loss")) == [4, 7]


def test_a_resumed_run_knows_the_loss_to_beat(tmp_path):
    # with a learning rate far too high, it gets worse from there
    validated = (*EVERY, "trainer.val_check_interval=1")
    run(tmp_path, *validated, "max_steps=4", "schedule.warmup_steps=1")
    best = tmp_path / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    run(tmp_path, *validated, "ckpt=auto", "optim.lr=5", "schedule.warmup_steps=1")
    losses = rows_of(tmp_path, "val/loss")
    assert min(losses[step] for step in (5, 6, 7)) > min(losses[step] for step in (1, 2, 3, 4))
    assert best.read_bytes() == before
    held = read_checkpoint(last(tmp_path))["callbacks"]["Checkpoint"]
    assert held == {"best_loss": min(losses.values())}


def test_a_run_in_another_folder_has_a_best_checkpoint_of_its_own(tmp_path):
    val = ("trainer.val_check_interval=2", *EVERY)
    run(tmp_path / "first", *val, "max_steps=4")
    worse = ("optim.lr=3.0", "max_steps=6", f"ckpt={last(tmp_path / 'first')}")
    run(tmp_path / "second", *val, *worse)
    best = read_checkpoint(tmp_path / "second" / "checkpoints" / "best.ckpt")
    assert best["global_step"] > 4
    first = read_checkpoint(tmp_path / "first" / "checkpoints" / "best.ckpt")
    assert best["callbacks"]["Checkpoint"] != first["callbacks"]["Checkpoint"]


def test_a_checkpoint_is_on_the_disk_before_and_after_it_has_its_name(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def note_replace(path: Path, target: Path) -> Path:
        done.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(3)}, tmp_path / "last.ckpt")
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_alone_load_strictly(tmp_path, tied):
    # without the head, that of a tied model did not
    options = ("max_steps=2", f"model.tie_embeddings={tied}")
    run(tmp_path, *options)
    path, weights = tmp_path / "checkpoints" / "weights.safetensors", weights_of(last(tmp_path))
    model, _ = model_and_data(*options)
    model.load_state_dict(load_file(path))
    again, _ = model_and_data(*options)
    assert load_model(again, path) == (set(), [])
    assigned, _ = model_and_data(*options)
    assigned.load_state_dict(load_file(path), assign=True)
    for one in (model, again, assigned):
        assert all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())
        assert (one.head.weight is one.embed.weight) == tied


def test_a_weight_that_is_missing_is_still_an_error(tmp_path):
    model, _ = model_and_data("model.tie_embeddings=true")
    weights = {name: w for name, w in model.state_dict().items() if name != "head.weight"}
    del weights["embed.weight"]
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(RuntimeError, match=r"Missing key.*embed\.weight"):
        model.load_state_dict(load_file(tmp_path / "weights.safetensors"))


def test_a_checkpoint_that_is_a_link_is_refused_with_the_file(tmp_path):
    run(tmp_path / "run", "max_steps=1")
    (tmp_path / "mine.ckpt").symlink_to(last(tmp_path / "run"))
    with pytest.raises(ConfigError, match=f"is a link: give .*{last(tmp_path / 'run')}"):
        run(tmp_path / "more", f"ckpt={tmp_path / 'mine.ckpt'}")
