"""What the loggers of experiment trackers share: a run of the tracker begins when training does."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from xftrain.errors import ConfigError, RunError, first_line
from xftrain.printable import printable
from xftrain.redaction import hidden, hidden_throughout

log = logging.getLogger(__name__)


class Tracker(Logger):
    """Sends metrics, the configuration and texts to a logger of Lightning's.

    That logger is made when training begins, as it would write files, and a run can be refused
    until then. A resumed run begins a run of its own in the tracker. A metric that cannot be sent
    is a warning, since the run itself has it.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir
        self._logger: Any = None
        self._has_failed = False

    @abstractmethod
    def make(self) -> Any:
        """Lightning's logger; makes a run of the tracker, and says in the log where it is."""

    @abstractmethod
    def send_text(self, tag: str, text: str, step: int) -> None:
        """Sends a text under a name, to be shown as it is."""

    @abstractmethod
    def end(self, *, is_whole: bool) -> None:
        """Ends the run of the tracker, which says whether the run has completed."""

    @property
    def name(self) -> str:
        """None, so that other callbacks write to the run's folder itself."""
        return ""

    @property
    def version(self) -> str:
        """The same."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.run_dir)

    @rank_zero_only
    def begin(self, config: Mapping[str, Any]) -> None:
        """Makes the run of the tracker.

        Args:
            config: by dotted keys, as it may be written down.

        Raises:
            RunError: it cannot be made, as where a server does not answer.
        """
        try:
            self._logger = self.make()
            self._logger.log_hyperparams(hidden_throughout(dict(config)))
        except (ConfigError, RunError):
            raise
        except Exception as error:  # of the package, or of the network
            kind = type(self).__name__.lower()
            raise RunError(
                f"logger.{kind} could not begin ({first_line(error)}): choose where it records, "
                f"see docs/results.md, or leave it out with logger.{kind}=null."
            ) from error

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing; `begin` has the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends the metrics of a step."""
        if self._logger is not None:
            self._attempt(lambda: self._logger.log_metrics(dict(metrics), step))

    @rank_zero_only
    def show_text(self, tag: str, text: str, step: int) -> None:
        """Sends a text, in which control characters are escaped and secrets hidden."""
        if self._logger is not None:
            self._attempt(lambda: self.send_text(tag, printable(hidden(text)), step))

    @rank_zero_only
    def close_run(self, *, is_whole: bool) -> None:
        """Ends the run of the tracker, where there is one.

        Args:
            is_whole: whether the run has completed.
        """
        if self._logger is not None:
            self._attempt(lambda: self.end(is_whole=is_whole))
            self._logger = None

    def _attempt(self, send: Any) -> None:
        try:
            send()
        except Exception as error:
            if not self._has_failed:
                log.warning(
                    "%s could not record (%s): training continues, and metrics that are lost "
                    "there are in the run folder where logger=csv is on.",
                    *(type(self).__name__, first_line(error)),
                )
            self._has_failed = True
