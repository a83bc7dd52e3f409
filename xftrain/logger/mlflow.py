"""Logs to MLflow, on a server or in a database in the folder of the run."""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger

from xftrain.errors import RunError
from xftrain.folders.sqlite_files import create_or_check_database, database_of
from xftrain.logger._mlflow_locations import (
    TRACKING_KEY,
    checked_artifact_uri,
    location_uri,
    refuse_file_store,
)
from xftrain.train.tracker import Tracker

log = logging.getLogger(__name__)

_FORBIDDEN = re.compile(r"[^\w./ -]", re.ASCII)  # characters not allowed in names
_MAX_NAME = 250  # characters of a name
_JOURNALS = ("-journal", "-wal", "-shm")  # files beside a database, which SQLite reads and replays
_MAX_DATABASES = 1000  # per folder


class MLflow(Tracker):
    """A run of MLflow that holds the metrics, the configuration and a sample.

    Args:
        run_dir: the run's folder.
        experiment_name: the experiment that the run belongs to.
        run_name: the run's name; None is the name of the run's folder.
        tracking_uri: the address of a server or of a database, such as `sqlite:///outputs/mlflow.db`;
            None is the variable MLFLOW_TRACKING_URI, else `mlflow.db` in the run's folder, or
            `mlflow-2.db` if the resumed run has left a database there.
        artifact_location: the folder or address for the text artifacts of a new experiment, and
            the only folder of this machine that a server may choose for them; None leaves the
            choice to a server, and is a folder beside a database.
    """

    needs_package = "mlflow"

    def __init__(
        self,
        run_dir: Path,
        *,
        experiment_name: str = "xftrain",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        artifact_location: str | None = None,
    ) -> None:
        super().__init__(run_dir)
        self.experiment_name, self.run_name = experiment_name, run_name or run_dir.name
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        self.artifact_location = artifact_location
        self._artifacts: Any = None

    def start_run(self, config: Mapping[str, Any]) -> None:
        """Starts the run, with keys changed to names that MLflow allows."""
        super().start_run(
            {_FORBIDDEN.sub("_", key)[:_MAX_NAME]: value for key, value in config.items()}
        )

    def make(self) -> MLFlowLogger:
        """Creates Lightning's logger, and starts the run in MLflow."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # on by default
        # MLflow would print names from the server
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        uri, artifacts = self._store()
        location = location_uri(self.artifact_location) or (
            artifacts.as_uri() if artifacts else None
        )
        from mlflow import MlflowClient
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        for name in ("mlflow", "alembic"):  # which log the creation of a database
            logging.getLogger(name).setLevel(logging.WARNING)
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(self.experiment_name)
        if experiment is not None:
            number = experiment.experiment_id
        else:
            number = client.create_experiment(self.experiment_name, artifact_location=location)
        # Lightning would let MLflow run git in the folder of the program, whose git configuration
        # can name commands
        run = client.create_run(number, run_name=self.run_name)
        # MLflow would ask the server for the location again, which might then be another one
        artifact_uri = checked_artifact_uri(
            run.info, location=location, is_own=artifacts is not None
        )
        self._artifacts = get_artifact_repository(artifact_uri, tracking_uri=uri)
        logger = MLFlowLogger(self.experiment_name, tracking_uri=uri, run_id=run.info.run_id)
        if uri.startswith(("http:", "https:")):
            log.info("mlflow: %s/#/experiments/%s/runs/%s", uri.rstrip("/"), number, logger.run_id)
        else:
            log.info("mlflow: run %s", logger.run_id)
        if self.tracking_uri is None:
            log.info("mlflow ui --backend-store-uri %s", shlex.quote(uri))
        return logger

    def _store(self) -> tuple[str, Path | None]:
        """The tracking URI, and for a database the folder of its artifacts.

        Raises:
            RunError, ConfigError: the location cannot be used safely.
        """
        uri = self.tracking_uri
        if uri is None:
            database, artifacts = _new_database(self.run_dir.resolve())
            return f"sqlite:///{database}", artifacts
        create_or_check_database(uri, TRACKING_KEY)
        if (named := database_of(uri)) is None:
            refuse_file_store(uri)
            return uri, None
        artifacts = named.absolute().with_name(f"{named.stem}-artifacts")
        if os.path.lexists(artifacts) and (artifacts.is_symlink() or not artifacts.is_dir()):
            raise RunError(
                f"{TRACKING_KEY}={uri} keeps texts in {artifacts}, which is no folder: remove it."
            )
        return uri, artifacts

    def send_text(self, tag: str, text: str, step: int) -> None:
        """Adds a text file to the run."""
        name = PurePosixPath(f"{_FORBIDDEN.sub('_', tag)}.txt")
        folder = str(name.parent) if name.parent.name else None
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary, name.name)
            path.write_text(text, encoding="utf-8")
            self._artifacts.log_artifact(str(path), folder)

    def end(self, *, is_whole: bool) -> None:
        """Sets the final status of the run."""
        client: Any = self._logger.experiment
        client.set_terminated(self._logger.run_id, "FINISHED" if is_whole else "FAILED")


def _new_database(folder: Path) -> tuple[Path, Path]:
    """Creates an empty database, and returns its path and the folder of its artifacts.

    An existing database is untrusted: it determines where MLflow writes artifacts, and SQLite
    deletes the file that a journal beside it names.

    Args:
        folder: folder of the run, with links resolved.

    Raises:
        RunError: no name is left, or the folder has a name that a URL cannot hold.
    """
    if special := set("?#%") & set(str(folder)):
        raise RunError(
            f"logger.mlflow cannot record in {folder}, whose name has {min(special)}, which means "
            "something else in a URL: choose another hydra.run.dir."
        )
    for number in range(1, _MAX_DATABASES + 1):
        stem = "mlflow" if number == 1 else f"mlflow-{number}"
        database, artifacts = folder / f"{stem}.db", folder / f"{stem}-artifacts"
        journals = [f"{database}{ending}" for ending in _JOURNALS]
        if any(map(os.path.lexists, [str(database), str(artifacts), *journals])):
            continue
        try:
            artifacts.mkdir()
            database.touch(exist_ok=False)
        except FileExistsError:
            continue
        return database, artifacts
    raise RunError(
        f"{folder} holds {_MAX_DATABASES:,} databases of MLflow: choose another folder with "
        "hydra.run.dir, or record elsewhere with logger.mlflow.tracking_uri."
    )
