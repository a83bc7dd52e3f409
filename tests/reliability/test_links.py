"""Nothing in a run's folder leads a run to write, read or delete anywhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

import xftrain
from tests.train.runs import SMALL, last, run, small
from xftrain.errors import ConfigError
from xftrain.folders.links import refuse_links
from xftrain.launch import cli

WRITTEN = [
    *("config.yaml", "result.json", "metrics.csv", "hparams.yaml", "xftrain.log", "stacks.txt"),
    *(
        "events.out.tfevents.1.host.2.3",
        "fit-profile.txt",
        "sample.txt",
        ".rank1_said",
        ".job_said",
    ),
    *("checkpoints/last.ckpt", "checkpoints/previous.ckpt", "checkpoints/best.ckpt"),
    *("checkpoints/weights.safetensors", ".hydra/config.yaml", ".hydra/hydra.yaml"),
    *("rows.jsonl", "results.csv", "report.md", "environment.json", "worker.log", "plots/a.png"),
]


@pytest.fixture(scope="module")
def config() -> DictConfig:
    return small("max_steps=1", "ckpt=auto")


@pytest.mark.fault("link out of a run's folder")
@pytest.mark.parametrize("name", [*WRITTEN, "checkpoints", ".hydra", "plots"])
@pytest.mark.parametrize(("is_dangling", "is_cwd"), [(False, False), (True, True)])
def test_a_link_out_of_the_folder_is_refused(
    tmp_path, monkeypatch, config, name, is_dangling, is_cwd
):
    run_dir, outside = tmp_path / "run", tmp_path / "outside"
    link = run_dir / name
    link.parent.mkdir(parents=True)
    if not is_dangling and name in ("checkpoints", ".hydra", "plots"):
        outside.mkdir()
        (outside / ".x.partial").write_text("precious")
    elif not is_dangling:
        outside.write_text("precious")
    link.symlink_to(outside)
    monkeypatch.chdir(run_dir if is_cwd else tmp_path)
    with pytest.raises(ConfigError, match=f"has a link in it, {name}, that leads out"):
        xftrain.run(config, run_dir)
    kept = outside / ".x.partial" if outside.is_dir() else outside
    assert kept.exists() != is_dangling and (is_dangling or kept.read_text() == "precious")
    assert link.is_symlink() and sum(len(files) for *_, files in os.walk(run_dir)) <= 1


@pytest.mark.parametrize("name", ["xftrain.log", ".hydra", "checkpoints"])
def test_it_is_refused_before_hydra_opens_its_log(tmp_path, monkeypatch, capsys, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "outside")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["xftrain", *SMALL, "hydra.run.dir=run"])
    assert cli.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"xftrain: hydra.run.dir=run has a link in it, {name}, ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([name, "run"])


@pytest.mark.parametrize("name", ["metrics.csv", "stacks.txt", "checkpoints/x"])
def test_a_fifo_is_refused_at_which_a_run_would_wait(tmp_path, config, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="a FIFO, a device or a socket in it, .* wait for ever"):
        xftrain.run(config, tmp_path)


def test_the_folder_itself_may_be_on_another_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    for _ in range(2):
        run(tmp_path / "outputs" / "run", "max_steps=1")
    assert last(tmp_path / "disk" / "run").is_file()


def test_data_of_the_working_directory_may_be_on_another_disk(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for name in ("corpus", "checkpoints.bak", "notes.txt"):
        Path(name).symlink_to(tmp_path / "data")
    refuse_links(Path(), "hydra.run.dir")
    Path("checkpoints").symlink_to(tmp_path / "data")
    with pytest.raises(ConfigError, match="a link in it, checkpoints, that leads out"):
        refuse_links(Path(), "hydra.run.dir")


def test_a_whole_disk_is_not_searched(tmp_path, monkeypatch):
    monkeypatch.setattr("xftrain.folders.links._MAX_ENTRIES", 5)
    for number in range(20):
        (tmp_path / f"{number}" / "deep").mkdir(parents=True)
    seen = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(path) or scandir(path))
    with pytest.raises(ConfigError, match="more than 5 files"):
        refuse_links(tmp_path, "hydra.run.dir")
    assert len(seen) == 1


@pytest.mark.fault("link out of a run's folder")
@pytest.mark.parametrize("kind", ["link", "hard link", "FIFO"])
@pytest.mark.parametrize("name", [".hydra/config.yaml", "xftrain.log", "multirun.yaml"])
def test_a_link_to_what_a_name_excuses_is_refused(tmp_path, kind, name):
    # a file named *.ckpt may have a hard link, and be a FIFO, as nothing writes to it by that name
    run_dir, precious = tmp_path / "run", tmp_path / "precious"
    precious.write_text("thesis")
    link, place = run_dir / name, run_dir / "checkpoints" / "a.ckpt"
    for path in (link, place):
        path.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(place, link.parent))
    if kind == "FIFO":
        os.mkfifo(place)
    else:
        place.hardlink_to(precious) if kind == "hard link" else place.symlink_to(precious)
    for may_hold_data in (True, False):
        with pytest.raises(ConfigError, match="has a link (to|in it)"):
            refuse_links(run_dir, "hydra.run.dir", may_hold_data=may_hold_data)
    (run_dir / "mine.ckpt").symlink_to("checkpoints/a.ckpt")
    link.unlink()
    if kind != "link":
        refuse_links(run_dir, "hydra.run.dir")


@pytest.mark.fault("link out of a run's folder")
@pytest.mark.parametrize("target", ["data", "thesis.py", "new.py", "."])
@pytest.mark.parametrize("name", [".hydra", ".hydra/config.yaml", "checkpoints", "xftrain.log"])
def test_in_a_working_folder_a_link_leads_to_nothing_but_a_runs_files(
    tmp_path, monkeypatch, config, name, target
):
    # what else is there is not searched: it may hold links that lead anywhere
    monkeypatch.chdir(tmp_path)
    Path("thesis.py").write_text("thesis")
    Path("data").mkdir()
    Path("data", "config.yaml").symlink_to("/elsewhere")
    Path("plots").mkdir()
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match=f"has a link in it, {name}, .*no run has written"):
        xftrain.run(config, tmp_path)
    assert Path("thesis.py").read_text() == "thesis" and not Path("new.py").exists()
    Path(name).unlink()
    Path("metrics.csv").touch()
    Path(name).symlink_to(tmp_path / ("metrics.csv" if name == "xftrain.log" else "plots"))
    refuse_links(tmp_path, "hydra.run.dir")


def test_a_link_whose_place_depends_on_the_process_is_refused(tmp_path, monkeypatch):
    # inside the folder here, and elsewhere for a process with another working folder
    (tmp_path / "victim").mkdir()
    (tmp_path / "0_seq=8").symlink_to(f"/proc/self/cwd{tmp_path}/victim")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="whose place is another one for each process"):
        refuse_links(tmp_path, "hydra.sweep.dir", may_hold_data=False)
