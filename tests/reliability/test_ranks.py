"""Two processes that train one model: on the CPU with gloo, and on two GPUs with NCCL."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy

from tests.reliability.rank_commands import (
    ENVIRONMENT,
    PATH,
    command,
    ended,
    finished,
    rank_variables,
)
from tests.train.runs import SMALL, last, model_and_data, result_of, rows_of, run, weights_of
from tests.train.uneven import write_uneven
from xftrain.checkpoint.file import read_checkpoint
from xftrain.config import registry
from xftrain.errors import ConfigError
from xftrain.interfaces import IGNORED_LABEL
from xftrain.launch import cli

# Slow enough to be caught in the middle.
LONG = ("max_steps=100000", "callbacks.checkpoint.every_n_steps=10", "trainer.log_every_n_steps=50")


@contextmanager
def running(run_dir: Path, *overrides: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """The run once it has saved, and its other ranks' process numbers."""
    process = subprocess.Popen(
        command(run_dir, *overrides), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not last(run_dir).is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        yield process, [int(pid) for path in tasks for pid in path.read_text().split()]
    finally:
        process.kill()
        process.wait()


def test_lightning_still_has_what_is_replaced():
    # its broadcast of SIGTERM, for which each of several ranks waits for the device in each step
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)
    # where DDP is made, on a stream of its own, of which torch warns
    assert "Stream" in inspect.getsource(DDPStrategy._setup_model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_batches", "optim"), [(2, "adamw"), pytest.param(1, "muon", marks=pytest.mark.long)]
)
def test_two_ranks_take_the_step_of_all_labels_of_their_batches(
    tmp_path, place, num_batches, optim
):
    # of which each batch has another number; each rank summed up means
    own = write_uneven(tmp_path / "own")
    uneven = ("data=uneven", f"trainer.accumulate_grad_batches={num_batches}")
    words = (*uneven, "max_steps=4", "trainer.precision=32-true", f"--config-dir={own}")
    process = finished(command(tmp_path, place, *words, f"optim={optim}"))
    assert process.returncode == 0, process.stderr
    assert "Warning" not in process.stderr, process.stderr
    result = result_of(tmp_path)
    assert (result["status"], result["steps"]) == ("completed", 4)
    assert len(re.findall("done in", process.stdout)) == 1  # one rank speaks
    assert "devices: 2, each with a batch of this size in each step" in process.stdout
    assert sorted(rows_of(tmp_path, "train/loss")) == [2, 4]

    # by hand: the mean over all labels
    model, data = model_and_data(*uneven, config_dir=own)
    from xftrain.config.compose import compose, validate
    from xftrain.schedule.cosine import Cosine

    option = validate(compose(*SMALL, f"optim={optim}")).optim
    optimizer, schedule = registry.build(option).build(model, Cosine(), 4)
    losses = {}
    for step in range(4):
        loss, count = torch.zeros(()), 0
        for rank, index in product(range(2), range(num_batches)):
            batch = data.batch("train", step * num_batches + index, rank)
            logits = model(batch.tokens_BM).flatten(0, 1)
            labels = batch.labels_BM.flatten()
            loss = loss + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            count += int((labels != IGNORED_LABEL).sum())
        losses[step + 1] = float(loss.detach()) / count
        optimizer.zero_grad()
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    for name, weight in weights_of(last(tmp_path)).items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-4, atol=1e-5)
    recorded = rows_of(tmp_path, "train/loss")
    assert recorded == pytest.approx({step: losses[step] for step in (2, 4)}, rel=1e-4)


@pytest.mark.fault("SIGTERM to one of two ranks")
@pytest.mark.slow
@pytest.mark.parametrize("which", ["rank 0", pytest.param("rank 1", marks=pytest.mark.long)])
def test_sigterm_to_one_rank_ends_all_with_a_checkpoint(tmp_path, which, place):
    with running(tmp_path, *LONG, place) as (process, others):
        os.kill(process.pid if which == "rank 0" else others[0], signal.SIGTERM)
        code, said = ended(process, others)
    assert (code, said.strip().splitlines()[-1]) == (143, "xftrain: stopped by SIGTERM.")
    result = result_of(tmp_path)
    assert (result["status"], result["error"]) == ("stopped", "stopped by SIGTERM")
    assert read_checkpoint(last(tmp_path))["global_step"] == result["steps"] > 0


@pytest.mark.fault("kill -9 of one of two ranks")
@pytest.mark.long
def test_a_killed_rank_ends_the_run_with_its_name(tmp_path, place):
    with running(tmp_path, *LONG, place) as (process, others):
        started = time.monotonic()
        os.kill(others[0], signal.SIGKILL)
        code, said = ended(process, others)
        assert time.monotonic() - started < 30
    assert code == 1
    assert "rank 1 ended the run: the process was ended by SIGKILL" in said
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"


def test_more_ranks_than_processes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.devices=2 needs as many processes"):
        run(tmp_path, "trainer.devices=2")


def test_a_rank_of_a_run_on_one_device_is_refused(tmp_path, monkeypatch):
    # with trainer=ddp forgotten, torchrun's ranks would each train the same model
    for name, value in rank_variables(0, 2).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"trainer\.devices=1 needs as many processes, got 2"):
        run(tmp_path)
    for words in (SMALL, ("--config-name", "doctor")):
        monkeypatch.setattr("sys.argv", ["xftrain", *words, f"hydra.run.dir={tmp_path}"])
        assert cli.main() == 2
    for name in ("LOCAL_RANK", "RANK"):  # some machines set WORLD_SIZE for every program
        monkeypatch.delenv(name)
    assert run(tmp_path)["status"] == "completed"


def test_more_ranks_than_validation_batches_are_refused(tmp_path, monkeypatch):
    for name, value in rank_variables(0, 3).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("xftrain.train.distributed.connect", lambda *_: None)
    with pytest.raises(ConfigError, match="at most the number of validation batches, 2, got 3"):
        run(tmp_path, "trainer.devices=3")


OWN = """
import torch
from lightning.pytorch import Callback
from xftrain.errors import RunError


class Fault(Callback):
    def __init__(self, how):
        self.how = how

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.how == f"raise on {trainer.global_rank}" and batch_idx == 2:
            raise RunError("shard 17 has vanished.")

    def on_train_end(self, trainer, pl_module):
        if self.how == "compare":
            ours = torch.cat([weight.detach().flatten() for weight in pl_module.parameters()])
            theirs = [torch.zeros_like(ours) for _ in range(trainer.world_size)]
            torch.distributed.all_gather(theirs, ours)
            if not all(torch.equal(ours, other) for other in theirs):
                raise RunError("the ranks' weights differ.")
            print(f"{len(theirs)} ranks have the same {ours.numel()} weights")

    def on_train_start(self, trainer, pl_module):
        if self.how == "disk" and trainer.global_rank == 0:
            save, left = torch.save, [2]

            def full(*args):
                left[0] -= 1
                if left[0] == 0:
                    raise OSError(28, "No space left on device")
                save(*args)

            torch.save = full
"""


def with_fault(folder: Path, how: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    (folder / "own.py").write_text(OWN)
    fault = f"+callbacks.fault={{_target_: own.Fault, how: '{how}'}}"
    path = os.pathsep.join([str(folder), PATH])
    words = command(folder / "run", fault, *overrides)
    return finished(words, env={**ENVIRONMENT, "PYTHONPATH": path})


@pytest.mark.long
@pytest.mark.fault("an error on one of two ranks")
@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.multi_gpu), 1])
def test_what_a_rank_says_last_is_the_error(tmp_path, which, place):
    ended = with_fault(tmp_path, f"raise on {which}", "max_steps=9", place)
    said = ended.stderr.strip().splitlines()[-1]
    whose = "rank 1 ended the run: " if which == 1 else ""
    assert (ended.returncode, said) == (1, f"xftrain: {whose}shard 17 has vanished.")
    assert result_of(tmp_path / "run")["error"] == said.removeprefix("xftrain: ")


@pytest.mark.long
@pytest.mark.fault("full disk, two ranks")
def test_a_save_that_fails_leaves_the_ranks_together(tmp_path, place):
    # the other rank took it for saved, and each waited for the other in another place
    every = "callbacks.checkpoint.every_n_steps=2"
    ended = with_fault(tmp_path, "disk", "max_steps=6", every, place)
    assert ended.returncode == 0, ended.stderr
    assert read_checkpoint(last(tmp_path / "run"))["global_step"] == 6
    assert "failed in a row: 1 of at most 3" in ended.stdout


@pytest.mark.long
def test_two_ranks_with_the_same_weights_go_on_as_if_never_stopped(tmp_path, place):
    usual = ("trainer.precision=bf16-mixed", "deterministic=true", place)
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = with_fault(
        tmp_path / "first", "compare", "callbacks.checkpoint.every_n_steps=3", *usual
    )
    assert first.returncode == 0, first.stderr
    whole = last(tmp_path / "first" / "run")
    half = whole.with_name("previous.ckpt")
    assert (read_checkpoint(half)["global_step"], read_checkpoint(whole)["global_step"]) == (3, 6)
    second = with_fault(tmp_path / "second", "compare", f"ckpt={half}", *usual)
    for one in (first, second):
        assert "2 ranks have the same" in one.stdout, one.stderr
    resumed = weights_of(last(tmp_path / "second" / "run"))
    for name, weight in weights_of(whole).items():
        assert torch.equal(weight, resumed[name]), name


@pytest.mark.multi_gpu
@pytest.mark.parametrize(("compiled", "batches"), [("true", 1), ("false", 1), ("false", 2)])
def test_memory_of_two_ranks_is_as_predicted(tmp_path, compiled, batches):
    words = ["model.attn=sdpa", "model.dim=1024", "model.num_layers=6", "model.num_heads=16"]
    words += ["seq=256", "batch_tokens=2048", "trainer.precision=bf16-mixed"]
    words += [f"compile={compiled}", f"trainer.accumulate_grad_batches={batches}"]
    process = finished(command(tmp_path, *words))
    assert process.returncode == 0, process.stderr
    found = re.search(r"memory: about ([\d.]+) GiB", process.stdout)
    assert found is not None, process.stdout
    measured = result_of(tmp_path)["peak_memory_mib"] / 2**10
    # gradients held once more, or once less, are 0.17 of it
    assert 0.9 < float(found[1]) / measured < 1.15
