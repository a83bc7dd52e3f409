"""Checks where MLflow stores records and text artifacts: local paths must be the user's choice.

A server, or the creator of an experiment in a shared database, chooses the location of the
artifacts of its runs, which may be a folder of this machine.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from xftrain.errors import ConfigError, RunError
from xftrain.utils.files import refuse_escaping_path
from xftrain.utils.printable import one_line

TRACKING_KEY = "logger.mlflow.tracking_uri"
_LOCATION_KEY = "logger.mlflow.artifact_location"
# URI schemes of remote stores; other schemes are local folders, or resolve to any location.
_REMOTE = (
    *("mlflow-artifacts", "http", "https", "s3", "r2", "b2", "gs", "wasbs", "abfss", "dbfs"),
    *("hdfs", "viewfs"),
)
_NOT_A_FOLDER = ("databricks", "databricks-uc", "uc")  # addresses without `//`
_RUN_ID = re.compile(r"[\w-]{1,64}", re.ASCII).fullmatch


def refuse_file_store(uri: str) -> None:
    """Refuses a folder of files as the store of runs, such as `mlruns` in the working folder.

    Raises:
        ConfigError: the address is a folder; the message names it, and what to use instead.
    """
    scheme = urlsplit(uri).scheme.lower()
    if scheme == "file" or (not scheme and uri not in _NOT_A_FOLDER):
        raise ConfigError(
            f"{TRACKING_KEY}={one_line(uri)} names a folder, whose files can have texts written "
            "anywhere: use a database, as sqlite:///mlflow.db, or a server; null records in the "
            "run folder. The variable MLFLOW_TRACKING_URI counts as well."
        )


def location_uri(text: str | None) -> str | None:
    """Converts `artifact_location` to a URI, if it is a path.

    Raises:
        ConfigError: a relative path leads out of the working folder by a link.
    """
    if text is None or urlsplit(text).scheme:
        return text
    refuse_escaping_path(Path(text), f"{_LOCATION_KEY}={one_line(text)}")
    return Path(os.path.abspath(text)).as_uri()


def checked_artifact_uri(info: Any, *, location: str | None, is_own: bool) -> str:
    """Returns the URI at which a run's artifacts are stored, if it is allowed.

    Args:
        info: the run's description from the store.
        location: the URI of the experiment's artifacts that xftrain or the user has chosen, if any.
        is_own: whether the store is a database of xftrain, which allows only `location`.

    Raises:
        RunError: the URI is a local path that neither xftrain nor the user has chosen.
    """
    given, run_id = str(info.artifact_uri), str(info.run_id)
    if not _RUN_ID(run_id):
        raise RunError(
            f"{TRACKING_KEY}: the id of the run must be a plain name, got {one_line(run_id)}."
        )
    expected = None if location is None else f"{location.rstrip('/')}/{run_id}/artifacts"
    if given == expected or (not is_own and urlsplit(given).scheme.lower() in _REMOTE):
        return given
    if is_own:
        raise RunError(
            f"{TRACKING_KEY}: the database keeps the texts of the run in {one_line(given)} instead "
            f"of {one_line(str(expected))}: choose another logger.mlflow.experiment_name, or a new "
            "file."
        )
    raise RunError(
        f"{TRACKING_KEY}: the texts of the run would be written to {one_line(given)} on this "
        "machine, as the server or database says: have the server keep them (mlflow server "
        f"--serve-artifacts), or, if that folder is meant, give the part before /{run_id} as "
        f"{_LOCATION_KEY}."
    )
