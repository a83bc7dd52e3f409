"""Nothing in a run's folder leads a run to write, read or delete anywhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

import xftrain
from tests.training.runs import SMALL, last, run, small
from xftrain import cli
from xftrain.errors import ConfigError
from xftrain.files import refuse_links

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
    monkeypatch.setattr("xftrain.files._MOST_ENTRIES", 5)
    for number in range(20):
        (tmp_path / f"{number}" / "deep").mkdir(parents=True)
    seen = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(path) or scandir(path))
    with pytest.raises(ConfigError, match="more than 5 files"):
        refuse_links(tmp_path, "hydra.run.dir")
    assert len(seen) == 1
