"""Searches: what Optuna draws is what runs, no trial ends the search, and how it goes on."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.command_line import Ended, one_sentence
from xftrain.config.registry import conf_dir

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (conf_dir() / "hparams_search").glob("*.yaml"))
SMALL = ["max_steps=1", "seq=16", "batch_tokens=64", "callbacks=none", "logger=none"]
SMALL += ["model.dim=16", "model.num_layers=1", "model.num_heads=2"]
DRAWS_EACH = "hydra.sweeper.sampler.seed=15"  # of two choices in 3 trials, of four in 4
SQLITE = "hydra.sweeper.storage=sqlite:///search.db"

Command = Callable[..., Ended]
Jobs = list[list[str]]


def _search(num_trials: int, *more: str, folder: str = "search") -> list[str]:
    trials, place = f"hydra.sweeper.n_trials={num_trials}", f"hydra.sweep.dir={folder}"
    return ["hparams_search=optuna", trials, place, *more]


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _best(folder: Path) -> float:
    found: float = yaml.safe_load((folder / "optimization_results.yaml").read_text())["best_value"]
    return found


def _python(folder: Path, *arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xftrain", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])},
        capture_output=True,
        text=True,
    )


@pytest.mark.long
@pytest.mark.usefixtures("forked_jobs")
@pytest.mark.parametrize("name", NAMES)
def test_a_search_on_disk_trains_what_it_draws(command: Command, tmp_path: Path, name: str) -> None:
    options = [f"hparams_search={name}", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=search"]
    ended = command(*options, *SMALL)

    assert ended.code == 0, ended.err
    rows = _rows(tmp_path / "search")
    assert len(rows) == 2
    for row in rows:
        cfg = yaml.safe_load((tmp_path / "search" / row["run_dir"] / "config.yaml").read_text())
        drawn = (row["model.bias"], float(row["optim.lr"]))
        assert drawn == (cfg["model"]["bias"]["name"], cfg["optim"]["lr"])
    assert _best(tmp_path / "search") == float(rows[0]["val/loss"])
    assert [row["best"] for row in rows] == ["best", ""]


# ---- with a stand-in for training: `jobs`, of which seq=13 and seq=16 fail and seq=15 has no loss


def test_what_ends_a_trial_does_not_end_the_search(command: Command, jobs: Jobs, tmp_path: Path):
    ended = command(*_search(4, DRAWS_EACH, "seq=choice(8,13,15,16)"))

    assert ended.code == 1
    rows = _rows(tmp_path / "search")
    assert sorted(row["job"] for row in rows) == ["0", "1", "2", "3"]
    assert rows[0]["seq"] == "8" and [row["best"] for row in rows] == ["best", "", "", ""]
    assert {row["seq"] for row in rows} == {"8", "13", "15", "16"}
    assert "2 of 4 jobs failed " in ended.err and "| job | status" in ended.out
    assert _best(tmp_path / "search") == 0.5


@pytest.mark.parametrize("seq", [15, 16])
def test_a_search_without_a_result_ends_with_its_table(
    command: Command, jobs: Jobs, tmp_path: Path, seq: int
) -> None:
    ended = command(*_search(1, f"seq={seq}"))

    assert ended.code == int(seq == 16) and "| job | status" in ended.out
    assert len(jobs) == 1 and _best(tmp_path / "search") == float("inf")


def test_a_parameter_may_be_dotted_and_may_be_typed(
    command: Command, jobs: Jobs, tmp_path: Path
) -> None:
    (tmp_path / "own" / "hparams_search").mkdir(parents=True)
    (tmp_path / "own" / "hparams_search" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [optuna]\n"
        "hydra: {sweeper: {n_trials: 2, params: {model.ffn: 'choice(gelu,relu2)'}}}\n"
    )
    typed = ["hparams_search=mine", "model.attn=naive", "hydra.sweeper.sampler=random"]
    ended = command("--config-dir", "own", *typed)

    assert (ended.code, len(jobs)) == (0, 2) and "Sampler: RandomSampler" in ended.out
    for words in jobs:
        chosen = dict(word.split("=") for word in words if word.startswith("model"))
        assert chosen.keys() == {"model/attn", "model/bias", "model/ffn"}
        assert chosen["model/attn"] == "naive" and chosen["model/ffn"] in ("gelu", "relu2")


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("model.attn=choice(naive,xfomers)", "model.attn=xfomers: no such option; choose one of "),
        ("seq=choice(8,abc)", "seq must be an integer >= 1, got 'abc'."),
        ("hydra.sweeper.storage=nowhere", "hydra.sweeper.storage=nowhere cannot be opened ("),
        ("hydra/launcher=submitit_slurm", "hydra/launcher=submitit_slurm needs a Slurm cluster, "),
        ("hydra.sweeper.n_jobs=-1", "hydra.sweeper.n_jobs must be an integer from 1 to "),
        ("hydra.sweeper.n_trials=3000000", "n_trials must be an integer from 1 to 100,000, got "),
        (
            "hydra/sweeper/sampler=cmaes hydra.sweeper.storage=sqlite:///search.db",
            "hydra/sweeper/sampler=cmaes keeps its state as a pickle, which is never read",
        ),
        ("hydra.sweeper.direction=up", "Please set either 'minimize' or 'maximize' to direction."),
    ],
)
def test_what_a_search_could_not_do_is_said_before_its_first_trial(
    command: Command, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, typed: str, sentence: str
) -> None:
    monkeypatch.setenv("PATH", "")  # where srun might be
    assert sentence in one_sentence(command(*_search(2, *typed.split())), 2)
    assert jobs == []


def test_a_search_in_memory_is_resumed_trial_by_trial(
    command: Command, jobs: Jobs, tmp_path: Path
) -> None:
    command(*_search(3, DRAWS_EACH, "seq=choice(8,16)"))
    failed = [words for words in jobs if "seq=16" in words]
    before = _rows(tmp_path / "search")
    jobs.clear()

    ended = command("resume_sweep=search")

    assert ended.code == 1 and 0 < len(jobs) < 3
    assert jobs == failed and _rows(tmp_path / "search") == before
    unseeded = _search(1, "seq=choice(8,16)", "hydra.sweeper.sampler.seed=null")
    unseeded = [*unseeded, "resume_sweep=search"]
    assert "hydra.sweeper.sampler.seed must be" in one_sentence(command(*unseeded), 2)
    assert _rows(tmp_path / "search") == before and len(jobs) == len(failed)


def test_a_search_in_a_database_goes_on_with_the_same_command(
    command: Command, jobs: Jobs, tmp_path: Path
) -> None:
    import optuna

    first, second = (
        command(*_search(1, SQLITE, "seq=choice(13,16)", folder=folder)) for folder in ("a", "b")
    )
    trials = optuna.load_study("xftrain", "sqlite:///search.db").trials

    # it draws others, keeps what failed, and does not offer what would run nothing again
    assert len(trials) == 2 == len({trial.params["optim.lr"] for trial in trials})
    assert [trial.value for trial in trials] == [float("inf")] * 2
    for ended in (first, second):
        assert ended.code == 1 and ended.err.splitlines()[-1].startswith("xftrain: 1 of 1 jobs")
        assert "resume_sweep" not in ended.err
    jobs.clear()
    for typed, sentence in (
        (["resume_sweep=a"], "repeat its command without resume_sweep."),
        (["max_steps=3"], "the study xftrain in sqlite:///search.db is of other runs ("),
        (["model.bias=choice(causal,full)"], "was made with other choices"),
    ):
        options = _search(1, SQLITE, "seq=choice(13,16)", *typed)
        assert sentence in one_sentence(command(*options), 2)
    assert jobs == []


def test_without_the_extra_a_search_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "bare" / "hydra_plugins").mkdir(parents=True)
    (tmp_path / "bare" / "hydra_plugins" / "__init__.py").touch()  # hides the installed ones

    ended = _python(tmp_path, "hparams_search=optuna", path=tmp_path / "bare")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        'xftrain: hydra.sweeper=optuna needs an extra: pip install ".[optuna]".\n'
    )
