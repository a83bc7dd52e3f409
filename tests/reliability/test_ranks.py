"""Two processes that train one model, on the CPU with gloo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from tests.training.runs import SMALL, last, model_and_data, result_of, rows_of, run, weights_of
from xftrain.errors import ConfigError
from xftrain.training.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "data.stop_at_accuracy=null")
# Slow enough to be caught in the middle.
LONG = ("max_steps=100000", "callbacks.checkpoint.every_n_steps=10", "trainer.log_every_n_steps=50")


def command(run_dir: Path, *overrides: str) -> list[str]:
    small = [one for one in SMALL if not one.startswith("trainer=")]
    words = [sys.executable, "-m", "xftrain", *TWO, *small, f"hydra.run.dir={run_dir}"]
    return [*words, "trainer.val_check_interval=100000", *overrides]


@contextmanager
def running(run_dir: Path, *overrides: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """The run once it has saved, and its other ranks' process numbers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command(run_dir, *overrides), env=environment, stderr=subprocess.PIPE, text=True
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


def ended(process: subprocess.Popen[str], others: list[int]) -> tuple[int, str]:
    said = process.communicate(timeout=60)[1]
    for pid in others:
        assert not Path(f"/proc/{pid}").exists(), "a rank is left"
    return process.returncode, said


def test_lightning_still_has_what_is_replaced():
    # its broadcast of SIGTERM, for which each of several ranks waits for the device in each step
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)


@pytest.mark.slow
def test_two_ranks_take_the_step_of_both_their_batches(tmp_path):
    process = subprocess.run(
        command(tmp_path, "max_steps=4"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    result = result_of(tmp_path)
    assert (result["status"], result["steps"]) == ("completed", 4)
    assert len(re.findall("done in", process.stdout)) == 1  # one rank speaks
    assert sorted(rows_of(tmp_path, "train/loss")) == [2, 4]

    # by hand: the mean over both ranks' labels
    model, data = model_and_data()
    from xftrain.config import compose, validate
    from xftrain.training.optim.adamw import AdamW

    options = validate(compose(*SMALL))["optim"]
    optimizer, schedule = AdamW(**{k: v for k, v in options.items() if k != "name"}).build(model, 4)
    for step in range(4):
        loss, count = torch.zeros(()), 0
        for rank in range(2):
            batch = data.batch("train", step, rank)
            logits = model(batch.tokens_BM).flatten(0, 1)
            labels = batch.labels_BM.flatten()
            loss = loss + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            count += labels.numel()
        optimizer.zero_grad()
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    for name, weight in weights_of(last(tmp_path)).items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.fault("SIGTERM to one of two ranks")
@pytest.mark.slow
@pytest.mark.parametrize("which", ["rank 0", "rank 1"])
def test_sigterm_to_one_rank_ends_all_with_a_checkpoint(tmp_path, which):
    with running(tmp_path, *LONG) as (process, others):
        os.kill(process.pid if which == "rank 0" else others[0], signal.SIGTERM)
        code, said = ended(process, others)
    assert (code, said.strip().splitlines()[-1]) == (143, "xftrain: stopped by SIGTERM.")
    result = result_of(tmp_path)
    assert (result["status"], result["error"]) == ("stopped", "stopped by SIGTERM")
    assert read_checkpoint(last(tmp_path))["global_step"] == result["steps"] > 0


@pytest.mark.fault("kill -9 of one of two ranks")
@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_its_name(tmp_path):
    with running(tmp_path, *LONG) as (process, others):
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


def test_more_ranks_than_validation_batches_are_refused(tmp_path, monkeypatch):
    given: dict[str, Any] = {"WORLD_SIZE": "3", "LOCAL_RANK": "0"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("xftrain.training.distributed.connect", lambda *_: None)
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
        if self.how == "raise" and trainer.global_rank == 1 and batch_idx == 2:
            raise RunError("shard 17 has vanished.")

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
    fault = f"+callbacks.fault={{_target_: own.Fault, how: {how}}}"
    path = os.pathsep.join([str(ROOT), str(folder)])
    return subprocess.run(
        command(folder / "run", fault, *overrides),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=90,
    )


@pytest.mark.slow
@pytest.mark.fault("an error on one of two ranks")
def test_what_a_rank_says_last_is_the_error(tmp_path):
    ended = with_fault(tmp_path, "raise", "max_steps=9")
    said = ended.stderr.strip().splitlines()[-1]
    assert (ended.returncode, said) == (
        1,
        "xftrain: rank 1 ended the run: shard 17 has vanished.",
    )
    assert result_of(tmp_path / "run")["error"] == said.removeprefix("xftrain: ")


@pytest.mark.slow
@pytest.mark.fault("full disk, two ranks")
def test_a_save_that_fails_leaves_the_ranks_together(tmp_path):
    # the other rank took it for saved, and each waited for the other in another place
    ended = with_fault(tmp_path, "disk", "max_steps=6", "callbacks.checkpoint.every_n_steps=2")
    assert ended.returncode == 0, ended.stderr
    assert read_checkpoint(last(tmp_path / "run"))["global_step"] == 6
    assert "failed in a row: 1 of at most 3" in ended.stdout
