"""A new run in a used folder loses nothing of the former one, and is not mixed with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.checkpoint.test_checkpoint import power_cut
from tests.command_line import one_sentence
from tests.train.runs import last, result_of, rows_of, run
from xftrain.checkpoint.file import read_checkpoint
from xftrain.checkpoint.header import run_id
from xftrain.checkpoint.newest import checkpoint_to_load
from xftrain.checkpoint.plain_values import MAX_TIME_NS
from xftrain.commands.sample import sample
from xftrain.errors import ConfigError, RunError
from xftrain.folders.reserved import HYDRA, ReservedFolders
from xftrain.folders.run_folder import RunFolder, holds_run, restore_hydra, run_id_of
from xftrain.multirun import jobs as sweeps

KEPT = ("callbacks.checkpoint=null", "logger=csv")
STEPS = ("callbacks.checkpoint.every_n_steps=2", "trainer.log_every_n_steps=1")
RUN_FILES = {"checkpoints", "metrics.csv", "result.json", "config.yaml", "hparams.yaml"}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def seeds_of(folder: Path) -> set[int]:
    paths = folder.glob("checkpoints/*.ckpt")
    return {read_checkpoint(path)["xftrain"]["config"]["seed"] for path in paths}


def test_a_new_run_sets_the_former_one_aside_as_it_was(tmp_path, caplog):
    run(tmp_path, *STEPS, "seed=1")
    before = contents(tmp_path)
    with caplog.at_level("INFO"):
        run(tmp_path, *STEPS, "seed=2", "max_steps=2", "trainer.val_check_interval=9")
    assert contents(tmp_path / "former-1") == before
    assert f"the former run's files are in {tmp_path / 'former-1'} now" in caplog.text
    # best.ckpt and previous.ckpt of the first run stayed beside last.ckpt of the second
    assert seeds_of(tmp_path) == {2}
    assert result_of(tmp_path)["steps"] == 2
    assert list(rows_of(tmp_path, "train/loss")) == [1, 2]
    assert not before.keys() & {path.name for path in tmp_path.glob("events*")}
    run(tmp_path, *STEPS, "seed=3", "max_steps=2")
    assert contents(tmp_path / "former-1") == before and seeds_of(tmp_path / "former-2") == {2}


def test_a_run_that_was_killed_before_its_first_save_does_not_resume_another(tmp_path):
    run(tmp_path, *STEPS, "seed=1")
    with power_cut(at_batch=3):
        run(tmp_path, "seed=2", "callbacks.checkpoint.every_n_steps=100")
    assert checkpoint_to_load("auto", tmp_path) is None
    run(tmp_path, *STEPS, "seed=2", "ckpt=auto")
    assert seeds_of(tmp_path) == {2}
    assert list(rows_of(tmp_path, "train/loss")) == list(range(1, 7))
    assert not (tmp_path / "former-2").exists()  # it was the same run


def test_auto_takes_checkpoints_of_the_folders_own_run_alone(tmp_path, caplog):
    run(tmp_path / "a", *STEPS, "seed=1")
    run(tmp_path / "b", *STEPS, "max_steps=4")
    assert run_id_of(tmp_path / "b") == run_id(last(tmp_path / "b")) != run_id(last(tmp_path / "a"))
    strange = tmp_path / "b" / "checkpoints" / "newer.ckpt"
    content = torch.load(last(tmp_path / "a"))
    content["xftrain"]["saved_at"] *= 2
    torch.save(content, strange)
    assert checkpoint_to_load("auto", tmp_path / "b") == last(tmp_path / "b")
    assert f"skipped: {strange} belongs to another run" in caplog.text
    (tmp_path / "b" / ".run.json").unlink()  # of an earlier version, or a copy of checkpoints
    assert checkpoint_to_load("auto", tmp_path / "b") == strange


def test_a_checkpoint_from_elsewhere_begins_a_new_run_in_a_used_folder(tmp_path):
    run(tmp_path / "a", *STEPS)
    run(tmp_path / "b", *STEPS, "seed=1")
    before = contents(tmp_path / "b")
    run(tmp_path / "b", *STEPS, "max_steps=8", f"ckpt={last(tmp_path / 'a')}")
    assert contents(tmp_path / "b" / "former-1") == before
    assert list(rows_of(tmp_path / "b", "train/loss")) == [7, 8]


@pytest.mark.parametrize("overrides", [("seed=-1",), ("model.attn=flex",), ("model.bias=full",)])
def test_a_new_run_that_is_refused_changes_nothing(tmp_path, overrides):
    run(tmp_path, *STEPS)
    before = contents(tmp_path)
    with pytest.raises(ConfigError):
        run(tmp_path, *STEPS, *overrides)
    assert contents(tmp_path) == before


def test_a_new_run_that_fails_before_it_trains_changes_nothing(tmp_path, monkeypatch):
    run(tmp_path, *STEPS)
    before = contents(tmp_path)

    def vanished(*_: object) -> None:
        raise RunError("the data is gone.")

    monkeypatch.setattr("xftrain.commands.prepare.check_runnable", vanished)
    with pytest.raises(RunError, match="the data is gone"):
        run(tmp_path, *STEPS)
    assert contents(tmp_path) == before


def test_files_that_cannot_be_moved_end_the_run_in_a_sentence(tmp_path, monkeypatch):
    run(tmp_path, *STEPS)

    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(RunError, match=r"could not be moved to .*former-1 .*busy.*choose another"):
        run(tmp_path, *STEPS)
    assert seeds_of(tmp_path) == {0}


def test_a_sample_does_not_replace_the_record_of_a_run(tmp_path):
    run(tmp_path / "r", *STEPS)
    before = contents(tmp_path / "r")
    asked = (f"ckpt={last(tmp_path / 'r')}", "num_tokens=2")
    from xftrain import compose

    with pytest.raises(ConfigError, match="holds a training run, whose record a sample would"):
        sample(compose(*asked, config_name="sample"), tmp_path / "r")
    assert contents(tmp_path / "r") == before
    for _ in range(2):
        sample(compose(*asked, config_name="sample"), tmp_path / "s")
    assert (tmp_path / "s" / "former-1" / "sample.txt").is_file()


@pytest.mark.parametrize("kind", ["sample", "doctor", "info"])
def test_hydra_overwrites_nothing_of_a_run_that_a_command_is_refused_for(command, tmp_path, kind):
    (tmp_path / "r" / ".hydra").mkdir(parents=True)
    # without a result.json, as of a run that was killed
    for name in ("metrics.csv", ".hydra/config.yaml", ".hydra/overrides.yaml"):
        (tmp_path / "r" / name).write_text("of the run")
    before = contents(tmp_path)
    ended = command("--config-name", kind, "hydra.run.dir=r")
    assert "holds a training run" in one_sentence(ended, 2)
    assert contents(tmp_path) == before


def test_a_refusal_puts_back_what_hydra_has_overwritten(command, tmp_path):
    (tmp_path / "r" / ".hydra").mkdir(parents=True)
    (tmp_path / "r" / ".hydra" / "overrides.yaml").write_text("- seq=32\n")
    (tmp_path / "r" / "result.json").write_text(json.dumps({"status": "completed"}))
    assert command("hydra.run.dir=r", "batch_tokens=0").code == 2
    assert (tmp_path / "r" / ".hydra" / "overrides.yaml").read_text() == "- seq=32\n"
    assert json.loads((tmp_path / "r" / "result.json").read_text()) == {"status": "completed"}


@pytest.mark.parametrize("is_new", [False, True])
def test_what_hydra_wrote_for_a_run_that_has_begun_stays(tmp_path, is_new):
    (tmp_path / ".hydra").mkdir()
    overrides = tmp_path / ".hydra" / "overrides.yaml"
    overrides.write_text("- seq=32\n")
    (tmp_path / "result.json").write_text(json.dumps({"status": "completed"}))
    reserved = ReservedFolders()
    reserved.remember_hydra(tmp_path)
    overrides.write_text("- seq=64\n")
    folder = RunFolder(tmp_path, reserved=reserved)
    folder.start_new_run() if is_new else folder.resume_run()
    (tmp_path / "result.json").write_text(json.dumps({"status": "completed"}))
    restore_hydra(reserved)
    assert overrides.read_text() == "- seq=64\n"
    former = tmp_path / "former-1" / ".hydra" / "overrides.yaml"
    assert not is_new or former.read_text() == "- seq=32\n"


def test_a_job_of_a_sweep_in_a_used_folder_sets_its_former_run_aside(command, jobs, tmp_path):
    # its result.json was deleted, and its checkpoints stayed among those of the new run
    assert command("-m", "seq=8", "hydra.sweep.dir=s").code == 0
    job = tmp_path / "s" / "0"
    assert not (job / "former-1").exists()
    (job / "checkpoints").mkdir()
    (job / "checkpoints" / "last.ckpt").write_text("of the first")
    assert command("-m", "seq=8", "hydra.sweep.dir=s").code == 0
    assert (job / "former-1" / "checkpoints" / "last.ckpt").read_text() == "of the first"
    assert sweeps.read_result(job / "former-1") is not None and not holds_run(job / "checkpoints")
    assert len(jobs) == 2


def test_a_benchmark_that_is_repeated_keeps_its_rows_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr("xftrain.config.registry.measures_times", lambda name: name == "metrics")
    run(tmp_path, *KEPT)
    (tmp_path / "rows.jsonl").write_text("")
    run(tmp_path, *KEPT)
    assert not (tmp_path / "former-1").exists()
    assert list(rows_of(tmp_path, "train/loss")) == [2, 4, 6]


def test_of_a_foreign_folder_hydras_own_files_alone_are_kept_in_memory(tmp_path):
    (tmp_path / HYDRA).mkdir()
    for number in range(20):
        (tmp_path / HYDRA / f"x{number}.yaml").write_text("seed: 1")
    (tmp_path / HYDRA / "overrides.yaml").write_text("[]")
    with (tmp_path / HYDRA / "config.yaml").open("wb") as file:
        file.truncate(2 << 20)
    reserved = ReservedFolders()
    reserved.remember_hydra(tmp_path)
    assert reserved.pop_hydra_files(tmp_path) == {"overrides.yaml": b"[]"}


def test_no_record_is_lost_by_a_changed_copy_of_a_checkpoint(tmp_path):
    # it names the run and says that nothing had been recorded when it was saved
    run(tmp_path / "own", "max_steps=4")
    records = {path.name: path.read_bytes() for path in (tmp_path / "own").glob("*[.0-9]*")}
    held = read_checkpoint(last(tmp_path / "own"))
    held["xftrain"]["saved_at"] = MAX_TIME_NS
    held["callbacks"]["RunStart"]["loggers"] = {"metrics.csv": 0, "events": {}}
    torch.save(held, tmp_path / "theirs.ckpt")
    run(tmp_path / "own", "max_steps=5", f"ckpt={tmp_path / 'theirs.ckpt'}")
    former = tmp_path / "own" / "former-1"
    for name, content in records.items():
        if name == "metrics.csv" or name.startswith("events."):
            assert (former / name).read_bytes() == content
    assert any(name.startswith("events.") for name in records) and "metrics.csv" in records
