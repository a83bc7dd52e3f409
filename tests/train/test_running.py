"""When a run validates and how it ends, in every precision and with little or nothing around it."""

from __future__ import annotations

import errno
import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import xftrain
from tests.train.runs import (
    last,
    result_of,
    rows_of,
    run,
    same_weights,
    small,
    weights_of,
)
from xftrain.data.counting import Counting
from xftrain.errors import RunError

# ---- when it validates and stops


@pytest.mark.parametrize(("max_steps", "validated"), [(6, [4, 6]), (8, [4, 8]), (3, [3])])
def test_the_last_step_is_validated_and_once_only(tmp_path, monkeypatch, max_steps, validated):
    asked = []
    batch = Counting.batch
    monkeypatch.setattr(Counting, "batch", lambda self, *at: asked.append(at) or batch(self, *at))
    run(tmp_path, f"max_steps={max_steps}")
    assert list(rows_of(tmp_path, "val/loss")) == validated
    # two more are made: one before training, whether there are labels, and one for the prompt that
    # is saved for a sample
    assert len([at for at in asked if at[0] == "val"]) == 2 + 2 * len(validated)


def test_a_solved_task_stops_and_null_goes_on(tmp_path):
    stopped = run(tmp_path / "stops", "data.stop_at_accuracy=0.0")
    assert (stopped["steps"], stopped["status"]) == (4, "completed")
    assert "val/loss" in stopped["metrics"]
    assert run(tmp_path / "goes on", "data.stop_at_accuracy=null")["steps"] == 6
    assert run(tmp_path / "unreached", "data.stop_at_accuracy=1.0")["steps"] == 6
    without = run(tmp_path / "without", "data.stop_at_accuracy=0.0", "callbacks.solved=null")
    assert without["steps"] == 6
    sanity = run(tmp_path / "sanity", "data.stop_at_accuracy=0.0", "trainer.num_sanity_val_steps=1")
    assert sanity["steps"] == 4  # not before it has begun
    assert list(rows_of(tmp_path / "sanity", "val/loss")) == [4]


@pytest.mark.slow
def test_the_counting_task_is_learned(tmp_path):
    result = run(tmp_path, "max_steps=150", "trainer.val_check_interval=10", "optim.lr=1e-2")
    assert result["metrics"]["val/accuracy"] >= 0.999
    assert result["steps"] < 150


# ---- precision, determinism, odd configurations


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_sixteen_bits_on_the_cpu_train(tmp_path, precision):
    # bf16-true ended in Lightning's "A frozen dataclass was passed to apply_to_collection"
    result = run(
        tmp_path,
        f"trainer.precision={precision}",
        "model.pos=rope",
        "max_steps=12",
        "optim.lr=1e-2",
        "trainer.val_check_interval=100",
        # the sample is generated in the same precision
        "callbacks.sample={name: sample, num_tokens: 4}",
    )
    losses = rows_of(tmp_path, "train/loss")
    assert losses[12] < losses[2] - 0.3
    dtypes = {weight.dtype for weight in weights_of(last(tmp_path)).values()}
    assert dtypes == {torch.bfloat16 if precision == "bf16-true" else torch.float32}
    assert result["metrics"]["val/loss"] < losses[2]


def test_the_seed_alone_decides(tmp_path):
    for name, overrides in {
        "one": [],
        "same": ["callbacks.sample={name: sample}", "logger=none"],
        "other": ["seed=1"],
    }.items():
        run(tmp_path / name, "model.dropout=0.1", *overrides)
    assert same_weights(last(tmp_path / "one"), last(tmp_path / "same"))
    assert not same_weights(last(tmp_path / "one"), last(tmp_path / "other"))


def test_without_callbacks_and_loggers(tmp_path):
    result = run(tmp_path, "callbacks=none", "logger=none")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".lock", ".run.json", "config.yaml", "result.json"]
    assert (result["status"], result["tokens_per_s"]) == ("completed", None)
    assert set(result["metrics"]) == {"val/loss", "val/accuracy", "val/perplexity"}


def test_a_run_that_breaks_says_so_and_keeps_what_it_had(tmp_path, monkeypatch):
    run(tmp_path)
    assert result_of(tmp_path)["status"] == "completed"
    batch = Counting.batch

    def broken(self, split, step, rank=0):
        if (split, step) == ("train", 4):
            assert not (tmp_path / "result.json").exists()  # the earlier run's
            raise OSError("the network is down")
        return batch(self, split, step, rank)

    monkeypatch.setattr(Counting, "batch", broken)
    with pytest.raises(OSError, match="the network is down"):
        run(tmp_path)
    result = result_of(tmp_path)
    assert (result["status"], result["error"]) == ("failed", "OSError: the network is down")
    assert (result["steps"], result["kernel"], result["device"]) == (4, "naive", "cpu")
    assert result["wall_s"] > 0 and result["tokens_per_s"] > 0
    assert list(rows_of(tmp_path, "train/loss")) == [2, 4]  # no rows of the earlier run


@pytest.mark.parametrize(
    ("error", "raised", "status", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            RunError,
            "failed",
            "a file in .* could not be written",
        ),
        # Lightning answers Ctrl-C with an exit
        (KeyboardInterrupt(), (KeyboardInterrupt, SystemExit), "stopped", ""),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Detected KeyboardInterrupt")
def test_how_a_run_ends_that_is_ended(tmp_path, monkeypatch, error, raised, status, said):
    batch = Counting.batch

    def ended(self, split, step, rank=0):
        if (split, step) == ("train", 3):
            raise error
        return batch(self, split, step, rank)

    monkeypatch.setattr(Counting, "batch", ended)
    with pytest.raises(raised):
        run(tmp_path)
    result = result_of(tmp_path)
    assert (result["status"], result["steps"]) == (status, 3)
    assert re.search(said, result["error"])


def test_what_a_run_shows_while_it_goes_on(tmp_path, caplog):
    with caplog.at_level("INFO"):
        run(
            tmp_path,
            "callbacks.progress.style=line",
            "callbacks.progress.every_n_steps=3",
            "callbacks.sample={name: sample, num_tokens: 100, temperature: 0}",
        )
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("configuration, what differs from the defaults:\n├── seq: 16\n")
    assert [line.split("  ")[0] for line in lines if re.match(r"step \d", line)] == [
        "step 4/6",  # the first step from 3 on whose own figures were fetched
        "step 6/6",
    ]
    validated = [line.split("  ")[0] for line in lines if line.startswith("validation at")]
    assert validated == ["validation at step 4", "validation at step 6"]
    (sample,) = (line for line in lines if line.startswith("sample of the model:"))
    _, is_prompt, prompt, is_added, added = sample.splitlines()
    assert (is_prompt, is_added) == ("prompt:", "continuation of the model:")
    first = int(prompt.split()[0])
    assert prompt.split() == [str((first + n) % 64) for n in range(8)]
    assert len(added.split()) == 9  # the model has no more than 16 positions
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (text,) = events.Tensors("sample/text_summary")[0].tensor_proto.string_val
    shown = ["    prompt:", f"    {prompt}", f"    {is_added}", f"    {added}"]
    assert text.decode().splitlines() == shown  # a block of code, as it is


def test_the_run_folder_may_be_relative_and_is_named_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = xftrain.run(small("max_steps=1"))
    assert result["run_dir"].startswith("outputs/")
    assert (tmp_path / result["run_dir"] / "result.json").is_file()
    assert run(tmp_path / "here", "max_steps=1")["run_dir"] == "here"


def test_a_solved_run_does_not_go_on_from_its_end(tmp_path):
    # one that was killed after its last save trained on to the next validation
    solved = ("data.stop_at_accuracy=0.0", "trainer.val_check_interval=2")
    first = run(tmp_path, *solved)
    again = run(tmp_path, *solved, "ckpt=auto")
    assert (first["steps"], again["steps"]) == (2, 2)
    assert first["metrics"]["val/loss"] == again["metrics"]["val/loss"]
    assert run(tmp_path, "data.stop_at_accuracy=null", "ckpt=auto")["steps"] == 6
