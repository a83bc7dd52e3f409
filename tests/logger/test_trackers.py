"""Experiment trackers receive what TensorBoard does, and no secret; without their packages too."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from pathlib import Path

import pytest

from tests.train.runs import rows_of, run, small
from tests.train.stand_ins import stand_in_for_mlflow, stand_in_for_wandb
from xftrain.config.compose import validate
from xftrain.errors import ConfigError, RunError
from xftrain.folders.links import refuse_links
from xftrain.logger.mlflow import MLflow
from xftrain.logger.wandb import WandB
from xftrain.utils.redaction import hidden_in_message

SECRET = "hunter2hunter2"
BOTH = ("logger=[csv,tensorboard,{}]", "+callbacks.sample={{name: sample, num_tokens: 4}}")
TAGS = 'tags=["${oc.env:TRACKED_SECRET}"]'
needs = {
    name: pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"the extra {name} is not installed"
    )
    for name in ("wandb", "mlflow")
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACKED_SECRET", SECRET)
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)


def with_tracker(name: str, *more: str) -> list[str]:
    return [*(override.format(name) for override in BOTH), TAGS, *more]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_has_the_metrics_the_configuration_and_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stand_in = stand_in_for_wandb if name == "wandb" else stand_in_for_mlflow
    seen = stand_in(monkeypatch)
    assert run(tmp_path / "one", *with_tracker(name))["status"] == "completed"
    for metric in ("train/loss", "val/loss", "speed/tokens_per_s"):
        expected = rows_of(tmp_path / "one", metric)
        assert seen.steps_of(metric) == pytest.approx(expected) and expected
    assert {str(seen.config[key]) for key in ("seq", "model.attn.name")} == {"16", "naive"}
    assert set(seen.texts) >= {"kernel", "config", "sample"}
    assert "${oc.env:TRACKED_SECRET}" in str(seen.config["tags"])
    assert SECRET not in str(vars(seen))
    assert seen.ended == [0 if name == "wandb" else "FINISHED"]


def test_where_they_record_is_said_by_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = stand_in_for_wandb(monkeypatch)
    run(tmp_path / "one", *with_tracker("wandb", "logger.wandb.offline=true"))
    assert (seen.settings["mode"], seen.settings["name"]) == ("offline", "one")
    assert seen.settings["console"] == "off" and seen.settings["x_disable_meta"]
    assert "WANDB_MODE" not in os.environ  # which the next run of the process would obey

    seen = stand_in_for_mlflow(monkeypatch)
    run(tmp_path / "two", *with_tracker("mlflow"))
    assert seen.settings["uri"] == f"sqlite:///{tmp_path}/two/mlflow.db"
    assert seen.settings["artifacts"] == f"file://{tmp_path}/two/mlflow-artifacts"
    seen = stand_in_for_mlflow(monkeypatch)
    run(tmp_path / "two", *with_tracker("mlflow", "logger.mlflow.tracking_uri=http://host:5000"))
    assert (seen.settings["uri"], seen.settings["artifacts"]) == ("http://host:5000", None)


def test_control_characters_of_a_text_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xftrain.data.counting import Counting

    monkeypatch.setattr(Counting, "decode", lambda self, tokens: "\x1b[2J\u202e")
    seen = stand_in_for_wandb(monkeypatch)
    run(tmp_path / "one", *with_tracker("wandb"))
    assert r"\x1b[2J\u202e" in seen.texts["sample"] and "\x1b" not in seen.texts["sample"]


def test_a_refused_run_begins_no_run_of_a_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = stand_in_for_mlflow(monkeypatch)
    own = "+callbacks.lr={_target_: lightning.pytorch.callbacks.LearningRateFinder}"
    with pytest.raises(ConfigError):
        run(tmp_path / "one", *with_tracker("mlflow", own))
    assert (seen.settings, seen.ended) == ({}, [])


def test_a_tracker_that_cannot_begin_ends_the_run_and_one_that_is_lost_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in_for_wandb(monkeypatch, fails="init")
    with pytest.raises(RunError, match=r"^logger.wandb could not begin \(ConnectionError: no rout"):
        run(tmp_path / "one", *with_tracker("wandb"))
    seen = stand_in_for_wandb(monkeypatch, fails="log")
    assert run(tmp_path / "two", *with_tracker("wandb"))["status"] == "completed"
    warned = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert [re.split(r":|\d", line)[0] for line in warned] == [
        "WandB could not record (ConnectionError",
        "WandB has not received ",
    ]
    assert seen.ended == [0]


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
@pytest.mark.parametrize("offline", ["true", "false"])
def test_a_settings_file_of_the_working_folder_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, offline: str
) -> None:
    stand_in_for_wandb(monkeypatch)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "settings").write_text("[default]\nbase_url = http://other\n")
    with pytest.raises(RunError, match="may name another server"):
        run(tmp_path / "one", *with_tracker("wandb", f"logger.wandb.offline={offline}"))


def test_links_are_removed_from_the_folder_alone_that_wandb_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_wandb(monkeypatch)
    (tmp_path / "one" / "wandb" / "mine").mkdir(parents=True)
    (tmp_path / "one" / "wandb" / "mine" / "link").symlink_to("/tmp")
    tracker = WandB(tmp_path / "one", offline=True)
    tracker.start_run({})
    tracker.close_run(is_complete=True)
    links = [path.name for path in tmp_path.glob("one/**/*") if path.is_symlink()]
    assert links == ["link"]


@pytest.mark.parametrize("name", ["wandb", "mlflow.db", "mlflow-2.db", "mlflow-artifacts"])
def test_a_link_where_a_tracker_writes_is_refused_in_a_project_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (project / name).symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(project)
    with pytest.raises(ConfigError, match=f"has a link in it, {name}, that leads out"):
        refuse_links(project, "hydra.run.dir")


@pytest.mark.parametrize(
    "there", ["mlflow.db", "mlflow.db-journal", "mlflow.db-wal", "mlflow-artifacts"]
)
def test_mlflow_opens_no_database_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    seen = stand_in_for_mlflow(monkeypatch)
    (tmp_path / there).write_text("of somebody else")
    tracker = MLflow(tmp_path)
    tracker.start_run({})
    assert seen.settings["uri"] == f"sqlite:///{tmp_path}/mlflow-2.db"
    assert seen.settings["artifacts"] == f"file://{tmp_path}/mlflow-2-artifacts"
    assert (tmp_path / there).read_text() == "of somebody else"


def test_a_defaults_file_of_the_working_folder_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in_for_wandb(monkeypatch)
    os.mkfifo(tmp_path / "config-defaults.yaml")
    assert run(Path("one"), *with_tracker("wandb"))["status"] == "completed"
    assert "config-defaults.yaml in the working folder is ignored" in caplog.text
    assert (tmp_path / "one" / "wandb").is_dir() and Path.cwd() == tmp_path


def test_a_password_in_a_url_is_in_no_message(tmp_path: Path) -> None:
    urls = (
        *("http://user:S3cr3tPassw0rd@127.0.0.1:1/", "postgresql://:S3cr3t@Passw0rd@h/x"),
        *("http://S3cr3tPassw0rd@127.0.0.1:1/", "http://user:a'bPassw0rd@h:1/"),
        "postgresql://u:pa/S3cr3tPassw0rd@h/db",
    )
    for url in urls:
        said = hidden_in_message(f"API request to {url}api failed, at 12:30 of a@b")
        assert "***@" in said and "Passw0rd" not in said and said.endswith("at 12:30 of a@b")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()  # as runs before have made it; it is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda one, *rest: None if one == name else find(one, *rest)
    )
    with pytest.raises(ConfigError) as refusal:
        validate(small(f"logger={name}"))
    assert str(refusal.value) == (
        f"logger.{name} needs the package {name}, which is not installed: "
        f'pip install "xftrain[{name}]", or leave it out with logger.{name}=null.'
    )


@needs["wandb"]
def test_wandb_itself_records_offline(tmp_path: Path) -> None:
    import wandb

    run(tmp_path / "one", *with_tracker("wandb", "logger.wandb.offline=true"))
    wandb.teardown()  # its service writes the last of the record, as at the end of the process
    (record,) = tmp_path.glob("one/wandb/offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert not {b"val/loss", b"train/loss", b"model.attn.name"} - set(
        re.findall(rb"(?:val|train|model)[./][\w.]+", content)
    )
    files = [path for path in tmp_path.glob("one/wandb/**/*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    # a second run in the folder sets it aside, and its links lead nowhere else
    run(tmp_path / "one", *with_tracker("wandb", "logger.wandb.offline=true"))
    assert list(tmp_path.glob("one/former-1/wandb/offline-run-*/run-*.wandb"))


@needs["mlflow"]
def test_mlflow_itself_records_in_the_run_folder(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run(tmp_path / "one", *with_tracker("mlflow"))
    client = MlflowClient(f"sqlite:///{tmp_path}/one/mlflow.db")
    (tracked,) = client.search_runs([client.get_experiment_by_name("xftrain").experiment_id])
    history = client.get_metric_history(tracked.info.run_id, "val/loss")
    expected = rows_of(tmp_path / "one", "val/loss")
    assert {one.step: one.value for one in history} == pytest.approx(expected)
    assert (tracked.info.status, tracked.data.params["seq"]) == ("FINISHED", "16")
    assert list(tmp_path.glob("one/mlflow-artifacts/*/artifacts/sample.txt"))
    assert SECRET.encode() not in (tmp_path / "one" / "mlflow.db").read_bytes()
    assert not (tmp_path / "mlruns").exists()
