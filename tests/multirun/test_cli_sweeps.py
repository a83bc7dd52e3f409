"""How a sweep ends: its exit code, its table, and which jobs run when it is resumed."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import one_sentence
from xftrain.launch import cli
from xftrain.multirun import table


def _result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_a_sweep_goes_on_after_failing_jobs_and_ends_with_1_and_a_table(command, jobs, tmp_path):
    ended = command("-m", "seq=8,-1,16,13,14,32", "hydra.sweep.dir=sweep")

    assert ended.code == 1
    assert [words[2] for words in jobs] == ["seq=8", "seq=16", "seq=13", "seq=14", "seq=32"]
    assert ended.err.splitlines() == [
        "xftrain: job 1: seq must be an integer >= 1, got -1.",
        "xftrain: job 2: the disk is full.",
        "xftrain: job 3: the process was ended by SIGKILL, as the system does where memory runs "
        "out and left no result",
        "xftrain: job 4: the run folder cannot be made.",
        "xftrain: 4 of 6 jobs failed (job 1: seq must be an integer >= 1, got -1); "
        f"resume_sweep={tmp_path / 'sweep'} runs them again.",
    ]
    with (tmp_path / "sweep" / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["status"], row["seq"]) for row in rows] == [
        ("0", "completed", "8"),
        ("5", "completed", "32"),
        ("1", "refused", "-1"),
        ("2", "failed", "16"),
        ("3", "crashed", "13"),
        ("4", "crashed", "14"),
    ]
    summary = (tmp_path / "sweep" / "summary.md").read_text()
    assert summary in ended.out and "- job 2: the disk is full." in summary
    assert (tmp_path / "sweep" / "summary.png").is_file()


def test_a_sweep_that_cannot_be_drawn_has_ended_all_the_same(command, jobs, tmp_path):
    (tmp_path / "sweep" / "summary.png").mkdir(parents=True)
    ended = command("-m", "seq=8,32", "hydra.sweep.dir=sweep")
    assert ended.code == 0 and "| job | status" in ended.out
    (line,) = ended.err.splitlines()
    assert line.startswith("xftrain: warning: no ") and "summary.png" in line


def test_a_sweep_whose_launcher_ends_early_has_a_table(command, jobs, monkeypatch):
    """Raises an error as joblib does if the kernel kills one of its workers."""
    register_job = table.register_job

    def lose(folder, number, run_dir):
        if number == 1:
            raise RuntimeError("a worker was killed.\nThat is all.")
        register_job(folder, number, run_dir)

    monkeypatch.setattr(table, "register_job", lose)
    ended = command("-m", "seq=8,32", "hydra.sweep.dir=sweep")

    assert ended.code == 1 and "| 0   | completed |" in ended.out
    assert "the launcher lost jobs (RuntimeError: a worker was killed); resume_sweep=" in ended.err


def test_a_resumed_sweep_runs_what_failed_and_what_is_missing(command, jobs, tmp_path):
    command("-m", "seq=8,16,13,32", "hydra.sweep.dir=sweep")
    shutil.rmtree(tmp_path / "sweep" / "3_seq=32")
    jobs.clear()

    ended = command("resume_sweep=sweep")  # what it ran stands in its multirun.yaml

    assert ended.code == 1
    assert [words[2] for words in jobs] == ["seq=16", "seq=13", "seq=32"]
    assert len((tmp_path / "sweep" / "summary.csv").read_text().splitlines()) == 5
    jobs.clear()
    again = command("-m", "seq=8,32", "hydra.sweep.dir=sweep")
    assert [words[2] for words in jobs] == ["seq=8", "seq=32"]  # not resumed: all of them
    assert again.code == 0  # what an earlier sweep left in the folder is no job of this one
    assert len((tmp_path / "sweep" / "summary.csv").read_text().splitlines()) == 3
    assert "the folder of a sweep, got 'nowhere'." in command("resume_sweep=nowhere").err
    assert "the folder of a sweep, got ''." in command("resume_sweep=").err


def test_a_resumed_sweep_is_the_same_command(command, jobs, tmp_path):
    place = ['hydra.sweep.dir="a (b), c"']
    command("-m", "--config-name", "benchmark", "seq=8,16", *place)
    names = ["--config-name", "benchmark"]
    assert [words[:3] for words in jobs] == [[*names, "seq=8"], [*names, "seq=16"]]
    jobs.clear()

    ended = command("resume_sweep=a (b), c")

    assert [words[:3] for words in jobs] == [[*names, "seq=16"]]
    assert "'resume_sweep=" in ended.err  # quoted for the shell
    command("-m", "seq=8,13", "hydra.sweep.dir=own", "hydra.sweep.subdir=j${hydra.job.num}")
    assert "repeat its whole command" in command("resume_sweep=own").err
    command("-m", "--config-dir", str(tmp_path), "seq=8,13", "hydra.sweep.dir=own")
    assert "repeat its whole command" in command("resume_sweep=own").err
    assert command("-m", "--config-dir", str(tmp_path), "seq=8,13", "resume_sweep=own").code == 1


def test_side_by_side_a_benchmark_is_refused(command, jobs, tmp_path):
    # its sweeps measure times; a job that is refused is a row like any other
    side_by_side = ("--config-name", "benchmark", "hydra/launcher=joblib")
    ended = command("-m", *side_by_side, "seq=8,16", "hydra.sweep.dir=sweep")
    assert ended.code == 1 and jobs == [] and "2 of 2 jobs failed" in ended.err
    assert "measures times, which jobs in parallel on one device would falsify" in ended.err


def test_a_resumed_sweep_takes_overrides_of_hydras_and_no_others(command, jobs, tmp_path):
    # one override made another sweep of it, and its table was lost
    command("-m", "seq=8,13", "hydra.sweep.dir=sweep")
    before = (tmp_path / "sweep" / "summary.csv").read_text()
    jobs.clear()
    ended = command("resume_sweep=sweep", "seed=3")
    assert "had seq=8,13, which this command lacks" in one_sentence(ended, 2)
    assert jobs == [] and (tmp_path / "sweep" / "summary.csv").read_text() == before
    command("resume_sweep=sweep", "hydra.sweep.dir=sweep")
    assert [words[2] for words in jobs] == ["seq=13"]


def test_a_sweep_folder_that_cannot_be_written_is_said(command, jobs, tmp_path):
    # it ended with 0, without a table, whatever became of the jobs
    (tmp_path / "sweep" / ".sweep.json").mkdir(parents=True)
    ended = command("-m", "seq=8,13", "hydra.sweep.dir=sweep")
    assert "cannot be written" in one_sentence(ended, 2) and jobs == []


@pytest.mark.long
def test_sigterm_ends_the_job_and_then_the_sweep(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "xftrain", "-m", "seed=1,2", "max_steps=100000", "model.attn=naive"]
        + ["data.stop_at_accuracy=null", "hydra.sweep.dir=sweep", "batch_tokens=128"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = ""
    while "step 20/" not in line:
        line = process.stdout.readline()
        assert line, process.stderr.read()
    process.terminate()
    _, said = process.communicate(timeout=60)

    assert process.returncode == 143 and said == "xftrain: stopped by SIGTERM.\n"
    (job,) = (tmp_path / "sweep").glob("0_*")
    assert _result(job)["status"] == "stopped"  # it was told, and saved
    assert (job / "checkpoints" / "last.ckpt").is_file()
    assert "stopped" in (tmp_path / "sweep" / "summary.csv").read_text()


def test_a_job_gets_the_flags_and_the_folder_of_its_sweep(command, jobs, tmp_path):
    (tmp_path / "own" / "model" / "attn").mkdir(parents=True)
    (tmp_path / "own" / "model" / "attn" / "mine.yaml").write_text("name: naive\n")
    ended = command(
        *("-m", "--config-dir", "own", "model.attn=mine,sdpa", "model.ffn=gelu"),
        *("hydra.sweep.dir=a b", "+hydra.job.env_set.X=1"),
    )

    assert (ended.code, ended.err) == (0, "")
    place = tmp_path / "a b" / "0_attn=mine"
    assert jobs[0] == [
        *("--config-name", "train", "--config-dir", str(tmp_path / "own")),
        *("model/attn=mine", "model/ffn=gelu", "+hydra.job.env_set.X=1"),
        'hydra.job.config.override_dirname.exclude_keys=["model/ffn"]',  # what all jobs share
        *(f'hydra.run.dir="{place}"', "hydra.mode=RUN", "hydra.output_subdir=null"),
        *(f'hydra.sweep.dir="{place.parent}"', "hydra.job.num=0", 'hydra.job.id="0"'),
    ]


def test_flags_may_stand_between_overrides(command, jobs):
    assert command("seq=8", "-m", "model.attn=naive,sdpa", "--config-name", "train").code == 0
    assert [words[2:4] for words in jobs] == [
        ["seq=8", "model/attn=naive"],
        ["seq=8", "model/attn=sdpa"],
    ]


def test_a_sweep_with_an_unknown_option_runs_no_job(command, runner):
    said = one_sentence(command("-m", "model.attn=naive,xfomers"), 2)

    assert said.startswith("model.attn=xfomers: no such option; ")
    assert runner.calls == []


def test_a_failure_travels_between_processes():
    """A launcher may run jobs elsewhere and hand their exceptions back."""
    failure = pickle.loads(pickle.dumps(cli.JobFailed("job 1: no luck", 1)))

    assert (failure.sentence, failure.code) == ("job 1: no luck", 1)
