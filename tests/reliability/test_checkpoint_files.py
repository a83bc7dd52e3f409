"""No checkpoint file is ever half, and none does harm."""

from __future__ import annotations

import errno
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs import last, run, weights_of
from xftrain.callbacks.metrics import Metrics
from xftrain.checkpoint.file import AtomicCheckpointIO, read_checkpoint
from xftrain.checkpoint.newest import checkpoint_to_load
from xftrain.data.counting import Counting
from xftrain.errors import ConfigError, RunError


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    run_dir = tmp_path_factory.mktemp("good")
    run(run_dir, "max_steps=1")
    return last(run_dir).read_bytes()


def flipped(content: bytes) -> bytes:
    """One bit among the numbers of the first tensor, 64 x 32 of them."""
    at = content.index(b"/data/0") + 2000
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[1:],
        flipped,  # torch loads such a file without a word
        lambda content: b"\0" * len(content),
        lambda content: b"step,loss\n1,2\n",
    ],
    ids=["empty", "half", "all but a byte", "shifted", "a bit flipped", "zeros", "text"],
)
def test_a_damaged_file_is_refused(tmp_path, good, damage):
    path = tmp_path / "bad.ckpt"
    path.write_bytes(damage(good))
    check_refused(tmp_path, path, "cannot be read")


def check_refused(tmp_path: Path, path: Path, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run(tmp_path / "run", f"ckpt={path}")
    said = str(refused.value)
    assert said.startswith(f"ckpt={path} ") and said.endswith(".") and "\n" not in said
    assert why in said
    assert not (tmp_path / "run" / "checkpoints").exists()


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["pickle", "torch", "torch, inside", "torch, old"])
def test_a_file_that_would_execute_something_is_refused_and_executes_nothing(tmp_path, form):
    path, marker = tmp_path / "bomb.ckpt", tmp_path / "marker"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        inside = {"xftrain": {}, "state_dict": {}, "global_step": Bomb(marker)}
        content = inside if "inside" in form else Bomb(marker)
        torch.save(content, path, _use_new_zipfile_serialization="old" not in form)
    check_refused(tmp_path, path, "cannot be read")
    assert not marker.exists()
    torch.load(path, weights_only=False) if form == "torch" else None
    assert marker.exists() == (form == "torch")  # it would have


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, [1, 2], torch.zeros(3), {"xftrain": {}, "global_step": 1}]
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    check_refused(tmp_path, tmp_path / "other.ckpt", "is no checkpoint of xftrain")


@pytest.mark.parametrize(
    ("key", "inside"),
    [("optimizer_states", [{}]), ("lr_schedulers", [{"last_epoch": "x"}]), ("loops", {"x": 1})],
)
def test_a_checkpoint_with_a_wrong_part_is_refused(tmp_path, good, key, inside):
    # it was a KeyError or TypeError from within Lightning
    (tmp_path / "one.ckpt").write_bytes(good)
    content = torch.load(tmp_path / "one.ckpt")
    torch.save({**content, key: inside}, tmp_path / "one.ckpt")
    check_refused(tmp_path, tmp_path / "one.ckpt", "cannot be resumed")


def test_auto_goes_by_the_times_that_files_hold(tmp_path, caplog):
    every = ("callbacks.checkpoint.every_n_steps=1", "trainer.val_check_interval=9")
    run(tmp_path, "max_steps=4", *every)
    newest, older = last(tmp_path), last(tmp_path).with_name("previous.ckpt")
    os.utime(newest, (1, 1))  # as a copy of the folder may have them
    assert checkpoint_to_load("auto", tmp_path) == newest
    newest.write_bytes(newest.read_bytes()[:-100])
    assert checkpoint_to_load("auto", tmp_path) == older
    assert f"skipped: ckpt={newest} cannot be read" in caplog.text


def test_auto_does_not_go_back_to_a_history_that_was_given_up(tmp_path):
    # by the step, previous.ckpt of the longer run would be the newest
    every = ("callbacks.checkpoint.every_n_steps=4", "trainer.val_check_interval=9")
    run(tmp_path, "max_steps=12", *every)
    good = tmp_path / "good.ckpt"
    good.write_bytes(last(tmp_path).with_name("previous.ckpt").read_bytes())
    run(tmp_path, "max_steps=3", *every)  # afresh, in the same folder
    former = read_checkpoint(tmp_path / "former-1" / "checkpoints" / "last.ckpt")
    assert former["global_step"] == 12  # moved there by the new run
    assert checkpoint_to_load("auto", tmp_path) == last(tmp_path)
    rolled_back = (f"ckpt={good}", "max_steps=9", "optim.lr=1e-4")
    run(tmp_path, *rolled_back, *every)
    assert checkpoint_to_load("auto", tmp_path) == last(tmp_path)
    assert read_checkpoint(last(tmp_path))["global_step"] == 9


def test_a_run_that_was_killed_in_its_last_saves_is_finished(tmp_path):
    # best.ckpt was there with the last step, last.ckpt stayed the one before it for ever
    every = ("callbacks.checkpoint.every_n_steps=1", "max_steps=4", "trainer.val_check_interval=4")
    run(tmp_path, *every)
    folder, whole = last(tmp_path).parent, weights_of(last(tmp_path))
    (folder / "previous.ckpt").replace(last(tmp_path))
    (folder / "weights.safetensors").unlink()
    assert checkpoint_to_load("auto", tmp_path) == folder / "best.ckpt"
    result = run(tmp_path, *every, "ckpt=auto")
    assert (result["status"], result["steps"]) == ("completed", 4)
    assert read_checkpoint(last(tmp_path))["global_step"] == 4
    assert all(torch.equal(whole[name], w) for name, w in weights_of(last(tmp_path)).items())
    assert (folder / "weights.safetensors").is_file()
    run(tmp_path, *every, "ckpt=auto")  # and again, from itself
    assert read_checkpoint(folder / "previous.ckpt")["global_step"] == 3


def test_a_bug_of_a_callback_is_not_the_checkpoints(tmp_path, monkeypatch):
    run(tmp_path / "one", "max_steps=1")

    def bug(self, *_):
        raise ValueError("of a callback")

    monkeypatch.setattr(Metrics, "on_train_start", bug, raising=False)
    with pytest.raises(ValueError, match="of a callback"):
        run(tmp_path / "two", f"ckpt={last(tmp_path / 'one')}")


def test_a_run_that_goes_on_elsewhere_has_its_own_checkpoint_at_once(tmp_path, monkeypatch):
    run(tmp_path / "one", "max_steps=2")
    batch = Counting.batch

    def stopped(self, split, step, rank=0):
        if (split, step) == ("train", 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, split, step, rank)

    monkeypatch.setattr(Counting, "batch", stopped)
    with pytest.raises(SystemExit):
        run(tmp_path / "two", f"ckpt={last(tmp_path / 'one')}", "schedule.warmup_steps=0")
    assert read_checkpoint(last(tmp_path / "two"))["global_step"] == 2


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a file"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    with pytest.raises(ConfigError, match="is not a file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        (
            "model.dim=16",
            "10 of its tensors differ from this one's, first model.embed.weight, [64, 32] there "
            "and [64, 16] here",
        ),
        ("model.ffn=gelu", "1 of its tensors differ"),
        (
            "model.num_layers=2",
            "6 of its tensors differ from this one's, first model.blocks.1.norm_attn.weight, "
            "absent there and [32] here",
        ),
        ("model.pos=none", "first model.pos.table.weight, [16, 32] there and absent here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, good, override, difference):
    # it was a RuntimeError of many lines
    (tmp_path / "one.ckpt").write_bytes(good)
    with pytest.raises(ConfigError) as refused:
        run(tmp_path / "run", override, f"ckpt={tmp_path / 'one.ckpt'}")
    said = str(refused.value)
    assert said.startswith("ckpt holds another model: ") and difference in said
    assert said.endswith("; set model as in its run's config.yaml.")


def test_a_run_folder_in_place_of_a_checkpoint_is_refused_with_the_checkpoint(tmp_path, good):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(good)
    with pytest.raises(ConfigError, match=r"did you mean .*checkpoints/last\.ckpt\?$"):
        run(tmp_path / "run", f"ckpt={tmp_path}")


def test_a_refusal_leaves_what_the_run_before_it_says_of_itself(tmp_path):
    run(tmp_path)
    records = [tmp_path / name for name in ("result.json", "config.yaml")]
    before = [record.read_bytes() for record in records]
    with pytest.raises(ConfigError, match="set model as in its run's config"):
        run(tmp_path, "model.ffn=gelu", "ckpt=auto")
    assert [record.read_bytes() for record in records] == before
    run(tmp_path, "ckpt=auto", "max_steps=5")
    assert all(record.read_bytes() != old for record, old in zip(records, before, strict=True))


# ---- writing


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_result_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    # with the disk full, the traceback of this hid the sentence on the checkpoint
    monkeypatch.setattr("xftrain.commands.result_file.replace_text", no_space)
    with pytest.raises(RunError, match=r"result\.json could not be written.*free space"):
        run(tmp_path, "max_steps=1")


def test_a_checkpoint_comes_back_as_it_was_and_goes_when_told(tmp_path):
    content = {
        "xftrain": {"config": {"seed": 0, "betas": (0.9, 0.95), "ckpt": None}},
        "state_dict": {"w": torch.randn(3, 2).bfloat16()},
        "global_step": 3,
        "pytorch-lightning_version": "2.6.6",
        **{"optimizer_states": [{}], "lr_schedulers": [{}], "loops": {}, "callbacks": {}},
    }
    path = tmp_path / "deep" / "one.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint(content, path)
    loaded = io.load_checkpoint(path)
    assert torch.equal(loaded["state_dict"].pop("w"), content["state_dict"].pop("w"))
    assert loaded == content
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []
