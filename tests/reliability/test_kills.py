"""kill -9 at any time: a valid checkpoint is found, and the run ends as if nothing had been."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forked import context
from tests.reliability.same_run import rows_differ, weights_differ
from tests.train.runs import last, run, same_weights
from xftrain.checkpoint.file import read_checkpoint
from xftrain.checkpoint.newest import checkpoint_to_load

STEPS = 60
OVERRIDES = (
    f"max_steps={STEPS}",
    "model.dropout=0.1",
    "callbacks.checkpoint.every_n_steps=1",
    "trainer.val_check_interval=10",
    "data.stop_at_accuracy=null",
)
PLACES = ("half of the file is written", "before the rename", "after the rename")


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _child(run_dir: str, overrides: tuple[str, ...], place: str | None, save: int) -> None:
    """Runs; with a place, dies there in the save of that number."""
    torch.set_num_threads(1)
    os.environ["TMPDIR"] = "/dev/shm"  # another file system than the run's
    count = 0
    torch_save, replace = torch.save, Path.replace

    def saved(content: Any, file: Any) -> None:
        nonlocal count
        count += Path(file.name).name.startswith(".last.ckpt")
        torch_save(content, file)
        if count == save and place == PLACES[0]:
            file.truncate(file.tell() // 2)
            _die()

    def replaced(self: Path, target: Path) -> Path:
        due = count == save and Path(target).name == "last.ckpt"
        if due and place == PLACES[1]:
            _die()
        done = replace(self, target)
        if due and place == PLACES[2]:
            _die()
        return done

    torch.save, Path.replace = saved, replaced  # type: ignore[assignment, method-assign]
    run(Path(run_dir), *overrides)


def start(run_dir: Path, place: str | None = None, save: int = 0, *overrides: str) -> Any:
    words = (*OVERRIDES, *overrides, "ckpt=auto")
    process = context().Process(target=_child, args=(str(run_dir), words, place, save))
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    run(run_dir, *OVERRIDES)
    return last(run_dir)


def step_of(run_dir: Path) -> int:
    """Of the newest valid checkpoint; 0 before the first."""
    found = checkpoint_to_load("auto", run_dir)
    return int(read_checkpoint(found)["global_step"]) if found else 0


def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path, whole, amount, record):
    draw, fault = random.Random(0), "kill -9 at a random time"
    wanted, kills, survived, chain = amount(5, 50), 0, 0, 0
    while kills < wanted:
        run_dir, before = tmp_path / str(chain), 0
        chain += 1
        for _ in range(min(5, wanted - kills)):
            process = start(run_dir)
            process.join(draw.uniform(0.3, 1.5))
            if process.exitcode is not None:
                break  # it was faster
            process.kill()
            process.join()
            kills += 1
            record(fault, 1, 0)
            now = step_of(run_dir)
            assert now >= before  # nothing that was saved is lost
            before = now
        process = start(run_dir)
        process.join(60)
        assert process.exitcode == 0
        assert same_weights(last(run_dir), whole)
        record(fault, 0, kills - survived)
        survived = kills


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_is_killed_inside_a_save_ends_the_same(tmp_path, whole, amount, record, place):
    kills, fault = amount(1, 5), f"kill -9 inside a save: {place}"
    record(fault, kills, 0)
    for kill in range(kills):
        killed = start(tmp_path, place, 4 + kill)
        killed.join(60)
        assert killed.exitcode == -signal.SIGKILL
        assert step_of(tmp_path) > 0
    process = start(tmp_path)
    process.join(60)
    assert process.exitcode == 0
    assert same_weights(last(tmp_path), whole)
    assert not list(tmp_path.rglob("*.partial"))
    record(fault, 0, kills)


def test_a_run_that_is_killed_has_each_row_once(tmp_path, whole):
    killed = start(tmp_path, PLACES[1], 30)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    process = start(tmp_path)
    process.join(60)
    assert process.exitcode == 0
    uninterrupted = whole.parents[1]
    assert weights_differ(uninterrupted, tmp_path) == []
    assert rows_differ(uninterrupted, tmp_path) == []


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbage": lambda content: random.Random(1).randbytes(len(content)),
    "a bit flipped": lambda content: (
        content[: (at := content.index(b"/data/0") + 2000)]
        + bytes([content[at] ^ 1])
        + content[at + 1 :]
    ),
}


HALF = ("max_steps=30", "trainer.val_check_interval=100")  # no best.ckpt, which would be newer


@pytest.fixture(scope="module")
def half_way(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("half")
    run(run_dir, *OVERRIDES, *HALF)
    return run_dir


@pytest.mark.fault("newest checkpoint damaged")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, half_way, damage, caplog):
    run_dir = tmp_path / "run"
    shutil.copytree(half_way, run_dir, copy_function=shutil.copy2)
    last(run_dir).write_bytes(DAMAGE[damage](last(run_dir).read_bytes()))
    with caplog.at_level("INFO"):
        run(run_dir, *OVERRIDES, *HALF, "ckpt=auto")
    assert "skipped: ckpt=" in caplog.text and "previous.ckpt, step 29" in caplog.text
    assert same_weights(last(run_dir), last(half_way))


def _full(run_dir: str, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write that fails, as on a full disk
    run(Path(run_dir), *OVERRIDES, "max_steps=8", "ckpt=auto", "callbacks.sample=null")


@pytest.mark.fault("full disk")
def test_a_full_disk_leaves_the_checkpoints_that_were_there(tmp_path):
    run(tmp_path, *OVERRIDES, "max_steps=2")
    before = last(tmp_path).read_bytes()
    process = context().Process(target=_full, args=(str(tmp_path), len(before) - 1000))
    process.start()
    process.join(60)
    assert process.exitcode == 1
    assert last(tmp_path).read_bytes() == before
    assert not list(tmp_path.rglob(".*.partial"))
    said = (tmp_path / "result.json").read_text()
    assert "could not be written" in said and "free space" in said
