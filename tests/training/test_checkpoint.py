"""Checkpoints: a run goes on as if it had never stopped, and no file is ever half or harmful."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.runs import last, result_of, rows_of, run, same_weights
from xftrain.data.counting import Counting
from xftrain.data.counting_packed import CountingPacked
from xftrain.errors import ConfigError, RunError
from xftrain.training.checkpoint import AtomicCheckpointIO, read_checkpoint

STEPS = ("max_steps=7", "callbacks.checkpoint.every_n_steps=2", "model.dropout=0.1")


class PowerCut(Exception):
    pass


@contextmanager
def power_cut(at_batch: int) -> Iterator[None]:
    """Ends the run within when it asks for the training batch of that number."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        for kind in (Counting, CountingPacked):

            def cut(self, split, step, rank=0, batch=kind.batch):
                if split == "train" and step == at_batch:
                    raise PowerCut
                return batch(self, split, step, rank)

            patch.setattr(kind, "batch", cut)
        yield


# ---- going on


@pytest.mark.parametrize(
    ("overrides", "accumulate"),
    [
        ([], 1),
        (["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3"], 2),
        (["data=counting_packed", "model.attn=xformers", "optim.schedule=constant"], 1),
        (["trainer.precision=bf16-mixed", "model.activation_checkpointing=true"], 1),
    ],
)
def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path, overrides, accumulate):
    # dropout once began anew with the run that continued
    run(tmp_path / "whole", *STEPS, *overrides)
    with power_cut(at_batch=5 * accumulate):  # after 5 of 7 steps; 4 are on the disk
        run(tmp_path / "cut", *STEPS, *overrides)
    assert read_checkpoint(last(tmp_path / "cut"))["global_step"] == 4
    shutil.copytree(tmp_path / "cut", tmp_path / "copy")

    # in its own folder, and from its file in another
    again = run(tmp_path / "cut", *STEPS, *overrides, "ckpt=auto")
    given = f"ckpt={last(tmp_path / 'copy')}"
    elsewhere = run(tmp_path / "elsewhere", *STEPS, *overrides, given)

    for name, result in (("cut", again), ("elsewhere", elsewhere)):
        assert (result["status"], result["steps"]) == ("completed", 7)
        assert same_weights(last(tmp_path / "whole"), last(tmp_path / name)), name
    assert again["metrics"]["val/loss"] == result_of(tmp_path / "whole")["metrics"]["val/loss"]


def test_a_run_goes_on_from_its_best_checkpoint_too(tmp_path):
    # saved in the midst of Lightning's loops, during validation
    run(tmp_path / "whole", *STEPS)
    best = tmp_path / "whole" / "checkpoints" / "best.ckpt"
    assert read_checkpoint(best)["global_step"] == 4
    run(tmp_path / "again", *STEPS, f"ckpt={best}")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "again"))
    assert list(rows_of(tmp_path / "again", "val/loss")) == [7]


def test_best_is_the_validation_with_the_lowest_loss(tmp_path):
    # a rate far too high: the loss falls and rises again
    run(tmp_path, "optim.lr=0.5", "optim.warmup_steps=6", "trainer.val_check_interval=1")
    losses = rows_of(tmp_path, "val/loss")
    best = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert best["global_step"] == min(losses, key=losses.__getitem__) < 6
    assert best["callbacks"]["Checkpoint"]["best_loss"] == min(losses.values())


def test_no_checkpoint_is_saved_between_the_batches_of_a_step(tmp_path, monkeypatch):
    # a run that continued saved anew after the first batch of its first step; half of that
    # step's gradient would have been missing in the run that went on from there
    steps = (*STEPS, "trainer.accumulate_grad_batches=2")
    with power_cut(at_batch=10):
        run(tmp_path, *steps)
    saved = []
    save = AtomicCheckpointIO.save_checkpoint

    def note(self: Any, checkpoint: dict[str, Any], path: Path, storage_options: Any = None):
        batches = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["next_step"]
        saved.append((Path(path).name, checkpoint["global_step"], batches))
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", note)
    run(tmp_path, *steps, "ckpt=auto")
    assert [one for one in saved if one[0] == "last.ckpt"] == [
        ("last.ckpt", 6, 12),
        ("last.ckpt", 7, 14),
    ]


def test_a_run_that_is_over_can_be_asked_to_go_on(tmp_path):
    # its speed was NaN, which is no JSON
    first = run(tmp_path / "one", *STEPS)
    again = run(tmp_path / "two", *STEPS, f"ckpt={last(tmp_path / 'one')}")
    assert result_of(tmp_path / "two") == again
    assert (again["status"], again["steps"], again["tokens_per_s"]) == ("completed", 7, None)
    assert again["metrics"]["val/loss"] == first["metrics"]["val/loss"]


def test_more_steps_than_planned_go_on_where_it_ended(tmp_path):
    run(tmp_path, *STEPS)
    longer = run(tmp_path, *STEPS, "max_steps=9", "ckpt=auto")
    assert longer["steps"] == 9


def test_the_rows_of_the_run_that_is_continued_stay(tmp_path):
    # metrics.csv began anew, so that all before the cut was lost
    with power_cut(at_batch=5):
        run(tmp_path, *STEPS)
    assert list(rows_of(tmp_path, "train/loss")) == [2, 4]
    run(tmp_path, *STEPS, "ckpt=auto", "trainer.log_every_n_steps=1")
    assert list(rows_of(tmp_path, "train/loss")) == [2, 4, 5, 6, 7]
    assert list(rows_of(tmp_path, "val/loss")) == [4, 7]
    run(tmp_path, *STEPS)  # a new run in the folder of an old one
    assert list(rows_of(tmp_path, "train/loss")) == [2, 4, 6, 7]


# ---- which file


def test_auto_starts_at_the_beginning_where_there_is_none(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert run(tmp_path, *STEPS, "ckpt=auto")["steps"] == 7
    assert "no checkpoint in" in caplog.text


def test_auto_takes_the_newest_that_is_whole(tmp_path, caplog):
    run(tmp_path, *STEPS)  # best.ckpt of step 4, last.ckpt of step 7
    last(tmp_path).write_bytes(last(tmp_path).read_bytes()[:-100])
    with caplog.at_level("INFO"):
        assert run(tmp_path, *STEPS, "ckpt=auto")["steps"] == 7
    assert "skipped: ckpt=" in caplog.text
    assert "best.ckpt, step 4" in caplog.text
    assert read_checkpoint(last(tmp_path))["global_step"] == 7

    for path in tmp_path.glob("checkpoints/*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"found 2 checkpoint\(s\).*none can be read"):
        run(tmp_path, *STEPS, "ckpt=auto")
    assert result_of(tmp_path)["status"] == "refused"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    run_dir = tmp_path_factory.mktemp("good")
    run(run_dir, "max_steps=1")
    return last(run_dir).read_bytes()


def flipped(content: bytes) -> bytes:
    """One bit of the largest tensor, whose numbers begin after a third of the file at the most."""
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


# ---- writing


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_a_file(content: Any, file: Any) -> None:
    file.write(b"half")
    raise RuntimeError("PytorchStreamWriter failed writing file data/2: file write failed")


@pytest.mark.parametrize(
    ("place", "fault"),
    [("os.fsync", no_space), ("torch.save", no_space), ("torch.save", half_a_file)],
)
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
    assert {path.name: path.read_bytes() for path in folder.glob("*")} == before
    assert list(folder.glob(".*")) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"last\.ckpt could not be written \(FileExistsError"):
        run(tmp_path, "max_steps=1")


def test_a_result_that_cannot_be_written_is_said(tmp_path):
    # with the disk full, the traceback of this hid the sentence on the checkpoint
    (tmp_path / ".result.json.partial").mkdir()
    with pytest.raises(RunError, match=r"result\.json could not be written.*free space"):
        run(tmp_path, "max_steps=1")


def test_a_checkpoint_comes_back_as_it_was_and_goes_when_told(tmp_path):
    content = {
        "xftrain": {"config": {"seed": 0, "betas": (0.9, 0.95), "ckpt": None}},
        "state_dict": {"w": torch.randn(3, 2).bfloat16()},
        "global_step": 3,
        "pytorch-lightning_version": "2.6.6",
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
