"""The base class of loggers for experiment trackers."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from xftrain.errors import ConfigError, RunError, first_line
from xftrain.train.send_queue import NoAnswer, SendQueue
from xftrain.utils.printable import printable
from xftrain.utils.redaction import hidden_in_message, hidden_throughout

_START_S = 90.0  # maximum wait for the run of the tracker to start
_END_S = 120.0  # maximum wait for the last records of a run


class Tracker(Logger):
    """Sends metrics, the configuration and texts to one of Lightning's loggers.

    That logger writes files, so it is created only when training begins: until then a run can be
    refused. A resumed run starts a new run in the tracker. Records are sent in a separate thread,
    since a server may be slow; a failure is only a warning, since the run folder has the records
    too.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir
        self._logger: Any = None

    @abstractmethod
    def make(self) -> Any:
        """Creates Lightning's logger and a run of the tracker, and logs its address."""

    @abstractmethod
    def send_text(self, tag: str, text: str, step: int) -> None:
        """Sends a text under a name, to be shown unchanged."""

    @abstractmethod
    def end(self, *, is_whole: bool) -> None:
        """Ends the run of the tracker, with a status that tells whether training has completed."""

    @property
    def name(self) -> str:
        """Returns an empty name, so that other callbacks write to the run's folder itself."""
        return ""

    @property
    def version(self) -> str:
        """See `name`."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.run_dir)

    @rank_zero_only
    def start_run(self, config: Mapping[str, Any]) -> None:
        """Starts the run of the tracker.

        Args:
            config: the configuration by dotted keys, without secrets.

        Raises:
            RunError: the run cannot start, for example if a server does not answer.
        """
        self._queue = SendQueue(type(self).__name__)
        kind, folder = type(self).__name__.lower(), os.getcwd()
        try:
            self._logger = self._queue.call(lambda: self._create_run(config), _START_S)
        except (ConfigError, RunError):
            raise
        except NoAnswer:
            os.chdir(folder)  # the package may be imported in another one
            raise RunError(
                f"logger.{kind} has not begun within {_START_S:g} s: its server is too slow or "
                f"hangs. Choose another place for records, or remove it with logger.{kind}=null."
            ) from None
        except Exception as error:  # the package and the network may raise anything
            raise RunError(
                f"logger.{kind} could not begin ({first_line(error)}): choose another place for "
                f"records, see docs/results.md, or remove it with logger.{kind}=null."
            ) from error
        finally:
            if self._logger is None:
                self._queue.abandon()

    def _create_run(self, config: Mapping[str, Any]) -> Any:
        logger = self.make()
        logger.log_hyperparams(hidden_throughout(dict(config), hidden_in_message))
        return logger

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing, since `start_run` receives the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends the metrics of a step, with secrets in their names hidden."""
        if self._logger is not None:
            logger, copied = self._logger, hidden_throughout(metrics)
            self._queue.put(lambda: logger.log_metrics(copied, step))

    @rank_zero_only
    def show_text(self, tag: str, text: str, step: int) -> None:
        """Sends a text, with control characters escaped and secrets hidden."""
        if self._logger is not None:
            self._queue.put(lambda: self.send_text(tag, printable(hidden_in_message(text)), step))

    @rank_zero_only
    def close_run(self, *, is_complete: bool) -> None:
        """Ends the run of the tracker, if it has started.

        Args:
            is_complete: whether training has completed.
        """
        if self._logger is not None:
            self._queue.close(lambda: self.end(is_whole=is_complete), _END_S)
            self._logger = None
