"""Logs to MLflow, on a server or in a database in the folder of the run."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger

from xftrain.errors import RunError
from xftrain.folders.sqlite_files import database_of, use_own_database
from xftrain.train.tracker import Tracker
from xftrain.utils.printable import one_line

log = logging.getLogger(__name__)

_OTHER = re.compile(r"[^\w./ -]", re.ASCII)  # characters not allowed in names
_KEY = "logger.mlflow.tracking_uri"
_MAX_NAME = 250  # characters of a name
_JOURNALS = ("-journal", "-wal", "-shm")  # files beside a database, which SQLite reads and replays
_MAX_DATABASES = 1000  # per folder


class MLflow(Tracker):
    """A run of MLflow that holds the metrics, the configuration and a sample.

    Args:
        run_dir: the run's folder.
        experiment_name: the experiment that the run belongs to.
        run_name: the run's name; None is the name of the run's folder.
        tracking_uri: the address of a server or of a database, as `sqlite:///outputs/mlflow.db`;
            None is the variable MLFLOW_TRACKING_URI, or `mlflow.db` in the run's folder, or
            `mlflow-2.db` if the resumed run has left a database there.
    """

    needs_package = "mlflow"

    def __init__(
        self,
        run_dir: Path,
        *,
        experiment_name: str = "xftrain",
        run_name: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        super().__init__(run_dir)
        self.experiment_name, self.run_name = experiment_name, run_name or run_dir.name
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")

    def begin(self, config: Mapping[str, Any]) -> None:
        """Begins the run, with keys changed to names that MLflow allows."""
        super().begin({_OTHER.sub("_", key)[:_MAX_NAME]: value for key, value in config.items()})

    def make(self) -> MLFlowLogger:
        """Creates Lightning's logger, and begins the run of MLflow."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # on by default
        uri, place = self._place()
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # which log the creation of a database
            logging.getLogger(name).setLevel(logging.WARNING)
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(self.experiment_name)
        if experiment is not None:
            number = experiment.experiment_id
        else:
            location = place and place.as_uri()
            number = client.create_experiment(self.experiment_name, artifact_location=location)
        # Lightning would have MLflow ask git about the folder of the program, whose configuration
        # can name commands
        run = client.create_run(number, run_name=self.run_name)
        logger = MLFlowLogger(self.experiment_name, tracking_uri=uri, run_id=run.info.run_id)
        if place is not None:
            _refuse_other_place(
                run.info.artifact_uri, f"{place.as_uri()}/{logger.run_id}/artifacts"
            )
        log.info("mlflow: run %s", logger.run_id)
        if self.tracking_uri is None:
            log.info("mlflow ui --backend-store-uri %s", shlex.quote(uri))
        return logger

    def _place(self) -> tuple[str, Path | None]:
        """The tracking address, and for a database the folder of text files.

        Raises:
            RunError, ConfigError: the place cannot be used safely.
        """
        uri = self.tracking_uri
        if uri is None:
            database, artifacts = _new_database(self.run_dir.resolve())
            return f"sqlite:///{database}", artifacts
        use_own_database(uri, _KEY)
        if (named := database_of(uri)) is None:
            return uri, None
        artifacts = named.absolute().with_name(f"{named.stem}-artifacts")
        if os.path.lexists(artifacts) and (artifacts.is_symlink() or not artifacts.is_dir()):
            raise RunError(
                f"{_KEY}={uri} keeps texts in {artifacts}, which is no folder: remove it."
            )
        return uri, artifacts

    def send_text(self, tag: str, text: str, step: int) -> None:
        """Adds a text file to the run."""
        client: Any = self._logger.experiment
        client.log_text(self._logger.run_id, text, f"{_OTHER.sub('_', tag)}.txt")

    def end(self, *, is_whole: bool) -> None:
        """Sets the final status of the run."""
        client: Any = self._logger.experiment
        client.set_terminated(self._logger.run_id, "FINISHED" if is_whole else "FAILED")


def _refuse_other_place(given: str, expected: str) -> None:
    """Refuses a database that names another folder for texts than this package has given it.

    Raises:
        RunError: both addresses.
    """
    if given != expected:
        raise RunError(
            f"{_KEY}: the database keeps the texts of the run in {one_line(given)} instead of "
            f"{one_line(expected)}: choose another logger.mlflow.experiment_name, or a new file."
        )


def _new_database(folder: Path) -> tuple[Path, Path]:
    """Creates an empty database, and returns its path and the folder of its texts.

    An existing database may come from anyone: it determines where MLflow writes texts, and SQLite
    deletes the file that a journal beside it names.

    Args:
        folder: folder of the run, with links resolved.

    Raises:
        RunError: no name is left, or the folder has a name that a URL cannot hold.
    """
    if found := set("?#%") & set(str(folder)):
        raise RunError(
            f"logger.mlflow cannot record in {folder}, whose name has {min(found)}, which means "
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
