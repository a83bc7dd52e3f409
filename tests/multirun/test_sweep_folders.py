"""A sweep's folder may come from anyone: what resuming it may run, read, write and remove."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from tests.command_line import Ended, one_sentence
from xftrain.errors import SweepRefused
from xftrain.multirun import jobs as sweeps
from xftrain.multirun.table import clear_jobs, read_result, read_rows, register_job, write_summary

Command = Callable[..., Ended]
Jobs = list[list[str]]


def _record(folder: Path, *overrides: str) -> None:
    folder.mkdir(exist_ok=True)
    record = {"config_name": "train", "config_dirs": [], "overrides": list(overrides)}
    (folder / ".sweep.json").write_text(json.dumps(record))


# ---- who recorded it


def test_a_foreign_sweep_needs_a_word(command: Command, jobs: Jobs, tmp_path: Path) -> None:
    _record(tmp_path / "sweep", "seq=8,32")

    said = one_sentence(command("resume_sweep=sweep"), 2)
    assert "was not recorded by this user on this machine" in said and "seq=8,32" in said
    assert "repeat its whole command" in said and "trust_sweep=true" in said
    assert jobs == [] and os.listdir(tmp_path / "sweep") == [".sweep.json"]
    assert "trust_sweep" in one_sentence(command("resume_sweep=sweep", "trust_sweep=false"), 2)

    assert command("resume_sweep=sweep", "trust_sweep=true").code == 0
    assert [words[2] for words in jobs] == ["seq=8", "seq=32"]
    assert command("resume_sweep=sweep").code == 0  # now it is of this user


def test_no_override_hides_another_in_the_question(command: Command, tmp_path: Path) -> None:
    long = f"tags=[{','.join(['harmless'] * 200)}]"
    paths = ["data=text", "data.path=/root/.ssh", "data.follow_links=True"]
    _record(tmp_path / "sweep", long, *[f"seed={n}" for n in range(300)], *paths, "max_steps=7")
    said = one_sentence(command("resume_sweep=sweep"), 2)
    assert f"would run --config-name train {' '.join(paths)} tags=[harmless" in said
    assert "max_steps=7: repeat its whole command" in said and len(said) < 6_000


@pytest.mark.parametrize("typed", ["trust_sweep=true", "trust_sweep=maybe", "trust_sweep="])
def test_the_word_alone_is_refused(command: Command, typed: str) -> None:
    assert "trust_sweep must be true or false" in one_sentence(command(typed), 2)


def test_a_word_does_not_make_code_of_data(command: Command, jobs: Jobs, tmp_path: Path) -> None:
    _record(tmp_path / "sweep", "seq=8,16", "+callbacks.x={\\_target_: os.mkdir}")
    said = one_sentence(command("resume_sweep=sweep", "trust_sweep=true"), 2)
    assert "repeat its whole command" in said and jobs == []


def test_a_changed_record_is_a_foreign_one(command: Command, jobs: Jobs, tmp_path: Path) -> None:
    command("-m", "seq=8,32", "hydra.sweep.dir=sweep")
    path = tmp_path / "sweep" / ".sweep.json"
    path.write_text(path.read_text().replace("seq=8,32", "seq=8,64"))
    jobs.clear()
    assert "was not recorded by this user" in one_sentence(command("resume_sweep=sweep"), 2)
    assert jobs == []


@pytest.mark.parametrize("moved", [False, True], ids=["copied", "moved"])
def test_a_sweep_in_another_folder_needs_a_word(
    command: Command, jobs: Jobs, tmp_path: Path, moved: bool
) -> None:
    # a copy may come back from somebody else, with other results beside the sealed record
    command("-m", "seq=8,32", "hydra.sweep.dir=sweep")
    jobs.clear()
    (shutil.move if moved else shutil.copytree)(tmp_path / "sweep", tmp_path / "other")
    assert "not in this folder" in one_sentence(command("resume_sweep=other"), 2)
    assert jobs == []
    assert moved or command("resume_sweep=sweep").code == 0


# ---- links and other files


def _run_everything(command: Command) -> list[Ended]:
    again = ["-m", "seq=8,32"]
    words = ["resume_sweep=sweep", "trust_sweep=true"]
    return [command(*words), command(*again, words[0]), command(*again, "hydra.sweep.dir=sweep")]


NAMES = [".jobs", ".jobs/0.json", "summary.csv", "summary.md", "summary.png", "multirun.yaml"]
NAMES += ["0_seq=8", "0_seq=8/result.json", "0_seq=8/xftrain.log", "0_seq=8/.job_said"]
NAMES += ["0_seq=8/.job.json", "0_seq=8/.hydra", "0_seq=8/.hydra/config.yaml", ".submitit", "any"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_or_removed_behind_a_link(
    command: Command, jobs: Jobs, tmp_path: Path, name: str
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "0.json").write_text("thesis")
    _record(tmp_path / "sweep", "seq=8,32")
    link = tmp_path / "sweep" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(precious if "." not in link.name[1:] else precious / "0.json")

    for ended in _run_everything(command):
        assert "leads out of" in one_sentence(ended, 2)
    assert jobs == [] and link.is_symlink()
    assert os.listdir(precious) == ["0.json"]
    assert (precious / "0.json").read_text() == "thesis"


@pytest.mark.parametrize("name", ["summary.csv", "0_seq=8/xftrain.log", ".jobs/0.json"])
def test_a_fifo_is_not_waited_for(command: Command, jobs: Jobs, tmp_path: Path, name: str) -> None:
    _record(tmp_path / "sweep", "seq=8,32")
    (tmp_path / "sweep" / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "sweep" / name)
    for ended in _run_everything(command):
        assert "a FIFO, a device or a socket" in one_sentence(ended, 2)


def test_links_inside_the_folder_may_stay(command: Command, jobs: Jobs, tmp_path: Path) -> None:
    _record(tmp_path / "sweep", "seq=8,32")
    (tmp_path / "sweep" / "best").symlink_to("0_seq=8")
    assert command("resume_sweep=sweep", "trust_sweep=true").code == 0


def test_only_entries_of_jobs_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / ".jobs").mkdir()
    for name in ("0.json", "12.json", "thesis.json", "1.json.bak", "x"):
        (tmp_path / ".jobs" / name).touch()
    clear_jobs(tmp_path)
    assert sorted(os.listdir(tmp_path / ".jobs")) == ["1.json.bak", "thesis.json", "x"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".jobs").symlink_to(tmp_path / ".jobs")
    with pytest.raises(OSError, match="is a link"):
        clear_jobs(tmp_path / "other")


def test_jobs_are_below_the_folder_of_their_sweep(tmp_path: Path) -> None:
    folder, outside = tmp_path / "sweep", tmp_path / "outside"
    for place in (folder / "0", outside):
        place.mkdir(parents=True)
        (place / "result.json").write_text('{"status": "completed", "overrides": []}')
    (folder / "link").symlink_to(outside)
    clear_jobs(folder)
    register_job(folder, 0, folder / "0")
    for number, place in enumerate((outside, folder, folder / "link", folder / "0" / ".." / "..")):
        with pytest.raises(SweepRefused, match="must name a folder below"):
            register_job(folder, number, place)
        entry = {"job": number + 1, "run_dir": str(place)}
        (folder / ".jobs" / f"{number + 1}.json").write_text(json.dumps(entry))
    (folder / ".jobs" / "9.json").write_text('{"job": "x", "run_dir": ["a"]}')
    assert [row["run_dir"] for row in read_rows(folder)] == ["0"]


@pytest.mark.parametrize("was_there", [True, False])
def test_old_results_of_submitit_are_not_unpickled(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_there: bool
) -> None:
    """It would look for the result of a process by its number, and anyone can guess that."""
    configs: list[DictConfig] = []

    def end(*arguments: object) -> None:
        raise OSError("before any process starts")

    monkeypatch.setattr(sweeps, "make_record", configs.append)
    monkeypatch.setattr(sweeps, "clear_jobs", end)
    if was_there:
        (tmp_path / "sweep" / ".submitit").mkdir(parents=True)
    launcher = "hydra/launcher=submitit_local"
    assert command("-m", "seq=8,32", launcher, "hydra.sweep.dir=sweep").code == 2
    parts = Path(configs[0].hydra.launcher.submitit_folder).relative_to("sweep").parts
    assert (parts[0], parts[-1]) == (".submitit", "%j")
    assert [len(part) for part in parts[1:-1]] == ([16] if was_there else [])


# ---- what a result says


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"status": "completed"}',
        '{"status": ["completed"], "overrides": []}',
        '{"status": "completed", "overrides": "seq=8"}',
        '{"status": "completed", "overrides": [1]}',
        "[" * 100_000,
        "1" * 10_000,
    ],
)
def test_a_result_of_another_shape_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    assert read_result(tmp_path) is None


def _summary(folder: Path, **changes: object) -> tuple[dict[str, str], str]:
    result = {"status": "completed", "overrides": ["seq=8"], **changes}
    (folder / "0").mkdir()
    (folder / "0" / "result.json").write_text(json.dumps(result))
    clear_jobs(folder)
    register_job(folder, 0, folder / "0")
    write_summary(folder)
    with (folder / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row, (folder / "summary.md").read_text()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\n@", "=\x1b["])
def test_text_is_no_formula_in_a_spreadsheet(tmp_path: Path, start: str) -> None:
    text = f"{start}HYPERLINK(1)"
    overrides = [f"data.path={text}", f"{text}=1"]
    row, _ = _summary(tmp_path, error=text, status=text, overrides=overrides)
    for cell in (*row, *row.values()):
        assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")
        assert cell.isprintable()
    assert "HYPERLINK(1)" in row["error"] and "HYPERLINK(1)" in row["data.path"]


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    values = {"a": "-0.5", "b": "+1e-3", "c": "-.5", "d": "-inf", "e": "7", "f": "nan"}
    overrides = [f"{key}={value}" for key, value in values.items()]
    row, _ = _summary(tmp_path, overrides=overrides, metrics={"val/loss": -0.25}, wall_s=3)
    assert {key: row[key] for key in values} == values
    assert (row["val/loss"], row["wall_s"]) == ("-0.25", "3")


@pytest.mark.parametrize("figure", ["=1+1", [1], {"a": 1}, True, float("inf"), 10**400])
def test_what_is_no_number_is_no_figure(tmp_path: Path, figure: object) -> None:
    row, text = _summary(tmp_path, metrics={"val/loss": figure}, tokens_per_s=figure)
    assert (row["val/loss"], row["tokens_per_s"]) == ("", "")
    assert _summary_is_a_table(text)


@pytest.mark.parametrize("metrics", [None, 3, "x", [1]])
def test_metrics_of_another_shape_are_none(tmp_path: Path, metrics: object) -> None:
    assert _summary(tmp_path, metrics=metrics)[0]["val/loss"] == ""


def _summary_is_a_table(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return len({line.count("|") for line in lines}) == 1 and len(lines) == 3


def test_a_cell_is_neither_markup_nor_two_cells(tmp_path: Path) -> None:
    hostile = "a|b<img src=x onerror=y>![c](http://d)\x1b]0;title\x07\u202e"
    row, text = _summary(tmp_path, overrides=[f"tags={hostile}"], status=hostile, error=hostile)
    assert _summary_is_a_table(text)
    assert "<" not in text and "](" not in text and "\x1b" not in text and "\u202e" not in text
    assert "\x1b" not in row["error"] and "<img" in row["error"]


def test_a_result_of_a_megabyte_is_a_short_row(tmp_path: Path) -> None:
    long = "x" * 200_000
    many = [f"a{number}=1" for number in range(20_000)]
    row, text = _summary(
        *(tmp_path,),
        **{"status": long, "error": long, "overrides": [f"tags={long}", f"{long}=1", *many]},
        **{"tokens_per_s": 1e300, "wall_s": int("9" * 300)},
    )
    assert len(row) < 1100 and max(map(len, [*row, *row.values()])) <= 1000
    assert row["tokens_per_s"] == "1e+300" and row["wall_s"] == "" and "1e+300 " in text
