"""Folders are made where a run or a sweep starts, a new one for each, and not by printing."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import hydra.core.utils
import pytest

from tests.command_line import Ended, Runner, one_sentence
from xftrain.config.overrides import quoted
from xftrain.errors import ConfigError
from xftrain.folders.links import refuse_links

Command = Callable[..., Ended]
Jobs = list[list[str]]


@pytest.fixture
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freezes the clock, so that all runs start in the same second."""

    class Clock(hydra.core.utils.datetime):
        @classmethod
        def now(cls, tz: object = None) -> hydra.core.utils.datetime:
            return hydra.core.utils.datetime(2030, 1, 1)

    monkeypatch.setattr(hydra.core.utils, "datetime", Clock)


@pytest.mark.parametrize(
    "typed",
    [
        "--cfg all --resolve",
        "--cfg hydra --resolve",
        "--cfg job --resolve",
        "-c all --resolve -p hydra.sweep",
        "--cfg hydra --resolve hydra.mode=MULTIRUN seq=8,16",
        "--info all",
        "--info config",
        "--info defaults",
        "--help --resolve",
        "--hydra-help",
        "--version",
        "seq=abc",
    ],
)
def test_printing_and_refusing_make_no_folder(
    command: Command, runner: Runner, tmp_path: Path, typed: str
) -> None:
    command(*typed.split())
    assert [path.name for path in tmp_path.rglob("*")] == [] and runner.calls == []


def test_sweeps_of_one_second_have_folders_of_their_own(
    command: Command, jobs: Jobs, tmp_path: Path, still_clock: None
) -> None:
    for values in ("8,32", "64", "64,128"):
        assert command("-m", f"seq={values}").code == 0
    folders = [tmp_path / "outputs" / "2030-01-01" / f"00-00-00{end}" for end in ("", "-2", "-3")]
    assert sorted(folders[0].parent.iterdir()) == folders
    for folder, num_rows in zip(folders, (2, 1, 2), strict=True):
        with (folder / "summary.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == num_rows and all((folder / row["run_dir"]).is_dir() for row in rows)
        assert (folder / "multirun.yaml").is_file()
    jobs.clear()
    assert command(f"resume_sweep={folders[1]}").code == 0 and jobs == []  # in its own folder


def test_a_search_has_a_folder_of_its_own(
    command: Command, jobs: Jobs, tmp_path: Path, still_clock: None
) -> None:
    search = ["hparams_search=optuna", "hydra.sweeper.n_trials=1"]
    assert [command(*search).code for _ in range(2)] == [0, 0]
    folders = sorted(tmp_path.glob("outputs/*/*"))
    assert [folder.name for folder in folders] == ["00-00-00", "00-00-00-2"]
    assert all((folder / "optimization_results.yaml").is_file() for folder in folders)


def test_a_run_and_a_sweep_of_one_second_share_none(
    command: Command, runner: Runner, jobs: Jobs, tmp_path: Path, still_clock: None
) -> None:
    assert command("seq=8").code == 0 and command().code == 0
    assert command("-m", "seq=8,32").code == 0
    assert command("seq=8").code == 0 and command().code == 0
    names = [run_dir.name for _, run_dir in runner.calls]
    assert names == ["00-00-00_seq-8", "00-00-00", "00-00-00_seq-8-2", "00-00-00-3"]
    assert (tmp_path / "outputs" / "2030-01-01" / "00-00-00-2" / "summary.csv").is_file()


@pytest.mark.parametrize(("typed", "code"), [("seq=8", 1), ("-m seq=8,32", 2)])
def test_a_folder_that_cannot_be_made_is_said(
    command: Command, jobs: Jobs, tmp_path: Path, typed: str, code: int
) -> None:
    (tmp_path / "outputs").touch()
    assert "outputs" in one_sentence(command(*typed.split()), code)
    assert jobs == []


def test_a_folder_with_any_name_is_used(command: Command, jobs: Jobs, tmp_path: Path) -> None:
    name = 'it\'s "a" (b), c=[d] \\ {e} $f #'
    assert command("-m", "seq=8,32", f"hydra.sweep.dir={quoted(name)}").code == 0
    assert (tmp_path / name / "summary.csv").is_file() and len(jobs) == 2
    jobs.clear()
    (tmp_path / name / "1_seq=32" / "result.json").unlink()
    assert command(f"resume_sweep={name}").code == 0
    assert len(jobs) == 1 and (tmp_path / name / "1_seq=32" / "result.json").is_file()


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_folder_whose_name_hydra_would_resolve_again_is_refused(command, tmp_path, key):
    # its log and .hydra went to another folder, whose links nobody had looked at
    (tmp_path / "r_other" / ".hydra").mkdir(parents=True)
    (tmp_path / "precious").write_text("thesis")
    (tmp_path / "r_other" / ".hydra" / "config.yaml").symlink_to("../../precious")
    words = ["-m", "seq=8,16"] if key == "hydra.sweep.dir" else []
    ended = command(*words, f"{key}='r_\\${{oc.env:NOPE,other}}'")
    assert "must be a folder whose name has no ${" in one_sentence(ended, 2)
    assert (tmp_path / "precious").read_text() == "thesis"
    assert {path.name for path in tmp_path.iterdir()} == {"r_other", "precious"}


@pytest.mark.parametrize("name", ["~/x", "~", "~root", "r$SOME", "r${SOME}/x", "a/$SOME/b"])
def test_a_folder_whose_name_lightning_would_expand_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SOME", "else")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="would be another folder to Lightning"):
        refuse_links(Path(name), "hydra.run.dir")
    monkeypatch.delenv("SOME")
    for fine in ("r$SOME", "a~b", "a/~", "50%"):
        refuse_links(Path(fine), "hydra.run.dir")


@pytest.mark.parametrize("folder", ["file::x", "outputs/zip::x", "{here}/http::x"])
def test_a_folder_whose_name_is_a_url_to_a_library_is_refused(
    command: Command, tmp_path: Path, folder: str
) -> None:
    # Lightning wrote beside it, or failed with an HTTP client's traceback
    named = f'hydra.run.dir="{folder.format(here=tmp_path)}"'
    assert "must be a folder whose name has no ::" in one_sentence(command(named, "seq=8"), 2)
    assert list(tmp_path.iterdir()) == []
