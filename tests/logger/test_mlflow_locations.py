"""MLflow writes texts to no place of this machine that a server or a foreign store has chosen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.train.stand_ins import stand_in_for_mlflow
from xftrain.errors import ConfigError, RunError
from xftrain.logger import _mlflow_locations as mlflow_locations
from xftrain.logger.mlflow import MLflow

SERVER = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    yield


@pytest.mark.parametrize(
    "place",
    [
        *("file:///home/me", "FILE:///home/me", "/home/me", "home", "./mlruns/1/abc/artifacts"),
        *("", "runs:/abc/x", "models:/abc", "sftp://localhost/home/me", "other:/x"),
    ],
)
@pytest.mark.parametrize("uri", [SERVER, "postgresql://host/x"])
def test_a_local_place_of_a_server_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, uri: str
) -> None:
    info = SimpleNamespace(run_id="abc", artifact_uri=place)
    with pytest.raises(RunError, match="would be written to .* on this machine"):
        mlflow_locations.checked_artifact_uri(info, location=None, is_own=False)
    if place:
        seen = stand_in_for_mlflow(monkeypatch)
        seen.settings["artifact_uri"] = place
        with pytest.raises(RunError, match="give the part before /abc as logger.mlflow.artifact_"):
            MLflow(tmp_path, tracking_uri=uri).start_run({})
        assert "kept_in" not in seen.settings


@pytest.mark.parametrize("place", ["mlflow-artifacts:/1/abc/artifacts", "s3://bucket/1/abc"])
def test_a_store_elsewhere_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    seen = stand_in_for_mlflow(monkeypatch)
    seen.settings["artifact_uri"] = place
    tracker = MLflow(tmp_path, tracking_uri=SERVER)
    tracker.start_run({})
    seen.settings["artifact_uri"] = "file:///home/me"  # what the server says later
    tracker.show_text("speed/mfu_formula", "a text", 0)
    tracker.close_run(is_complete=True)
    assert seen.settings["kept_in"] == place
    assert seen.texts == {"speed/mfu_formula": "a text"}


def test_the_folder_that_the_user_names_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for location in ("shared", f"{tmp_path}/shared/", f"file://{tmp_path}/shared"):
        seen = stand_in_for_mlflow(monkeypatch)
        seen.settings["artifact_uri"] = f"file://{tmp_path}/shared/abc/artifacts"
        MLflow(tmp_path, tracking_uri=SERVER, artifact_location=location).start_run({})
        assert seen.settings["kept_in"] == f"file://{tmp_path}/shared/abc/artifacts"
    seen.settings["artifact_uri"] = f"file://{tmp_path}/other/abc/artifacts"
    with pytest.raises(RunError, match="on this machine"):
        MLflow(tmp_path, tracking_uri=SERVER, artifact_location="shared").start_run({})


def test_an_id_that_is_a_path_leads_nowhere_else() -> None:
    info = SimpleNamespace(run_id="../..", artifact_uri="file:///shared/../../artifacts")
    with pytest.raises(RunError, match="must be a plain name"):
        mlflow_locations.checked_artifact_uri(info, location="file:///shared", is_own=False)


def test_a_link_of_the_working_folder_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    os.chdir(tmp_path / "here")
    Path("link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="leads out of the working folder by a link"):
        mlflow_locations.location_uri("link/x")
    assert mlflow_locations.location_uri("../x") == f"file://{tmp_path}/x"


@pytest.mark.parametrize("uri", ["file:./mlruns", "mlruns", "/home/me/mlruns", "FILE:///x"])
@pytest.mark.parametrize("is_variable", [False, True])
def test_a_folder_of_files_is_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, is_variable: bool
) -> None:
    seen = stand_in_for_mlflow(monkeypatch)
    if is_variable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="names a folder, whose files can have texts written"):
        MLflow(tmp_path, tracking_uri=None if is_variable else uri).start_run({})
    assert not seen.settings
