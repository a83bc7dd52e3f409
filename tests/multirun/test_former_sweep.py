"""A sweep in the folder of another one, and jobs in the folder of another job."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Ended, one_sentence
from xftrain.errors import SweepRefused
from xftrain.multirun import former_sweep
from xftrain.multirun.former_sweep import set_former_sweep_aside
from xftrain.multirun.table import clear_jobs, register_job

Command = Callable[..., Ended]
Jobs = list[list[str]]


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


# ---- a second sweep


def test_another_sweep_in_the_folder_sets_the_files_of_the_first_aside(
    command: Command, jobs: Jobs, tmp_path: Path
) -> None:
    """Its table and its record were replaced without a word."""
    sweep = tmp_path / "sweep"
    command("-m", "seq=8,16", "hydra.sweep.dir=sweep")
    before = {
        name: content
        for name, content in _contents(sweep).items()
        if "/" not in name or name.startswith(".jobs")
    }
    assert before.keys() >= {"summary.csv", "summary.md", "summary.png", ".sweep.json"}
    for number in (1, 2):
        ended = command("-m", f"seq={number},32", "hydra.sweep.dir=sweep")
        assert ended.code == 0, ended
    assert _contents(sweep / "former-1") == before
    assert (sweep / "former-2" / ".sweep.json").is_file()
    with (sweep / "summary.csv").open(newline="") as file:
        assert sorted(row["seq"] for row in csv.DictReader(file)) == ["2", "32"]
    log = "".join(path.read_text() for path in sweep.glob("*.log"))
    assert "the former sweep's files are in" in ended.out + ended.err + log


def test_a_resumed_sweep_keeps_its_files_in_place(command: Command, jobs: Jobs, tmp_path) -> None:
    command("-m", "seq=8,16", "hydra.sweep.dir=sweep")
    command("resume_sweep=sweep")
    command("-m", "seq=8,16", "resume_sweep=sweep")
    assert not (tmp_path / "sweep" / "former-1").exists()


@pytest.mark.parametrize("mistake", ["model.attn=sdpa,nosuch", "optim.nosuch=1", "seq=8,["])
def test_a_refused_sweep_leaves_the_first_as_it_was(
    command: Command, jobs: Jobs, tmp_path: Path, mistake: str
) -> None:
    command("-m", "seq=8,16", "hydra.sweep.dir=sweep")
    before = _contents(tmp_path / "sweep")
    one_sentence(command("-m", mistake, "seed=0,1", "hydra.sweep.dir=sweep"), 2)
    assert _contents(tmp_path / "sweep") == before


def test_a_table_of_somebody_else_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text("precious")
    (tmp_path / "notes.md").write_text("stays")
    set_former_sweep_aside(tmp_path)
    assert (tmp_path / "former-1" / "summary.csv").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["former-1", "notes.md"]
    set_former_sweep_aside(tmp_path)  # nothing to move
    assert sorted(os.listdir(tmp_path)) == ["former-1", "notes.md"]


def test_files_that_cannot_be_moved_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> Path:
        raise OSError("no space left")

    (tmp_path / "summary.csv").write_text("precious")
    monkeypatch.setattr(former_sweep, "make_former_folder", full)
    with pytest.raises(SweepRefused, match=r"could not be moved \(no space left\): choose another"):
        set_former_sweep_aside(tmp_path)


# ---- two jobs in one folder


@pytest.mark.parametrize(
    ("subdir", "sweep", "jobs_of_one"),
    [
        ("same", ["seq=8,16"], "0 and 1"),
        ("${seed}", ["seq=8,16", "seed=1,2"], "0 and 2"),
        ("a/../${seed}/.", ["seq=8,16", "seed=1,2"], "0 and 2"),
        ("${hydra.job.num}${seed}", ["seed=2,11,3,4,5,6,7,8,9,10,12,1"], "1 and 11"),
    ],
)
def test_two_jobs_of_one_folder_are_refused_before_the_first(
    command: Command, jobs: Jobs, tmp_path: Path, subdir: str, sweep: list[str], jobs_of_one: str
) -> None:
    """The second moved the first aside, and both rows of the table were those of the second."""
    place = ["hydra.sweep.dir=sweep", f"hydra.sweep.subdir='{subdir}'"]
    said = one_sentence(command("-m", *sweep, *place), 2)
    assert "must name a folder of its own for each job" in said
    assert f"jobs {jobs_of_one} both have" in said and "${hydra.job.num}" in said
    assert jobs == [] and not (tmp_path / "sweep" / ".jobs").exists()


def test_jobs_of_other_folders_run(command: Command, jobs: Jobs) -> None:
    place = ["hydra.sweep.dir=sweep", "hydra.sweep.subdir='${seq}/${seed}'"]
    assert command("-m", "seq=8,32", "seed=1,2", *place).code == 0
    assert len(jobs) == 4


def test_a_drawn_job_does_not_take_the_folder_of_another(
    command: Command, jobs: Jobs, tmp_path: Path
) -> None:
    search = ["hparams_search=optuna", "hydra.sweeper.n_trials=3", "hydra.sweep.dir=search"]
    ended = command(*search, "seq=8", "hydra.sweep.subdir=same")
    assert ended.code == 2 and "jobs 0 and 1 both have" in ended.err
    assert len(jobs) == 1
    assert json.loads((tmp_path / "search/same/result.json").read_text())["status"] == "completed"


def test_a_job_may_run_again_in_its_own_folder(tmp_path: Path) -> None:
    clear_jobs(tmp_path)
    register_job(tmp_path, 0, tmp_path / "a")
    register_job(tmp_path, 0, tmp_path / "a")  # as of a job that Slurm queues again
    register_job(tmp_path, 1, tmp_path / "a" / "b")
    with pytest.raises(SweepRefused, match="jobs 0 and 2 both have"):
        register_job(tmp_path, 2, tmp_path / "x" / ".." / "a")
