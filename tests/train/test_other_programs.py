"""Files of another program in a named run folder are moved, never deleted or replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.runs import result_of, run
from xftrain.commands import result_file as results
from xftrain.errors import ConfigError
from xftrain.folders import run_folder
from xftrain.folders.links import refuse_links
from xftrain.folders.run_folder import RunFolder

FILES = {
    "metrics.csv": "step,loss\n1,0.5\n",
    "hparams.yaml": "lr: 1\n",
    "config.yaml": "mine: true\n",
    "events.out.tfevents.1.host.1.0": "binary",
    "result.json": '{"mine": 1, "status": "failed"}',
    "stacks.txt": "stacks",
    "sample.txt": "a sample",
}


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names or FILES:
        (folder / name).write_text(FILES[name])


def aside(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("former-1/*")}


def test_a_run_sets_them_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path)
    with caplog.at_level("INFO"):
        assert run(tmp_path, "logger=[csv,tensorboard]")["status"] == "completed"
    assert aside(tmp_path) == FILES
    place = tmp_path / "former-1"
    assert f"files of another program are in {place} now: metrics.csv" in caplog.text
    assert result_of(tmp_path)["steps"]


@pytest.mark.parametrize("name", FILES)
def test_each_of_them_is_known(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name)
    folder = RunFolder(tmp_path)
    folder.write_config("seq: 8\n")
    folder.resume_run()
    assert aside(tmp_path) == {name: FILES[name]}
    assert (tmp_path / "config.yaml").read_text() == "seq: 8\n"


def test_a_refused_run_leaves_them_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(ConfigError):
        run(tmp_path, "seq=7", "trainer.devices=3")
    assert {path.name for path in tmp_path.iterdir()} <= {*FILES, ".lock"}
    assert all((tmp_path / name).read_text() == text for name, text in FILES.items())


def test_files_of_a_run_that_ended_before_its_first_save_are_replaced(tmp_path: Path) -> None:
    fill(tmp_path, "metrics.csv", "config.yaml")
    (tmp_path / run_folder.RUN_FILE).write_text('{"run": "abc"}')
    RunFolder(tmp_path).resume_run()
    assert not aside(tmp_path)
    (tmp_path / run_folder.RUN_FILE).unlink()
    refused = {**results.empty_result(tmp_path), "status": "refused", "error": "no"}
    (tmp_path / "result.json").write_text(json.dumps(refused))
    RunFolder(tmp_path).resume_run()
    assert not aside(tmp_path)


def test_a_resumed_copy_of_a_run_keeps_its_records(tmp_path: Path) -> None:
    fill(tmp_path, "metrics.csv")
    RunFolder(tmp_path).resume_run("abc", is_resumed=True)
    assert (tmp_path / "metrics.csv").is_file()


@pytest.mark.parametrize(
    "name", ["metrics.csv", "events.out.tfevents.9.x", "result.json", ".run.json", "xftrain.log"]
)
def test_a_folder_where_a_run_writes_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="has a folder in it, .* where a run writes a file"):
        refuse_links(tmp_path, "hydra.run.dir")
