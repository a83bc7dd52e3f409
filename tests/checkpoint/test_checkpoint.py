"""A run goes on from its checkpoint as if it had never stopped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.train.runs import last, result_of, rows_of, run, same_weights
from xftrain.checkpoint.file import AtomicCheckpointIO, read_checkpoint
from xftrain.data.counting import Counting
from xftrain.data.counting_packed import CountingPacked
from xftrain.errors import ConfigError

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
        (["data=counting_packed", "model.attn=xformers", "schedule=constant"], 1),
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
    run(tmp_path, "optim.lr=0.5", "schedule.warmup_steps=6", "trainer.val_check_interval=1")
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
    run(tmp_path, *STEPS)  # best.ckpt of step 4, previous.ckpt of step 6, last.ckpt of step 7
    last(tmp_path).write_bytes(last(tmp_path).read_bytes()[:-100])
    with caplog.at_level("INFO"):
        assert run(tmp_path, *STEPS, "ckpt=auto")["steps"] == 7
    assert "skipped: ckpt=" in caplog.text
    assert "previous.ckpt, step 6" in caplog.text
    assert read_checkpoint(last(tmp_path))["global_step"] == 7

    for path in tmp_path.glob("checkpoints/*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"found 3 checkpoint\(s\).*none can be read"):
        run(tmp_path, *STEPS, "ckpt=auto")
    assert result_of(tmp_path)["status"] == "completed"  # of the run whose folder it is


# ---- going on as another run


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("begun")
    run(run_dir, "max_steps=2", "model.dropout=0.1")
    return last(run_dir)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=1"], "seed 0 -> 1"),
        (["data=counting_packed"], "data.name 'counting' -> 'counting_packed'"),
        (["batch_tokens=64"], "batch_tokens 128 -> 64"),
        (["data.batch_size=3"], "data.batch_size None -> 3"),
        (["model.dropout=0.2"], "model.dropout 0.1 -> 0.2"),
        (["model.bias=window"], "model.bias.name 'causal' -> 'window'"),
        (["trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches 1 -> 2"),
    ],
)
def test_another_run_is_refused_with_the_keys_or_allowed_by_name(tmp_path, begun, overrides, said):
    more = ["model.dropout=0.1", *overrides, f"ckpt={begun}"]
    with pytest.raises(ConfigError) as refused:
        run(tmp_path, *more)
    assert said in str(refused.value) and "ckpt_allow=[" in str(refused.value)
    allow = str(refused.value).rpartition("with ")[2].rstrip(".")
    assert run(tmp_path, *more, allow)["steps"] == 6


def test_what_changes_nothing_of_the_run_is_not_refused(tmp_path, begun):
    same = ("model.attn=sdpa", "data.stop_at_accuracy=null", "optim.lr=1e-3", "max_steps=3")
    assert run(tmp_path, "model.dropout=0.1", *same, f"ckpt={begun}")["steps"] == 3


def test_a_whole_group_can_be_allowed_and_a_wrong_name_is_refused(tmp_path, begun):
    more = ("model.dropout=0.2", "seed=3", f"ckpt={begun}", "max_steps=3")
    assert run(tmp_path, *more, "ckpt_allow=[model,seed]")["steps"] == 3
    with pytest.raises(ConfigError, match="ckpt_allow names 'sead', which is a key neither"):
        run(tmp_path, *more, "ckpt_allow=[model,sead]")


def test_another_seed_by_way_of_the_environment_is_noticed(tmp_path, monkeypatch):
    seed = ("seed=${oc.env:XFTRAIN_TEST_SEED}", "max_steps=2")
    tag = ("tags=['${oc.env:XFTRAIN_TEST_SEED}']", "max_steps=2")
    monkeypatch.setenv("XFTRAIN_TEST_SEED", "1")
    run(tmp_path / "seed", *seed)
    run(tmp_path / "tag", *tag)
    monkeypatch.setenv("XFTRAIN_TEST_SEED", "2")
    run(tmp_path / "tag", *tag, "ckpt=auto")  # which decides nothing
    with pytest.raises(ConfigError, match=r"seed .*oc\.env:XFTRAIN_TEST_SEED"):
        run(tmp_path / "seed", *seed, "ckpt=auto")


def test_a_callback_deletes_checkpoints_of_this_run_alone(tmp_path, caplog):
    # the state of Lightning's ModelCheckpoint in a checkpoint of somebody else names the file
    for folder in ("run", "home"):
        (tmp_path / folder).mkdir()
    victim = tmp_path / "home" / "mine.ckpt"
    victim.write_text("precious")
    (tmp_path / "run" / "link.ckpt").symlink_to(victim)
    io = AtomicCheckpointIO()
    io.save_checkpoint({"state": 1}, tmp_path / "run" / "a.ckpt")
    for path in (
        victim,
        tmp_path / "run" / "link.ckpt",
        tmp_path / "run" / ".." / "home" / "mine.ckpt",
    ):
        io.remove_checkpoint(path)
    assert victim.read_text() == "precious" and caplog.text.count("is not deleted") == 3
    io.remove_checkpoint(tmp_path / "run" / "a.ckpt")
    assert not (tmp_path / "run" / "a.ckpt").exists()
