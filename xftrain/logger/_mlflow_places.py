"""Where MLflow keeps records and texts: refuses local places that others have chosen.

A server, or whoever makes an experiment in a shared database, chooses where the texts of its runs
are written, and that may be a folder of this machine.
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
# Schemes of stores that are elsewhere; others are a local folder, or resolve to any place.
_REMOTE = (
    *("mlflow-artifacts", "http", "https", "s3", "r2", "b2", "gs", "wasbs", "abfss", "dbfs"),
    *("hdfs", "viewfs"),
)
_NOT_A_FOLDER = ("databricks", "databricks-uc", "uc")  # addresses without `//`
_RUN_ID = re.compile(r"[\w-]{1,64}", re.ASCII).fullmatch


def refuse_file_store(uri: str) -> None:
    """Refuses a folder of files as the store of runs, such as `mlruns` in the working folder.

    Raises:
        ConfigError: names the address, and what to use instead.
    """
    scheme = urlsplit(uri).scheme.lower()
    if scheme == "file" or (not scheme and uri not in _NOT_A_FOLDER):
        raise ConfigError(
            f"{TRACKING_KEY}={one_line(uri)} names a folder, whose files can have texts written "
            "anywhere: use a database, as sqlite:///mlflow.db, or a server; null records in the "
            "run folder. The variable MLFLOW_TRACKING_URI counts as well."
        )


def location_of(text: str | None) -> str | None:
    """The address of `artifact_location`, with a path as a URL.

    Raises:
        ConfigError: a relative path leads out of the working folder by a link.
    """
    if text is None or urlsplit(text).scheme:
        return text
    refuse_escaping_path(Path(text), f"{_LOCATION_KEY}={one_line(text)}")
    return Path(os.path.abspath(text)).as_uri()


def check_place(info: Any, *, location: str | None, is_own: bool) -> str:
    """Returns where the texts of a run are kept if that place may be written.

    Args:
        info: the description of the run that the store has given.
        location: the address under which this package or the user has it keep the texts, if any.
        is_own: whether the store is a database of this package, which keeps them nowhere else.

    Raises:
        RunError: it is another place.
    """
    given, run_id = str(info.artifact_uri), str(info.run_id)
    if not _RUN_ID(run_id):
        raise RunError(f"{TRACKING_KEY}: the id of the run is {one_line(run_id)}, and no name.")
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
